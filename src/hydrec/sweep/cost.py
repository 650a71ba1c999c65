"""What a study costs, before it is run: from a few timed steps of each cell."""

import json
import math
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from hydrec.sweep import study
from hydrec.sweep.ledger import ABSENT, FAILED, FINISHED
from hydrec.sweep.progress import duration

if TYPE_CHECKING:
    from hydrec.sweep.engine import Sweep

START = 6.0  # seconds of a job beside its training: imports, data, test


def estimate(sweep: "Sweep") -> bool:
    """Times the cells of a study and prints its plan with the hours it would take at most.

    Args:
        sweep: of the study; its timed steps are kept, and not taken twice.

    Returns:
        Whether all cells could be timed.
    """
    settings, ledger = sweep.settings, sweep.ledger

    def timed() -> list[Any]:
        jobs = [job for job in study.jobs(sweep.cells, settings, ledger) if job.kind == "data"]
        there = {(job.dataset, job.protocol) for job in jobs if ledger.state(job.name) == FINISHED}
        jobs += [study.timing(cell) for cell in sweep.cells if (cell.dataset, cell.protocol) in there]
        for job in jobs:
            ledger.register(job)
        return jobs

    well = sweep.run(timed)
    table = Table(title=f"{sweep.name}: at most, if no run stops before its last epoch", title_justify="left")
    for column in ("data set", "protocol", "model", "s a step", "s an epoch", "trials", "runs", "core-hours"):
        table.add_column(column, justify="left" if column in ("data set", "protocol", "model") else "right")
    searching = settings["search"]
    total, jobs = 0.0, 0
    for cell in sweep.cells:
        job = study.timing(cell)
        state = ledger.state(job.name)
        if state != FINISHED:
            why = state if state in (FAILED, ABSENT) else ABSENT
            table.add_row(cell.dataset, cell.protocol, cell.model, why, *[""] * 4)
            continue
        step, epoch = _seconds(sweep, job.folder or "")
        trials = searching["trials"] if cell.space else 0
        runs = 1 if cell.kind == "reference" else len(settings["seeds"])
        epochs = trials * (searching["epochs"] if searching else 0) + runs * cell.epochs * (step > 0)
        hours = (epochs * epoch + (trials + runs) * START) / 3600 * sweep.launcher.threads
        total, jobs = total + hours, jobs + trials + runs
        figures = (f"{step:.3f}", f"{epoch:.1f}", str(trials), str(runs), f"{hours:.2f}")
        table.add_row(cell.dataset, cell.protocol, cell.model, *figures)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)
    at_once = sweep.launcher.slots
    wall = total / at_once / sweep.launcher.threads
    print(f"{jobs} jobs, {total:.2f} core-hours at most: {duration(wall * 3600)} with {at_once} at a time")
    return well


def _seconds(sweep: "Sweep", folder: str) -> tuple[float, float]:
    """Seconds of a step and of an epoch with its validation; 0 where nothing is trained."""
    about = json.loads((sweep.folder / folder / "run.json").read_text())
    config = yaml.safe_load((sweep.folder / folder / "config.yaml").read_text())
    rows = about["dataset"]["trained_rows"] if "epochs" in about else 0
    if not rows:
        return 0.0, 0.0
    spent, validating = about["seconds"]["fit"], about["seconds"]["valid"]
    step = (spent - validating) / about["epochs"]["steps"]
    batches = math.ceil(about["dataset"]["parts"]["valid"]["samples"] / config["eval_batch_size"])
    return step, step * math.ceil(rows / about["batch_size"]) + validating * batches / min(batches, 2)
