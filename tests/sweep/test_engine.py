"""Sweeps to their end: killed, failing, pruned, two at once. Most with a stand-in for train.py.

It keeps a run's contract (folder, lock, epochs that continue, results last), and starts at once.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from hydrec.runs import hold

ROOT = Path(__file__).parents[2]

TRAIN = """
import json, os, sys, time
from pathlib import Path
from hydrec.runs import RunFolder, digest
keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
path = Path(json.loads(keys["paths.runs"])) / json.loads(keys["paths.study"]) / json.loads(keys["paths.name"])
quality = float(keys.get("model.net.dim", 64))
failing = os.environ.get("FAILING", "")
if failing and failing in keys["model"] and keys["seed"] == "0":
    end, said = os.environ["END"].split(":", 1)
    print("working"); print(said)
    os.kill(os.getpid(), 9) if end == "kill" else sys.exit(int(end))
folder = RunFolder(path)
with folder.locked():
    if folder.read("metrics.json") is not None:
        sys.exit(0)
    rows = folder.read("rows.json") or {"rows": []}
    for epoch in range(len(rows["rows"]), int(os.environ.get("EPOCHS", "4"))):
        time.sleep(0.05)
        rows["rows"].append({"epoch": epoch, "valid/ndcg@10": quality * (epoch + 1) / 1000})
        folder.write_json("rows.json", rows)
        folder.write_csv("history.csv", rows["rows"])
    with open(path / "ends", "a") as file:
        file.write("end\\n")
    folder.write_json("metrics.json", {"valid/ndcg@10": quality / 1000, "overrides": sys.argv[1:]})
"""

SETTINGS = {
    "title": "A test",
    "datasets": ["simulated"],
    "protocols": ["leave_one_out"],
    "models": ["sasrec", "gru4rec", "fpmc"],
    "variants": {},
    "curves": [],
    "references": ["popularity"],
    "baseline": "sasrec",
    "seeds": [0, 1],
    "loss": "softmax",
    "overrides": ["dataset.reader.shape=tiny", "trainer=cpu", "logger=none"],
    "where": [],
    "search": {
        "trials": 3,
        "epochs": 2,
        "monitor": "valid/ndcg@10",
        "mode": "max",
        "seed": 0,
        "at_once": 1,
        "of": None,
        "pruner": None,
        "overrides": ["stopping.min_steps=0"],
        "space": {"model.net.dim": [16, 32, 64, 128], "model.net.units": [16, 32]},
    },
}

SWEEP = """
import json, sys
from pathlib import Path
from hydrec import cli
from hydrec.sweep.engine import Sweep
from hydrec.sweep.launchers import Local
settings, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
retry, preload = (argument == "True" for argument in sys.argv[3:])
try:
    paths = {"data": "data", "runs": str(folder / "runs"), "cache": str(folder / "cache"), "cards": "cards"}
    sweep = Sweep(name="test", settings=settings, paths=paths, conf=folder / "conf",
                  launcher=Local(at_once=3, gpus=0, preload=preload), retry=retry)
    well = sweep.run()
except Exception as error:
    sys.exit(cli.report(error))
