"""The figures of MIAN's weights, drawn from their tables alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLUMNS = 200  # cases drawn in the heat map
WORDS = {"ibim": "IBIM", "iuim": "IUIM", "icim": "ICIM"}  # of parts; others are called as they are
COLOURS = {  # the colour-blind tell them apart too
    "item": "#000000",
    "context": "#E69F00",
    "behaviours": "#56B4E9",
    "user": "#009E73",
    "ibim": "#0072B2",
    "iuim": "#D55E00",
    "icim": "#CC79A7",
}
EVEN: Any = {"color": "#999999", "linestyle": "--", "linewidth": 1, "zorder": 0}
MARKERS = dict(zip(COLOURS, "os^vDPX", strict=True))


def part_means(summary: pl.DataFrame) -> pl.DataFrame:
    """The rows of the parts over all cases."""
    return summary.filter(of="gim", by="all")


def heat_map(cases: pl.DataFrame, parts: Sequence[str], summary: pl.DataFrame, title: str, n: int) -> Figure:
    """Parts by cases, as fig. 6.

    Args:
        cases: those to draw, in order.
        parts: of the model.
        summary: has the mean of each part over all cases.
        title: what the run is.
        n: cases that there are.
    """
    page = Figure(figsize=(12, 4.4), layout=ConstrainedLayoutEngine())
    axes = page.subplots()
    weights = cases.select(f"gim_{part}" for part in parts).to_numpy().T
    image = axes.imshow(weights, aspect="auto", interpolation="none", cmap="cividis")
    page.colorbar(image, ax=axes, label=f"weight in GIM (even: {1 / len(parts):.3f})", pad=0.08)
    clicked = int(cases["label"].to_numpy().argmax())  # the first with label 1
    axes.axvline(clicked - 0.5, color="white", linewidth=2)
    for first, last, text in ((0, clicked, "label 0"), (clicked, len(cases), "label 1")):
        axes.text((first + last - 1) / 2, -0.62, text, ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(parts)), [WORDS.get(part, part) for part in parts])
    means = [*part_means(summary)["mean"]]
    for row, text in [(-0.62, "mean of\nall cases"), *enumerate(f"{mean:.3f}" for mean in means)]:
        low = "bottom" if row < 0 else "center"
        axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va=low, fontsize=9)
    ticks = np.linspace(0, len(cases) - 1, min(len(cases), 9)).round().astype(int)
    axes.set_xticks(ticks, [f"{cases['logit'][int(tick)]:.2f}" for tick in ticks], fontsize=8)
    which = f"{len(cases):,} of {n:,} test cases, evenly over all" if len(cases) < n else "all test cases"
    axes.set_xlabel(f"{which}, by label, then by logit (ticks)", fontsize=9)
    page.suptitle(title, fontsize=11, x=0.01, ha="left")
    return page


def means(summary: pl.DataFrame, title: str) -> Figure:
    """Mean weights with their intervals: of parts, by history and recency, of behaviours and of fields."""
    page = Figure(figsize=(15.6, 8.6), layout=ConstrainedLayoutEngine(hspace=0.08, wspace=0.05))
    page.suptitle(f"{title}: mean weights over the test part, 95 % intervals over users", x=0.01, ha="left")
    panels = {
        "parts": ("Parts (GIM)", part_means(summary)),
        "history": ("Parts by behaviours in the history", summary.filter(of="gim", by="history")),
        "recency": ("Parts by time since the last behaviour", summary.filter(of="gim", by="recency")),
        "ibim": ("Behaviours (IBIM)", summary.filter(of="ibim", by="all")),
        "iuim": ("Fields of the user (IUIM)", summary.filter(of="iuim", by="all")),
        "icim": ("Fields of the context (ICIM)", summary.filter(of="icim", by="all")),
    }
    names = [name if len(table) else "." for name, (_, table) in panels.items()]
    layout: Any = [row for row in (names[:3], names[3:]) if {*row} != {"."}]
    draw = {"history": _groups, "recency": _groups, "ibim": _places}
    for name, axes in page.subplot_mosaic(layout).items():
        head, table = panels[name]
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
        axes.set_title(head, fontsize=10, loc="left")
        draw.get(name, _dots)(axes, table)
    return page


def _dots(axes: Axes, table: pl.DataFrame) -> None:
    """A dot with its interval for each name, one below the other."""
    for row, one in enumerate(table.iter_rows(named=True)):
        name = one["name"]
        colour, marker = COLOURS.get(name, "#0072B2"), MARKERS.get(name, "o")
        axes.errorbar(one["mean"], row, xerr=_arms(one), color=colour, marker=marker, capsize=3)
    axes.axvline(_even(table), **EVEN)
    axes.set_yticks(range(len(table)), [WORDS.get(name, name) for name in table["name"]])
    axes.invert_yaxis()
    axes.set_xlabel(f"weight (the line: all even, {_even(table):.3f})", fontsize=9)


def _groups(axes: Axes, table: pl.DataFrame) -> None:
    """A line over the groups for each part."""
    parts, groups = ([*table[key].unique(maintain_order=True)] for key in ("name", "group"))
    for place, part in enumerate(parts):
        of = table.filter(name=part)
        x = np.arange(len(groups)) + 0.06 * (place - (len(parts) - 1) / 2)
        arms = np.hstack([_arms(one) for one in of.iter_rows(named=True)])
        style: Any = {"color": COLOURS[part], "marker": MARKERS[part], "markersize": 4, "linewidth": 1}
        axes.errorbar(x, of["mean"], yerr=arms, label=WORDS.get(part, part), capsize=2, **style)
    cases = table.filter(name=parts[0])["cases"]
    lines = [group.replace(" to ", "\nto ") if " to " in group else f"{group}\n" for group in groups]
    labels = [f"{line}\n{n:,}" for line, n in zip(lines, cases, strict=True)]
    axes.set_xticks(range(len(groups)), labels, fontsize=8)
    axes.set_xlabel("group, and its number of cases", fontsize=9)
    axes.axhline(_even(table), **EVEN)
    axes.set_ylabel("weight (the line: all even)", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.06))


def _places(axes: Axes, table: pl.DataFrame) -> None:
    """A line over the places of behaviours, relative to all even: histories differ in length."""
    place = table["name"].cast(pl.Int64)
    low, high = (table[key].fill_null(table["relative"]) for key in ("relative_low", "relative_high"))
    axes.fill_between(place, low, high, color="#56B4E9", alpha=0.4, linewidth=0)
    axes.plot(place, table["relative"], color="#0072B2", marker="o", markersize=3)
    axes.axhline(1, **EVEN)
    axes.set_xlabel("place from the end of the history (1: the last behaviour)", fontsize=9)
    axes.set_ylabel("weight times behaviours (the line: all even)", fontsize=9)


def _even(table: pl.DataFrame) -> float:
    """What each weight would be if all were the same."""
    return table["mean"][0] / table["relative"][0]


def _arms(one: dict[str, Any]) -> np.ndarray:
    """(2, 1) from the mean down and up to the ends of its interval; none where there is no interval."""
    ends = [one["mean"] if one[key] is None else one[key] for key in ("low", "high")]
    return np.abs(np.array([ends]).T - one["mean"])
