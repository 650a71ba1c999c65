"""One user: the history, what each model would recommend, and where it ranks what came next."""

import polars as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hydrec.batch import PAD, EvalCandidates, SequenceBatch
from hydrec.explain import style
from hydrec.explain.case import case_of, history, top
from hydrec.explain.run import FinishedRun
from hydrec.tasks import NextItem

DRAWN = 25  # events of the history in the figure, the last


def explain(run: str, others: str, user: str, k: int, out: str, *, wandb: bool) -> None:
    """Writes ``history.csv``, ``top.csv`` and a figure of both, and prints them.

    Args:
        run: folder of a finished run that ranks items.
        others: folders of others on the same test, to stand beside it, separated by commas; or "".
        user: raw id; "" for the first user of the test part.
        k: recommendations shown.
        out: where the files go; "" for ``explain/user`` in the run's folder.
        wandb: whether figure and tables go to the run's W&B run as well.

    Raises:
        InputError: a run is of clicks, or was tested on other cases, or the user has none; or as
            `FinishedRun` has it.
    """
    runs = [FinishedRun(path) for path in (run, *filter(None, others.split(",")))]
    for each in runs:
        each.need_ranking("user")
        runs[0].need_same_test(each)
    if wandb:
        runs[0].wandb_id()
    items, tables = runs[0].items(), []
    for number, each in enumerate(runs):
        data, task = each.load()
        batch, candidates = case_of(data, user)
        tables.append(
            recommended(task, batch, candidates, k, items).select(
                pl.lit(number, pl.Int64).alias("run"),
                pl.lit(each.model).alias("model"),
                pl.lit(each.cfg.seed).alias("seed"),
                "*",
            )
        )
    past, best = history(data, batch, items), pl.concat(tables)
    came = items.row(int(batch.targets[0, 0]) - 1, named=True)
    owner = data.log.user_ids[int(batch.users[0])]
    head = f"{runs[0].about['dataset']['name']}, {runs[0].cfg.names.protocol}, user {owner}"
    _print(past, best, came, head)
    pages = {"user": figure(past, best, came, head)}
    runs[0].leave("user", out, {"history": past, "top": best}, pages, wandb=wandb)


def recommended(
    task: NextItem, batch: SequenceBatch, candidates: EvalCandidates, k: int, items: pl.DataFrame
) -> pl.DataFrame:
    """The first k of a model in one case, with the places that the true next item may take among all.

    Args:
        task: of a trained model.
        batch: one row.
        candidates: what its target is ranked against.
        k: how many.
        items: `FinishedRun.items`.
    """
    best = top(task, batch, candidates, k)
    with torch.no_grad():
        _, _, ranks = task.ranks(task.net, batch, candidates)
    greater, equal, among = (int(column[0]) for column in ranks)
    found = pl.DataFrame({"item": best.items[0].numpy(), "score": best.scores[0].numpy()})
    found = found.filter(pl.col("item") != PAD).join(items, "item", "left", maintain_order="left")
    return found.select(
        pl.int_range(1, pl.len() + 1).alias("place"),
        *("raw", "title", "genres", "score"),
        is_next=pl.col("item") == int(batch.targets[0, 0]),
        next_first=greater + 1,
        next_last=greater + equal + 1,
        candidates=among,
    )


def place(row: dict) -> str:
    """Where the true next item ranks, in words; as a range where others score the same.

    >>> place({"next_first": 3, "next_last": 5, "candidates": 1682})
    'place 3 to 5 of 1,682'
    """
    last = f" to {row['next_last']:,}" if row["next_last"] > row["next_first"] else ""
    return f"place {row['next_first']:,}{last} of {row['candidates']:,}"


def figure(past: pl.DataFrame, best: pl.DataFrame, came: dict, head: str) -> Figure:
    """The history, and a column of recommendations for each model."""
    shown = past[-DRAWN:]
    some = f"the last {DRAWN} of {len(past)}" if len(shown) < len(past) else "all"
    columns = [(f"History, {some} events, oldest first", shown.with_columns(is_next=False))]
    for name, table in _models(best).items():
        columns.append((f"{name}\nnext item: {place(table.row(0, named=True))}", table))
    rows = max(len(table) for _, table in columns)
    title = f"{head}; next: {style.short(style.named(came), 80)}"
    page = style.page(4.4 * len(columns), 1.5 + 0.36 * rows, title)
    for axes, (name, table) in zip(page.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        axes.set_axis_off()
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(rows - 0.4, -0.6)
        for row, one in enumerate(table.iter_rows(named=True)):
            colour, weight = (style.PALETTE[1], "bold") if one["is_next"] else ("black", "normal")
            text = f"{one['place']}  {style.short(one['title'])}"
            axes.text(0, row - 0.17, text, fontsize=9, va="center", color=colour, weight=weight)
            genres = style.short(", ".join(one["genres"]), 56)
            axes.text(0.065, row + 0.23, genres, fontsize=7, va="center", color="#555555")
    return page


def _models(best: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """The rows of each run, by its name."""
    return {
        f"{number + 1}. {model}, seed {seed}": some
        for (number, model, seed), some in best.group_by("run", "model", "seed", maintain_order=True)
    }


def _print(past: pl.DataFrame, best: pl.DataFrame, came: dict, head: str) -> None:
    console = Console(soft_wrap=True)
    events = Table("", "time (UTC)", "item", "genres", title=f"{head}: history", title_justify="left")
    for row in past.iter_rows(named=True):
        texts = escape(row["title"]), escape(", ".join(row["genres"]))
        events.add_row(str(row["place"]), str(row["time"]), *texts)
    console.print(events)
    title = f"recommended (* is the true next item, {escape(style.named(came))})"
    table = Table("", title=title, title_justify="left", show_footer=True)
    table.columns[0].footer = "next"
    models = _models(best)
    for name, some in models.items():
        table.add_column(name, footer=place(some.row(0, named=True)))
    for number in range(max(map(len, models.values()))):
        rows = [some.rows(named=True)[number : number + 1] for some in models.values()]
        cells = ["".join("* " * row["is_next"] + escape(style.named(row)) for row in some) for some in rows]
        table.add_row(str(number + 1), *cells)
    console.print(table)
