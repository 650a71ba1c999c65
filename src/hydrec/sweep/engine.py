"""Runs a study to its end: asks what can be run, starts it, writes down what became of it."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import polars
import yaml
from hydra.utils import instantiate

from hydrec.errors import InputError
from hydrec.runs import digest, hold, release, write_atomically
from hydrec.sweep import cost, search, study
from hydrec.sweep.launchers import Handle, Launcher
from hydrec.sweep.ledger import ABSENT, FAILED, FINISHED, OVER, PRUNED, RUNNING, WAITING, Job, Ledger
from hydrec.sweep.progress import Progress

NO_DATA = 3  # exit status of `hydrec.data prepare`
INTERRUPTED, TERMINATED = 130, 143
STARTS = 3  # of a job that is ended from outside, as by a scheduler that needs its place
LINES = 12  # of a failed job's output that the ledger keeps
POLL = 0.25  # seconds

# The class of a failure by what a job said last; the first that fits.
REASONS = {
    "out of memory": r"out of memory|OutOfMemory|MemoryError|Cannot allocate memory",
    "not finite": r"not finite|NaN|non-finite",
    "input": r"^hydrec: ",
}


class Sweep:
    """A study that is being run.

    Args:
        name: of the study: its folder in ``paths["runs"]``.
        settings: the group ``study`` of the configuration, resolved.
        paths: the group ``paths``.
        conf: the config folder; ``train.py`` lies beside it.
        launcher: starts the jobs.
        retry: jobs that failed are run again.

    Raises:
        InputError: the study makes no sense, or another sweep runs it.

    Attributes:
        folder: of the study.
        ledger: what became of its jobs.
        cells: of its plan.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Mapping[str, Any],
        paths: Mapping[str, str],
        conf: Path,
        launcher: Launcher,
        retry: bool,
    ) -> None:
        self.name, self.settings, self.conf, self.launcher = name, settings, conf, launcher
        self.train = conf.resolve().parent / "train.py"
        self.paths = [f"paths.{key}={json.dumps(paths[key])}" for key in ("data", "runs", "cache", "cards")]
        self.folder = Path(paths["runs"]) / name
        self.held = hold(self.folder)
        if self.held is None:
            raise InputError(f"{self.folder}: another sweep runs this study; wait for it or stop it")
        try:
            self.cells = self._planned()
        except Exception:
            release(self.folder)
            raise
        self.ledger = Ledger(self.folder)
        self.ledger.settle(retry=retry)
        self.running: dict[str, tuple[Handle, float]] = {}
        self.curves: dict[str, int] = {}  # epochs of a running trial that the pruner has seen
        self.stopping = self.refused = False

    def _planned(self) -> list[study.Cell]:
        """The plan, from ``study.yaml`` where that is of the same settings: making it takes seconds."""
        path = self.folder / "study.yaml"
        files, form = _conf_digest(self.conf), study.Cell._fields
        made_of = digest({"settings": dict(self.settings), "files": files, "form": form})
        if path.exists():
            saved = yaml.load(path.read_text(), yaml.CSafeLoader)
            if saved["made_of"] == made_of:
                tuples = ("overrides", "own")
                return [
                    study.Cell(**cell | {key: tuple(cell[key]) for key in tuples}) for cell in saved["cells"]
                ]
        print(f"{self.name}: checking every command of the plan", flush=True)
        cells = study.plan(self.settings, self.conf)
        plain = [cell._asdict() | {"overrides": [*cell.overrides], "own": [*cell.own]} for cell in cells]
        content = {"name": self.name, "made_of": made_of, **self.settings, "cells": plain}
        write_atomically(path, yaml.safe_dump(content, sort_keys=False, width=110))
        return cells

    def jobs(self) -> list[Job]:
        """All jobs that are known by now, each with its entry in the ledger."""
        known = list(study.jobs(self.cells, self.settings, self.ledger))
        new = [job for job in known if job.name not in self.ledger.jobs]
        for job in new:
            self.ledger.register(job)
        if new:
            self.ledger.save()
        return known

    def run(self, only: Callable[[], list[Job]] | None = None) -> bool:
        """Runs what there is to run.

        Args:
            only: other jobs than those of the study, such as timed steps.

        Returns:
            Whether nothing failed.
        """
        ask = only or self.jobs
        before = signal.signal(signal.SIGTERM, self._terminated)
        searching = self.settings["search"]
        mode = searching["mode"] if searching is not None else "max"
        progress = Progress(self.name, self.ledger, self.launcher.slots, mode)
        try:
            with progress:
                jobs = ask()
                self._attach(jobs)
                progress.show(jobs, self.left(jobs))
                while True:
                    started = not self.refused and self._start(jobs)
                    over = self._poll()
                    self.refused &= not over
                    if over or started:
                        jobs = ask()
                        progress.show(jobs, self.left(jobs))
                    if not self.running and not self._startable(jobs):
                        break
                    if not over:
                        time.sleep(POLL)
                        progress.tick()
        except BaseException:
            self.stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
        return not any(self.ledger.state(job.name) == FAILED for job in jobs)

    def close(self) -> None:
        """Gives back folder and launcher."""
        self.launcher.close()
        if self.held is not None:
            self.held.close()

    def left(self, jobs: Sequence[Job]) -> int:
        """Jobs of the whole study that are not over, also those that no search has come to yet."""
        known = sum(self.ledger.state(job.name) not in OVER for job in jobs)
        return known + max(study.count(self.cells, self.settings, self.ledger) - len(jobs), 0)

    def _startable(self, jobs: Sequence[Job]) -> list[Job]:
        return [j for j in jobs if self.ledger.state(j.name) == WAITING and j.name not in self.running]

    def _start(self, jobs: Sequence[Job]) -> bool:
        """Fills the free slots; whether anything was started."""
        started = False
        for job in self._startable(jobs):
            if len(self.running) >= self.launcher.slots:
                break
            if job.folder is not None and not self._free(self.folder / job.folder):
                continue  # what an earlier sweep started is about to end
            try:
                handle = self.launcher.start(self.command(job), self.log(job.name))
            except InputError:
                if not self.running:
                    raise
                self.refused = True  # by a busy scheduler: it is asked again when a job has ended
                break
            entry = self.ledger.jobs[job.name]
            self.ledger.set(job.name, state=RUNNING, starts=entry["starts"] + 1, token=handle.token)
            self.running[job.name] = (handle, time.perf_counter())
            started = True
        return started

    def _free(self, folder: Path) -> bool:
        if not folder.exists():
            return True
        file = hold(folder)
        if file is None:
            return False
        file.close()
        return True

    def _attach(self, jobs: Sequence[Job]) -> None:
        """Takes up the jobs that outlived the sweep that started them."""
        for job in self._startable(jobs):
            token = self.ledger.jobs[job.name]["token"]
            handle = self.launcher.attach(token) if token is not None else None
            if handle is not None:
                self.ledger.set(job.name, state=RUNNING)
                self.running[job.name] = (handle, time.perf_counter())

    def command(self, job: Job) -> list[str]:
        """The command line of a job."""
        if job.folder is None:
            return [sys.executable, "-m", "hydrec.data", "prepare", *job.overrides, *self.paths]
        where = Path(self.name) / job.folder
        own = [f"paths.study={json.dumps(str(where.parent))}", f"paths.name={json.dumps(where.name)}"]
        return [sys.executable, str(self.train), *job.overrides, *self.paths, *own]

    def log(self, name: str) -> Path:
        """Where the output of a job goes."""
        return self.folder / "logs" / f"{name.replace('/', '-')}.log"

    def _poll(self) -> bool:
        """Writes down which jobs have ended; whether any has."""
        over = False
        for name, (handle, since) in list(self.running.items()):
            status = handle.poll()
            if status is None:
                self._prune(name, handle)
                continue
            del self.running[name]
            seconds = self.ledger.jobs[name]["seconds"] + time.perf_counter() - since
            self.ledger.set(name, seconds=round(seconds, 3), token=None, **self._outcome(name, status))
            over = True
        return over

    def _outcome(self, name: str, status: int) -> dict[str, Any]:
        """The changes of an entry by how its job ended."""
        entry = self.ledger.jobs[name]
        if entry["state"] == PRUNED:
            return {}
        folder = self.folder / entry["folder"] if entry["folder"] is not None else None
        if status == 0 and (folder is None or (folder / "metrics.json").exists()):
            if entry["kind"] == "trial" and folder is not None:
                return {"state": FINISHED, **self._measured(folder)}
            return {"state": FINISHED, "reason": None, "lines": []}
        log = self.log(name)
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()][-LINES:]
        if entry["kind"] == "data" and status == NO_DATA:
            return {"state": ABSENT, "reason": "absent", "lines": lines[-1:]}
        from_outside = status in (INTERRUPTED, TERMINATED)
        if self.stopping or (from_outside and entry["starts"] < STARTS):
            return {"state": WAITING}
        said = [reason for reason, pattern in REASONS.items() if re.search(pattern, "\n".join(lines), re.M)]
        reason = (
            said[0] if said else {137: "killed (out of memory?)", 143: "terminated"}.get(status, "exception")
        )
        return {"state": FAILED, "reason": f"{reason}, exit status {status}", "lines": lines}

    def _measured(self, folder: Path) -> dict[str, Any]:
        """Value and curve of a finished trial, whose checkpoints nobody needs."""
        monitor = self.settings["search"]["monitor"]
        value = json.loads((folder / "metrics.json").read_text())[monitor]
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return {"value": value, "curve": _curve(folder, monitor)}

    def _prune(self, name: str, handle: Handle) -> None:
        """Ends a trial that the pruner gives up."""
        entry, searching = self.ledger.jobs[name], self.settings["search"]
        if entry["kind"] != "trial" or searching["pruner"] is None or entry["state"] == PRUNED:
            return
        curve = _curve(self.folder / entry["folder"], searching["monitor"])
        if len(curve) <= self.curves.get(name, 0):
            return
        self.curves[name] = len(curve)
        others = [
            study.trial_of(self.ledger, other, each["params"])
            for other, each in self.ledger.jobs.items()
            if each["kind"] == "trial"
            and other != name
            and all(each[key] == entry[key] for key in ("dataset", "protocol", "model"))
        ]
        if search.hopeless(searching["pruner"], others, curve, mode=searching["mode"]):
            value = (max if searching["mode"] == "max" else min)(curve.values())
            self.ledger.set(name, state=PRUNED, value=value, curve=curve)
            handle.stop()

    def stop(self) -> None:
        """Ends the jobs, which keep what they have; the same command continues them."""
        self.stopping = True
        for handle, _ in self.running.values():
            handle.stop()
        while self.running:
            self._poll()
            time.sleep(POLL)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    def report(self, wandb: str | None) -> bool:
        """Has the report of what there is written, and mirrored if ``wandb``; whether that went well."""
        command = [sys.executable, "-m", "hydrec.study", "report", str(self.folder)]
        command += [f"wandb={wandb}"] if wandb else []
        return subprocess.run(command, check=False).returncode == 0


