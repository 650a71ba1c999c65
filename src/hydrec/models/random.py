"""Random: every item is as likely; what any other row is to be compared with first.

In closed form every test has this row anyway; as a model it passes through all that a model passes through,
so it shows what that adds to chance.

Shapes: B rows, P scored positions, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import Catalog, SequenceBatch

WORD = 2**32 - 1


class Sample(NamedTuple):
    """Which sample a row is.

    Attributes:
        rows: (B, P) int64, its target's row in the log.
    """

    rows: Tensor


class Random(nn.Module):
    """Scores by a hash of sample and item: whatever the batch, a sample has one order of the items.

    Args:
        catalog: of the data set; not read.
    """

    salt: Tensor  # () float32 in [0, 1), drawn like the weights of other nets: the orders go with the seed

    def __init__(self, catalog: Catalog) -> None:
        super().__init__()
        self.register_buffer("salt", torch.rand(()))

    def encode(self, batch: SequenceBatch) -> tuple[Sample, Float[Tensor, ""]]:
        """The name of each row, and no term of a loss."""
        return Sample(batch.rows[:, None].expand_as(batch.targets)), self.salt.new_zeros(())

    def score(self, state: Sample, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """24 random bits in [0, 1) for each candidate of M selected rows."""
        orders = _mix(_mix((self.salt * 2**24).long()) + state.rows[:, None])
        return (_mix(orders + items) >> 8) / 2.0**24


def _mix(x: Int[Tensor, "*N"]) -> Int[Tensor, "*N"]:
    """The finaliser of MurmurHash3 (Appleby, public domain) for 32 bits: one to one, every bit moves all."""
    x = x & WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * factor & WORD
    return x ^ (x >> 16)
