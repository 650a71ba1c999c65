"""The report of a study in W&B: a run of its own with tables, figures and verdicts, and a saved workspace.

The runs of the study are in the group of its name already; the files of the report stay the truth.
"""

from pathlib import Path
from typing import Any

import polars as pl

from hydrec.errors import InputError, one_of
from hydrec.study.results import Study

MODES = ("offline", "online")


def mirror(out: Path, *, study: Study, name: str, project: str, mode: str) -> str:
    """Makes the summary run and, online, the workspace.

    Args:
        out: the folder of the report; W&B makes ``wandb/`` in it.
        study: what was asked.
        name: of the study: the group of its runs.
        project: of W&B.
        mode: of ``MODES``; what is offline, ``wandb sync OUT/wandb/offline-run-*`` sends.

    Returns:
        Where it is: a folder, or a URL.

    Raises:
        InputError: another mode, or W&B cannot be reached.
    """
    import wandb

    one_of("wandb", mode, MODES)
    try:
        run = wandb.init(
            project=project,
            group=name,
            job_type="report",
            name=f"{name} report",
            dir=out,
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Exception as error:
        raise InputError(
            f"wandb={mode}: {' '.join(str(error).split())}; wandb=offline needs no network"
        ) from error
    shown: dict[str, Any] = {"report": wandb.Html((out / "report.html").read_text(), inject=False)}
    for path in sorted((out / "figures").glob("*.png")):
        shown[f"figures/{path.stem}"] = wandb.Image(str(path))
    for path in (*sorted((out / "tables").glob("*.csv")), out / "verdicts.csv"):
        frame = pl.read_csv(path, infer_schema_length=None)
        key = path.stem if path.parent == out else f"tables/{path.stem}"
        shown[key] = wandb.Table(columns=[*frame.columns], data=frame.rows())
    run.log(shown)
    verdicts = pl.read_csv(out / "verdicts.csv", infer_schema_length=None)
    cells = verdicts.filter(pl.col("family") == "baseline")
    run.summary.update(
        {
            "cells": len(cells),
            "robust_gains": len(cells.filter(pl.col("verdict") == "robust gain")),
            "robust_losses": len(cells.filter(pl.col("verdict") == "robust loss")),
        }
    )
    where, entity = str(Path(run.dir).parent), run.entity
    run.finish()
    if mode == "offline":
        return where
    return workspace(study, name=name, project=project, entity=entity).save().url


def workspace(study: Study, *, name: str, project: str, entity: str) -> Any:
    """W&B's page of the study: its runs by model, a bar a metric, the curves of the validation.

    Args:
        study: what was asked.
        name: of the study: the group of its runs.
        project: of W&B.
        entity: user or team.

    Returns:
        The workspace, not saved yet.

    Raises:
        InputError: the package for it is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise InputError(
            "the workspace of W&B needs wandb-workspaces: pip install -e '.[workspaces]'; the report is there"
        ) from error
    by_model = panels.Config("names.model")
    bars: list[Any] = [
        panels.BarPlot(
            title=f"test {metric}", metrics=[panels.SummaryMetric(f"test/{metric}")], groupby=by_model
        )
        for metric in study.metrics
    ]
    curves: list[Any] = [
        panels.LinePlot(title=f"validation {metric}", x="epoch", y=[f"valid/{metric}"], groupby=by_model)
        for metric in study.metrics
    ]
    return spaces.Workspace(
        entity=entity,
        project=project,
        name=study.title,
        sections=[
            spaces.Section(name="Test", panels=bars, is_open=True),
            spaces.Section(name="Learning curves", panels=curves, is_open=True),
        ],
        runset_settings=spaces.RunsetSettings(
            filters=[spaces.Metric("group") == name], groupby=[spaces.Config("names.model")]
        ),
    )
