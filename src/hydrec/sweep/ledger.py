"""The ledger: what became of each job of a study. One file, written whole at each change.

Run folders are the truth about results: a run is finished when its folder has ``metrics.json``. The ledger
knows what they do not: which jobs there are, what a trial tries, how often a job was started, why it failed.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from hydrec.errors import InputError
from hydrec.runs import write_atomically

# A state is one of these; those of OVER need no more work.
WAITING, RUNNING, FINISHED, FAILED, PRUNED = "waiting", "running", "finished", "failed", "pruned"
ABSENT = "absent"  # of data
OVER = (FINISHED, FAILED, PRUNED, ABSENT)


class Job(NamedTuple):
    """One process.

    Attributes:
        name: unique in the study.
        kind: ``data``, ``timing``, ``trial``, ``reference``, ``seed`` or ``curve``.
        dataset, protocol, model: of its cell; ``model`` is the name that tables use.
        seed: ``None`` for ``data``.
        folder: what it leaves, relative to the study's folder; ``None`` for ``data``.
        overrides: the command line.
        number: of a trial, from 0.
        params: what a trial tries, or the point of a curve, by configuration key.
    """

    name: str
    kind: str
    dataset: str
    protocol: str
    model: str
    seed: int | None
    folder: str | None
    overrides: tuple[str, ...]
    number: int | None = None
    params: dict[str, Any] | None = None


class Ledger:
    """The entries of a study's jobs, on disk.

    An entry has what its `Job` has, and ``state``, ``starts``, ``reason`` (the class of a failure), ``lines``
    (the last ones it said), ``seconds`` (of all starts), ``token`` (by which its launcher finds it again),
    and for trials ``value`` and ``curve`` (by epoch).

    Args:
        folder: the study's.

    Raises:
        InputError: the file cannot be read.

    Attributes:
        jobs: the entries, by the name of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.json"
        try:
            content = json.loads(self.path.read_text()) if self.path.exists() else {"jobs": {}}
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path} cannot be read ({error}); move it away: finished runs are found again"
            ) from error
        self.jobs: dict[str, dict[str, Any]] = content["jobs"]

    def settle(self, *, retry: bool) -> None:
        """Sets what an earlier sweep left to what is there now; to be called once, before anything runs.

        Args:
            retry: failed jobs are to be run again.
        """
        for entry in self.jobs.values():
            if self._has_results(entry):
                entry["state"] = FINISHED
            elif (
                entry["state"] in (RUNNING, ABSENT)
                or (entry["state"] == FAILED and retry)
                # someone took the run away; of a trial the value is known all the same
                or (entry["state"] == FINISHED and entry["kind"] in ("seed", "reference", "curve"))
            ):
                entry["state"] = WAITING
        self.save()

    def register(self, job: Job) -> dict[str, Any]:
        """The entry of a job, made if it has none."""
        if job.name not in self.jobs:
            entry = job._asdict() | {"state": WAITING, "starts": 0, "seconds": 0.0}
            entry |= {"reason": None, "lines": [], "token": None, "value": None, "curve": {}}
            self.jobs[job.name] = entry
            if self._has_results(entry):
                entry["state"] = FINISHED
        return self.jobs[job.name]

    def state(self, name: str) -> str:
        """The state of a job, ``waiting`` if nothing is known of it."""
        return self.jobs[name]["state"] if name in self.jobs else WAITING

    def set(self, name: str, **changes: Any) -> None:
        """Changes an entry, on disk too."""
        self.jobs[name] |= changes
        self.save()

    def save(self) -> None:
        """Writes the file."""
        write_atomically(self.path, json.dumps({"jobs": self.jobs}, indent=1) + "\n")

    def _has_results(self, entry: dict[str, Any]) -> bool:
        return entry["folder"] is not None and (self.folder / entry["folder"] / "metrics.json").exists()
