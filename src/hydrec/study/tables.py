"""The tables of a study: comparison, changes, leads, claims, ablations, and what single seeds would claim.

Each is a frame (for CSV) with cells as people read them (for Markdown, LaTeX and HTML).
"""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

import polars as pl

from hydrec.study.results import Setting, Study

STARS = {"***": 0.001, "**": 0.01, "*": 0.05}  # of the t-test over seeds
MARKS = {"robust gain": "▲", "robust loss": "▼", "none": ""}
LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {
        "±": r"$\pm$",
        "▲": r"$\blacktriangle$",
        "▼": r"$\blacktriangledown$",
        "↓": r"$\downarrow$",
        "~": r"\textasciitilde{}",
    }
    | {"^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "*": r"$^{*}$"}
)
HOW = (
    "Mean ± standard deviation over seeds; best bold, second underlined. Against {baseline}: stars from the"
    " t-test over seeds (* p < 0.05, ** p < 0.01, *** p < 0.001); ▲ robust gain, ▼ robust loss."
)


class Cell(NamedTuple):
    """What one place of a table says.

    Attributes:
        text: the value.
        bold, underline: how it is set.
        mark: stars and signs of a verdict, behind it.
    """

    text: str
    bold: bool = False
    underline: bool = False
    mark: str = ""


