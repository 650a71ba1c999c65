"""One user's last test case, and what a model would recommend in a case.

Shapes: B rows of a batch, C candidates, V items, k recommended.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hydrec.batch import PAD, EvalCandidates, SequenceBatch
from hydrec.data.module import LogData
from hydrec.errors import InputError
from hydrec.tasks import NextItem

NAMED = 5  # users that an error names


class Top(NamedTuple):
    """What a model puts first.

    Attributes:
        items: (B, k) int64, the best first; ``PAD`` where there are fewer candidates.
        scores: (B, k) float32, -inf there.
    """

    items: Int[Tensor, "B k"]
    scores: Float[Tensor, "B k"]


def case_of(data: LogData, user: str) -> tuple[SequenceBatch, EvalCandidates]:
    """The last test case of a user, a batch of one row.

    Args:
        data: of a model that ranks items, prepared.
        user: raw id; "" for the first user of the test part.

    Raises:
        InputError: the log has no such user, or the test part has no case of theirs; names some who have one.
    """
    owners = data.log.users[data.split.test.target]  # type: ignore[union-attr]
    if not user:
        user = str(data.log.user_ids[owners[0]])
    number = np.flatnonzero(data.log.user_ids[1:] == user) + 1
    places = np.flatnonzero(np.isin(owners, number))
    if not len(places):
        what = "has no case in the test part" if len(number) else f"is no user of {data.name}"
        some = ", ".join(data.log.user_ids[np.unique(owners)[:NAMED]])
        raise InputError(f"user={user} {what}: give one who has, such as {some}")
    return data.feed.evaluate("test", places[-1:])  # type: ignore[return-value]


def asked(task: NextItem, batch: SequenceBatch) -> SequenceBatch:
    """What the net is shown in an evaluation: with a gap to fill, if it fills gaps."""
    return batch if task.cloze is None else task.cloze.ask(batch)


@torch.no_grad()
def top(task: NextItem, batch: SequenceBatch, candidates: EvalCandidates, k: int) -> Top:
    """The k best of what each target was ranked against, and the target; never more than a chunk of scores.

    Args:
        task: of a trained model.
        batch: rows of an evaluation.
        candidates: what their targets are ranked against.
        k: how many.
    """
    state, _ = task.net.encode(asked(task, batch))
    found = []
    for rows in torch.arange(len(batch.rows)).split(max(1, task.chunk // task.n_items)):
        items = torch.arange(1, task.n_items + 1)
        if candidates.items is not None:
            items = torch.cat([batch.targets[rows], candidates.items[rows]], 1)
        scores = task.net.score(type(state)(*(x[rows, 0] for x in state)), items).float()
        items = items.expand_as(scores)
        out = items == PAD
        if candidates.excluded is not None:
            reach = torch.zeros(len(rows), task.n_items + 1, dtype=torch.bool)
            out = out | reach.scatter_(1, candidates.excluded[rows], True).gather(1, items)
        best = scores.masked_fill(out, -torch.inf).topk(min(k, scores.shape[1]))
        listed = items.gather(1, best.indices).where(best.values > -torch.inf, PAD)
        found.append(Top(listed, best.values))
    return Top(*(torch.cat(column) for column in zip(*found, strict=True)))


def history(data: LogData, batch: SequenceBatch, items: pl.DataFrame) -> pl.DataFrame:
    """The events of the one row of a batch, oldest first, with title, genres, time (UTC) and value.

    Args:
        data: of the batch.
        batch: one row.
        items: `FinishedRun.items`.
    """
    n = int(batch.lengths[0])
    begun = int(data.log.times[int(batch.rows[0])]) - int(batch.target_times[0, 0])
    events = pl.DataFrame(
        {
            "place": range(1, n + 1),
            "item": batch.items[0, :n].numpy(),
            "time": begun + batch.times[0, :n].numpy(),
            "value": batch.values[0, :n].numpy(),
        }
    )
    if data.log.dated:
        events = events.with_columns(pl.from_epoch("time"))
    return events.join(items, "item", "left", maintain_order="left").drop("item").fill_nan(None)