def run(name: str, cfg: Mapping[str, Any], conf: Path) -> bool:
    """Runs a study, or prints its plan where ``dry_run``.

    Args:
        name: the option of the group ``study``; ``paths.study`` may name its folder otherwise.
        cfg: the configuration of ``sweep.py``, resolved.
        conf: the config folder.

    Returns:
        Whether all went well.

    Raises:
        InputError: the study or the launcher makes no sense, or another sweep runs it.
    """
    paths = cfg["paths"]
    folder = name if paths["study"] == "single" else paths["study"]
    launcher = instantiate(cfg["launcher"])
    settings = cfg["study"] | {"overrides": [*cfg["study"]["overrides"], *cfg["overrides"]]}
    sweep = Sweep(
        name=folder, settings=settings, paths=paths, conf=conf, launcher=launcher, retry=cfg["retry"]
    )
    try:
        if cfg["dry_run"]:
            return cost.estimate(sweep)
        well = sweep.run()
        reported = sweep.report(cfg["wandb"]) if cfg["report"] else True
    finally:
        sweep.close()
    absent = [e["dataset"] for e in sweep.ledger.jobs.values() if e["state"] == ABSENT]
    if absent:
        print(f"no data: {', '.join(dict.fromkeys(absent))}; the report goes without")
    failed = [e["name"] for e in sweep.ledger.jobs.values() if e["state"] == FAILED]
    for each in failed:
        print(f"hydrec: {each} failed; its output is in {sweep.log(each)}", file=sys.stderr)
    if failed:
        print("hydrec: retry=true runs what failed again", file=sys.stderr)
    return well and reported


