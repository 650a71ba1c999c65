"""How far a sweep is: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hydrec.sweep.ledger import ABSENT, FAILED, FINISHED, OVER, PRUNED, RUNNING, Job, Ledger

STATES = (FINISHED, RUNNING, "waiting", FAILED, PRUNED, ABSENT)


class Progress:
    """Shows states, time left and the best so far.

    Args:
        name: of the study.
        ledger: of its jobs.
        slots: jobs at a time.
        mode: ``max`` or ``min``: which trials are better.
    """

    def __init__(self, name: str, ledger: Ledger, slots: int, mode: str) -> None:
        self.name, self.ledger, self.slots = name, ledger, slots
        self.better = max if mode == "max" else min
        console = Console()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.jobs: Sequence[Job] = ()
        self.remaining = 0
        self.seen: dict[str, str] = {}
        self.drawn = 0.0

    def __enter__(self) -> "Progress":
        """Opens the live table where there is a terminal."""
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last table standing."""
        if self.live is not None:
            self.live.stop()

    def show(self, jobs: Sequence[Job], remaining: int) -> None:
        """Takes in what is new.

        Args:
            jobs: all that are known.
            remaining: jobs of the whole study that are not over.
        """
        self.jobs, self.remaining = jobs, remaining
        if self.live is not None:
            self.tick(now=True)
            return
        states = {job.name: self.ledger.state(job.name) for job in jobs}
        if not self.seen:
            print(f"{self.name}: {self._summary()}", flush=True)
        for job in jobs if self.seen else ():
            if states[job.name] in OVER and states[job.name] != self.seen.get(job.name):
                print(f"{job.name}: {self._said(job)}  ({self._summary()})", flush=True)
        self.seen = states

    def tick(self, *, now: bool = False) -> None:
        """Draws anew, at most once a second."""
        if self.live is None or (not now and time.perf_counter() - self.drawn < 1):
            return
        self.drawn = time.perf_counter()
        self.live.update(self._table(), refresh=True)

    def _said(self, job: Job) -> str:
        entry = self.ledger.jobs[job.name]
        value = "" if entry["value"] is None else f" {entry['value']:.4f}"
        why = (
            ""
            if entry["state"] not in (FAILED, ABSENT)
            else f" ({entry['reason']}): {' '.join(entry['lines'][-1:])}"
        )
        return f"{entry['state']}{value}{why}, {entry['seconds']:.0f} s"

    def _counts(self) -> Counter[str]:
        counts = Counter(self.ledger.state(job.name) for job in self.jobs)
        counts["waiting"] = self.remaining - counts[RUNNING]
        return counts

    def _summary(self) -> str:
        counts = self._counts()
        parts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
        return ", ".join([*parts, *self._time_left()])

    def _time_left(self) -> list[str]:
        """By the mean of jobs of a kind that are through, so far as there are any."""
        done = [
            e
            for e in self.ledger.jobs.values()
            if e["state"] == FINISHED and e["seconds"] and e["kind"] != "data"
        ]
        if not done or not self.remaining:
            return []
        seconds = self.remaining * sum(e["seconds"] for e in done) / len(done) / self.slots
        return [f"about {duration(seconds)} left"]

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for column in ("running", "epochs", "best trial so far"):
            table.add_column(column, justify="left" if column == "running" else "right")
        best: dict[tuple[str, ...], float] = {}
        for entry in self.ledger.jobs.values():
            if entry["kind"] == "trial" and entry["value"] is not None:
                cell = (entry["dataset"], entry["protocol"], entry["model"])
                best[cell] = self.better(best.get(cell, entry["value"]), entry["value"])
        for job in self.jobs:
            if self.ledger.state(job.name) == RUNNING:
                history = self.ledger.folder / (job.folder or "") / "history.csv"
                epochs = history.read_text().count("\n") - 1 if history.is_file() else 0
                value = best.get((job.dataset, job.protocol, job.model))
                table.add_row(job.name, str(epochs), "" if value is None else f"{value:.4f}")
        failed = [
            Text(f"{job.name}: {self._said(job)}", style="red")
            for job in self.jobs
            if self.ledger.state(job.name) in (FAILED, ABSENT)
        ]
        return Group(Text(f"{self.name}: {self._summary()}", style="bold"), table, *failed)


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(42), duration(90), duration(9000)
    ('42 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
