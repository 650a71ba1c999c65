"""What every driver does alike, in the environment of its library: time optimiser steps, judge, report.

A driver is a process of its own that `sides.py` starts with one argument, a JSON object of settings. Its
library trains as it is shipped; torch tells of every optimiser step, whatever loop it is in, which gives the
time of the first, the pace after some to warm up, and the place to stop. Needs torch and NumPy alone.

Letters: B rows, T history positions, V items.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

Score = Callable[[np.ndarray, np.ndarray], torch.Tensor]  # items (B, T) right-padded, lengths (B,) -> (B, V)


class Enough(Exception):
    """The limit of steps or seconds is reached."""


def settings() -> dict[str, Any]:
    """Those of this process; the random seed and the threads are set by them."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    torch.manual_seed(given["seed"])
    return given


class Watch:
    """Times optimiser steps from its first one on, and ends the training at a limit.

    Args:
        given: ``started``, the clock when the process was; ``warmup`` steps that are not counted; at most
            ``steps`` and ``seconds`` that are; ``out``, the file that takes what is found. With ``every``,
            the quality is judged after that many training seconds, then after a fifth more each time.
        judge: what to report beside the training seconds, which do not run while it works.
    """

    def __init__(self, given: dict[str, Any], judge: Callable[[], dict[str, float]] | None = None) -> None:
        self.given, self.judge = given, judge
        self.taken, self.first_step = 0, 0.0
        self.next = given.get("every", float("inf"))
        self.begun = self.now()
        self.wall = self.cpu = 0.0

    @staticmethod
    def now() -> np.ndarray:
        """Wall-clock and CPU seconds."""
        return np.array([time.perf_counter(), time.process_time()])

    def run(self, fit: Callable[[], Any]) -> None:
        """Trains until the limit; where the library's training ends before, until then."""
        self.origin = self.now()
        hook = register_optimizer_step_post_hook(self._stepped)
        with suppress(Enough):
            fit()
        hook.remove()

    def _stepped(self, *_: Any) -> None:
        self.taken += 1
        now = self.now()
        if self.taken == 1:
            self.first_step = time.time() - self.given["started"]
        if self.taken <= self.given["warmup"]:
            self.begun = now
            return
        self.wall, self.cpu = (now - self.begun).tolist()
        trained = float(now[0] - self.origin[0])
        if self.judge is not None and trained >= self.next:
            self.report({"trained_s": trained, "step": self.taken, **self.judge()})
            self.next = 1.2 * trained
            paused = self.now() - now
            self.begun, self.origin = self.begun + paused, self.origin + paused
        if self.taken - self.given["warmup"] >= self.given["steps"] or self.wall >= self.given["seconds"]:
            raise Enough

    def finish(self, *, rows: int, batches: int, **more: Any) -> None:
        """Reports the pace.

        Args:
            rows: training rows of an epoch.
            batches: steps of an epoch.
            more: facts of the driver.
        """
        counted = self.taken - self.given["warmup"]
        if counted < 1:
            raise SystemExit(f"{self.taken} steps were taken, {self.given['warmup']} of them to warm up")
        self.report(
            {
                "first_step_s": self.first_step,
                "steps": counted,
                "wall_s": self.wall,
                "cpu_s": self.cpu,
                "rows": rows,
                "batches": batches,
                "epoch_s": self.wall / counted * batches,
                "epoch_cpu_s": self.cpu / counted * batches,
                "peak_mib": peak_memory(),
                "torch": torch.__version__,
                **more,
            }
        )

    def report(self, found: dict[str, Any]) -> None:
        """Adds a line to what is found."""
        with open(self.given["out"], "a") as file:
            file.write(json.dumps(found) + "\n")


def peak_memory() -> int:
    """MiB that this process held at most: getrusage would count what its parent held when it started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def timed(work: Callable[[], Any]) -> float:
    """Seconds of some work."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


class Sequences:
    """The interactions of all users, and where each of them ends.

    Args:
        path: npz of ``user`` (N,), ascending, and ``item`` (N,), numbered from 1, in order.

    Attributes:
        user, item: (N,) int64.
        starts, ends: (U,) first row of each user and the one after the last.
        place: (N,) number of each row among its user's.
        n_items: V.
    """

    def __init__(self, path: str) -> None:
        rows = np.load(path)
        self.user, self.item = rows["user"].astype(np.int64), rows["item"].astype(np.int64)
        self.starts = np.flatnonzero(np.diff(self.user, prepend=-1))
        self.ends = np.append(self.starts[1:], len(self.user))
        self.place = np.arange(len(self.user)) - np.repeat(self.starts, self.ends - self.starts)
        self.n_items = int(self.item.max())

    @property
    def facts(self) -> dict[str, int]:
        """What all drivers must report alike; the last is a checksum of what is tested."""
        tested = int((np.arange(1, len(self.ends) + 1) * self.item[self.ends - 1]).sum())
        return {"users": len(self.ends), "interactions": len(self.user), "tested": tested}

    def before(self, back: int) -> np.ndarray:
        """(N,) whether a row is none of the last ``back`` of its user."""
        lengths = self.ends - self.starts
        return self.place < np.repeat(lengths - back, lengths)

    def histories(self, back: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items (U, T) right-padded with 0, lengths (U,) and targets (U,), the ``back``-th last of each."""
        last = self.ends - back
        first = np.maximum(self.starts, last - window)
        at = first[:, None] + np.arange(window)
        items = np.where(at < last[:, None], self.item[np.minimum(at, len(self.item) - 1)], 0)
        return items, last - first, self.item[last]

    def quality(self, score: Score, window: int) -> dict[str, float]:
        """NDCG@10 of the last item of each user, ``test``, and of the last but one, ``valid``."""
        found = {}
        with torch.no_grad():
            for name, back in (("valid", 2), ("test", 1)):
                items, lengths, targets = self.histories(back, window)
                parts = np.array_split(np.arange(len(targets)), -(-len(targets) // 512))
                gains = [ndcg(score(items[part], lengths[part]), targets[part]) for part in parts]
                found[name] = float(torch.cat(gains).mean())
        return found


def left_padded(items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The same rows (B, T) with the padding before."""
    at = np.arange(items.shape[1]) - (items.shape[1] - lengths)[:, None]
    return np.where(at >= 0, np.take_along_axis(items, np.maximum(at, 0), 1), 0)


def ndcg(scores: torch.Tensor, targets: np.ndarray) -> torch.Tensor:
    """(B,) NDCG@10 of one target each among all items, its expected value where others score the same.

    >>> ndcg(torch.tensor([[3.0, 1.0, 2.0]]), np.array([3]))  # 1 / log2(3)
    tensor([0.6309], dtype=torch.float64)
    """
    own = scores.gather(1, torch.from_numpy(targets)[:, None] - 1)
    higher, same = (scores > own).sum(1), (scores == own).sum(1)
    gains = 1 / torch.log2(torch.arange(2, 12, dtype=torch.float64))
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    return (total[(higher + same).clamp(max=10)] - total[higher.clamp(max=10)]) / same.clamp(min=1)
