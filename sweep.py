"""One study, to its report: ``python sweep.py --help`` says what can be chosen."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from hydrec import cli

CONF = Path(__file__).resolve().parent / "conf"


@hydra.main(version_base="1.3", config_path="conf", config_name="sweep")
def sweep(cfg: DictConfig) -> None:
    """The study of the command line."""
    cli.study(cfg, CONF)


if __name__ == "__main__":
    sys.exit(cli.main(sweep, CONF, "sweep"))
