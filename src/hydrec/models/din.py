"""DIN: behaviours, each weighed by what it has to do with the candidate, and added up.

"Deep Interest Network for Click-Through Rate Prediction" (Zhou et al., KDD 2018;
https://arxiv.org/abs/1706.06978). As in the paper, weights of behaviours need not sum to 1, so that their sum
tells how much of the history the candidate is about; the authors' code
(https://github.com/zhougr1993/DeepInterestNetwork) has a softmax, ``softmax``, and sigmoids.

Differs from the paper in that
1. the net that weighs behaviours sees the differences and the products of candidate and behaviour, as the
   authors' code has it, where the paper has their outer product, and the last net sees a product likewise;
2. Dice takes its statistics from behaviours without the padding around them;
3. mini-batch aware regularisation falls on the ids of candidates, with ``n_j`` the times that training shows
   them. It is the sum of eq. 5 over a batch, not its approximation, eq. 6, which counts an id once a batch:
   in an epoch each id's norm counts once. An id that is only ever a behaviour has none, as how often
   histories look it up is not known.

Shapes: B rows, T behaviours, N behaviours of all rows, I width of an item.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least
from hydrec.layers.dice import perceptron
from hydrec.layers.interaction import compared
from hydrec.layers.scoring import masked_softmax
from hydrec.layers.tabular import Inputs, Tables


class DIN(nn.Module):
    """Predicts a click from the candidate, the behaviours that it activates, and user and context.

    Args:
        catalog: sizes, fields, the codes of items, and how often training shows them.
        item_dim: width of the id of an item and of each of its fields, which make up I.
        field_dim: width of each field of user and context.
        attention_hidden: widths of the hidden layers of the net that weighs behaviours.
        softmax: whether its outputs, over the root of I, become weights that sum to 1.
        hidden: widths of the hidden layers of the last net.
        activation: of both nets: ``dice``, or one of `hydrec.layers.mlp.ACTIVATIONS`.
        dropout: share of the last net's hidden layers that training drops.
        std: of the normal distribution, cut at two of it, that embeddings are drawn from.
        l2: weight of the squared norms of all that a row looks up.
        l2_aware: lambda of eq. 7, the weight of mini-batch aware regularisation: a sum over the rows of a
            batch, so it weighs more against the mean of their losses the more rows there are.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    rarity: Tensor  # (V + 1,) 1 / n_j

    def __init__(
        self,
        catalog: ClickCatalog,
        *,
        item_dim: int,
        field_dim: int,
        attention_hidden: Sequence[int],
        softmax: bool,
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        std: float,
        l2: float,
        l2_aware: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        for key, size in {"item_dim": item_dim, "field_dim": field_dim}.items():
            at_least(f"model.net.{key}", size, 1)
        if not std > 0:
            raise InputError(f"model.net.std={std}: must be above 0")
        for key, weight in {"l2": l2, "l2_aware": l2_aware}.items():
            if not weight >= 0:
                raise InputError(f"model.net.{key}={weight}: must be 0 or more")
        self.tables = Tables(catalog, item_dim=item_dim, field_dim=field_dim, std=std, l2=l2, sparse=sparse)
        width = self.tables.item_width
        self.unit = perceptron(
            4 * width, attention_hidden, activation=activation, dropout=0.0, key="model.net.attention_"
        )
        self.normalise = _to_one if softmax else _as_they_are
        self.mlp = perceptron(
            3 * width + field_dim * len(catalog.fields), hidden, activation=activation, dropout=dropout
        )
        # the catalogue's, so not of the checkpoint
        self.register_buffer("rarity", catalog.shown.float().clamp(min=1).reciprocal(), persistent=False)
        self.item_dim, self.l2_aware = item_dim, l2_aware

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 terms of the loss."""
        inputs = self.tables(batch)
        interest = (self.weights(inputs)[:, None] @ inputs.behaviours)[:, 0]  # eq. 3
        parts = [interest, inputs.item, interest * inputs.item]
        logits = self.mlp(torch.cat([*parts, inputs.user.flatten(1), inputs.context.flatten(1)], 1))
        ids = inputs.item[:, : self.item_dim].square().sum(1)
        aware = self.l2_aware / 2 * (ids * self.rarity[batch.candidates]).sum()  # eq. 7 is its gradient
        return logits, inputs.penalty + aware

    def weights(self, inputs: Inputs) -> Float[Tensor, "B T"]:
        """What each behaviour weighs for the candidate of its row; 0 on padding."""
        valid = inputs.valid
        x = compared(self.unit.first, inputs.item, inputs.behaviours).flatten(0, 1)
        real = valid.flatten().nonzero()[:, 0]  # Dice must see no padding
        scores = self.unit.after_first(x.index_select(0, real))  # (N,)
        placed = scores.new_zeros(valid.numel()).index_copy(0, real, scores).view(valid.shape)
        return self.normalise(placed, valid, inputs.item.shape[1])


def _as_they_are(scores: Tensor, valid: Bool[Tensor, "B T"], width: int) -> Tensor:
    return scores


def _to_one(scores: Tensor, valid: Bool[Tensor, "B T"], width: int) -> Tensor:
    return masked_softmax(scores / math.sqrt(width), valid, dim=1)
