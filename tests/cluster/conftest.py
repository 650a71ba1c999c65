"""A SLURM of one node, for as long as the tests of a file run."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("one_node.sh")


@pytest.fixture(scope="module")
def one_node(tmp_path_factory) -> Iterator[None]:
    """SLURM, with four cores and no GPU."""
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        pytest.skip("needs slurm-wlm and munge")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    with subprocess.Popen([SCRIPT, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout.readline() == "ready\n"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
            # not what a job of SLURM that runs these tests would have
            for key in [key for key in os.environ if key.startswith("SLURM_") and key != "SLURM_CONF"]:
                patch.delenv(key)
            yield
        node.stdin.close()
