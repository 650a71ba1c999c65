"""What all launchers do alike, on trivial commands: processes of this machine, SLURM, Ray."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.errors import InputError
from hydrec.sweep import slurm

CONF = Path(__file__).parents[2] / "conf"
NUMBERS = {
    "local": {"at_once": 2, "preload": False},
    "slurm": {"at_once": 2, "cpus": 1, "memory_gb": 1},
    "ray": {"at_once": 2, "address": None},
}


def settings(name: str, **changes):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("sweep", [f"launcher={name}"]).launcher, resolve=True) | changes


def launch(name: str, **changes):
    return instantiate(settings(name, **changes))


def ended(job, within: float = 60.0) -> int:
    """The exit status of a job."""
    until = time.monotonic() + within
    while (status := job.poll()) is None:
        assert time.monotonic() < until, "the job goes on"
        time.sleep(0.1)
    return status


def appears(path: Path, within: float = 60.0) -> str:
    """What a file says, once it says something."""
    until = time.monotonic() + within
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until, f"{path} does not appear"
        time.sleep(0.1)
    return path.read_text()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "localhost:port"])
def test_ray_that_is_not_there(address):
    pytest.importorskip("ray")
    with pytest.raises(Exception, match=f"launcher.address={address}: no Ray answers there"):
        launch("ray", address=address)


@pytest.mark.slow
def test_ray_without_room():
    pytest.importorskip("ray")
    with pytest.raises(Exception, match="no node of Ray has cpus=10000"):
        launch("ray", cpus=10000)


@pytest.fixture(
    scope="module",
    params=[
        "local",
        pytest.param("slurm", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ],
)
def launcher(request) -> Iterator:
    if request.param == "slurm":
        request.getfixturevalue("one_node")
    if request.param == "ray":
        pytest.importorskip("ray")
    made = launch(request.param, **NUMBERS[request.param])
    yield made
    made.close()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_exit_status(launcher, tmp_path, script, status):
    assert ended(launcher.start(["bash", "-c", script], tmp_path / "job.log")) == status


def test_log_has_both_streams_and_grows(launcher, tmp_path):
    log = tmp_path / "logs" / "job.log"
    for word in ("one", "two"):
        assert ended(launcher.start(["bash", "-c", f"echo {word}; echo and {word} >&2"], log)) == 0
    assert log.read_text().splitlines() == ["one", "and one", "two", "and two"]


def test_the_sweeps_folder_and_environment_are_the_jobs(launcher, tmp_path):
    log = tmp_path / "job.log"
    assert ended(launcher.start(["bash", "-c", "pwd; echo $HYDREC_OFFLINE $OMP_NUM_THREADS"], log)) == 0
    assert log.read_text().split() == [os.getcwd(), "1", os.environ.get("OMP_NUM_THREADS", "1")]


def test_jobs_run_side_by_side(launcher, tmp_path):
    assert launcher.slots == 2
    meet = 'touch $0; for _ in $(seq 300); do [ -e "$1" ] && exit 0; sleep 0.1; done; exit 1'
    ours, theirs = str(tmp_path / "a"), str(tmp_path / "b")
    jobs = [
        launcher.start(["bash", "-c", meet, *pair], tmp_path / f"{i}.log")
        for i, pair in enumerate([(ours, theirs), (theirs, ours)])
    ]
    assert [ended(job) for job in jobs] == [0, 0]


def test_a_stopped_job_may_leave_in_order(launcher, tmp_path):
    log = tmp_path / "job.log"
    script = "trap 'echo saved; exit 143' TERM; echo begun; while true; do sleep 0.1; done"
    job = launcher.start(["bash", "-c", script], log)
    assert appears(log) == "begun\n"
    assert job.poll() is None
    job.stop()
    assert ended(job) == 143
    assert "saved" in log.read_text().splitlines()


def test_a_command_that_cannot_be_started_says_why(launcher, tmp_path):
    if launcher.__class__.__name__ == "Local":
        pytest.skip("is the sweep's own Python")
    log = tmp_path / "job.log"
    assert ended(launcher.start(["/no/such/program"], log)) == 1
    assert "No such file or directory: '/no/such/program'" in log.read_text()


@pytest.mark.slow
class TestSlurm:
    @pytest.fixture(autouse=True)
    def there(self, one_node):
        pass

    def test_another_sweep_finds_the_job(self, tmp_path):
        log, go = tmp_path / "job.log", tmp_path / "go"
        wait = f"echo begun; while [ ! -e {go} ]; do sleep 0.1; done; exit 5"
        job = launch("slurm", **NUMBERS["slurm"]).start(["bash", "-c", wait], log)
        found = launch("slurm", **NUMBERS["slurm"]).attach(job.token)
        assert found.token == job.token
        assert found.poll() is None
        go.touch()
        assert ended(found) == 5
        number, _, where = job.token.partition(" ")
        while number in launch("slurm", **NUMBERS["slurm"]).queue():
            time.sleep(0.1)
        assert launch("slurm", **NUMBERS["slurm"]).attach(job.token).poll() == 5
        assert launch("slurm", **NUMBERS["slurm"]).attach(f"{int(number) + 1000} {where}") is None

    def test_a_job_whose_number_was_not_written_down_is_not_started_twice(self, tmp_path):
        log = tmp_path / "job.log"
        job = launch("slurm", **NUMBERS["slurm"]).start(["sleep", "100"], log)
        other = launch("slurm", **NUMBERS["slurm"])
        again = other.start(["sleep", "100"], log)
        assert again.token == job.token
        again.stop()
        assert ended(again) == 143

    def test_a_lost_job_is_told_by_the_queue(self, tmp_path, monkeypatch):
        monkeypatch.setattr(slurm, "GRACE", 2.0)
        log = tmp_path / "job.log"
        job = launch("slurm", **NUMBERS["slurm"]).start(["bash", "-c", "echo begun; sleep 100"], log)
        appears(log)
        subprocess.run(["scancel", job.token.split()[0]], check=True)
        assert ended(job) == 143
        assert "CANCELLED" in log.read_text()

    def test_tasks_share_a_log_and_the_first_failure_counts(self, tmp_path):
        log = tmp_path / "job.log"
        script = "echo I am $SLURM_PROCID of $SLURM_NTASKS; echo error $SLURM_PROCID >&2; exit $SLURM_PROCID"
        job = launch("slurm", **NUMBERS["slurm"], tasks=2).start(["bash", "-c", script], log)
        assert ended(job) == 0  # the first task tells
        assert sorted(log.read_text().splitlines()) == ["I am 0 of 2", "error 0", "error 1"]

    def test_options_reach_sbatch(self, tmp_path):
        log = tmp_path / "job.log"
        changes = {"cpus": 2, "setup": ["export SAID=hello"], "more": {"nice": 5}, "hours": 0.5}
        job = launch("slurm", **NUMBERS["slurm"] | changes).start(
            ["bash", "-c", "echo $SAID; scontrol show job $SLURM_JOB_ID; scontrol show step $SLURM_JOB_ID.0"],
            log,
        )
        assert ended(job) == 0
        said = log.read_text()
        assert said.startswith("hello\n")
        options = ("JobName=job", "TimeLimit=00:30:00", "Nice=5", "Requeue=1", "MinMemoryNode=1G", " CPUs=2 ")
        assert all(option in said for option in options), said

    def test_what_sbatch_refuses_is_one_line(self, tmp_path):
        with pytest.raises(InputError, match=r"launcher=slurm: sbatch: error: .*[Pp]artition"):
            launch("slurm", **NUMBERS["slurm"], partition="absent").start(["true"], tmp_path / "job.log")


def test_without_slurm(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Exception, match="this machine has no sbatch"):
        launch("slurm")


@pytest.mark.parametrize(("name", "extra"), [("slurm", "submitit"), ("ray", "ray")])
def test_without_the_library(name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(Exception) as error:
        launch(name)
    cause = error.value.__cause__ if not isinstance(error.value, InputError) else error.value
    assert f"pip install 'hydrec[{name}]'" in str(cause)
