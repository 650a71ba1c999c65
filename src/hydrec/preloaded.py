"""What every run imports, for a server that forks runs: imported once, by `hydrec.sweep.launchers`."""

from hydrec import cli

cli.tune()  # before torch is there

from hydrec import pipeline  # noqa: E402, F401
