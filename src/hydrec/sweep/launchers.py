"""Where jobs run: processes of this machine, SLURM, or Ray. A job is a command line with a log."""

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Protocol

from hydrec.errors import InputError, at_least

PR_SET_PDEATHSIG = 1  # of prctl: a signal to be had when the parent ends


class Handle(Protocol):
    """A started job."""

    token: str | None  # by which another sweep finds it again

    def poll(self) -> int | None:
        """The exit status, as a shell has it, or ``None`` while the job runs."""

    def stop(self) -> None:
        """Asks the job to end: it keeps what it has."""


class Launcher(Protocol):
    """Starts jobs."""

    slots: int  # jobs at a time
    threads: int  # cores of a job

    def start(self, command: Sequence[str], log: Path) -> Handle:
        """Starts a job whose output is added to ``log``."""

    def attach(self, token: str) -> Handle | None:
        """A job that an earlier sweep started and that may still run; ``None`` if it cannot."""

    def close(self) -> None:
        """Gives back what the launcher holds."""


class Local:
    """Processes of this machine, which end when the sweep does.

    Args:
        at_once: jobs at a time; ``None``: one for each ``gpus`` GPUs, without GPUs one for two cores.
        gpus: that a job gets, where there are any.
        preload: torch and Lightning are imported once, by a server that forks the jobs, which spares each
            of them seconds.

    Raises:
        InputError: more GPUs a job than there are.
    """

    def __init__(self, *, at_once: int | None, gpus: int, preload: bool) -> None:
        at_least("launcher.gpus", gpus, 0)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        devices = visible_gpus() if gpus else []
        if devices and gpus > len(devices):
            raise InputError(f"launcher.gpus={gpus}: this machine has {len(devices)}")
        shares = [devices[i : i + gpus] for i in range(0, len(devices) - gpus + 1, gpus)] if devices else []
        if at_once is None:
            at_once = len(shares) or max(cores // 2, 1)
        self.slots = at_least("launcher.at_once", at_once, 1)
        self.threads = max(cores // self.slots, 1)
        # more jobs than shares of GPUs: several share one
        self.free: list[list[str]] = [shares[i % len(shares)] if shares else [] for i in range(self.slots)]
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))  # before the server reads it
        self.server = multiprocessing.get_context("forkserver") if preload else None
        if self.server is not None:
            self.server.set_forkserver_preload(["hydrec.preloaded"])

    def start(self, command: Sequence[str], log: Path) -> "_Process":
        """Starts a process, with its share of GPUs and cores."""
        log.parent.mkdir(parents=True, exist_ok=True)
        devices = self.free.pop()
        own = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {}
        started = (
            _spawned(command, log, own) if self.server is None else _forked(self.server, command, log, own)
        )
        return _Process(started, done=lambda: self.free.append(devices))

    def attach(self, token: str) -> None:
        """Nothing outlives the sweep."""

    def close(self) -> None:
        """Holds nothing."""


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device for device in given.split(",") if device not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:  # asking torch would take seconds and memory on a GPU
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(i) for i, line in enumerate(li for li in listed.stdout.splitlines() if li.startswith("GPU "))]


class _Process:
    token = None

    def __init__(self, process: subprocess.Popen | ForkServerProcess, done: Callable[[], None]) -> None:
        self.process, self.done = process, done
        self.status: int | None = None

    def poll(self) -> int | None:
        if self.status is None:
            own = self.process
            status = own.poll() if isinstance(own, subprocess.Popen) else own.exitcode
            if status is not None:
                self.status = status if status >= 0 else 128 - status
                self.done()
        return self.status

    def stop(self) -> None:
        self.process.terminate()


def _spawned(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    with open(log, "ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C is for the sweep, which tells its jobs
            preexec_fn=end_with_parent,
        )


def _forked(
    server: ForkServerContext, command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> ForkServerProcess:
    process = server.Process(target=_become, args=(list(command), str(log), dict(environment)))
    process.start()
    return process


def _become(command: list[str], log: str, environment: dict[str, str]) -> None:
    """Runs in the fork: becomes ``python SCRIPT ...`` or ``python -m MODULE ...``."""
    os.setsid()
    end_with_parent()
    os.environ.update(environment)
    with open(log, "ab") as file, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _, script, *rest = command
    if script == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(script))
        sys.argv = [script, *rest]
        runpy.run_path(script, run_name="__main__")


def end_with_parent() -> None:
    """Runs in the child: a sweep that is killed leaves no process behind (Linux; elsewhere they run on)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
