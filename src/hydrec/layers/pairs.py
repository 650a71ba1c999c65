"""Numbers for pairs of items, of which almost all are 0: for a million items there is no dense matrix.

Shapes: N pairs that have a number, M rows, C candidate items, V items.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import Catalog


def transitions(catalog: Catalog) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Pairs of items that follow each other in the training rows of a user, and how often they do.

    Rows between two training rows that training does not touch are not known here: the two are a pair.

    Returns:
        The first items, the second items, and float64 counts, sorted by the pairs.
    """
    same, width = catalog.users[1:] == catalog.users[:-1], catalog.n_items + 1
    pairs = catalog.items[:-1][same] * width + catalog.items[1:][same]
    keys, counts = torch.unique(pairs, return_counts=True)
    return keys // width, keys % width, counts.double()


class Pairs(nn.Module):
    """A sparse matrix of items by items, which a binary search looks up.

    A state dict carries it as one tensor, whose size may differ from that of the net it is loaded into.

    Args:
        n_items: size V of the catalogue.
    """

    keys: Tensor  # (N + 1,) int64, ascending: first * (V + 1) + second; the leading -1 is below every pair
    values: Tensor  # (N + 1,) float32

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.width = n_items + 1
        self.register_buffer("keys", torch.tensor([-1]), persistent=False)
        self.register_buffer("values", torch.zeros(1), persistent=False)

    def fill(self, first: Int[Tensor, " N"], second: Int[Tensor, " N"], values: Float[Tensor, " N"]) -> None:
        """Sets the numbers of distinct pairs, which come sorted; those of all others are 0."""
        self.keys = torch.cat([self.keys[:1], first * self.width + second])
        self.values = torch.cat([self.values[:1], values.to(self.values)])

    def forward(self, first: Int[Tensor, " M"], second: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Numbers of the first item of each row with candidates that rows share (C,) or not (M, C)."""
        if second.dim() == 1:
            return self._rows(first)[:, second]  # many candidates: several times as fast as a search for each
        wanted = first[:, None] * self.width + second
        place = torch.searchsorted(self.keys, wanted, right=True) - 1
        return self.values[place].where(self.keys[place] == wanted, 0.0)

    def _rows(self, first: Int[Tensor, " M"]) -> Float[Tensor, "M V1"]:
        start, end = (torch.searchsorted(self.keys, first_ * self.width) for first_ in (first, first + 1))
        counts = end - start
        row = torch.arange(len(first), device=first.device).repeat_interleave(counts)
        place = torch.arange(len(row), device=first.device) + (end - counts.cumsum(0))[row]
        dense = self.values.new_zeros(len(first), self.width)
        dense[row, self.keys[place] % self.width] = self.values[place]
        return dense

    def get_extra_state(self) -> Float[Tensor, "2 N1"]:
        """Keys and numbers, in float64, which is exact for the keys of 90 million items."""
        return torch.stack([self.keys.double(), self.values.double()])

    def set_extra_state(self, state: Float[Tensor, "2 N1"]) -> None:
        """Takes what ``get_extra_state`` gave."""
        self.keys, self.values = state[0].to(self.keys), state[1].to(self.values)