class Table(NamedTuple):
    """A table.

    Attributes:
        name: of its files.
        title: stands above.
        header: of the columns; the first says what a row is.
        rows: its cells.
        references: how many of the last rows are there to read the others by.
        notes: stand below.
        frame: the same in numbers.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    references: int
    notes: list[str]
    frame: pl.DataFrame

    @property
    def words(self) -> list[bool]:
        """Which columns are of words, set to the left; numbers are set to the right."""
        return [any(cell.text[:1].isalpha() for cell in column) for column in zip(*self.rows, strict=True)]


# What is in them --------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """A model's mean in one metric.

    Attributes:
        model, metric: names.
        kind: ``model`` or ``reference``.
        seeds: how many the mean is of.
        mean, sd: over seeds; no ``sd`` with fewer than two.
        lower: whether lower is better.
    """

    model: str
    metric: str
    kind: str
    seeds: int
    mean: float
    sd: float | None
    lower: bool


def scores(setting: Setting, metrics: Sequence[str]) -> list[Score]:
    """Every model and reference of a setting, metric by metric in each."""
    found = []
    rows: dict[tuple[str, str], list[dict[str, float]]] = {
        ("model", model): [run.metrics for run in runs.values()] for model, runs in setting.models.items()
    }
    rows |= {("reference", model): [run.metrics] for model, run in setting.references.items()}
    for (kind, model), measured in rows.items():
        for metric in metrics:
            values = [one[f"test/{metric}"] for one in measured if f"test/{metric}" in one]
            if values:
                sd = stdev(values) if len(values) > 1 else None
                lower = setting.lower_is_better(metric)
                found.append(Score(model, metric, kind, len(values), mean(values), sd, lower))
    for prefix in setting.prefixes():
        for metric in metrics:
            value = setting.carried(prefix, metric)
            if value is not None:
                found.append(
                    Score(prefix, metric, "reference", 1, value, None, setting.lower_is_better(metric))
                )
    return found


def comparison(setting: Setting, verdicts: pl.DataFrame, asked: Study) -> Table:
    """Models by metrics, best and second marked, with the verdict against the baseline."""
    found = scores(setting, setting.metrics)
    judged = _judged(verdicts)
    order = _best_first(found)
    rows, places = _grid(found), {metric: each[:2] for metric, each in order.items()}
    cells = []
    for model, by_metric in rows.items():
        seeds = max(score.seeds for score in by_metric.values())
        line = [Cell(model), Cell(str(seeds) if model in setting.models else "")]
        for metric in setting.metrics:
            score = by_metric.get(metric)
            if score is None:
                line.append(Cell("-"))
                continue
            text = number(metric, score.mean) + ("" if score.sd is None else f" ± {number(metric, score.sd)}")
            first, *second = places[metric]
            verdict = judged.get((model, metric))
            line.append(
                Cell(text, score is first, score in second, "" if verdict is None else _mark(verdict))
            )
        cells.append(line)
    frame = pl.DataFrame(found)
    if judged:
        columns = ("change", "p_seeds", "p_users", "p_holm", "p_bh", "verdict")
        frame = frame.join(verdicts.select("model", "metric", *columns), ["model", "metric"], "left")
    return Table(
        f"comparison-{setting.key}",
        setting.title,
        ["model", "seeds", *(heading(setting, metric) for metric in setting.metrics)],
        cells,
        len({score.model for score in found if score.kind == "reference"}),
        [
            HOW.format(baseline=asked.baseline)
            if judged
            else "Mean ± standard deviation over seeds; best bold, second underlined.",
            *_paired(setting, verdicts, asked),
        ],
        frame.drop("lower"),
    )


def changes(setting: Setting, verdicts: pl.DataFrame) -> Table:
    """Change of the mean over the baseline in per cent, with stars, bold if robust."""
    baseline, judged = verdicts["baseline"][0], _judged(verdicts)
    cells = [
        [Cell(model), Cell(str(seeds)), *(_change(judged[model, metric]) for metric in setting.metrics)]
        for model, seeds in verdicts.select("model", "seeds").unique(maintain_order=True).iter_rows()
    ]
    return Table(
        f"changes-{setting.key}",
        f"{setting.title}: change over {baseline}",
        ["model", "seeds", *(heading(setting, metric) for metric in setting.metrics)],
        cells,
        0,
        [
            f"Change of the mean over {baseline} in per cent, and in brackets the smallest that the t-test"
            " could tell from 0 with such seeds; stars from that test; bold with ▲ or ▼ if robust."
        ],
        verdicts.select("model", "metric", "seeds", "change", "p_seeds", "detectable", "verdict"),
    )


def leads(setting: Setting) -> Table:
    """By how much each model is above the strongest other, its own variants and originals aside."""
    found = scores(setting, setting.metrics)
    order, rows = _best_first(found), _grid(found)
    family = _families(rows)
    cells, lines = [], []
    for model in setting.models:
        line = [Cell(model)]
        for metric in setting.metrics:
            own = rows[model].get(metric)
            others = [score for score in order[metric] if family[score.model] != family[model]]
            if own is None or not others or not others[0].mean:
                line.append(Cell("-"))
                continue
            over = 100 * (own.mean / others[0].mean - 1)
            line.append(Cell(f"{over:+.1f} % ({others[0].model})"))
            lines.append((model, metric, others[0].model, own.mean, others[0].mean, over))
        cells.append(line)
    columns = ["model", "metric", "strongest", "mean", "mean_of_strongest", "improvement"]
    return Table(
        f"leads-{setting.key}",
        f"{setting.title}: improvement over the strongest other model",
        ["model", *(heading(setting, metric) for metric in setting.metrics)],
        cells,
        0,
        ["Per cent of the mean; models named as variants of one another are not set against each other."],
        pl.DataFrame(lines, schema=columns, orient="row"),
    )


def claims(settings: Sequence[Setting], asked: Study) -> Table | None:
    """What was published beside what was found; ``None`` where nothing of it was run."""
    lines = []
    for setting in settings:
        published = asked.claims.get(setting.dataset) or {}
        rows = _grid(scores(setting, setting.known()))
        for model, by_metric in published.items():
            for metric, value in by_metric.items():
                ours = rows.get(model, {}).get(metric)
                if ours is None:
                    continue
                base = rows.get(asked.baseline or "", {}).get(metric) if model != asked.baseline else None
                paper_base = published.get(asked.baseline or "", {}).get(metric) if base else None
                lines.append(
                    {
                        "dataset": setting.dataset,
                        "protocol": setting.protocol,
                        "model": model,
                        "metric": metric,
                        "paper": float(value),
                        "ours": ours.mean,
                        "sd": ours.sd,
                        "difference": ours.mean - value,
                        "change": 100 * (ours.mean / value - 1) if value else None,
                        "paper_over_baseline": 100 * (value / paper_base - 1) if paper_base else None,
                        "ours_over_baseline": 100 * (ours.mean / base.mean - 1)
                        if base and base.mean
                        else None,
                    }
                )
    if not lines:
        return None
    frame = pl.DataFrame(lines, infer_schema_length=None)
    over = f"over {asked.baseline}"
    return Table(
        "claims",
        "Beside the paper",
        [
            "dataset",
            "protocol",
            "model",
            "metric",
            "paper",
            "ours",
            "difference",
            f"paper {over}",
            f"ours {over}",
        ],
        [
            [
                *(Cell(row[key]) for key in ("dataset", "protocol", "model")),
                Cell(shown(row["metric"])),
                Cell(number(row["metric"], row["paper"])),
                Cell(
                    number(row["metric"], row["ours"])
                    + ("" if row["sd"] is None else f" ± {number(row['metric'], row['sd'])}")
                ),
                Cell(f"{number(row['metric'], row['difference'], sign='+')} ({_percent(row['change'])})"),
                Cell(_percent(row["paper_over_baseline"])),
                Cell(_percent(row["ours_over_baseline"])),
            ]
            for row in lines
        ],
        0,
        [f"Published: {asked.source or 'the source is not named in the study'}."],
        frame,
    )


def ablation(setting: Setting, verdicts: pl.DataFrame, parent: str) -> Table:
    """Variants of a model below it, with the change over it.

    Args:
        setting: of dataset and protocol.
        verdicts: of the variants against ``parent``.
        parent: the whole model.
    """
    rows = _grid(scores(setting, setting.metrics))
    variants = [*verdicts["model"].unique(maintain_order=True)]
    judged = _judged(verdicts)
    cells = []
    for model in (parent, *variants):
        line = [Cell(model), Cell(str(len(setting.models[model])))]
        for metric in setting.metrics:
            score, verdict = rows[model].get(metric), judged.get((model, metric))
            text = "-" if score is None else number(metric, score.mean)
            if verdict is None:
                line.append(Cell(text))
            else:
                robust = verdict["verdict"] != "none"
                line.append(Cell(f"{text} ({_percent(verdict['change'])})", bold=robust, mark=_mark(verdict)))
        cells.append(line)
    return Table(
        f"ablation-{setting.key}-{parent}",
        f"{setting.title}: {parent} and its variants",
        ["model", "seeds", *(heading(setting, metric) for metric in setting.metrics)],
        cells,
        0,
        [f"Mean over seeds, and its change over {parent} in per cent; stars and marks as above."],
        verdicts.select("model", "metric", "seeds", "model_mean", "change", "p_seeds", "p_users", "verdict"),
    )


def cells(verdicts: pl.DataFrame, alone: pl.DataFrame, alpha: float) -> Table:
    """How many cells a reader of one seed would call a gain, and how many of them are robust.

    Args:
        verdicts: a row a cell.
        alone: a row for each cell and seed: what a test over the users of that seed says.
        alpha: its level.
    """
    numbers = sorted(alone["seed"].unique())
    lines = []
    for (dataset, protocol), some in verdicts.group_by("dataset", "protocol", maintain_order=True):
        lines.append(
            _count(
                f"{dataset}, {protocol}",
                some,
                alone.filter(dataset=dataset, protocol=protocol),
                numbers,
                alpha,
            )
        )
    if len(lines) > 1:
        lines.append(_count("all", verdicts, alone, numbers, alpha))
    header = {"setting": "", "cells": "cells"} | {
        f"gains_seed_{n}": f"gains by seed {n}" if n == numbers[0] else f"by seed {n}" for n in numbers
    }
    header |= {"gains_mean_of_seeds": "by one seed (mean)"}
    header |= {"robust_gains": "robust gains", "robust_losses": "robust losses"}
    header |= {"robust_holm": "after Holm", "robust_bh": "after BH"}
    return Table(
        "cells",
        "Cells that are called a gain",
        [*header.values()],
        [
            [
                Cell(
                    f"{line[key]:g}"
                    if isinstance(line[key], float)
                    else str(line[key] if line[key] is not None else "-")
                )
                for key in header
            ]
            for line in lines
        ],
        0,
        [
            f"Gains by a seed: p of the bootstrap over users of that seed alone is below {alpha:g} and the"
            " mean is better. Robust: seeds, users and most seeds agree. After Holm and BH: robust, and still"
            " below when corrected for all cells of the study."
        ],
        pl.DataFrame(lines, infer_schema_length=None),
    )


def _count(
    name: str, some: pl.DataFrame, alone: pl.DataFrame, numbers: Sequence[int], alpha: float
) -> dict[str, Any]:
    gains = {
        f"gains_seed_{n}": int((each["verdict"] == "gain").sum())
        if len(each := alone.filter(seed=n))
        else None
        for n in numbers
    }
    robust = some.filter(pl.col("verdict") != "none")
    known = [value for value in gains.values() if value is not None]
    return {
        "setting": name,
        "cells": len(some),
        **gains,
        "gains_mean_of_seeds": round(mean(known), 1) if known else None,
        "robust_gains": int((some["verdict"] == "robust gain").sum()),
        "robust_losses": int((some["verdict"] == "robust loss").sum()),
        "robust_holm": int((robust["p_holm"] < alpha).sum()),
        "robust_bh": int((robust["p_bh"] < alpha).sum()),
    }


def parents(models: Iterable[str]) -> dict[str, str]:
    """The model that each variant varies: the longest other name that its own begins with.

    >>> parents(["hgnn", "hgnn_t", "hgnn_t_free", "sasrec"])
    {'hgnn_t': 'hgnn', 'hgnn_t_free': 'hgnn_t'}
    """
    names = [*models]
    above = {name: [other for other in names if name.startswith(f"{other}_")] for name in names}
    return {name: max(others, key=len) for name, others in above.items() if others}


def _families(models: Iterable[str]) -> dict[str, str]:
    """The first ancestor of each model: variants of one model are of one family."""
    names = [*models]
    above, found = parents(names), {}
    for name in names:
        first = name
        while first in above:
            first = above[first]
        found[name] = first
    return found


def _grid(found: Sequence[Score]) -> dict[str, dict[str, Score]]:
    """Scores by model and metric, models in their order."""
    rows: dict[str, dict[str, Score]] = {}
    for score in found:
        rows.setdefault(score.model, {})[score.metric] = score
    return rows


def _best_first(found: Sequence[Score]) -> dict[str, list[Score]]:
    """The scores of each metric, best first."""
    by_metric: dict[str, list[Score]] = {}
    for score in sorted(found, key=lambda score: score.mean if score.lower else -score.mean):
        by_metric.setdefault(score.metric, []).append(score)
    return by_metric


def _judged(verdicts: pl.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Verdicts by model and metric."""
    return {(row["model"], row["metric"]): row for row in verdicts.iter_rows(named=True)}


