"""The figures of a study. One with nothing to show is left out.

Colours are those of Okabe and Ito, which the colour-blind tell apart; lines and markers differ as well.
"""

import io
from collections.abc import Sequence
from itertools import cycle
from statistics import mean, stdev
from typing import Any

import numpy as np
import polars as pl
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from hydrec.study.results import Run, Setting
from hydrec.study.tables import heading, scores, shown

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES: Any = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 4)))
MARKERS = "osD^vPX*<>hp"
VERDICTS: dict[str, Any] = {
    "robust gain": {"color": "#0072B2", "marker": "^", "markersize": 5, "linewidth": 1.2},
    "none": {"color": "#777777", "marker": "o", "markersize": 4, "linewidth": 1.2},
    "robust loss": {"color": "#D55E00", "marker": "v", "markersize": 5, "linewidth": 1.2},
}
UNITS = {
    "hit": "share of rows",
    "recall": "share of rows",
    "precision": "share of the list",
    "mrr": "mean of 1 / place",
    "map": "mean of 1 / place",
    "ndcg": "mean gain, 0 to 1",
    "mean_rank": "places",
    "auc": "share of pairs",
    "gauc": "share of pairs of a user",
    "logloss": "nats a row",
}
ZERO: Any = {"color": "#444444", "linestyle": "--", "linewidth": 0.8, "zorder": 0}


