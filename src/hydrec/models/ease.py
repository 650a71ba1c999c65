"""EASE: a linear item-to-item model in closed form.

"Embarrassingly Shallow Autoencoders for Sparse Data" (Steck, WWW 2019; https://arxiv.org/abs/1905.03375).

Differs from the paper in that a history as the protocol cuts it stands for the user, so users who are new to
training are served like all others. The order of events does not matter to it.

Shapes: B rows, T positions, M scored rows, C candidate items, V items.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError
from hydrec.layers.graph import filled

BLOCK = 4096  # users whose rows are dense at once


class Scores(NamedTuple):
    """What a history says of every item.

    Attributes:
        items: (B, 1, V + 1) float, their scores.
    """

    items: Tensor


class EASE(nn.Module):
    """Scores an item by the sum of the weights that lead to it from the distinct items of a history.

    Args:
        catalog: sizes of the data set.
        l2: lambda, squared weights against squared errors; the more users, the more.
        memory: GiB that fitting may take: three matrices of V by V in float64.

    Raises:
        InputError: ``l2`` is not positive, or the catalogue is too large for ``memory``.
    """

    weights: Tensor  # (V + 1, V + 1) float32, B of the paper: from item (row) to item (column)

    def __init__(self, catalog: Catalog, *, l2: float, memory: float) -> None:
        super().__init__()
        if not l2 > 0:
            raise InputError(f"model.net.l2={l2}: must be positive, or no inverse exists")
        size = catalog.n_items + 1
        needed = 3 * 8 * size**2 / 2**30
        if needed > memory:
            raise InputError(
                f"model.net.memory={memory}: to fit EASE to {catalog.n_items:,} items takes {needed:.1f} GiB;"
                " allow it, or choose model=itemknn"
            )
        self.l2 = l2
        self.register_buffer("weights", torch.zeros(size, size))

    def fit(self, catalog: Catalog) -> None:
        """Solves for the weights by who met what in the training part."""
        size = len(self.weights)
        pairs = torch.unique(catalog.users * size + catalog.items)
        users, items = pairs // size, pairs % size
        gram = torch.zeros(size, size, dtype=torch.float64)
        for block in range(0, catalog.n_users + 1, BLOCK):
            some = slice(*torch.searchsorted(users, torch.tensor([block, block + BLOCK])).tolist())
            met = torch.zeros(min(BLOCK, catalog.n_users + 1 - block), size)
            met[users[some] - block, items[some]] = 1.0
            gram += met.mT @ met  # X^T X, in whole numbers
        gram.diagonal().add_(self.l2)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))  # P
        inverse /= -inverse.diagonal()  # B_ij = -P_ij / P_jj, B_ii = 0
        self.weights.copy_(inverse.fill_diagonal_(0.0))

    def encode(self, batch: SequenceBatch) -> tuple[Scores, Float[Tensor, ""]]:
        """Scores of all items, and no term of a loss."""
        real = filled(batch.lengths, batch.items.shape[1])
        items = batch.items.where(real, PAD).sort(1).values
        again = F.pad(items[:, 1:] == items[:, :-1], (1, 0))
        scores = F.embedding_bag(items.masked_fill(again, PAD), self.weights, mode="sum", padding_idx=PAD)
        return Scores(scores[:, None]), self.weights.new_zeros(())

    def score(self, state: Scores, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows of the state."""
        return state.items.gather(1, items.expand(len(state.items), -1))
