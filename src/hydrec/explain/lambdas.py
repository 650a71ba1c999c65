"""What IA-SASRec's lambdas became: by layer, seed and step, and beside what the model gains over SASRec.

"Architectural Limitations in Intensity-Aware Sequential Recommendation: A Negative Result and Mechanism
Analysis" (Shyrallyiev and Pyshnograiev, 2026), its table of lambdas and fig. 2. Read from what runs left.

Differs from the paper in that steps are shown, too: Adam moves a number by about its learning rate a step at
most, so that a lambda may be near its first value because there was no time to leave it. ``reach`` is that
learning rate times the steps.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from hydrec.errors import InputError, one_of
from hydrec.explain import style
from hydrec.explain.run import FinishedRun
from hydrec.runs import digest

PREFIX = "lambda/"
OF_RUN = ("dataset", "protocol", "model", "settings")  # runs that share these differ in the seed
FEWEST = 3  # points that a correlation is of


def explain(runs: str, baseline: str, metric: str, out: str, *, wandb: bool) -> None:
    """Writes tables and figures of lambda, and prints its means.

    ``trajectory.csv`` has each lambda after each epoch; ``lambda.csv`` means and standard deviations over
    layers and seeds, and of each layer over seeds, of the epoch that was tested; ``calibration.csv`` the mean
    of each run beside its metric and the baseline's; ``spearman.csv`` rank correlations over runs, in which
    pinned lambdas are left out.

    Args:
        runs: a run folder, or a folder with runs in it, such as that of a study, whose trials do not count.
        baseline: the model that differences are to.
        metric: what they are of, as in ``metrics.json`` without ``test/``.
        out: where the files go; "" for ``explain/lambda`` in ``runs``.
        wandb: whether figures and tables go to the run's W&B run as well.

    Raises:
        InputError: no finished run there has lambdas, or the metric is none of theirs, or several runs are to
            be added to one W&B run.
    """
    opened = [run for path in _paths(Path(runs)) if (run := FinishedRun(str(path))).cfg.get("test", True)]
    ours = [run for run in opened if _history(run) is not None]
    if not ours:
        raise InputError(
            f"runs={runs} has no finished and tested run of IA-SASRec (model=ia_sasrec_...): give a run"
            " folder, or one with runs in it, such as runs/single"
        )
    if wandb:
        if len(opened) > 1:
            raise InputError(
                f"wandb=true: runs={runs} has several runs, each with its own; give one run folder"
            )
        ours[0].wandb_id()
    trajectory = pl.concat(map(_trajectory, ours), how="diagonal")
    tested = trajectory.filter("tested")
    beside = calibration(ours, [run for run in opened if run.model == baseline], tested, metric)
    means, correlations = summarised(tested), spearman(beside)
    _print(means, correlations)
    head = f"IA-SASRec's lambdas, {len(ours)} run{'s' * (len(ours) > 1)}"
    pages = {
        "lambda": figure(means, trajectory, head),
        "calibration": beside_figure(beside, baseline, metric, head),
    }
    tables = {
        "lambda": means,
        "trajectory": trajectory,
        "calibration": beside,
        "spearman": correlations,
    }
    ours[0].leave("lambda", out or str(Path(runs, "explain", "lambda")), tables, pages, wandb=wandb)


def _paths(root: Path) -> list[Path]:
    """The finished runs in a folder; those set aside are repeated by another."""
    if (root / "config.yaml").exists():
        return [root]
    found = sorted(path.parent for path in root.rglob("metrics.json"))
    return [path for path in found if not path.suffix.startswith(".old")]


def _history(run: FinishedRun) -> pl.DataFrame | None:
    """``history.csv``, if there are lambdas in it."""
    path = run.folder.path / "history.csv"
    if not path.exists() or PREFIX not in path.read_text().partition("\n")[0]:
        return None
    return pl.read_csv(path, infer_schema_length=None)


def _trajectory(run: FinishedRun) -> pl.DataFrame:
    """Each lambda after each epoch of a run."""
    history, net = _history(run), run.cfg.model.net
    assert history is not None
    rates = {"pinned": 0.0, "event": None}  # an event's lambda is a perceptron's: several numbers move it
    rate = rates.get(net.lambda_mode, net.lr * net.lambda_lr_mult)
    tested = run.about.get("epochs", {}).get("tested", history["epoch"].max())
    columns = [name for name in history.columns if name.startswith(PREFIX)]
    return (
        history.unpivot(columns, index=["epoch", "step"], variable_name="layer", value_name="lambda")
        .select(
            *(pl.lit(value).alias(name) for name, value in _named(run).items()),
            *("epoch", "step"),
            pl.col("layer").str.strip_prefix(PREFIX),
            "lambda",
            reach=pl.lit(rate, pl.Float64) * pl.col("step"),
            tested=pl.col("epoch") == tested,
            learnt=pl.lit(net.lambda_mode != "pinned"),
            begun=pl.lit(float(net.lambda_value)),
        )
        .drop_nulls("lambda")
    )


def _named(run: FinishedRun) -> dict[str, Any]:
    return {
        "run": run.folder.path.name,
        "dataset": run.about["dataset"]["name"],
        "protocol": run.cfg.names.protocol,
        "model": run.model,
        "settings": _settings(run),
        "seed": run.cfg.seed,
    }


def _settings(run: FinishedRun) -> str:
    """Names what runs that differ in their seed alone share."""
    config: Any = OmegaConf.to_container(run.cfg)
    config.pop("seed", None)
    config["dataset"] = {
        key: value for key, value in config["dataset"].items() if key not in ("seed", "cache")
    }
    return digest(config)


def summarised(tested: pl.DataFrame) -> pl.DataFrame:
    """Mean and standard deviation (ddof 1) over layers and seeds, then of each layer over seeds.

    Args:
        tested: each lambda of each run, of the epoch that was tested.
    """
    figures: dict[str, pl.Expr] = {
        "mean": pl.col("lambda").mean(),
        "sd": pl.col("lambda").std(ddof=1),
        "values": pl.len(),
        "seeds": pl.col("seed").n_unique(),
        "steps": pl.col("step").mean(),
        "reach": pl.col("reach").mean(),
    }
    whole = tested.group_by(OF_RUN, maintain_order=True).agg(layer=pl.lit("all"), **figures)
    layers = tested.group_by(*OF_RUN, "layer", maintain_order=True).agg(**figures)
    return pl.concat([whole, layers], how="diagonal").sort(*OF_RUN, maintain_order=True)


def calibration(
    ours: list[FinishedRun], baselines: list[FinishedRun], tested: pl.DataFrame, metric: str
) -> pl.DataFrame:
    """Each run's mean lambda beside what it gains over the baseline with the same data, protocol and seed.

    Where several baselines have these, the one with most settings in common; where none has, null.

    Args:
        ours: runs with lambdas.
        baselines: runs of the model that differences are to.
        tested: each lambda of each run, of the epoch that was tested.
        metric: as in ``metrics.json`` without ``test/``.

    Raises:
        InputError: a run has no such metric.
    """
    rows = []
    for run in ours:
        mine = _metrics(run)
        one_of("metric", metric, mine)
        same = [other for other in baselines if _test(other) == _test(run)]
        best = max(same, key=lambda other: _common(run, other), default=None)
        against = None if best is None else _metrics(best)[metric]
        rows.append(
            {
                "run": run.folder.path.name,
                metric: mine[metric],
                "baseline": against,
                "difference": None if against is None else mine[metric] - against,
                "baseline_run": None if best is None else best.folder.path.name,
            }
        )
    kinds = {metric: pl.Float64, "baseline": pl.Float64, "difference": pl.Float64, "baseline_run": pl.String}
    figures = pl.DataFrame(rows, schema={"run": pl.String, **kinds})
    lambdas = tested.group_by("run", *OF_RUN, "seed", "learnt", "step", "reach", maintain_order=True)
    return lambdas.agg(pl.col("lambda").mean()).join(figures, "run", "left", maintain_order="left")


def _metrics(run: FinishedRun) -> dict[str, float]:
    found = run.folder.read("metrics.json") or {}
    return {name.removeprefix("test/"): value for name, value in found.items() if name.startswith("test/")}


def _test(run: FinishedRun) -> tuple:
    return run.about["dataset"]["fingerprint"], run.about["protocol_digest"], run.cfg.seed


def _common(run: FinishedRun, other: FinishedRun) -> int:
    """How many settings two runs share."""
    one, two = ({*_leaves(OmegaConf.to_container(each.cfg))} for each in (run, other))
    return len(one & two)


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(child, f"{key}.{name}")
    else:
        yield key, str(node)


def spearman(beside: pl.DataFrame) -> pl.DataFrame:
    """Rank correlations over runs whose lambdas are learnt, by model and over all.

    No p-value stands beside them: runs that share data, or a baseline, are not independent.
    """
    learnt, rows = beside.filter("learnt"), []
    for model in ["all", *learnt["model"].unique(maintain_order=True)]:
        some = learnt if model == "all" else learnt.filter(model=model)
        for one, two in (("step", "lambda"), ("reach", "lambda"), ("lambda", "difference")):
            known = some.select(one, two).drop_nulls()
            if len(known) >= FEWEST and all(known[name].n_unique() > 1 for name in (one, two)):
                rho = known.select(pl.corr(one, two, method="spearman")).item()
                rows.append({"model": model, "of": f"{one} and {two}", "runs": len(known), "rho": rho})
    kinds = {"model": pl.String, "of": pl.String, "runs": pl.Int64, "rho": pl.Float64}
    return pl.DataFrame(rows, schema=kinds)


# Figures ----------------------------------------------------------------------------------------------------

STROKES = ("-", "--", ":", "-.")


def labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds ``label``: the model, and what else tells runs apart that differ in more than the seed."""
    parts = [name for name in ("dataset", "protocol") if frame[name].n_unique() > 1] + ["model"]
    if frame.select(OF_RUN).n_unique() > frame.select(OF_RUN[:-1]).n_unique():
        parts.append("settings")
    return frame.with_columns(label=pl.concat_str(parts, separator=" "))