def _mark(verdict: dict[str, Any]) -> str:
    return stars(verdict["p_seeds"]) + MARKS[verdict["verdict"]]


def _change(verdict: dict[str, Any]) -> Cell:
    text = _percent(verdict["change"])
    if verdict["detectable"] is not None and verdict["baseline_mean"]:
        text += f" (±{100 * verdict['detectable'] / verdict['baseline_mean']:.1f})"
    return Cell(text, bold=verdict["verdict"] != "none", mark=_mark(verdict))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"


def _paired(setting: Setting, verdicts: pl.DataFrame, asked: Study) -> list[str]:
    """A note on each model whose verdicts are of fewer seeds than its mean."""
    some = verdicts.unique("model", keep="first", maintain_order=True)
    return [
        f"{row['model']}: the verdicts are of the {row['seeds']} seeds that {asked.baseline} has as well."
        for row in some.iter_rows(named=True)
        if row["seeds"] < max(len(setting.models[model]) for model in (row["model"], row["baseline"]))
    ]


# How they look ----------------------------------------------------------------------------------------------


def shown(metric: str) -> str:
    """A metric as tables head it.

    >>> shown("ndcg@10"), shown("hit@5"), shown("logloss"), shown("mean_rank")
    ('NDCG@10', 'Hit@5', 'Logloss', 'Mean rank')
    """
    kind, at, k = metric.partition("@")
    word = kind.upper() if kind in ("ndcg", "mrr", "map", "auc", "gauc") else kind.capitalize()
    return f"{word.replace('_', ' ')}{at}{k}"


