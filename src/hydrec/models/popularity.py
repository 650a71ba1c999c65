"""Popularity: every user is recommended what most others took.

The row that a learnt model has to beat: on MovieLens with 1 + 50 candidates it reaches the published HGNN.

Shapes: B rows, P scored positions, M scored rows, C candidate items, V items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import Catalog, SequenceBatch
from hydrec.errors import InputError, one_of


class Anybody(NamedTuple):
    """What popularity knows of a row: nothing.

    Attributes:
        rows: (B, P) int64 zeros; only their number is read.
    """

    rows: Tensor


class Popularity(nn.Module):
    """Scores an item by how often the training part has it.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        count: ``targets`` counts the training samples whose target it is, ``rows`` the events of it that
            training touches.

    Raises:
        InputError: ``count`` is neither.
    """

    counts: Tensor  # (V + 1,) float32, exact up to 2^24; a checkpoint carries them

    def __init__(self, catalog: Catalog, *, count: str) -> None:
        super().__init__()
        self.count = one_of("model.net.count", count, ("targets", "rows"))
        self.register_buffer("counts", torch.zeros(catalog.n_items + 1))

    def fit(self, catalog: Catalog) -> None:
        """Counts the items of the training part."""
        rows = torch.bincount(catalog.items, minlength=catalog.n_items + 1)
        self.counts.copy_({"targets": catalog.targets, "rows": rows}[self.count])

    def encode(self, batch: SequenceBatch) -> tuple[Anybody, Float[Tensor, ""]]:
        """Nothing of the batch but its shape, and no term of a loss."""
        return Anybody(torch.zeros_like(batch.targets)), self.counts.new_zeros(())

    def score(self, state: Anybody, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Counts of the candidates, the same for all M selected rows."""
        return self.counts[items].expand(len(state.rows), -1)


class RecentPopularity(Popularity):
    """Scores an item by its events in the last days of the training part.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        days: how long before the last training event the events that count begin.

    Raises:
        InputError: ``days`` is not positive.
    """

    def __init__(self, catalog: Catalog, *, days: float) -> None:
        super().__init__(catalog, count="rows")
        if not days > 0:
            raise InputError(f"model.net.days={days}: must be a positive number of days")
        self.seconds = days * 86400

    def fit(self, catalog: Catalog) -> None:
        """Counts the items of those days."""
        recent = catalog.times >= catalog.times.max() - self.seconds
        super().fit(catalog._replace(items=catalog.items[recent]))
