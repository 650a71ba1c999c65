"""Training under a real SLURM: a job that is put back into the queue, two tasks, a sweep that is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

ROOT = Path(__file__).parents[2]
TINY = [
    "dataset=simulated",
    "dataset.reader.shape=tiny",
    "protocol=leave_one_out",
    "model=sasrec",
    "loss=softmax",
    "batch_size=32",
    "logger=none",
]
SMALL_JOBS = ["launcher=slurm", "launcher.cpus=1", "launcher.memory_gb=1"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_node")]


def until(true: Callable[[], bool], within: float = 240.0) -> None:
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def paths(folder: Path) -> list[str]:
    return [f"paths.{name}={folder / name}" for name in ("runs", "cache", "cards")]


def command(folder: Path, *overrides: str) -> list[str]:
    """A small training, with its own folders."""
    return [sys.executable, str(ROOT / "train.py"), *TINY, *overrides, *paths(folder), "paths.name=run"]


def launch(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("sweep", [*SMALL_JOBS, *overrides]).launcher)


def run_folder(folder: Path) -> Path:
    return folder / "runs" / "single" / "run"


def epochs(folder: Path) -> list[int]:
    """Of the history of a run, as far as it has come."""
    path = run_folder(folder) / "history.csv"
    return polars.read_csv(path)["epoch"].to_list() if path.exists() else []


def shown(number: str) -> str:
    command = ["scontrol", "show", "job", number]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def starts_again(number: str, times: int) -> None:
    """Waits for a job that was put back into the queue, where SLURM would hold it for two minutes."""
    until(lambda: "Reason=BeginTime" in shown(number))
    time.sleep(3)  # SLURM refuses a job that begins in the second in which it ended
    subprocess.run(["scontrol", "update", f"jobid={number}", "starttime=now"], check=True)
    until(lambda: {f"Restarts={times}", "JobState=RUNNING"} <= set(shown(number).split()))


def test_a_job_put_back_into_the_queue_continues(tmp_path):
    """Once by hand, as when a more urgent job takes its place; once because its hours are up."""
    there, alone = tmp_path / "slurm", tmp_path / "alone"
    length = ["trainer=cpu", "trainer.max_epochs=25", "stopping.patience=25"]
    log = tmp_path / "job.log"
    job = launch("launcher.hours=0.1", "launcher.requeues=1").start(command(there, *length), log)
    number = job.token.split()[0]
    until(lambda: len(epochs(there)) >= 2)
    subprocess.run(["scontrol", "requeue", number], check=True)
    starts_again(number, 1)
    assert job.poll() is None
    before = len(epochs(there))
    until(lambda: len(epochs(there)) >= before + 2)
    subprocess.run(["scancel", "--signal=USR2", number], check=True)  # as SLURM does 90 s before the end
    starts_again(number, 2)
    assert job.poll() is None
    until(lambda: job.poll() is not None)
    assert job.poll() == 0, log.read_text()
    assert log.read_text().count("continuing") == 2
    assert epochs(there) == list(range(len(epochs(there))))
    subprocess.run(command(alone, *length), check=True, capture_output=True)
    assert (run_folder(there) / "test.parquet").read_bytes() == (
        run_folder(alone) / "test.parquet"
    ).read_bytes()


def test_a_job_whose_hours_are_up_too_often_fails(tmp_path):
    log = tmp_path / "job.log"
    job = launch("launcher.hours=0.1", "launcher.requeues=0").start(
        ["bash", "-c", "trap 'echo saved; exit 143' TERM; echo begun; while true; do sleep 0.1; done"], log
    )
    until(lambda: log.exists() and "begun" in log.read_text())
    subprocess.run(["scancel", "--signal=USR2", job.token.split()[0]], check=True)
    until(lambda: job.poll() is not None)
    assert job.poll() == 1
    assert "saved" in log.read_text()
    assert "timed-out too many times" in log.read_text()


def test_two_tasks_train_as_two_processes(tmp_path):
    there, here, one = (tmp_path / name for name in ("slurm", "here", "one"))
    length = ["trainer=ddp_cpu", "trainer.max_epochs=2"]
    log = tmp_path / "job.log"
    job = launch("launcher.tasks=2").start(command(there, *length), log)
    subprocess.run(command(here, *length), check=True, capture_output=True)
    until(lambda: job.poll() is not None)
    assert job.poll() == 0, log.read_text()
    assert json.loads((run_folder(there) / "run.json").read_text())["processes"] == 2
    assert log.read_text().count("everything about this run") == 1
    # the same bits as the two processes that Lightning starts, and as one that tests their weights
    best = run_folder(there) / "checkpoints" / "best.ckpt"
    again = command(one, "trainer=cpu", "fit=false", f"ckpt_path={best}")
    subprocess.run(again, check=True, capture_output=True)
    tested = [(run_folder(folder) / "test.parquet").read_bytes() for folder in (there, here, one)]
    assert tested[0] == tested[1] == tested[2]


def test_a_killed_sweep_finds_its_jobs_again(tmp_path):
    study = tmp_path / "runs" / "smoke"
    overrides = [
        'overrides=["trainer.max_epochs=25","stopping.patience=25"]',
        "report=false",
        "launcher.at_once=2",
    ]
    few = ["study.models=[sasrec]", "study.references=[]", "study.search.trials=1", "study.search.epochs=1"]
    sweep = [sys.executable, str(ROOT / "sweep.py"), "study=smoke", *few, *overrides]
    sweep += [*SMALL_JOBS, *paths(tmp_path)]

    def entries() -> list[dict]:
        path = study / "ledger.json"
        jobs = json.loads(path.read_text())["jobs"].values() if path.exists() else []
        return [job for job in jobs if job["kind"] == "seed"]

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(sweep, env=environment, stdout=subprocess.DEVNULL) as first:
        until(lambda: len(list(study.glob("*/checkpoints/last.ckpt"))) == 2 or first.poll() is not None)
        first.kill()
    before = {job["name"]: job["token"] for job in entries()}
    assert len(before) == 2
    assert all(before.values())
    assert not list(study.glob("*/metrics.json"))
    done = subprocess.run(sweep, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(job["state"], job["starts"]) for job in entries()] == [("finished", 1)] * 2
    numbers = {path.name.partition("_")[0] for path in (study / "logs" / "slurm").glob("*_submission.sh")}
    assert len(numbers) == 4  # the data, a trial, two runs
    assert {token.split()[0] for token in before.values()} < numbers
    assert all("continuing" not in path.read_text() for path in (study / "logs").glob("*.log"))