def figure(means: pl.DataFrame, trajectory: pl.DataFrame, head: str) -> Figure:
    """Lambda after each epoch, and the means by layer."""
    means, trajectory = labelled(means), labelled(trajectory)
    numbers = _numbers(means)
    trajectory = trajectory.with_columns(block=pl.col("layer").str.extract("([^/]+)"))
    blocks = trajectory["block"].unique(maintain_order=True).to_list()
    page = style.page(13, 2.4 + 0.3 * max(9, len(means)), head)
    left, right = page.subplots(1, 2)
    for (_, _, label, block), some in trajectory.group_by(
        "run", "layer", "label", "block", maintain_order=True
    ):
        stroke = STROKES[blocks.index(block) % len(STROKES)]
        colour = style.colour(numbers[label])
        left.plot(some["step"], some["lambda"], color=colour, linestyle=stroke, linewidth=1.2)
    low, high = left.get_ylim()
    reached = trajectory.filter(pl.col("learnt") & pl.col("reach").is_not_null())
    for (begun, _), some in reached.group_by("begun", pl.col("reach") / pl.col("step"), maintain_order=True):
        ends = some.sort("step").unique("step", maintain_order=True)
        for side in (-1, 1):
            left.plot(ends["step"], begun + side * ends["reach"], **style.EVEN)
    left.set_ylim(low, high)
    strokes = ", ".join(f"{block} {stroke}" for block, stroke in zip(blocks, STROKES, strict=False))
    style.name(left, f"After each epoch ({strokes}; grey: reach)", "optimiser steps", "lambda")
    for place, row in enumerate(means.iter_rows(named=True)):
        number = numbers[row["label"]]
        right.errorbar(
            row["mean"],
            place,
            xerr=row["sd"],
            color=style.colour(number),
            marker=style.marker(number),
            markersize=7 if row["layer"] == "all" else 4,
            capsize=2,
        )
    names = means.select(pl.format("{}: {} (n = {})", "label", "layer", "values")).to_series()
    right.set_yticks(range(len(means)), names)
    right.invert_yaxis()
    style.name(right, "Of the epoch that was tested: mean and sd over n values", "lambda", "")
    return page


