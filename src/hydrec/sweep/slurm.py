"""Jobs of a SLURM cluster, submitted by submitit.

What submitit leaves of a job lies in ``slurm/`` beside the log, on a disk that all nodes share. Of SLURM only
``sbatch``, ``squeue`` and ``scancel`` are asked: ``sacct``, by which submitit tells how a job ended, needs a
database that small clusters lack.
"""

import math
import os
import pickle
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrec.errors import InputError, at_least

TERMINATED, KILLED = 143, 137
FOLDER = "slurm"
POLL = 0.2  # seconds
ASK = 5.0  # seconds between two looks at the queue
GRACE = 15.0  # seconds in which the result of a job that has left the queue may come through a slow disk
LEAVE = 30.0  # seconds in which a command ends that was told to; submitit tells it 90 before the time is up
WAIT = 600  # seconds in which all tasks of a job end after the first has


class Slurm:
    """Jobs in the queue of a SLURM cluster, which go on when the sweep is killed.

    Args:
        at_once: jobs in the queue at a time, running or not.
        cpus: cores of each process.
        gpus: of a job, all its processes together.
        tasks: processes of a job, on one node; what each computes is the trainer's business.
        memory_gb: of a job.
        hours: after which SLURM ends a job; it is put back into the queue and continues.
        requeues: how many times that may happen.
        partition, account: ``None``: the cluster's default.
        setup: lines of shell that come before the job.
        more: any other options of sbatch, by their long names; ``None``: none.

    Raises:
        InputError: submitit or SLURM is not there, or a number makes no sense.
    """

    def __init__(
        self,
        *,
        at_once: int,
        cpus: int,
        gpus: int,
        tasks: int,
        memory_gb: int,
        hours: float,
        requeues: int,
        partition: str | None,
        account: str | None,
        setup: Sequence[str],
        more: Mapping[str, Any] | None,
    ) -> None:
        try:
            import submitit  # noqa: F401
        except ImportError as error:
            raise InputError("launcher=slurm needs submitit: pip install 'hydrec[slurm]'") from error
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(name)]:
            raise InputError(f"launcher=slurm: this machine has no {missing[0]}; start it on a login node")
        if not hours > 0:
            raise InputError(f"launcher.hours={hours}: must be above 0")
        self.slots = at_least("launcher.at_once", at_once, 1)
        self.tasks = at_least("launcher.tasks", tasks, 1)
        self.cpus = at_least("launcher.cpus", cpus, 1)
        self.threads = cpus * tasks
        self.requeues = at_least("launcher.requeues", requeues, 0)
        given = {
            "partition": partition,
            "account": account,
            "gpus_per_node": at_least("launcher.gpus", gpus, 0),
        }
        self.options = {key: value for key, value in given.items() if value} | {
            "nodes": 1,
            "ntasks_per_node": tasks,
            "cpus_per_task": cpus,
            "mem": f"{at_least('launcher.memory_gb', memory_gb, 1)}GB",
            "time": math.ceil(hours * 60),
            "setup": list(setup),
            "additional_parameters": {"requeue": True, **(more or {})},
            # srun does not take the cores over from sbatch since SLURM 22.05
            "srun_args": [f"--cpus-per-task={cpus}", f"--wait={WAIT}"],
        }
        self.asked = -math.inf
        self.listed: dict[str, str] | None = None
        self.earlier: dict[str, str] | None = None

    def start(self, command: Sequence[str], log: Path) -> "_Job":
        """Submits a job, or takes up the one that a sweep submitted just before it was killed.

        Raises:
            InputError: SLURM takes no such job.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        log = log.resolve()
        if self.earlier is None:
            self.earlier = {comment: number for number, comment in (self.queue() or {}).items()}
        if (number := self.earlier.pop(str(log), None)) is not None:
            return _Job(self, number, log)
        executor = SlurmExecutor(log.parent / FOLDER, max_num_timeout=self.requeues)
        executor.update_parameters(job_name=log.stem, comment=str(log), **self.options)
        try:
            job = executor.submit(_Command(command, log, self.cpus))
        except (FailedJobError, FailedSubmissionError) as error:
            raise InputError(f"launcher=slurm: {error}") from error
        self.asked = -math.inf
        return _Job(self, job.job_id, log)

    def attach(self, token: str) -> "_Job | None":
        """The job of an earlier sweep, if it is in the queue or has left a result."""
        number, _, log = token.partition(" ")
        job = _Job(self, number, Path(log))
        queue = self.queue()
        return job if queue is None or number in queue or job.result(0) is not None else None

    def close(self) -> None:
        """Holds nothing."""

    def queue(self) -> dict[str, str] | None:
        """The comments of this user's jobs in the queue, by id; ``None`` if SLURM does not answer."""
        if time.monotonic() - self.asked >= ASK:
            command = ["squeue", "--noheader", "--user", str(os.getuid()), "--format", "%i %k"]
            asked = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line.partition(" ") for line in asked.stdout.splitlines()]
            self.listed = {n: comment for n, _, comment in lines} if asked.returncode == 0 else None
            self.asked = time.monotonic()
        return self.listed


