"""Whole runs on a tiny simulated log: what they leave, how they resume, what several processes agree on."""

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import open_dict

from hydrec import pipeline
from hydrec.errors import InputError

ROOT = Path(__file__).parents[1]
TINY = [
    "dataset=simulated",
    "dataset.reader.shape=tiny",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "batch_size=128",
    "eval_batch_size=16",
    "model.net.dim=8",
    "model.net.head_dim=8",
]


def train(folder: Path, *overrides: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Runs train.py as a user does, in ``folder``."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *TINY, *overrides],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Runs the pipeline in this process, which saves importing torch, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, start: list[str] = TINY) -> dict[str, float]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            composed = compose("train", [*start, "logger=none", *overrides], return_hydra_config=True)
        chosen = composed.hydra.runtime.choices
        with open_dict(composed):
            del composed.hydra
            composed.names = {group: chosen[group] for group in ("dataset", "protocol", "model", "loss")}
        try:
            return pipeline.run(composed)
        except InstantiationException as error:  # Hydra wraps what a constructor raises; cli.py looks inside
            raise error.__cause__ or error from None

    return run


def only_run(folder: Path) -> Path:
    """The one run folder below ``folder``."""
    (run,) = (p for p in (folder / "runs" / "single").iterdir() if not p.name.rpartition(".old")[1])
    return run


def same_run(a: Path, b: Path) -> bool:
    """Whether two runs are equal bit for bit in weights, ranks and history."""
    assert (a / "history.csv").read_text() == (b / "history.csv").read_text()
    assert (a / "test.parquet").read_bytes() == (b / "test.parquet").read_bytes()
    assert json.loads((a / "metrics.json").read_text()) == json.loads((b / "metrics.json").read_text())
    for name in ("best.ckpt", "last.ckpt"):
        left, right = (
            torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"] for run in (a, b)
        )
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    return True


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with one finished run, logged to W&B offline."""
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


def test_a_run_leaves_what_the_documents_say(finished):
    run = only_run(finished)
    names = {p.name for p in run.iterdir()} - {".lock"}
    files = ("config.yaml", "metrics.json", "run.json", "history.csv", "test.parquet", "catalog.parquet")
    assert names == {*files, "users.parquet", "README.md", "checkpoints", "wandb"}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert run.name.startswith("simulated-sliding_window-hgnn-s0-")
    assert {p.name for p in finished.iterdir()} == {"runs", "cache"}, "Hydra must write nothing of its own"
    about = json.loads((run / "run.json").read_text())
    assert about["status"] == "finished"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"test/hit@10", "valid/hit@10", "popularity/hit@10", "random/hit@10"} <= metrics.keys()
    ranks = polars.read_parquet(run / "test.parquet")
    assert ranks.columns == ["sample", "user", "target", "time", "greater", "equal", "candidates"]
    assert len(ranks) == about["dataset"]["parts"]["test"]["samples"]
    hits = (ranks["greater"] < 10).cast(float)  # no ties expected between float scores
    assert (ranks["equal"] == 0).all()
    assert hits.mean() == pytest.approx(metrics["test/hit@10"], abs=1e-12)
    catalog = polars.read_parquet(run / "catalog.parquet")
    assert catalog["item"].to_list() == list(range(1, about["dataset"]["items"] + 1))
    assert {"raw", "title", "genres", "train_targets", "train_rows"} <= set(catalog.columns)


def test_the_wandb_run_has_configuration_data_identity_and_results(finished):
    run = only_run(finished)
    about = json.loads((run / "run.json").read_text())
    (mirror,) = run.glob("wandb/offline-run-*/*.wandb")
    content = mirror.read_bytes()
    for part in ("stopping", about["dataset"]["fingerprint"], about["protocol_digest"], "test_table"):
        assert part.encode() in content, part
    (table,) = run.glob("wandb/offline-run-*/files/media/table/*.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == [
        *("hgnn", "popularity", "recent_popularity", "itemknn", "markov", "random")
    ]


def test_a_finished_run_is_shown_and_not_repeated(finished):
    run = only_run(finished)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    done = train(finished)
    assert "is finished" in done.stdout
    assert "hit@10" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_rerun_repeats_and_keeps_the_old(finished):
    run = only_run(finished)
    train(finished, "rerun=true", "logger=none")
    assert same_run(run, run.with_name(run.name + ".old1"))


def test_killed_runs_continue_bit_for_bit(finished, tmp_path):
    """Kills a run at random moments, without warning, until one attempt gets through."""
    moments = random.Random(3)
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "logger=none"]
    kills = 0
    while True:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        history = next(tmp_path.glob("runs/single/*/history.csv"), None)
        epochs = len(history.read_text().splitlines()) if history else 0
        deadline = time.monotonic() + 300
        # wait for one more epoch than before, so that every attempt but the last is killed part-way
        while process.poll() is None and time.monotonic() < deadline and kills < 4:
            history = next(tmp_path.glob("runs/single/*/history.csv"), None)
            if history and len(history.read_text().splitlines()) > epochs:
                time.sleep(moments.random() * 0.3)
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                break
        if process.wait(timeout=600) == 0:
            break
    assert kills >= 2, "the run must have been interrupted for this test to mean anything"
    assert same_run(only_run(finished), only_run(tmp_path))


def test_an_interrupted_run_says_that_it_continues(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "logger=none", "trainer.max_epochs=500"]
    process = subprocess.Popen(
        [*command, "stopping.patience=500"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not next(tmp_path.glob("runs/single/*/history.csv"), None) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; the same command continues" in errors and "Traceback" not in errors
    assert json.loads((only_run(tmp_path) / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("least", [0, 30])
def test_a_run_killed_after_early_stopping_trains_no_further(tmp_path, least):
    overrides = ["trainer.max_epochs=50", "stopping.patience=1", f"stopping.min_steps={least}", "logger=none"]
    train(tmp_path, *overrides)
    run = only_run(tmp_path)
    history = (run / "history.csv").read_text()
    assert len(history.splitlines()) < 50, "it must have stopped early for this test to mean anything"
    table = polars.read_csv(run / "history.csv")
    hits, steps = table["valid/hit@10"].to_list(), table["step"].to_list()
    idle = [epoch for epoch in range(1, len(hits)) if hits[epoch] <= max(hits[:epoch])]
    assert len(hits) - 1 == next(epoch for epoch in idle if steps[epoch] >= least)
    assert not least or steps[idle[0]] < least, "it must have been held back for this test to mean anything"
    metrics = (run / "metrics.json").read_text()
    (run / "metrics.json").unlink()
    assert "continuing" in train(tmp_path, *overrides).stdout
    assert (run / "history.csv").read_text() == history
    assert (run / "metrics.json").read_text() == metrics


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_same_bits_from_any_number_of_processes(finished, tmp_path, processes):
    """From one checkpoint; 16 rows a batch leaves uneven shares."""
    checkpoint = f"ckpt_path={only_run(finished) / 'checkpoints' / 'best.ckpt'}"
    train(tmp_path, "trainer=ddp_cpu", f"trainer.devices={processes}", "fit=false", "logger=none", checkpoint)
    alone, together = only_run(finished), only_run(tmp_path)
    assert (alone / "test.parquet").read_bytes() == (together / "test.parquet").read_bytes()
    one, many = (json.loads((run / "metrics.json").read_text()) for run in (alone, together))
    assert all(many[name] == one[name] for name in many)
    assert json.loads((together / "run.json").read_text())["processes"] == processes


def test_fewer_test_rows_than_processes(finished, tmp_path):
    """One evaluation batch holds every row: two of the three processes have none."""
    checkpoint = f"ckpt_path={only_run(finished) / 'checkpoints' / 'best.ckpt'}"
    common = ["fit=false", "logger=none", checkpoint, "eval_batch_size=100000"]
    (tmp_path / "one").mkdir()
    (tmp_path / "three").mkdir()
    train(tmp_path / "one", *common)
    train(tmp_path / "three", *common, "trainer=ddp_cpu", "trainer.devices=3")
    one, three = only_run(tmp_path / "one"), only_run(tmp_path / "three")
    assert (one / "test.parquet").read_bytes() == (three / "test.parquet").read_bytes()


def test_multirun_with_ddp_trains_each_job_in_its_own_folder(tmp_path):
    train(tmp_path, "-m", "seed=0,1", "trainer=ddp_cpu", "trainer.max_epochs=1", "logger=none")
    runs = sorted((tmp_path / "runs" / "single").iterdir())
    assert [run.name.split("-")[3] for run in runs] == ["s0", "s1"]
    assert all((run / "metrics.json").exists() for run in runs)


def test_popularity_needs_no_training_and_stands_beside_every_model(finished, here, tmp_path):
    start = [override for override in TINY if not override.startswith("model.net")]
    metrics = here("model=popularity", start=start)
    assert (only_run(tmp_path) / "checkpoints" / "best.ckpt").exists()
    model = json.loads((only_run(finished) / "metrics.json").read_text())
    for name in ("hit@5", "ndcg@10", "mean_rank"):
        assert metrics[f"test/{name}"] == metrics[f"popularity/{name}"] == model[f"popularity/{name}"]
        assert metrics[f"random/{name}"] == model[f"random/{name}"]


def test_other_candidates_are_a_run_of_the_same_checkpoint(finished, here, tmp_path):
    checkpoint = only_run(finished) / "checkpoints" / "best.ckpt"
    full = json.loads((only_run(finished) / "metrics.json").read_text())
    sampled = here("fit=false", f"ckpt_path={checkpoint}", "protocol.candidates=sampled")
    assert sampled["test/hit@10"] > full["test/hit@10"]
    run = only_run(tmp_path)
    tested = polars.read_parquet(run / "test.parquet")
    assert tested["candidates"].unique().to_list() == [51]
    drawn = polars.read_parquet(run / "candidates.parquet")
    assert drawn.columns == ["sample", "part", "candidates"]
    drawn = drawn.filter(part="test")
    assert drawn["sample"].to_list() == tested["sample"].to_list()
    raw = dict(polars.read_parquet(run / "catalog.parquet")["item", "raw"].iter_rows())
    assert [raw[each[0]] for each in drawn["candidates"]] == tested["target"].to_list()
    lists = np.array(drawn["candidates"].to_list(), np.int32)[:, 1:]
    digest = hashlib.sha256(lists.tobytes()).hexdigest()
    about = json.loads((run / "run.json").read_text())["dataset"]
    assert about["candidate_lists"]["test"]["digest"] == digest
    masked = here("fit=false", f"ckpt_path={checkpoint}", "protocol.mask_history=true")
    assert masked["test/mean_rank"] < full["test/mean_rank"]


def test_the_table_of_results_has_what_was_measured(here, capsys):
    here("trainer.max_epochs=1", "protocol.metrics.at=[20]", "stopping.monitor=valid/hit@20")
    assert "hit@20" in capsys.readouterr().out


def test_a_stand_in_is_announced_before_and_after(here, capsys, monkeypatch):
    monkeypatch.delenv("HYDREC_DATA", raising=False)
    start = ["dataset=movielens", "dataset.stand_in.shape=tiny", "trainer=fast", "model=popularity"]
    here(start=start)
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "movielens-simulated is simulated" in line
    ]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["fit=false"], "ckpt_path"),
        (["fit=false", "ckpt_path=nowhere.ckpt"], "nowhere.ckpt: No such file"),
        (
            ["fit=false", "ckpt_path={checkpoint}", "dataset.reader.seed=1"],
            "of another run: its fingerprint",
        ),
        (["fit=false", "ckpt_path={checkpoint}", "model=hgnn_t"], "of another run: its model is hgnn, here"),
        (["fit=false", "ckpt_path={checkpoint}", "model.net.gamma=0.5"], "of another run: its net"),
        (["fit=false", "ckpt_path={checkpoint}", "seed=1"], "of another run: its seed is 0, here it is 1"),
        (["fit=false", "ckpt_path={checkpoint}", "protocol=leave_one_out"], "its protocol is sliding_window"),
        (["fit=false", "ckpt_path={checkpoint}", "protocol.stride=1"], "of another run: its split"),
        (["fit=false", "ckpt_path={history}"], "is not a checkpoint"),
        (["seed=-1"], "seed=-1"),
        (["stopping.patience=-1"], "stopping.patience=-1"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0"),
        (["protocol.candidates=sampled", "protocol.sampled.count=100000"], "protocol.sampled.count=100000"),
        (["ckpt_path={checkpoint}"], "fit=false"),
        (["stopping.monitor=valid/hit@11"], "did you mean valid/hit@10"),
        (["paths.runs=/proc/runs"], "paths.runs"),
        (["model.optimiser.lr=1e30"], "lr"),
        (["model.chunk=0"], "model.chunk"),
        (["batch_size=0"], "batch_size"),
        (["trainer.accelerator=mps"], "trainer=auto"),
        (["protocol.window=1000"], "protocol.window"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_result(finished, here, tmp_path, overrides, says):
    run = only_run(finished)
    known = {"checkpoint": run / "checkpoints" / "best.ckpt", "history": run / "history.csv"}
    with pytest.raises(InputError) as error:
        here(*(override.format(**known) for override in overrides))
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("*.tmp"))
    assert all(len(list(folder.iterdir())) > 1 for folder in tmp_path.glob("runs/single/*"))


def test_other_data_under_the_same_name_is_refused_and_set_aside(here, tmp_path, monkeypatch):
    here("trainer.max_epochs=1")
    run = only_run(tmp_path)
    about = json.loads((run / "run.json").read_text())
    about["dataset"]["fingerprint"] = "another"
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"other data.*rerun=true"):
        here("trainer.max_epochs=1")
    here("trainer.max_epochs=1", "rerun=true")
    assert (run.with_name(run.name + ".old1") / "run.json").exists()


def test_other_sources_under_the_same_name_are_told_and_never_mixed(here, tmp_path, monkeypatch, capsys):
    first = here("trainer.max_epochs=1")
    monkeypatch.setattr(pipeline, "_source_digest", lambda: "edited")
    assert here("trainer.max_epochs=1") == first
    assert "other sources" in capsys.readouterr().out
    run = only_run(tmp_path)
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"other sources.*rerun=true"):
        here("trainer.max_epochs=1")


def test_a_checkpoint_that_was_replaced_is_another_run(finished, here, tmp_path):
    source = only_run(finished) / "checkpoints"
    (tmp_path / "a.ckpt").write_bytes((source / "best.ckpt").read_bytes())
    here("fit=false", f"ckpt_path={tmp_path / 'a.ckpt'}")
    checkpoint = torch.load(source / "best.ckpt", weights_only=True)
    torch.save(checkpoint | {"epoch": 7}, tmp_path / "a.ckpt")
    here("fit=false", f"ckpt_path={tmp_path / 'a.ckpt'}")
    assert len(list(tmp_path.glob("runs/single/*/metrics.json"))) == 2


def test_a_run_that_tests_some_rows_says_how_many(here, capsys):
    start = ["dataset=simulated", "dataset.reader.shape=tiny", "trainer=fast", "model=popularity"]
    here("eval_batch_size=16", start=start)
    assert re.search(r"16 of [\d,]+ test rows", " ".join(capsys.readouterr().out.split()))


def test_a_full_disk_ends_a_run_in_one_line_and_it_continues_later(here, tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        if "last.ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left"):
            here()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("last.ckpt"))
    here()
    assert (only_run(tmp_path) / "metrics.json").exists()


def test_a_mistake_costs_one_line_on_the_terminal(tmp_path):
    done = train(tmp_path, "stopping.monitor=valid/hit@11", expect=2)
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("hydrec: ")


def test_a_run_ends_well_where_wandb_is_missing_or_fails(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "wandb.py").write_text("raise ImportError('wandb is not installed')\n")
    done = train(tmp_path, "trainer.max_epochs=1", PYTHONPATH=str(tmp_path / "broken"))
    assert "logger wandb is off" in done.stdout
    assert (only_run(tmp_path) / "metrics.json").exists()


def test_several_loggers_at_once(tmp_path):
    train(tmp_path, "trainer.max_epochs=1", "logger=wandb_tensorboard")
    run = only_run(tmp_path)
    assert list((run / "tensorboard").glob("events.*"))
    assert list((run / "wandb").glob("offline-run-*"))