def beside_figure(beside: pl.DataFrame, baseline: str, metric: str, head: str) -> Figure:
    """The mean lambda of each run beside its difference to the baseline, and beside its steps."""
    beside = labelled(beside)
    numbers = _numbers(beside)
    page = style.page(11, 4.6, head)
    panels: tuple[tuple[Axes, str, str], ...] = tuple(
        zip(page.subplots(1, 2), ("lambda", "step"), ("difference", "lambda"), strict=True)
    )
    for axes, x, y in panels:
        for label, number in numbers.items():
            some = beside.filter(label=label)
            pinned = not some["learnt"].any()
            face = "none" if pinned else style.colour(number)
            axes.scatter(
                some[x],
                some[y].cast(pl.Float64).fill_null(np.nan),
                marker=style.marker(number),
                facecolors=face,
                edgecolors=style.colour(number),
                label=f"{label} (pinned)" if pinned else label,
            )
    (left, _, _), (right, _, _) = panels
    left.axhline(0, **style.EVEN)
    style.name(left, f"Difference to {baseline}", "lambda, mean over layers", f"difference in {metric}")
    style.name(
        right, "Lambda and time to leave its first value", "optimiser steps", "lambda, mean over layers"
    )
    page.legend(
        *right.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return page


def _numbers(frame: pl.DataFrame) -> dict[str, int]:
    """The colour and marker of each label."""
    return {label: number for number, label in enumerate(frame["label"].unique(maintain_order=True))}


def _print(means: pl.DataFrame, correlations: pl.DataFrame) -> None:
    table = Table(
        *("model", "layer", "lambda", "sd", "values", "steps", "reach"),
        title="lambda of the epoch that was tested",
        title_justify="left",
    )
    for row in labelled(means).iter_rows(named=True):
        table.add_row(
            row["label"],
            row["layer"],
            f"{row['mean']:.4f}",
            "-" if row["sd"] is None else f"{row['sd']:.4f}",
            str(row["values"]),
            f"{row['steps']:,.0f}",
            "-" if row["reach"] is None else f"{row['reach']:.3f}",
        )
    console = Console(soft_wrap=True)
    console.print(table)
    if len(correlations):
        ranks = Table("model", "Spearman's rho of", "runs", "rho")
        for model, of, runs, rho in correlations.iter_rows():
            ranks.add_row(model, of, str(runs), f"{rho:+.2f}")
        console.print(ranks)
