"""The figures of HGNN's factors, drawn from their tables alone."""

import math

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hydrec.explain import style

DRAWN = 40  # events with a label, the last
LABELS = {"recommended": "the recommended item", "next": "the item that came next"}
HELD = "events in factor "  # what statistics of one factor are called


def case(nodes: pl.DataFrame, edges: pl.DataFrame, title: str) -> Figure:
    """For each run: a history in two dimensions, in the factors' colours, and the edges of two candidates.

    Labels stand in a column beside the diagram, in the order of the events' heights, so that none is upon
    another.

    Args:
        nodes: of the history, by run.
        edges: of the candidates, by run.
        title: what is shown.
    """
    runs = nodes["run"].unique(maintain_order=True).to_list()
    shown = min(DRAWN, max(len(nodes.filter(run=run)) for run in runs))
    next_item = edges.filter(candidate="next").row(0, named=True)
    head = f"{title}; next came {style.short(style.named(next_item), 80)}"
    page = style.page(14, 0.8 + len(runs) * max(3.6, 0.26 * shown + 1), head)
    grid = page.subplots(len(runs), 3, squeeze=False, width_ratios=(3, 1, 1))
    for (left, middle, right), run in zip(grid, runs, strict=True):
        mine, own = nodes.filter(run=run), edges.filter(run=run)
        best = own.filter(candidate="recommended").row(0, named=True)
        _scatter(left, mine, f"{run}; recommended: {style.short(style.named(best), 60)}")
        _edges(middle, own, "score", "Edge scores (eq. 7)")
        _edges(right, own, "weight", "Their weights (eq. 9)")
    handles, labels = grid[0, 1].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
    return page


def _scatter(axes: Axes, nodes: pl.DataFrame, title: str) -> None:
    for factor in sorted(nodes["factor"].unique()):
        some = nodes.filter(factor=factor)
        colour, marker = style.colour(factor - 1), style.marker(factor - 1)
        axes.scatter(some["x"], some["y"], s=36, zorder=3, color=colour, marker=marker)
    labelled = nodes[-DRAWN:].sort("y", "place", descending=[True, False])
    heights = np.linspace(0.97, 0.03, len(labelled)) if len(labelled) > 1 else np.array([0.5])
    for height, row in zip(heights, labelled.iter_rows(named=True), strict=True):
        colour = style.colour(row["factor"] - 1)
        axes.annotate(
            f"{row['factor']}: {style.short(style.named(row), 66)}",
            (row["x"], row["y"]),
            xytext=(1.02, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),  # to the label's left end, not through its text
                "shrinkA": 0,
                "color": colour,
                "linewidth": 0.5,
                "alpha": 0.5,
            },
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_box_aspect(0.8)
    style.name(axes, title, "first principal component of the nodes (labels: factor, event)", "second")


def _edges(axes: Axes, edges: pl.DataFrame, column: str, title: str) -> None:
    """Bars of each factor: of the recommended item and of the one that came next."""
    for place, (candidate, hatch) in enumerate((("recommended", None), ("next", "///"))):
        some = edges.filter(candidate=candidate)
        y = some["factor"].to_numpy() + 0.36 * (place - 0.5)
        colours = [style.colour(factor - 1) for factor in some["factor"]]
        axes.barh(
            y,
            some[column],
            0.34,
            color="white" if hatch else colours,
            edgecolor=colours,
            hatch=hatch,
            label=LABELS[candidate],
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(sorted(edges["factor"].unique()))
    axes.invert_yaxis()
    style.name(axes, title, "inner product" if column == "score" else "share", "factor")


def statistics(found: pl.DataFrame, title: str) -> Figure:
    """Each statistic with its interval, for each run, beside that of shuffled factors where it has one."""
    runs = found["run"].unique(maintain_order=True).to_list()
    units = {
        "share": "Shares of test cases or events",
        "index": "Agreement with the planted factors",
        "factors": "Factors with an event",
        "nats": "Entropy",
    }
    present = [unit for unit in units if len(found.filter(unit=unit))]
    sizes = [1.2 + found.filter(unit=unit)["statistic"].n_unique() for unit in present]
    page = style.page(10.5, 1.2 + (0.28 + 0.12 * len(runs)) * sum(sizes), title)
    grid = page.subplots(len(present), 1, squeeze=False, height_ratios=sizes)[:, 0]
    factors = found.filter(pl.col("statistic").str.starts_with(HELD))["statistic"].n_unique()
    most = {"share": 1.0, "index": 1.0, "factors": factors, "nats": math.log(factors) or 1.0}
    for axes, unit in zip(grid, present, strict=True):
        some = found.filter(unit=unit)
        names = some["statistic"].unique(maintain_order=True).to_list()
        for number, run in enumerate(runs):
            own = some.filter(run=run)
            y = np.array([names.index(name) for name in own["statistic"]])
            y = y + 0.3 * (number - (len(runs) - 1) / 2)
            style.dots(axes, y, own["value"], own["low"], own["high"], number=number, label=run)
            beside = own["shuffled"].cast(pl.Float64).fill_null(np.nan)
            axes.scatter(
                beside, y, marker="|", s=90, color=style.colour(number), zorder=4, label=f"{run}, shuffled"
            )
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(min(0, *some["low"].drop_nulls()), 1.02 * most[unit])
        style.name(axes, units[unit], "" if unit == "index" else unit, "")
    page.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    return page
