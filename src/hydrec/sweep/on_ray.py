"""Jobs as tasks of Ray, on this machine or on a cluster whose nodes share the study's disk."""

import logging
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydrec.errors import InputError, at_least
from hydrec.sweep.launchers import end_with_parent

TERMINATED, KILLED = 143, 137
POLL = 0.2  # seconds
CONNECT = 10.0  # seconds
OBJECTS = 100 * 2**20  # bytes of memory for objects, of which a job has none


class Ray:
    """Tasks of Ray, which end when the sweep does.

    Args:
        address: of a cluster, ``HOST:PORT`` or ``auto``; ``None``: a Ray of this machine is started.
        at_once: jobs at a time; ``None``: as many as there is room for.
        cpus: cores of a job.
        gpus: of a job, where there are any.

    Raises:
        InputError: Ray is not there, or no node has room for a job.
    """

    def __init__(self, *, address: str | None, at_once: int | None, cpus: int, gpus: int) -> None:
        self.threads = at_least("launcher.cpus", cpus, 1)
        at_least("launcher.gpus", gpus, 0)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # it would warn that what it does to the GPUs of jobs with none is going to change
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise InputError("launcher=ray needs Ray: pip install 'hydrec[ray]'") from error
        self.ray = ray
        own: dict[str, Any] = (
            {"include_dashboard": False, "object_store_memory": OBJECTS} if address is None else {}
        )
        try:
            if address is not None and ":" in address:  # Ray would try for a quarter of an hour
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), CONNECT).close()
            ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except (OSError, ValueError) as error:
            raise InputError(f"launcher.address={address}: no Ray answers there; null starts one") from error
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("GPU") for node in nodes):
            gpus = 0
        shares = [int(node.get("CPU", 0)) // cpus for node in nodes]
        if gpus:
            shares = [min(n, int(node.get("GPU", 0)) // gpus) for n, node in zip(shares, nodes, strict=True)]
        if not any(shares):
            ray.shutdown()
            raise InputError(f"launcher: no node of Ray has cpus={cpus} and gpus={gpus} for a job")
        self.slots = sum(shares) if at_once is None else at_least("launcher.at_once", at_once, 1)
        # what ends from outside is started again by the sweep, which counts
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run)

    def start(self, command: Sequence[str], log: Path) -> "_Task":
        """Hands a task to Ray."""
        log = log.resolve()
        given = {key: value for key, value in os.environ.items() if key.startswith("HYDREC_")}
        return _Task(self.ray, self.task.remote(list(command), log, Path.cwd(), given), log)

    def attach(self, token: str) -> None:
        """Nothing outlives the sweep."""

    def close(self) -> None:
        """Leaves the cluster, or ends the Ray of this machine."""
        self.ray.shutdown()


class _Task:
    token = None

    def __init__(self, ray: Any, reference: Any, log: Path) -> None:
        self.ray, self.reference, self.log = ray, reference, log

    def poll(self) -> int | None:
        done, _ = self.ray.wait([self.reference], timeout=0)
        if not done:
            return None
        wrong = self.ray.exceptions
        try:
            return self.ray.get(self.reference)
        except wrong.OutOfMemoryError:
            return KILLED
        except wrong.TaskCancelledError:
            return TERMINATED
        except wrong.RayTaskError as error:  # the command could not be started
            with open(self.log, "a") as file:
                file.write(f"{error.cause}\n")
            return 1
        except wrong.RayError:  # a node or a worker is lost
            return TERMINATED

    def stop(self) -> None:
        self.ray.cancel(self.reference)


def _run(command: Sequence[str], log: Path, folder: Path, given: Mapping[str, str]) -> int:
    """What runs on a node. Ray sets OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | given,
            preexec_fn=end_with_parent,
        )
    try:
        while process.poll() is None:  # Ray cannot interrupt process.wait()
            time.sleep(POLL)
    finally:
        process.terminate()
        process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
