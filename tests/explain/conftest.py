"""Tiny finished runs that several tests explain, made once; and the command line, answered in-process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hydrec import commands
from hydrec.explain import __main__ as command

TRAIN = Path(__file__).parents[2] / "train.py"
TINY = [
    *("-m", "model=hgnn,sasrec,ia_sasrec_add", "dataset=simulated", "dataset.reader.shape=tiny"),
    *("protocol=sliding_window", "protocol.window=8", "protocol.stride=3", "protocol.test=0.2"),
    *("protocol.mask_history=true", "trainer=cpu", "trainer.max_epochs=2", "batch_size=256", "logger=wandb"),
    *("eval_batch_size=100", "model.net.dim=8", "model.net.heads=2", "model.optimiser.lr=0.01"),
]


@pytest.fixture(scope="session")
def ranked(tmp_path_factory):
    """The folders of finished runs of models that rank items, by model."""
    folder = tmp_path_factory.mktemp("ranked")
    settings = {"cwd": folder, "capture_output": True, "text": True, "timeout": 600}
    settings["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(TRAIN), *TINY], **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.name.split("-")[2]: path for path in (folder / "runs" / "single").iterdir()}
    assert {*found} == {"hgnn", "sasrec", "ia_sasrec_add"}
    return found


@pytest.fixture
def runs(ranked, monkeypatch):
    """The same, in the folder that they were made from: where the cache is."""
    monkeypatch.chdir(ranked["hgnn"].parents[2])
    return ranked


@pytest.fixture
def answer(capsys):
    """Answers a command line: status, output, errors."""

    def answer(*argv):
        status = commands.answer([str(each) for each in argv], command.COMMANDS, command.HELP)
        return status, *capsys.readouterr()

    return answer


@pytest.fixture
def refused(answer):
    """Asserts that a command line is refused in one line that has these words."""

    def refused(said, *argv):
        status, _, err = answer(*argv)
        assert status == 2, err
        assert said in err
        assert err.count("\n") == 1 and err.startswith("hydrec: ")

    return refused


@pytest.fixture
def copied(tmp_path):
    """Makes a copy of a run, called ``name``, with other values in its configuration."""

    def copied(run, name="copy", **values):
        copy = tmp_path / name
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("wandb", "explain"))
        cfg = OmegaConf.load(copy / "config.yaml")
        for key, value in values.items():
            OmegaConf.update(cfg, key.replace("__", "."), value)
        OmegaConf.save(cfg, copy / "config.yaml")
        return copy

    return copied
