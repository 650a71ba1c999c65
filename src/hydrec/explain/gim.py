"""What MIAN weighs: parts by GIM as in fig. 6, over the whole test part; behaviours and fields by the others.

"Multi-Interactive Attention Network for Fine-grained Feature Learning in CTR Prediction" (Zhang et al., WSDM
2021).

Differs from fig. 6, which shows 14 cases, in that all cases are there, and in that means have intervals.

Shapes: B rows of a batch, N test cases, T behaviours, S what is weighed: parts, behaviours or fields.
"""

from typing import Any

import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hydrec.batch import ClickBatch
from hydrec.callbacks import say
from hydrec.data.module import LogData
from hydrec.errors import InputError
from hydrec.explain import gim_page
from hydrec.explain.groups import Groups, by_recency, by_size
from hydrec.explain.means import means
from hydrec.explain.run import FinishedRun, evenly
from hydrec.models.mian import MIAN

SAME = 1e-3  # logits that differ by more are of another net


def explain(run: str, out: str, *, wandb: bool) -> None:
    """Writes ``gim.csv`` and ``means.csv`` with a figure of each, and prints the means of the parts.

    Args:
        run: folder of a finished run.
        out: where the files go; "" for ``explain/gim`` in the run's folder.
        wandb: whether figures and tables go to the run's W&B run as well.

    Raises:
        InputError: the run is not of MIAN, or MIAN without GIM; or as `FinishedRun` has it.
    """
    opened = FinishedRun(run)
    if opened.net_class is not MIAN:
        raise InputError(
            f"run={run} is of {opened.model}: gim explains MIAN and its variants (model=mian...) only"
        )
    if opened.cfg.model.net.gim_combine == "none":
        raise InputError(
            f"run={run} is of {opened.model}, which has no GIM: each part weighs 1, nothing to show"
        )
    if wandb:
        opened.wandb_id()  # refuses before the work, not after it

    data, task = opened.load()
    names = named(task.net, data)
    facts, weights = collected(task.net, data)
    _compare(facts, opened.tested())
    cases = case_table(facts, weights["gim"], names["gim"], data)
    divisions = {
        "all": Groups(torch.zeros_like(facts["users"]), ["all"]),
        "history": by_size(facts["history"]),
        "recency": by_recency(facts["gap"]),
    }
    summary = summarised(weights, names, facts["users"], divisions)
    shown = cases[evenly(len(cases), gim_page.COLUMNS)]
    pages = {
        "gim": gim_page.heat_map(shown, names["gim"], summary, opened.title, len(cases)),
        "means": gim_page.means(summary, opened.title),
    }
    _print(summary, opened.title)
    opened.leave("gim", out, {"gim": cases, "means": summary}, pages, wandb=wandb)


def named(net: MIAN, data: LogData) -> dict[str, list[str]]:
    """What the columns of the weights are of; those of behaviours count from the end of the history."""
    fields: Any = data.catalog.fields  # type: ignore[union-attr]
    of_fields = {
        name: [field.name for field in fields if field.group == group]
        for name, group in {"iuim": "user", "icim": "context"}.items()
    }
    places = [str(place) for place in range(1, data.protocol.window + 1)]
    return {"gim": [*net.parts], "ibim": places, **of_fields}


