"""What the figures share."""

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's: the colour-blind tell them apart too
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
EVEN: Any = {"color": "#999999", "linestyle": "--", "linewidth": 1, "zorder": 0}
LONGEST = 42  # letters of a title


def colour(number: int) -> str:
    """The colour of the factor, model or layer with some number, from 0."""
    return PALETTE[number % len(PALETTE)]


def marker(number: int) -> str:
    """Its marker."""
    return MARKERS[number % len(MARKERS)]


def page(width: float, height: float, title: str) -> Figure:
    """An empty page, sizes in inches."""
    made = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.05))
    made.suptitle(title, fontsize=11, x=0.01, ha="left")
    return made


def name(axes: Axes, title: str, x: str, y: str) -> None:
    """Names a diagram and its axes, and takes the frame away."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def short(text: str, most: int = LONGEST) -> str:
    """A title that fits; a $ would begin a formula.

    >>> short("Star Wars (1977)", 9)
    'Star War…'
    """
    return (text if len(text) <= most else text[: most - 1] + "…").replace("$", r"\$")


def named(item: dict[str, Any]) -> str:
    """An item's title and genres.

    >>> named({"title": "Alien (1979)", "genres": ["Horror", "Sci-Fi"]})
    'Alien (1979) (Horror, Sci-Fi)'
    """
    genres = ", ".join(item["genres"])
    return item["title"] + (f" ({genres})" if genres else "")


def dots(
    axes: Axes, y: np.ndarray, mean: pl.Series, low: pl.Series, high: pl.Series, *, number: int, label: str
) -> None:
    """A dot with its interval for each place y, in the colour of some number; a dot alone without one."""
    middle, *ends = (np.array(each, dtype=float) for each in (mean, low, high))
    arms = np.nan_to_num(np.abs(np.array(ends) - middle))
    axes.errorbar(
        middle, y, xerr=arms, color=colour(number), marker=marker(number), linestyle="none", capsize=2,
        markersize=5, label=label,
    )  # fmt: skip