def drawn(page: Figure, form: str) -> bytes:
    """The file of a figure, ``png`` or ``svg``; the same bytes for the same runs."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "hydrec"}):
        page.savefig(file, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def named(metric: str) -> str:
    """A metric with its unit, for an axis.

    >>> named("hit@10")
    'Hit@10 (share of rows)'
    """
    return f"{shown(metric)} ({UNITS[metric.partition('@')[0]]})"


def forest(setting: Setting, verdicts: pl.DataFrame, alpha: float) -> Figure:
    """Differences to the baseline with their bootstrap intervals (IA-SASRec, fig. 1).

    Args:
        setting: gives the order of the metrics.
        verdicts: of the setting, with intervals at level 1 - ``alpha``.
        alpha: of the verdicts.
    """
    metrics = [*verdicts["metric"].unique(maintain_order=True)]
    page, axes = _page(1.2 + 0.19 * (len(verdicts) + 1.4 * len(metrics)))
    names, at = {}, 0.0
    for metric in metrics:
        head: Any = {"transform": axes.get_yaxis_transform(), "fontsize": 9, "weight": "bold", "va": "center"}
        axes.text(0.005, at, heading(setting, metric), **head)
        for row in verdicts.filter(metric=metric).iter_rows(named=True):
            at += 1
            names[at] = row["model"]
            difference, arms = _interval(row)
            axes.errorbar(difference, at, xerr=arms, capsize=2, **VERDICTS[row["verdict"]])
        at += 1.4
    axes.axvline(0, **ZERO)
    axes.set_yticks([*names], [*names.values()], fontsize=8)
    axes.set_ylim(at - 0.8, -0.9)
    axes.margins(x=0.08)
    lower = "; ↓: lower is better" if any(map(setting.lower_is_better, metrics)) else ""
    axes.set_xlabel(f"difference to {verdicts['baseline'][0]}, {_unit(alpha)}{lower}", fontsize=9)
    for verdict, style in VERDICTS.items():
        axes.plot([], [], label="no robust difference" if verdict == "none" else verdict, **style)
    page.legend(loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    _title(page, setting.title)
    return page


def curves(setting: Setting) -> Figure | None:
    """The metric that chooses epochs, by epoch (MIAN, fig. 5)."""
    metric = f"valid/{setting.measured.main}"
    found = {}
    for model, runs in setting.models.items():
        rows = [run.history() for run in runs.values()]
        if all(metric in history.columns for history in rows):
            found[model] = [(each["epoch"] + 1, each.select(metric)) for each in rows]
    label = f"validation {named(setting.measured.main)}"
    return _lines(setting, found, "epoch, to the last that all seeds have", f"{label}, mean ± sd over seeds")


def lambda_steps(setting: Setting) -> Figure | None:
    """Lambda by cumulative steps of the optimiser."""
    found = {}
    for model, runs in setting.models.items():
        rows = [run.history() for run in runs.values()]
        if all(map(_lambdas, rows)):
            found[model] = [(each["step"], each.select(_lambdas(each))) for each in rows]
    return _lines(setting, found, "steps of the optimiser", "lambda, mean ± sd over blocks and seeds")


def lambda_difference(settings: Sequence[Setting], verdicts: pl.DataFrame, alpha: float) -> Figure | None:
    """Lambda of the tested epochs against the difference in the first metric (IA-SASRec, fig. 2).

    Args:
        settings: of the study.
        verdicts: of all of them, with intervals at level 1 - ``alpha``.
        alpha: of the verdicts.
    """
    points = []
    for setting in settings:
        here = {"dataset": setting.dataset, "protocol": setting.protocol, "metric": setting.metrics[0]}
        for row in verdicts.filter(**here).iter_rows(named=True):
            runs = setting.models[row["model"]].values()
            if values := [value for run in runs for value in lambdas_tested(run)]:
                points.append((setting, row, values))
    if not points:
        return None
    colours = dict(zip(dict.fromkeys(row["model"] for _, row, _ in points), cycle(COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(setting.title for setting, *_ in points), cycle(MARKERS), strict=False))
    page, axes = _page(4.6 + 0.06 * (len(colours) + len(markers)))
    for setting, row, values in points:
        difference, arms = _interval(row)
        sd = stdev(values) if len(values) > 1 else None
        style: Any = {"color": colours[row["model"]], "marker": markers[setting.title], "linewidth": 1}
        axes.errorbar(mean(values), difference, xerr=sd, yerr=arms, markersize=5, capsize=2, **style)
    axes.axhline(0, **ZERO)
    axes.set_xlabel("lambda of the tested epochs, mean ± sd over blocks and seeds", fontsize=9)
    metrics = " or ".join(dict.fromkeys(shown(setting.metrics[0]) for setting, *_ in points))
    axes.set_ylabel(f"difference in {metrics} to {points[0][1]['baseline']},\n{_unit(alpha)}", fontsize=9)
    for model, colour in colours.items():
        axes.plot([], [], color=colour, label=model)
    for title, marker in markers.items():
        axes.plot([], [], color="#444444", linestyle="", marker=marker, markersize=5, label=title)
    legend(page)
    return page


def cost(setting: Setting) -> Figure | None:
    """Quality in the first metric against seconds of training and parameters, both on a log scale."""
    found = scores(setting, setting.metrics[:1])
    trained = {
        score: [*setting.models[score.model].values()]
        for score in found
        if score.kind == "model" and all(run.trained for run in setting.models[score.model].values())
    }
    if len(trained) < 2:
        return None
    page = Figure(figsize=(8, 3.8 + 0.06 * len(trained)), layout=ConstrainedLayoutEngine())
    time, size = page.subplots(1, 2, sharey=True)
    for place, (score, runs) in enumerate(trained.items()):
        style: Any = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        style |= {"yerr": score.sd, "linestyle": "", "markersize": 6, "capsize": 2, "linewidth": 1}
        seconds = mean(run.about["seconds"]["fit"] for run in runs)
        time.errorbar(seconds, score.mean, label=score.model, **style)
        size.errorbar(runs[0].about["parameters"], score.mean, **style)
    for axes, name in ((time, "seconds of training, with validation"), (size, "parameters")):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.4, high * 1.4)  # even a narrow range then has a tick or two
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=7))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name, fontsize=9)
        plain(axes)
    time.set_ylabel(named(setting.metrics[0]), fontsize=9)
    legend(page)
    _title(page, setting.title)
    return page


def lambdas_tested(run: Run) -> list[float]:
    """Lambda of each block in the epoch that was tested; none where the net has none."""
    history = run.history()
    columns = _lambdas(history)
    if not columns:
        return []
    return [*history.filter(epoch=run.about["epochs"]["tested"]).select(columns).row(0)]


def _lambdas(history: pl.DataFrame) -> list[str]:
    return [name for name in history.columns if name.startswith("lambda/")]


# Style ------------------------------------------------------------------------------------------------------


def _interval(row: dict[str, Any]) -> tuple[float, np.ndarray]:
    """The difference of a verdict and, (2, 1), how far its interval reaches, in per cent of the baseline."""
    low, middle, high = (100 * row[key] / row["baseline_mean"] for key in ("low", "difference", "high"))
    return middle, np.array([[middle - low], [high - middle]])


def _unit(alpha: float) -> str:
    return f"% of its mean, {100 * (1 - alpha):g} % intervals over users"


def _lines(
    setting: Setting, found: dict[str, list[tuple[pl.Series, pl.DataFrame]]], x: str, y: str
) -> Figure | None:
    """A line for each model with a band, over the columns of all its runs, as far as all of them go."""
    if not found:
        return None
    page, axes = _page(4.4 + 0.06 * len(found))
    for place, (model, runs) in enumerate(found.items()):
        shared = min(len(at) for at, _ in runs)
        at = runs[0][0].to_numpy()[:shared]
        values = np.hstack([columns.to_numpy()[:shared] for _, columns in runs]).astype(np.float64)
        line = LINES[place // len(COLOURS) % len(LINES)]
        style: Any = {"color": COLOURS[place % len(COLOURS)], "linestyle": line, "linewidth": 1.3}
        axes.plot(at, values.mean(1), label=model, marker="o" if shared == 1 else None, **style)
        if values.shape[1] > 1:
            middle, spread = values.mean(1), values.std(1, ddof=1)
            axes.fill_between(
                at, middle - spread, middle + spread, color=style["color"], alpha=0.15, linewidth=0
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    legend(page)
    _title(page, setting.title)
    return page


def _page(height: float) -> tuple[Figure, Axes]:
    page = Figure(figsize=(8, height), layout=ConstrainedLayoutEngine())
    axes = page.subplots()
    plain(axes)
    return page, axes


def plain(axes: Axes) -> None:
    """Sets axes without a box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _title(page: Figure, text: str) -> None:
    page.suptitle(text, fontsize=10, x=0.01, ha="left")


def legend(page: Figure) -> None:
    """Sets the legend below the panels."""
    page.legend(loc="outside lower left", ncols=4, fontsize=8, frameon=False)
