"""The curves of a study: one key of a model over some values, the others as they are. Drawn, not tested.

A value may change the protocol (a window's length changes the test rows), so these runs are kept apart from
those that are compared.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hydrec.study import figures, tables
from hydrec.study.results import Ledger
from hydrec.study.tables import Cell, Table

CURVE = ("dataset", "protocol", "model", "key")
SCHEMA = dict.fromkeys((*CURVE, "value"), pl.String) | {"place": pl.Int64, "seed": pl.Int64}


def points(folder: Path, jobs: Ledger, metrics: Sequence[str]) -> pl.DataFrame:
    """A row a finished run of a curve, in the order of the study: its curve, value, seed and test metrics.

    Args:
        folder: of the study.
        jobs: its ledger.
        metrics: names as ``ndcg@10``.
    """
    rows = []
    for place, job in enumerate(jobs.of("curve")):
        path = folder / job["folder"] / "metrics.json"
        if job["state"] == "finished" and path.exists():
            measured = json.loads(path.read_text())
            ((key, value),) = job["params"].items()
            named = [job["dataset"], job["protocol"], job["model"], key, str(value), place, job["seed"]]
            rows.append([*named, *(measured.get(f"test/{metric}") for metric in metrics)])
    return pl.DataFrame(rows, schema=SCHEMA | dict.fromkeys(metrics, pl.Float64), orient="row")


def curves(found: pl.DataFrame, metrics: Sequence[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Each curve by its name: a row a value with ``seeds``, and mean and sd of each metric."""
    for names, some in found.group_by(CURVE, maintain_order=True):
        summary = some.group_by("value").agg(
            pl.col("place").min(),
            pl.len().alias("seeds"),
            *(pl.col(metric).mean().alias(metric) for metric in metrics),
            *(pl.col(metric).std().alias(f"{metric} sd") for metric in metrics),
        )
        yield "-".join(map(str, names)), summary.sort("place").drop("place")


def table(name: str, curve: pl.DataFrame, metrics: Sequence[str]) -> Table:
    """One curve: a row a value."""
    best: dict[str, Any] = {metric: curve[metric].max() for metric in metrics}
    rows = [
        [
            Cell(row["value"]),
            Cell(str(row["seeds"])),
            *(_cell(metric, row[metric], row[f"{metric} sd"], best[metric]) for metric in metrics),
        ]
        for row in curve.iter_rows(named=True)
    ]
    header = [name.rsplit("-", 1)[-1], "seeds", *(tables.shown(metric) for metric in metrics)]
    return Table(f"curve-{name}", name, header, rows, 0, ["Mean ± standard deviation over seeds."], curve)


def _cell(metric: str, value: float | None, sd: float | None, best: float | None) -> Cell:
    if value is None:
        return Cell("-")
    spread = "" if sd is None else f" ± {sd:.4f}"
    return Cell(tables.number(metric, value) + spread, bold=value == best)


def figure(found: pl.DataFrame, metric: str) -> Figure | None:
    """A panel for each key: the metric by value; data sets and protocols as lines."""
    keys = found["key"].unique(maintain_order=True).to_list()
    if not keys:
        return None
    columns = min(len(keys), 3)
    lines = -(-len(keys) // columns)
    page = Figure(figsize=(3.2 * columns + 0.6, 2.8 * lines + 0.5), layout=ConstrainedLayoutEngine())
    panels = page.subplots(lines, columns, squeeze=False).flatten()
    of = found.select("dataset", "protocol", "model").unique(maintain_order=True).rows()
    named: set[int] = set()  # a line has its name once, whatever the panels
    for axes, key in zip(panels, keys, strict=False):
        values = found.filter(key=key).sort("place")["value"].unique(maintain_order=True).to_list()
        for place, (dataset, protocol, model) in enumerate(of):
            own = found.filter(key=key, dataset=dataset, protocol=protocol, model=model)
            ((_, curve),) = curves(own, [metric]) if len(own) else (("", own.clear()),)
            if not len(curve):
                continue
            axes.errorbar(
                [values.index(value) for value in curve["value"]],
                curve[metric],
                yerr=curve[f"{metric} sd"].fill_null(0.0),
                label="_" if place in named else f"{model}: {dataset}, {protocol}",
                color=figures.COLOURS[place % len(figures.COLOURS)],
                marker=figures.MARKERS[place % len(figures.MARKERS)],
                linestyle=figures.LINES[place % len(figures.LINES)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
            )
            named.add(place)
        axes.set_xticks(range(len(values)), values)
        axes.set_xlabel(key, fontsize=9)
        figures.plain(axes)
    for axes in panels[len(keys) :]:
        axes.set_axis_off()
    panels[0].set_ylabel(figures.named(metric), fontsize=9)
    figures.legend(page)
    return page
