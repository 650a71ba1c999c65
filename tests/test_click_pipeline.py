"""Whole runs of click models on a tiny simulated log: what they leave, how they resume, other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from hydrec import pipeline
from hydrec.click_metrics import ClickMetrics

ROOT = Path(__file__).parents[1]
TINY = [
    *("dataset=simulated", "dataset.reader.shape=tiny", "protocol=click_last", "protocol.window=8"),
    *("model=din", "model.net.item_dim=4", "model.net.field_dim=4"),
    *("trainer=cpu", "trainer.max_epochs=3", "batch_size=128", "eval_batch_size=16", "logger=none"),
]


def train(folder: Path, *overrides: str, expect: int = 0) -> str:
    """Runs train.py as a user does, in ``folder``; returns what it prints."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_of(folder: Path) -> Path:
    (run,) = (folder / "runs" / "single").iterdir()
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    (folder / "printed").write_text(train(folder))
    return folder


def test_a_run_leaves_labels_and_logits_that_its_metrics_follow_from(finished):
    run = run_of(finished)
    metrics = json.loads((run / "metrics.json").read_text())
    about = json.loads((run / "run.json").read_text())
    table = polars.read_parquet(run / "test.parquet")
    assert table.columns == ["sample", "user", "item", "time", "label", "logit"]
    assert table["sample"].to_list() == list(range(about["dataset"]["parts"]["test"]["samples"]))
    labels, logits = table["label"].to_numpy(), table["logit"].to_numpy().astype(np.float64)
    assert metrics["test/auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    assert metrics["test/logloss"] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-logits))), abs=1e-9)
    assert metrics["test/base_rate"] == labels.mean() == 0.5
    assert metrics["constant/auc"] == 0.5 and 0 < metrics["popularity/auc"] < 1
    assert {"valid/auc", "test/gauc", "test/ne", "test/ece"} <= metrics.keys()
    catalog = polars.read_parquet(run / "catalog.parquet")
    assert (catalog["train_clicked"] <= catalog["train_shown"]).all()
    assert about["dataset"]["fields"]["item"].keys() == {"genres"}
    assert "base_rate" in (finished / "printed").read_text()


def test_a_model_learns_what_popularity_cannot_know(finished):
    metrics = json.loads((run_of(finished) / "metrics.json").read_text())
    losses = polars.read_csv(run_of(finished) / "history.csv")["train/loss"].to_list()
    assert losses[-1] < losses[0]
    assert metrics["test/auc"] > 0.5


def test_a_run_that_is_cut_off_continues_to_the_same_bits(finished, tmp_path):
    train(tmp_path, "trainer.max_epochs=1")  # the same but shorter: its last.ckpt is what a kill would leave
    short = run_of(tmp_path)
    whole = tmp_path / "runs" / "single" / run_of(finished).name
    short.rename(whole)
    for name in ("metrics.json", "test.parquet"):
        (whole / name).unlink()
    assert "continuing" in train(tmp_path)
    for name in ("history.csv", "test.parquet"):
        assert (whole / name).read_bytes() == (run_of(finished) / name).read_bytes(), name


def test_gauc_of_few_users_is_said(finished, capsys):
    run = run_of(finished)
    metrics, about = (json.loads((run / f"{name}.json").read_text()) for name in ("metrics", "run"))
    measured = ClickMetrics(gauc="rows", bins=20)
    for excluded, said in ((0.51, True), (0.5, False)):
        pipeline._show(metrics | {"test/gauc_excluded": excluded}, about, measured)
        assert ("gauc is of few: 51% of the test rows" in capsys.readouterr().out) == said


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_judge_a_checkpoint_to_the_same_bits(finished, tmp_path, processes):
    checkpoint = run_of(finished) / "checkpoints" / "best.ckpt"
    several = ["trainer=ddp_cpu", f"trainer.devices={processes}"]
    train(tmp_path, "fit=false", f"ckpt_path={checkpoint}", *several)
    expected = json.loads((run_of(finished) / "metrics.json").read_text())
    found = json.loads((run_of(tmp_path) / "metrics.json").read_text())
    tested = {name: value for name, value in expected.items() if not name.startswith(("valid", "train"))}
    assert {name: value for name, value in found.items() if name in tested} == tested
    left, right = (polars.read_parquet(run_of(folder) / "test.parquet") for folder in (finished, tmp_path))
    assert left.equals(right)


LAZY = ["model=deepfm_lazy", "model.net.dim=4", "model.optimiser.weight_decay=0.1"]


def test_tables_that_are_touched_by_row_resume_to_the_same_bits(tmp_path):
    given = [each for each in TINY if not each.startswith("model")] + LAZY

    def run(folder: Path, epochs: int) -> Path:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(ROOT / "train.py"), *given, f"trainer.max_epochs={epochs}"]
        subprocess.run(
            command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300
        )
        return run_of(folder)

    whole, short = run(tmp_path / "whole", 2), run(tmp_path / "short", 1)
    cut = short.rename(short.with_name(whole.name))
    for name in ("metrics.json", "test.parquet"):
        (cut / name).unlink()
    assert (run(tmp_path / "short", 2) / "test.parquet").read_bytes() == (whole / "test.parquet").read_bytes()


def test_two_processes_train(tmp_path):
    train(tmp_path, "trainer=ddp_cpu", "trainer.max_epochs=1")
    weights = torch.load(run_of(tmp_path) / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["protocol=leave_one_out"], "protocol=leave_one_out ranks items, and this model predicts clicks"),
        (["stopping.monitor=valid/hit@10"], "stopping.monitor=valid/hit@10 is none of valid/auc"),
        (["dataset.fields.user=[age,sex]"], "dataset.fields.user=sex is none of user_id"),
        (
            ["model.net.sparse=true"],
            "model.net.sparse=true: Adam needs dense gradients; set it to false, or",
        ),
        (["model.optimiser.lr=-1"], "model.optimiser: Invalid learning rate: -1"),
        (["protocol.neg=any"], "protocol.neg=any is none of uniform, same_category, reviews"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, overrides, message):
    given = [each for each in TINY if each.partition("=")[0] not in {o.partition("=")[0] for o in overrides}]
    if "protocol=leave_one_out" in overrides:
        given.remove("protocol.window=8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *given, *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and message in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
    assert not list(tmp_path.glob("runs/*/*"))
