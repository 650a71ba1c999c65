"""Item-kNN on consecutive events: recommends what followed the user's last item elsewhere.

The neighbours of "Item-based top-N recommendation algorithms" (Deshpande and Karypis, ACM TOIS 22(1), 2004),
with the damping of the baseline in "Session-based Recommendations with Recurrent Neural Networks" (Hidasi et
al., ICLR 2016; https://arxiv.org/abs/1511.06939).

Differs from both in that two items are similar if one directly followed the other, not if they have users or
sessions in common, so similarity has a direction; and in that all neighbours are kept.

Shapes: B rows, P scored positions, M scored rows, C candidate items, N pairs of items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import Catalog, SequenceBatch
from hydrec.errors import InputError
from hydrec.layers.history import at_targets
from hydrec.layers.pairs import Pairs, transitions


class Last(NamedTuple):
    """All that is known of a history.

    Attributes:
        items: (B, P) int64, its last item.
    """

    items: Tensor


class ItemKNN(nn.Module):
    """Scores an item by how often it followed the last one, against how often both occur in such pairs.

    With c the number of pairs (i, j) and n how often i is first, or j second, the score of j after i is
    ``c_ij / ((n_i + shrink) (n_j + shrink)) ^ exponent``: at 0.5 the cosine, at 0 the count.

    Args:
        catalog: sizes of the data set.
        exponent: how much is taken off frequent items, 0 or more.
        shrink: pairs added to both n, 0 or more: similarity on few pairs counts for less.

    Raises:
        InputError: an option is negative.
    """

    causal = True

    def __init__(self, catalog: Catalog, *, exponent: float, shrink: float) -> None:
        super().__init__()
        for key, value in {"exponent": exponent, "shrink": shrink}.items():
            if not value >= 0:
                raise InputError(f"model.net.{key}={value}: must be 0 or more")
        self.exponent, self.shrink = exponent, shrink
        self.similarity = Pairs(catalog.n_items)

    def fit(self, catalog: Catalog) -> None:
        """Counts the pairs of the training part."""
        first, second, count = transitions(catalog)
        as_first, as_second = (torch.bincount(items, weights=count)[items] for items in (first, second))
        support = (as_first + self.shrink) * (as_second + self.shrink)
        self.similarity.fill(first, second, count / support**self.exponent)

    def encode(self, batch: SequenceBatch) -> tuple[Last, Float[Tensor, ""]]:
        """The last item of each history, and no term of a loss."""
        return Last(at_targets(batch.items, batch)), self.similarity.values.new_zeros(())

    def score(self, state: Last, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Similarities of candidates to the last item of M selected rows; 0 for what never followed it."""
        return self.similarity(state.items, items)
