"""First-order Markov chain of items, backed off to popularity.

Transition counts with a Dirichlet prior whose mean is popularity: "A hierarchical Dirichlet language model"
(MacKay and Peto, Natural Language Engineering 1(3), 1995; https://doi.org/10.1017/S1351324900000218).

Differs from the paper in that the strength of the prior is given and its mean is the share of each item in
the training rows, where the paper infers both.

Shapes: B rows, P scored positions, M scored rows, C candidate items, V items.
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


class Markov(nn.Module):
    """Scores an item by the probability that it follows the last one.

    With c the number of pairs (i, j) of consecutive events, n_i that of pairs that begin with i, and p the
    shares of items in training, the score of j after i is ``(c_ij + prior p_j) / (n_i + prior)``.

    Args:
        catalog: sizes of the data set.
        prior: pairs by popularity that are added to those of each item, above 0. Up to 1, popularity orders
            only what the pairs leave tied: what followed is above what never did.

    Raises:
        InputError: ``prior`` is not positive.
    """

    causal = True
    share: Tensor  # (V + 1,) float32, p
    unseen: Tensor  # (V + 1,) float32, prior / (n + prior): the probability of what p draws

    def __init__(self, catalog: Catalog, *, prior: float) -> None:
        super().__init__()
        if not prior > 0:
            raise InputError(f"model.net.prior={prior}: must be positive")
        self.prior = prior
        self.followed = Pairs(catalog.n_items)
        self.register_buffer("share", torch.zeros(catalog.n_items + 1))
        self.register_buffer("unseen", torch.zeros(catalog.n_items + 1))

    def fit(self, catalog: Catalog) -> None:
        """Counts the items and pairs of the training part."""
        first, second, count = transitions(catalog)
        total = self.prior + torch.bincount(first, weights=count, minlength=len(self.unseen))
        self.followed.fill(first, second, count / total[first])
        self.unseen.copy_(self.prior / total)
        self.share.copy_(torch.bincount(catalog.items, minlength=len(self.share)) / len(catalog.items))

    def encode(self, batch: SequenceBatch) -> tuple[Last, Float[Tensor, ""]]:
        """The last item of each history, and no term of a loss."""
        return Last(at_targets(batch.items, batch)), self.share.new_zeros(())

    def score(self, state: Last, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Probabilities of candidates after the last item of M selected rows."""
        return self.followed(state.items, items) + self.unseen[state.items][:, None] * self.share[items]