@torch.no_grad()
def collected(net: MIAN, data: LogData) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Goes over the test part once.

    Returns:
        Facts of the cases, (N,) each: ``row``, ``users``, ``label``, ``logit``, ``history``, the length of
        the history, and ``gap``, seconds since its last behaviour, -1 where that cannot be known. And the
        weights, (N, S) each, by the names of `MIAN.weights`: those of behaviours from the last backwards, NaN
        before the first.
    """
    dated = data.log.dated and data.log.past_items is None  # past items have no times
    facts, weights = [], []
    for batch in data.test_dataloader():
        found = net.weights(batch)
        if "ibim" in found:
            found["ibim"] = _backwards(found["ibim"], batch.lengths, data.protocol.window)
        weights.append(found)
        facts.append(
            {
                "row": batch.rows,
                "users": batch.users,
                "label": batch.labels,
                "logit": net(batch)[0],
                "history": batch.lengths,
                "gap": _gap(batch) if dated else torch.full_like(batch.lengths, -1),
            }
        )
    return _joined(facts), _joined(weights)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _backwards(
    weights: Float[Tensor, "B T"], lengths: Int[Tensor, " B"], window: int
) -> Float[Tensor, "B W"]:
    place = lengths[:, None] - 1 - torch.arange(weights.shape[1])
    turned = weights.gather(1, place.clamp(min=0)).where(place >= 0, torch.nan)
    return F.pad(turned, (0, window - weights.shape[1]), value=torch.nan)


def _gap(batch: ClickBatch) -> Int[Tensor, " B"]:
    last = batch.times.gather(1, (batch.lengths[:, None] - 1).clamp(min=0))[:, 0]
    return torch.where(batch.lengths > 0, batch.target_times - last, -1)


def _compare(facts: dict[str, Tensor], tested: pl.DataFrame) -> None:
    """Warns where the logits are not those that the run was judged by."""
    before = torch.from_numpy(tested["logit"].to_numpy().copy())
    now = facts["logit"][facts["row"].argsort()][tested["sample"].to_numpy().copy()]
    apart = float((now - before).abs().max())
    if not apart <= SAME:
        say(
            f"warning: logits differ from those in test.parquet by up to {apart:.2g}: other sources of hydrec"
            " or another checkpoint than the run's, or a run in half precision"
        )


# Tables -----------------------------------------------------------------------------------------------------


def case_table(
    facts: dict[str, Tensor], weights: Float[Tensor, "N S"], parts: list[str], data: LogData
) -> pl.DataFrame:
    """The cases with their weights, by label, then by logit: the columns of the heat map."""
    feed: Any = data.feed
    known = feed.tested({name: facts[name].numpy() for name in ("row", "label", "logit")})
    gap = pl.Series(facts["gap"].numpy())
    return known.with_columns(
        history=facts["history"].numpy(),
        seconds_since_last=gap.set(gap < 0, None),
        **{f"gim_{part}": column.numpy() for part, column in zip(parts, weights.unbind(1), strict=True)},
    ).sort("label", "logit", "sample")


def summarised(
    weights: dict[str, Tensor],
    names: dict[str, list[str]],
    users: Int[Tensor, " N"],
    divisions: dict[str, Groups],
) -> pl.DataFrame:
    """Mean weights with intervals, by division, group, module and what is weighed.

    ``relative`` is the mean of the weight over what it would be if all that a case has weighed the same: of a
    behaviour, the weight times the length of the history.
    """
    columns = [(of, name) for of in weights for name in names[of]]
    relative = [found * (~found.isnan()).sum(1, keepdim=True) for found in weights.values()]
    values = torch.cat([*weights.values(), *relative], 1)
    tables = []
    for by, (number, labels) in divisions.items():
        for group, label in enumerate(labels):
            some = number == group
            found = means(values[some], users[some])
            mean, low, high, cases, of_users = (column.reshape(2, -1) for column in found)
            table = {"of": [of for of, _ in columns], "name": [name for _, name in columns]}
            table |= {"mean": mean[0], "low": low[0], "high": high[0]}
            table |= {"relative": mean[1], "relative_low": low[1], "relative_high": high[1]}
            table |= {"cases": cases[0], "users": of_users[0]}
            tables.append(
                pl.DataFrame(table).select(pl.lit(by).alias("by"), pl.lit(label).alias("group"), "*")
            )
    return pl.concat(tables).filter(pl.col("cases") > 0).fill_nan(None)


def _print(summary: pl.DataFrame, title: str) -> None:
    """Shows the means of the parts."""
    table = Table("part", "mean weight", "95 % interval", "cases", title=title, title_justify="left")
    for row in gim_page.part_means(summary).iter_rows(named=True):
        bounds = "-" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        table.add_row(row["name"], f"{row['mean']:.4f}", bounds, f"{row['cases']:,}")
    Console(soft_wrap=True).print(table)
