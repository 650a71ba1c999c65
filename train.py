"""One run, or several with ``-m``: ``python train.py --help`` says what can be chosen."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from hydrec import cli


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def train(cfg: DictConfig) -> None:
    """One job of the command line."""
    cli.job(cfg)


if __name__ == "__main__":
    sys.exit(cli.main(train, Path(__file__).resolve().parent / "conf"))
