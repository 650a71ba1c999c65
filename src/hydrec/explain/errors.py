"""Where a model is weak: its hit rate by what is known of a test case before it is scored.

Read from what a run left of its test; no net is loaded.

Shapes: N test cases, G groups.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from hydrec.data.module import LogData
from hydrec.errors import InputError
from hydrec.explain import style
from hydrec.explain.groups import Groups, by_recency, by_size
from hydrec.explain.means import means
from hydrec.explain.run import FinishedRun
from hydrec.metrics import Ranks, break_ties, hit

TITLES = {
    "all": "All test cases",
    "history": "By the user's events before the target",
    "popularity": "By the target's events in training",
    "recency": "By time since the last event",
    "met": "By whether the user met the target before",
    "genre": "By genre of the target",
}
GENRES = 20  # that are shown, the most frequent


class Division(NamedTuple):
    """Groups of cases that may overlap.

    Attributes:
        has: (N, G) bool.
        labels: what each group is called.
    """

    has: np.ndarray
    labels: list[str]


def explain(run: str, other: str, k: int, out: str, *, wandb: bool) -> None:
    """Writes ``errors.csv`` and a figure of it, and prints it.

    Args:
        run: folder of a finished run that ranks items.
        other: of another one on the same test, to stand beside it, or "".
        k: a target among the first k is hit.
        out: where the files go; "" for ``explain/errors`` in the run's folder.
        wandb: whether figure and table go to the run's W&B run as well.

    Raises:
        InputError: a run is of clicks, or the two were tested on other cases; or as `FinishedRun` has it.
    """
    runs = [FinishedRun(path) for path in (run, other) if path]
    for each in runs:
        each.need_ranking("errors")
        runs[0].need_same_test(each)
    if wandb:
        runs[0].wandb_id()
    data, tested = runs[0].data(), [each.tested() for each in runs]
    if any(not each["sample"].equals(tested[0]["sample"]) for each in tested):
        raise InputError(f"{run} and {other} scored other test cases: run both to the end of the test")
    ties: Any = data.protocol.metrics.ties
    hits = [
        hit(break_ties(Ranks(*(each[name].to_torch() for name in Ranks._fields)), ties), k) for each in tested
    ]
    rows = tested[0]["sample"].to_numpy()
    found = table(divisions(data, rows, runs[0].items()), hits, torch.from_numpy(data.log.users[rows]))
    names = [each.model for each in runs]
    if len({*names}) < len(names):
        names = [f"{each.model}, seed {each.cfg.seed}" for each in runs]
    head = f"{runs[0].title}{f' beside {names[1]}' if other else ''}: hit@{k}, 95 % intervals over users"
    _print(found, names, head)
    runs[0].leave("errors", out, {"errors": found}, {"errors": figure(found, names, k, head)}, wandb=wandb)


def divisions(data: LogData, rows: np.ndarray, items: pl.DataFrame) -> dict[str, Division]:
    """Divides test cases by what is known of them; without times or genres, not by these.

    Args:
        data: of the test.
        rows: (N,) rows of the log that the targets are in.
        items: `FinishedRun.items`.
    """
    log = data.log
    user, item = log.users[rows], log.items[rows]
    trained = np.bincount(data.catalog.items, minlength=log.n_items + 1)[item]  # type: ignore[union-attr]
    pair = log.users * np.int64(log.n_items + 1) + log.items
    before = ~pl.Series(pair).is_first_distinct().to_numpy()[rows]
    found = {
        "all": Division(np.ones((len(rows), 1), bool), ["all"]),
        "history": _apart(by_size(torch.from_numpy(rows - log.offsets[user]))),
        "popularity": _apart(by_popularity(trained)),
    }
    if log.dated:
        samples = data.split.test
        last = samples.last[np.searchsorted(samples.target, rows)] - 1  # type: ignore[union-attr]
        found["recency"] = _apart(by_recency(torch.from_numpy(log.times[rows] - log.times[last])))
    found["met"] = Division(np.stack([~before, before], 1), ["new to the user", "met before"])
    words = items.select("item", "genres").explode("genres").drop_nulls()
    if len(words):
        often = words.join(pl.DataFrame({"item": item.astype(np.int64)}), "item")["genres"]
        labels = often.value_counts(sort=True).sort("count", "genres", descending=[True, False])["genres"]
        found["genre"] = Division(
            np.stack([np.isin(item, words.filter(genres=each)["item"]) for each in labels[:GENRES]], 1),
            labels[:GENRES].to_list(),
        )
    return found


def by_popularity(trained: np.ndarray) -> Groups:
    """Cases by how many events training has of the target, those it has none of apart.

    >>> by_popularity(np.array([0, 3, 5, 5])).labels
    ['0', '3', '5']
    """
    warm = torch.from_numpy(trained > 0)
    if not warm.any() or warm.all():
        return by_size(torch.from_numpy(trained))
    number, labels = by_size(torch.from_numpy(trained)[warm])
    return Groups(torch.zeros_like(warm, dtype=torch.long).masked_scatter(warm, number + 1), ["0", *labels])


def _apart(groups: Groups) -> Division:
    return Division(groups.number.numpy()[:, None] == np.arange(len(groups.labels)), groups.labels)


def table(divisions: dict[str, Division], hits: list[torch.Tensor], users: torch.Tensor) -> pl.DataFrame:
    """Hit rates with intervals, by division and group; of two models also the difference, case by case.

    Args:
        divisions: of the cases.
        hits: (N,) float64 of each model, one or two.
        users: (N,) whose case each is.
    """
    columns = dict(zip(("hit", "other"), hits, strict=False))
    if len(hits) > 1:
        columns["difference"] = hits[0] - hits[1]
    tables = []
    for by, (has, labels) in divisions.items():
        several = [values[:, None].where(torch.from_numpy(has), torch.nan) for values in columns.values()]
        mean, low, high, cases, of_users = (
            found.reshape(len(columns), -1) for found in means(torch.cat(several, 1), users)
        )
        frame = {"by": [by] * len(labels), "group": labels, "cases": cases[0], "users": of_users[0]}
        for place, name in enumerate(columns):
            frame |= {name: mean[place], f"{name}_low": low[place], f"{name}_high": high[place]}
        tables.append(pl.DataFrame(frame))
    return pl.concat(tables).filter(pl.col("cases") > 0).fill_nan(None)


def figure(found: pl.DataFrame, names: list[str], k: int, head: str) -> Figure:
    """A panel for each division: groups one below the other, models side by side."""
    present = [by for by in TITLES if len(found.filter(by=by))]
    columns = [[by for by in present if by != "genre"], [by for by in present if by == "genre"]]
    heights = [[1.6 + len(found.filter(by=by)) for by in column] for column in columns if column]
    page = style.page(6.4 * len(heights), 0.8 + 0.28 * max(map(sum, heights)), head)
    for part, column, rows in zip(
        page.subfigures(1, len(heights), squeeze=False)[0], filter(None, columns), heights, strict=True
    ):
        for by, axes in zip(
            column, part.subplots(len(column), 1, squeeze=False, height_ratios=rows)[:, 0], strict=True
        ):
            some = found.filter(by=by)
            place = np.arange(len(some))
            for number, (label, of) in enumerate(zip(names, ("hit", "other"), strict=False)):
                shift = 0.3 * (number - (len(names) - 1) / 2)
                three = [some[f"{of}{end}"] for end in ("", "_low", "_high")]
                style.dots(axes, place + shift, *three, number=number, label=label)
            axes.axvline(found["hit"][0], **style.EVEN)
            counts = [f"{group} ({n:,})" for group, n in some.select("group", "cases").iter_rows()]
            axes.set_yticks(place, [style.short(text) for text in counts])
            axes.set_ylim(len(some) - 0.4, -0.6)
            axes.set_xlim(left=0)
            style.name(axes, f"{TITLES[by]} (cases)", "", "")
            if by == column[-1]:
                axes.set_xlabel(
                    f"share of cases with the target among the first {k} (the line: all of {names[0]})",
                    fontsize=9,
                )
            if by == "all" and len(names) > 1:
                axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return page


def _print(found: pl.DataFrame, names: list[str], head: str) -> None:
    both = len(names) > 1
    shown = Table("by", "group", "cases", *names, *["difference"] * both, title=head, title_justify="left")
    for (by,), some in found.group_by("by", maintain_order=True):
        for row in some.iter_rows(named=True):
            cells = [_cell(row, of) for of in ("hit", "other", "difference") if of in row]
            shown.add_row(by, row["group"], f"{row['cases']:,}", *cells)
        shown.add_section()
    Console(soft_wrap=True).print(shown)


def _cell(row: dict[str, Any], of: str) -> str:
    low, high = row[f"{of}_low"], row[f"{of}_high"]
    return f"{row[of]:.3f}" + ("" if low is None else f" ({low:.3f} to {high:.3f})")
