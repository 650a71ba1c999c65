"""FPMC: factorised personalised Markov chains.

"Factorizing Personalized Markov Chains for Next-Basket Recommendation" (Rendle, Freudenthaler and
Schmidt-Thieme, WWW 2010; https://doi.org/10.1145/1772690.1772773).

Differs from the paper in that a basket is one item; that the product of user and last item, the same for all
candidates, is left out; and that tables are drawn as Glorot proposed, like RecBole's. A user who is new to
training has the vector 0 and is served by the chain alone.

Shapes: B rows, P scored positions, D width, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least
from hydrec.layers import scoring
from hydrec.layers.history import at_targets


class Pair(NamedTuple):
    """Who asks, and after what.

    Attributes:
        user: (B, P, 1, D) float, V^UI of the user.
        last: (B, P, 1, D) float, V^LI of the last item.
    """

    user: Tensor
    last: Tensor


class FPMC(nn.Module):
    """Scores an item by its match with the user, plus its match with the last item.

    Args:
        catalog: sizes of the data set, and who is in its training part.
        dim: width D of the four tables.
        l2: lambda, weight of the squared norms of the rows looked up.

    Raises:
        InputError: ``dim`` is not positive, or ``l2`` negative.
    """

    causal = True

    def __init__(self, catalog: Catalog, *, dim: int, l2: float) -> None:
        super().__init__()
        at_least("model.net.dim", dim, 1)
        if not l2 >= 0:
            raise InputError(f"model.net.l2={l2}: must be 0 or more")
        self.l2 = l2
        self.user = nn.Embedding(catalog.n_users + 1, dim, padding_idx=0)  # V^UI
        self.last = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)  # V^LI
        self.to_user = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)  # V^IU
        self.to_last = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)  # V^IL
        for table in (self.user, self.last, self.to_user, self.to_last):
            nn.init.xavier_normal_(table.weight)
            with torch.no_grad():
                table.weight[PAD] = 0

    @torch.no_grad()
    def fit(self, catalog: Catalog) -> None:
        """Sets users without a training row to 0, which no gradient ever moves."""
        met = torch.zeros(len(self.user.weight), 1)
        met[catalog.users] = 1
        self.user.weight.mul_(met)

    def encode(self, batch: SequenceBatch) -> tuple[Pair, Float[Tensor, ""]]:
        """User and last item of each scored position; no term of a loss."""
        last = self.last(at_targets(batch.items, batch))  # (B, P, D)
        user = self.user(batch.users)[:, None].expand_as(last)
        return Pair(user[:, :, None], last[:, :, None]), last.new_zeros(())

    def score(self, state: Pair, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, 1, D), of the state."""
        of_user = scoring.dot(state.user, self.to_user(items))  # (M, 1, C)
        return (of_user + scoring.dot(state.last, self.to_last(items)))[:, 0]

    def regulariser(
        self, batch: SequenceBatch, items: Int[Tensor, "*M C"], target: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        """L2 of the rows looked up, per scored position: user, last item, positive, and mean negative.

        Args:
            batch: the histories.
            items: the candidates scored.
            target: column of each position's positive; all others are negatives.
        """
        supervised = batch.targets != PAD
        user = batch.users[:, None].expand_as(supervised)[supervised]  # (M,)
        last = at_targets(batch.items, batch)[supervised]
        total = _norms(self.user)[user].sum() + _norms(self.last)[last].sum()
        candidates = (_norms(self.to_user) + _norms(self.to_last))[items]
        positive = candidates.expand(len(target), -1).gather(1, target[:, None])[:, 0]
        negative = (candidates.sum(-1) - positive) / (items.shape[-1] - 1)
        return self.l2 * (total + (positive + negative).sum()) / (2 * len(target))


def _norms(table: nn.Embedding) -> Float[Tensor, " N"]:
    return table.weight.square().sum(1)
