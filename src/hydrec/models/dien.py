"""DIEN: interests as states of a network over behaviours, followed where they bear on the candidate.

"Deep Interest Evolution Network for Click-Through Rate Prediction" (Zhou et al., AAAI 2019;
https://arxiv.org/abs/1809.03672).

Differs from the paper in that
1. what tells the behaviour that follows from another item is a perceptron on interest and item, as in the
   authors' code (https://github.com/mouna99/dien); the other item is drawn uniformly, there by popularity;
2. the auxiliary loss is a mean over all steps that a behaviour follows, not over rows of sums of them;
3. each U of the GRUs has a bias of its own, as `torch.nn.GRU` has it, whose update gate is 1 - u;
4. the last net also sees, as in the authors' code, the sum of the behaviours and its product with the
   candidate.

With ``gate: code`` the update gate is that of the authors' code, ``1 - (1 - a) u``, by which the state moves
also where attention a is 0. Their attention, a perceptron like DIN's, and their batch normalisation, the
statistics of which are never updated, are not here.

Shapes: B rows, T behaviours, N steps of all rows that a behaviour follows, I width of an item and of a state.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers.dice import perceptron
from hydrec.layers.interaction import shared
from hydrec.layers.mlp import MLP
from hydrec.layers.scoring import masked_softmax
from hydrec.layers.tabular import Inputs, Tables


class AUGRU(nn.Module):
    """A GRU whose update gate u is scaled by attention a: ``h' = (1 - a u) h + a u n``.

    Args:
        width: I.
        gate: ``paper`` for ``a u``, ``code`` for ``1 - (1 - a) u``.

    Raises:
        InputError: ``gate`` is neither.
    """

    def __init__(self, width: int, *, gate: str) -> None:
        super().__init__()
        self.gate = GATES[one_of("model.net.gate", gate, GATES)]
        self.input = nn.Linear(width, 3 * width)  # u, r and n, one below the other
        self.state = nn.Linear(width, 3 * width)
        self.width = width

    def forward(
        self, x: Float[Tensor, "B T I"], attention: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B I"]:
        """The state after the last valid step, where the first is 0; attention must be 0 on padding."""
        c, d = self.gate(attention[..., None], valid[..., None])
        steps = zip(self.input(x).unbind(1), c.unbind(1), d.unbind(1), strict=True)
        parts = [2 * self.width, self.width]
        h = x.new_zeros(len(x), self.width)
        for of_input, c_t, d_t in steps:
            (gates, new), (gates_h, new_h) = of_input.split(parts, 1), self.state(h).split(parts, 1)
            u, r = torch.sigmoid(gates + gates_h).chunk(2, 1)
            h = h + (c_t + d_t * u) * (torch.tanh(new + r * new_h) - h)
        return h


def _paper(a: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(a), a


def _code(a: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    real = valid.to(a)
    return real, a - real  # on padding both are 0, so the state stays


GATES = {"paper": _paper, "code": _code}  # c and d of the gate c + d u


class DIEN(nn.Module):
    """Predicts a click from how the interests that bear on the candidate evolved.

    Training draws, for each behaviour that follows another, one of the other items, each as likely. The draws
    are torch's, which the task seeds at each step.

    Args:
        catalog: sizes, fields and the codes of items.
        item_dim: width of the id of an item and of each of its fields, which make up I.
        field_dim: width of each field of user and context.
        gate: of the second network, as ``AUGRU`` has it.
        aux: weight of the auxiliary loss.
        aux_hidden: widths of the hidden layers, with sigmoids, of the net it trains beside interests.
        hidden: widths of the hidden layers of the last net.
        activation: of the last net: ``dice``, or one of `hydrec.layers.mlp.ACTIVATIONS`.
        dropout: share of the last net's hidden layers that training drops.
        std: of the normal distribution, cut at two of it, that embeddings are drawn from.
        l2: weight of the squared norms of all that a row looks up, but for items drawn.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.
    """

    def __init__(
        self,
        catalog: ClickCatalog,
        *,
        item_dim: int,
        field_dim: int,
        gate: str,
        aux: float,
        aux_hidden: Sequence[int],
        hidden: Sequence[int],
        activation: str,
        dropout: float,
        std: float,
        l2: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        for key, size in {"item_dim": item_dim, "field_dim": field_dim}.items():
            at_least(f"model.net.{key}", size, 1)
        if not std > 0:
            raise InputError(f"model.net.std={std}: must be above 0")
        for key, weight in {"l2": l2, "aux": aux}.items():
            if not weight >= 0:
                raise InputError(f"model.net.{key}={weight}: must be 0 or more")
        self.tables = Tables(catalog, item_dim=item_dim, field_dim=field_dim, std=std, l2=l2, sparse=sparse)
        width = self.tables.item_width
        self.extract = nn.GRU(width, width, batch_first=True)
        self.attend = nn.Linear(width, width, bias=False)
        self.evolve = AUGRU(width, gate=gate)
        self.follows = MLP(
            2 * width,
            aux_hidden,
            activation="sigmoid",
            dropout=0.0,
            batch_norm=False,
            key="model.net.aux_",
        )
        self.mlp = perceptron(
            4 * width + field_dim * len(catalog.fields), hidden, activation=activation, dropout=dropout
        )
        self.n_items, self.aux = catalog.n_items, aux

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and beside the L2 term of the loss, in training, the auxiliary loss."""
        inputs = self.tables(batch)
        item, valid, total = inputs.item, inputs.valid, inputs.behaviours.sum(1)
        interests, _ = self.extract(inputs.behaviours)  # (B, T, I); padding comes after
        scores = (interests @ self.attend(item)[..., None])[..., 0]
        interest = self.evolve(interests, masked_softmax(scores, valid, dim=1), valid)
        parts = [interest, item, total, item * total, inputs.user.flatten(1), inputs.context.flatten(1)]
        penalty = inputs.penalty
        if self.training:
            penalty = penalty + self.aux * self.auxiliary(batch, inputs, interests)
        return self.mlp(torch.cat(parts, 1)), penalty

    def auxiliary(
        self, batch: ClickBatch, inputs: Inputs, interests: Float[Tensor, "B T I"]
    ) -> Float[Tensor, ""]:
        """How badly interests tell the behaviour that follows from another item, 0 if none follows."""
        rows, steps = inputs.valid[:, 1:].nonzero(as_tuple=True)
        ids = batch.items[rows, steps + 1]
        further = torch.randint(1, self.n_items, ids.shape, device=ids.device)  # round the catalogue
        drawn = self.tables.items((ids - 1 + further) % self.n_items + 1)  # (N, I), never the same item
        place = rows * interests.shape[1] + steps
        real = inputs.behaviours.flatten(0, 1).index_select(0, place + 1)
        states = interests.flatten(0, 1).index_select(0, place)
        x = shared(self.follows.first, states, torch.stack([real, drawn]))
        real, other = self.follows.after_first(x)
        return (F.softplus(-real) + F.softplus(other)).sum() / max(len(ids), 1)