def heading(setting: Setting, metric: str) -> str:
    """A metric at the head of a column, with an arrow where lower is better."""
    return shown(metric) + (" ↓" if setting.lower_is_better(metric) else "")


def number(metric: str, value: float, sign: str = "") -> str:
    """A value of a metric, with the digits that it deserves."""
    return f"{value:{sign}.1f}" if metric == "mean_rank" else f"{value:{sign}.4f}"


def stars(p: float | None) -> str:
    """Stars of a p-value; none where there is no test.

    >>> stars(0.0005), stars(0.03), stars(0.2), stars(None)
    ('***', '*', '', '')
    """
    return next((mark for mark, level in STARS.items() if p is not None and p < level), "")


def markdown(table: Table) -> str:
    """As a section of a Markdown page."""
    lines = [f"**{table.title}**", "", *(f"| {' | '.join(row)} |" for row in _markdown_rows(table))]
    lines += ["", *table.notes]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table) -> list[list[str]]:
    body = []
    for row in table.rows:
        line = []
        for cell in row:
            text = cell.text.replace("_", r"\_").replace("*", r"\*").replace("|", r"\|")
            text = f"**{text}**" if cell.bold else f"<ins>{text}</ins>" if cell.underline else text
            line.append(text + cell.mark.replace("*", r"\*"))
        body.append(line)
    return [table.header, ["---"] * len(table.header), *body]


def latex(table: Table) -> str:
    r"""As a LaTeX table; needs the packages booktabs and amssymb."""
    lines = [" & ".join(name.translate(LATEX) for name in table.header) + r" \\", r"\midrule"]
    for place, row in enumerate(table.rows):
        if table.references and place == len(table.rows) - table.references:
            lines.append(r"\midrule")
        line = []
        for cell in row:
            text = cell.text.translate(LATEX)
            text = (
                rf"\textbf{{{text}}}" if cell.bold else rf"\underline{{{text}}}" if cell.underline else text
            )
            line.append(text + cell.mark.translate(LATEX))
        lines.append(" & ".join(line) + r" \\")
    notes = " ".join(table.notes).translate(LATEX)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{table.title.translate(LATEX)}. {notes}}}",
            rf"\begin{{tabular}}{{{''.join('l' if words else 'r' for words in table.words)}}}",
            r"\toprule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
