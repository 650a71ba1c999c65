"""The Cloze task: events of a history are hidden, to be found from those on both sides.

"BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer", Sun et al.,
CIKM 2019, section 3.6. A hidden event is the item ``MASK``, V + 1.

Shapes: B rows, T positions, V items.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError
from hydrec.sampling import below, hash64

SHARE = 2**30  # steps that a share is rounded to


class Cloze:
    """Hides events of training rows, and puts a hidden event behind the history of an evaluation row.

    Args:
        catalog: ``n_items`` is read.
        ratio: share of a row's events that is hidden, rounded to a whole number, at least one.
        last: share of the rows of which only the last event is hidden, as in an evaluation; 1 of 11 copies of
            a row in the public code.

    Raises:
        InputError: a share is none.
    """

    def __init__(self, catalog: Catalog, *, ratio: float, last: float) -> None:
        if not 0 < ratio < 1:
            raise InputError(f"model.cloze.ratio={ratio}: must be a share between 0 and 1, both excluded")
        if not 0 <= last <= 1:
            raise InputError(f"model.cloze.last={last}: must be a share from 0 to 1")
        self.mask, self.ratio, self.last = catalog.n_items + 1, ratio, last

    def hide(self, batch: SequenceBatch, *, seed: int, epoch: int) -> SequenceBatch:
        """Hides events of rows whose every event is its own target, and leaves the hidden ones as targets.

        Which, depends on the row and its events' places alone, and on ``seed`` and ``epoch``.
        """
        place = torch.arange(batch.items.shape[1], device=batch.items.device)
        end = batch.lengths[:, None] - 1
        only = below(hash64(seed, "cloze last", epoch, batch.rows), SHARE) < self.last * SHARE
        count = (batch.lengths.double() * self.ratio).round().long().clamp(min=1).where(~only, 1)
        # the events of least rank are hidden
        rank = below(hash64(seed, "cloze", epoch, batch.rows[:, None], place), 2**62)
        rank = rank.masked_fill(place > end, 2**62).masked_fill(only[:, None] & (place == end), -1)
        hidden = rank.argsort(1).argsort(1) < count[:, None]
        return batch._replace(
            items=batch.items.masked_fill(hidden, self.mask),
            values=batch.values.masked_fill(hidden, torch.nan),
            targets=batch.targets.where(hidden, PAD),
            target_times=batch.target_times.where(hidden, 0),
        )

    def ask(self, batch: SequenceBatch) -> SequenceBatch:
        """Puts a hidden event, at the time of the target, behind each history.

        A history of T events loses its oldest, so that T is not exceeded: so all batches have one T.
        """
        full = (batch.lengths == batch.items.shape[1]).long()[:, None]
        place = torch.arange(batch.items.shape[1], device=batch.items.device) + full
        end = batch.lengths[:, None] - full

        def behind(x: Tensor, event: Any) -> Tensor:
            return F.pad(x, (0, 1)).gather(1, place).scatter(1, end, event)

        times = behind(batch.times, batch.target_times)
        first = times[:, :1]
        return batch._replace(
            items=behind(batch.items, self.mask),
            times=(times - first).where(place - full <= end, 0),
            values=behind(batch.values, torch.nan),
            lengths=end[:, 0] + 1,
            target_times=batch.target_times - first,
        )