sys.exit(0 if well else 1)
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the config tree, the stand-in, and a sweep that has its data and its plan."""
    folder = tmp_path_factory.mktemp("sweep")
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "train.py").write_text(TRAIN)
    only = SETTINGS | {"models": [], "references": ["popularity"], "search": None, "baseline": None}
    assert sweep(folder, only).wait() == 0
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    """A copy of that for one test, its reference run again to be made."""
    own = tmp_path / "own"
    shutil.copytree(prepared, own)
    for run in (own / "runs" / "test").glob("simulated-*"):
        shutil.rmtree(run)
    return own


def sweep(folder, settings=SETTINGS, retry=False, preload=False, **environment):
    command = [sys.executable, "-c", SWEEP, json.dumps(settings), str(folder), str(retry), str(preload)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ledger(folder):
    return json.loads((folder / "runs" / "test" / "ledger.json").read_text())["jobs"]


def ended(folder):
    return {path.parent.name: path.read_text().count("end") for path in (folder / "runs").rglob("ends")}


def test_a_study_runs_to_its_end(folder):
    process = sweep(folder)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    jobs = ledger(folder)
    assert {entry["state"] for entry in jobs.values()} == {"finished"}
    kinds = [entry["kind"] for entry in jobs.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"data": 1, "trial": 9, "reference": 1, "seed": 6}
    assert set(ended(folder).values()) == {1} and len(ended(folder)) == 16
    # the runs have the best settings of their own model's trials
    for model in ("sasrec", "fpmc"):
        trials = [e for e in jobs.values() if e["kind"] == "trial" and e["model"] == model]
        best = max(trials, key=lambda entry: entry["value"])
        for entry in jobs.values():
            if entry["kind"] == "seed" and entry["model"] == model:
                assert f"model.net.dim={best['params']['model.net.dim']}" in entry["overrides"]
        assert trials[0]["params"] == {"model.net.dim": 64}
    # nothing is done again
    again = sweep(folder)
    assert again.wait() == 0
    assert ledger(folder) == jobs and set(ended(folder).values()) == {1}


def test_killed_twenty_times_it_loses_nothing_and_runs_nothing_twice(folder, prepared, tmp_path):
    random.seed(0)
    kills = 0
    while kills < 20:
        process = sweep(folder)
        time.sleep(random.uniform(0.1, 1.2))
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[0]
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    process = sweep(folder)
    assert process.wait() == 0, process.communicate()[0]
    killed = ledger(folder)
    assert {entry["state"] for entry in killed.values()} == {"finished"}
    assert set(ended(folder).values()) == {1} and len(ended(folder)) == 16
    # and what it found is what the sweep finds that nobody kills
    whole = tmp_path / "whole"
    shutil.copytree(prepared, whole)
    assert sweep(whole).wait() == 0
    assert {name: e["params"] for name, e in ledger(whole).items()} == {
        n: e["params"] for n, e in killed.items()
    }


@pytest.mark.parametrize("preload", [False, True])
def test_a_killed_sweep_leaves_no_process_behind(folder, preload):
    process = sweep(folder, preload=preload, EPOCHS="200")
    runs = folder / "runs" / "test"
    while not (holders := [p for p in runs.rglob("rows.json")]):
        time.sleep(0.05)
    assert hold(holders[0].parent) is None  # a job is in it
    process.send_signal(signal.SIGKILL)
    process.communicate()
    patience = time.monotonic() + 20
    while (file := hold(holders[0].parent)) is None and time.monotonic() < patience:
        time.sleep(0.05)
    assert file is not None
    file.close()


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, None)])
def test_a_sweep_that_is_asked_to_stop_stops_its_jobs(folder, number, status):
    process = sweep(folder, EPOCHS="200")
    runs = folder / "runs" / "test"
    while not list(runs.rglob("rows.json")):
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0 and (status is None or process.returncode == status)
    assert not any(entry["state"] == "running" for entry in ledger(folder).values())
    for path in runs.rglob("rows.json"):
        file = hold(path.parent)
        assert file is not None
        file.close()


def test_two_sweeps_do_not_run_one_study(folder):
    first = sweep(folder, EPOCHS="60")
    while not list((folder / "runs" / "test").rglob("rows.json")):
        time.sleep(0.05)
    second = sweep(folder)
    said = second.communicate()[0]
    assert second.returncode == 2 and "another sweep runs this study" in said and said.count("\n") == 1
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    "end, reason",
    [
        ("1:torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory, exit status 1"),
        ("2:hydrec: epoch 3: the training loss is not finite; lower", "not finite, exit status 2"),
        ("2:hydrec: seed=x: must be a whole number", "input, exit status 2"),
        ("1:ValueError: something else", "exception, exit status 1"),
        ("kill:about to be killed", "killed (out of memory?), exit status 137"),
        ("143:preempted", "terminated, exit status 143"),
        ("0:done, but without results", "exception, exit status 0"),
    ],
)
def test_a_job_that_fails_is_recorded_and_the_others_go_on(folder, end, reason):
    settings = SETTINGS | {"search": None}
    process = sweep(folder, settings, FAILING="fpmc", END=end)
    said = process.communicate()[0]
    assert process.returncode == 1, said
    jobs = ledger(folder)
    (failed,) = [entry for entry in jobs.values() if entry["state"] == "failed"]
    assert (failed["model"], failed["seed"], failed["reason"]) == ("fpmc", 0, reason)
    assert failed["lines"][-1] == end.split(":", 1)[1]
    assert failed["starts"] == (3 if "terminated" in reason else 1)
    assert sum(entry["state"] == "finished" for entry in jobs.values()) == len(jobs) - 1
    # it stays failed, until it is asked for again
    assert sweep(folder, settings).wait() == 1
    assert sweep(folder, settings, retry=True).wait() == 0
    assert {entry["state"] for entry in ledger(folder).values()} == {"finished"}


def test_hopeless_trials_are_ended(folder):
    pruner = {"_target_": "optuna.pruners.ThresholdPruner", "lower": 0.8, "n_warmup_steps": 20}
    search = SETTINGS["search"] | {"pruner": pruner, "space": {"model.net.dim": [16, 128]}, "trials": 5}
    process = sweep(folder, SETTINGS | {"models": ["sasrec"], "search": search}, EPOCHS="60")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    trials = [entry for entry in ledger(folder).values() if entry["kind"] == "trial"]
    assert trials[0]["state"] == "finished"  # the defaults: 64 * 21 / 1000 when first looked at
    for entry in trials:
        narrow = entry["params"]["model.net.dim"] == 16  # reaches .8 only at epoch 50
        assert entry["state"] == ("pruned" if narrow else "finished")
        if narrow:
            assert (
                20 <= len(entry["curve"]) < 55
                and not (folder / "runs/test" / entry["folder"] / "metrics.json").exists()
            )
    assert any(entry["state"] == "pruned" for entry in trials)


def test_a_study_that_makes_no_sense_leaves_nothing(tmp_path):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    process = sweep(tmp_path, SETTINGS | {"models": ["sasrek"]})
    said = process.communicate()[0]
    assert process.returncode == 2 and "did you mean sasrec?" in said
    assert not (tmp_path / "runs" / "test").exists()


def test_a_run_taken_away_is_made_again(folder):
    settings = SETTINGS | {"search": None}
    assert sweep(folder, settings).wait() == 0
    (run, *_) = (folder / "runs" / "test").glob("simulated-*-fpmc-s1-*")
    shutil.rmtree(run)
    assert sweep(folder, settings).wait() == 0
    assert (run / "metrics.json").exists()


def test_absent_data_are_named(folder):
    settings = SETTINGS | {"datasets": ["steam", "simulated"], "search": None, "overrides": ["trainer=cpu"]}
    empty = str(folder / "empty")
    process = sweep(folder, settings, HYDREC_DATA=empty, HYDREC_OFFLINE="1")
    said = process.communicate()[0]
    assert process.returncode == 0, said
    states = {
        entry["dataset"]: entry["state"] for entry in ledger(folder).values() if entry["kind"] == "data"
    }
    assert states == {"steam": "absent", "simulated": "finished"}
    assert "steam" in said


def test_forked_jobs_end_and_fail_as_others_do(folder):
    settings = SETTINGS | {"search": None}
    end = "2:hydrec: seed=x: must be a whole number"
    process = sweep(folder, settings, preload=True, FAILING="fpmc", END=end)
    said = process.communicate()[0]
    assert process.returncode == 1, said
    jobs = ledger(folder)
    (failed,) = [entry for entry in jobs.values() if entry["state"] == "failed"]
    assert (failed["model"], failed["reason"]) == ("fpmc", "input, exit status 2")
    assert failed["lines"] == ["working", end.split(":", 1)[1]]
    assert sum(entry["state"] == "finished" for entry in jobs.values()) == len(jobs) - 1
    log = folder / "runs" / "test" / "logs"
    assert not any((log / f"{name}.log").read_text() for name in jobs if jobs[name]["kind"] == "reference")


@pytest.mark.slow
def test_a_forked_run_ends_in_the_bits_of_one_of_its_own(tmp_path):
    settings = SETTINGS | {"models": ["sasrec"], "references": [], "search": None, "seeds": [0]}
    settings["overrides"] = [*settings["overrides"], "trainer.max_epochs=2"]
    found = []
    for preload in (False, True):
        own = tmp_path / str(preload)
        own.mkdir()
        for name in ("conf", "train.py"):
            (own / name).symlink_to(ROOT / name)
        process = sweep(own, settings, preload=preload)
        assert process.wait() == 0, process.communicate()[0]
        (run,) = (own / "runs" / "test").glob("simulated-*")
        found.append((run / "metrics.json").read_bytes())
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_smoke_study(tmp_path):
    command = [sys.executable, str(ROOT / "sweep.py"), "study=smoke", f"paths.runs={tmp_path}/runs"]
    command += [f"paths.cache={tmp_path}/cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    study = tmp_path / "runs" / "smoke"
    assert yaml.safe_load((study / "study.yaml").read_text())["baseline"] == "sasrec"
    runs = pl.read_parquet(study / "report" / "runs.parquet")
    assert len(runs) == 3 * 2 + 1
    assert "http" not in (study / "report" / "report.html").read_text().replace("http://www.w3.org", "")