def tuned(
    overrides: Sequence[str], choices: Mapping[str, str], cfg: Mapping[str, Any], conf: Path
) -> list[str] | None:
    """The study of one command of ``train.py``: searches, then runs with what was found.

    Args:
        overrides: of the command.
        choices: the option of each group.
        cfg: its configuration, resolved.
        conf: the config folder.

    Returns:
        The command of the run, which now shows its results; ``None`` where something failed.

    Raises:
        InputError: the search makes no sense, or another process makes it.
    """
    apart = ("hparams_search", "model", "dataset", "protocol", "loss", "seed", "paths")
    rest = [text for text in overrides if re.split(r"[.=]", text.lstrip("+~"))[0] not in apart]
    values = [text for text in overrides if re.match(r"\+*(model|dataset|protocol|loss)\.", text)]
    chosen_loss = [text.partition("=")[2] for text in overrides if text.startswith("loss=")]
    settings: dict[str, Any] = yaml.safe_load((conf / "study" / "_study.yaml").read_text()) | {
        "title": f"{choices['model']} on {choices['dataset']}, tuned",
        "datasets": [choices["dataset"]],
        "protocols": [choices["protocol"]],
        "models": [choices["model"]],
        "loss": chosen_loss[0] if chosen_loss else None,
        "overrides": [*rest, *values],
        "search": cfg["hparams_search"],
        "seeds": [cfg["seed"]],
    }
    shared = {key: value for key, value in settings.items() if key != "seeds"}
    launcher = instantiate(yaml.safe_load((conf / "launcher" / "local.yaml").read_text()))
    sweep = Sweep(
        name=f"{choices['hparams_search']}-{choices['dataset']}-{choices['model']}-{digest(shared)}",
        settings=settings,
        paths=cfg["paths"],
        conf=conf,
        launcher=launcher,
        retry=True,
    )
    try:
        well = sweep.run()
        run = [job for job in sweep.jobs() if job.kind == "seed"]
        return sweep.command(run[0]) if well and run else None
    finally:
        sweep.close()


def _curve(folder: Path, monitor: str) -> dict[int, float]:
    """The monitored metric by epoch, as far as a run has come."""
    path = folder / "history.csv"
    if not path.exists():
        return {}
    rows = polars.read_csv(path)
    if monitor not in rows.columns:
        return {}
    rows = rows.drop_nulls(monitor)
    return dict(zip(rows["epoch"].to_list(), rows[monitor].to_list(), strict=True))


def _conf_digest(conf: Path) -> str:
    """Of all config files: a changed default changes what an override may be."""
    files = sorted(conf.rglob("*.yaml"))
    return digest({path.relative_to(conf).as_posix(): path.read_text() for path in files})