class _Job:
    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.slurm, self.number, self.log = slurm, number, log
        self.token = f"{number} {log}"
        self.seen = time.monotonic()
        self.stopped = False

    def poll(self) -> int | None:
        status = self.result(0)
        if status is not None:
            return status
        queue = self.slurm.queue()
        if queue is None or self.number in queue:
            self.seen = time.monotonic()
            return None
        if self.stopped:
            return TERMINATED
        if time.monotonic() - self.seen < GRACE:
            return None
        said = self._said()
        with open(self.log, "a") as file:
            file.writelines(said)
        failed = [status for task in range(1, self.slurm.tasks) if (status := self.result(task))]
        return (failed or [KILLED if "oom" in "".join(said).lower() else TERMINATED])[0]

    def stop(self) -> None:
        subprocess.run(["scancel", self.number], check=False)
        self.stopped = True
        self.slurm.asked = -math.inf

    def result(self, task: int) -> int | None:
        """The exit status that a task left."""
        path = self.log.parent / FOLDER / f"{self.number}_{task}_result.pkl"
        if not path.exists():
            return None
        outcome, status = pickle.loads(path.read_bytes())
        return status if outcome == "success" else 1

    def _said(self) -> list[str]:
        """Why SLURM ended the job."""
        path = self.log.parent / FOLDER / f"{self.number}_0_log.err"
        text = path.read_text(errors="replace") if path.exists() else ""
        return [line for line in text.splitlines(keepends=True) if line.startswith("slurmstepd")]


class _Command:
    """What runs on a node, once in each task: the command, its output added to the log.

    submitit writes down what the call returns as the result of the job. A job that SLURM ends has no result,
    whether it goes back into the queue or not: then the call does not return.
    """

    def __init__(self, command: Sequence[str], log: Path, cpus: int) -> None:
        self.command, self.log, self.cpus = list(command), log, cpus
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        told = []
        signal.signal(
            signal.SIGTERM, lambda number, frame: told.append(number)
        )  # the command is told as well
        first = os.environ["SLURM_PROCID"] == "0"
        with open(self.log, "ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log if first else subprocess.DEVNULL,  # all tasks say the same, but for errors
                    stderr=log,
                    env={"OMP_NUM_THREADS": str(self.cpus)} | os.environ,
                    preexec_fn=_ignore_warning,
                )
                while (
                    status := self.process.poll()
                ) is None:  # its wait() cannot be called again by a handler
                    time.sleep(POLL)
            except Exception as error:  # no such file, or submitit's: the hours were up too often
                log.write(f"{type(error).__name__}: {error}\n".encode())
                raise
            finally:
                self._end()
        if told and status != 0:
            raise SystemExit(TERMINATED)
        return status if status >= 0 else 128 - status

    def checkpoint(self) -> Any:
        """Called when the hours are up: the same command goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        self._end()
        return DelayedSubmission(_Command(self.command, self.log, self.cpus))

    def _end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(LEAVE)
            except subprocess.TimeoutExpired:
                self.process.kill()


def _ignore_warning() -> None:
    """Runs in the child: the signal that time is up goes to all processes, and would kill it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
