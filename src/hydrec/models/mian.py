"""MIAN: the candidate's interactions with behaviours, user and context, and attention over all parts.

"Multi-Interactive Attention Network for Fine-grained Feature Learning in CTR Prediction" (Zhang et al., WSDM
2021; https://arxiv.org/abs/2012.06968). No public code is known.

Differs from the paper in that
1. behaviours carry a learnt vector of their distance from the last, without which neither self-attention nor
   the pooling after it can tell one order from another;
2. behaviours share w and b of eq. 6: with the paper's W_t (``per_slot_score``) what a behaviour weighs would
   hang on the slot that it fills where rows are padded on the left, and the first slots are rarely filled;
3. behaviours, user and context are pooled for eq. 14 and all parts are mapped to one width: eq. 15 adds
   vectors of different widths (``gim_combine: concat`` leaves them as they are, side by side);
4. L2 falls on weight matrices and, by a weight of its own, on the embeddings that a batch looks up: on whole
   tables it would crush the embeddings of rare items;
5. the softmax over two outputs is the sigmoid of one (``head: softmax2`` brings it back).

Where the paper is silent, residuals and norms are those of the pre-norm transformer that it cites, norms are
over the vector of one behaviour, and dropout follows attention, feed-forward layer and hidden layers. Where a
data set has no fields of users (of the context), there is no part made of them and no interaction with them.

Shapes: B rows, T behaviours, I width of an item, D width of a field, S slots: behaviours or fields, L parts,
V, R widths of what is scored and of what comes of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers.attention import Attention
from hydrec.layers.dropout import Dropout
from hydrec.layers.mlp import Hidden
from hydrec.layers.scoring import masked_softmax
from hydrec.layers.tabular import Inputs, Tables, embedding, pooled


def slots(valid: Bool[Tensor, "B T"], window: int) -> Int[Tensor, "B T"]:
    """The slot of each behaviour were rows padded on the left: the last is in ``window - 1``. 0 on padding.

    >>> slots(torch.tensor([[True, True, True], [True, False, False]]), window=4)
    tensor([[1, 2, 3],
            [3, 0, 0]])
    """
    number = torch.arange(valid.shape[1], device=valid.device) + window - valid.sum(1, keepdim=True)
    return number * valid


def scores(
    v: Float[Tensor, "B S V"], weight: Float[Tensor, "*#B #S V"], bias: Float[Tensor, "*#B #S"]
) -> Float[Tensor, "B S"]:
    """``tanh(w . v + b)`` by w and b of each slot: within [-1, 1], so that no softmax of them is sharp."""
    return torch.tanh((v * weight).sum(2) + bias)


class Unchanged(nn.Module):
    """Leaves behaviours as they are: the null of ``Places`` and ``Block``."""

    def forward(self, x: Float[Tensor, "B T I"], *_: Any) -> Float[Tensor, "B T I"]:
        """Returns ``x``."""
        return x


class Places(nn.Module):
    """Adds a learnt vector for each slot."""

    def __init__(self, window: int, width: int, *, std: float) -> None:
        super().__init__()
        self.table = embedding(window, width, std=std, sparse=False)

    def forward(self, x: Float[Tensor, "B T I"], slot: Int[Tensor, "B T"]) -> Float[Tensor, "B T I"]:
        """Behaviours that know their place."""
        return x + self.table(slot)


class Block(nn.Module):
    """``y = x + MHA(LN(x))``, then ``y + W2 relu(W1 LN(y))`` (eq. 3-5); with ``post``, norms are of the sums.

    Args:
        width: I.
        heads: of the attention.
        inner: width between W1 and W2.
        post: where the norms are.
        dropout: share that training drops of what attention and W2 give.
    """

    def __init__(self, width: int, *, heads: int, inner: int, post: bool, dropout: float) -> None:
        super().__init__()
        before, after = (nn.Identity, nn.LayerNorm) if post else (nn.LayerNorm, nn.Identity)
        self.enter, self.leave = before(width), after(width)
        self.enter_feed, self.leave_feed = before(width), after(width)
        self.attention = Attention(width, heads=heads, dropout=0.0, mix=True)
        self.feed = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T I"], valid: Bool[Tensor, "B T"]) -> Float[Tensor, "B T I"]:
        """Behaviours that have met those of their row; of no meaning on padding."""
        z = self.enter(x)
        y = self.leave(x + self.dropout(self.attention(z, z, valid[:, None, None])))
        return self.leave_feed(y + self.dropout(self.feed(self.enter_feed(y))))


class Interaction(nn.Module):
    """``R = sum_s a_s [e_i ; x_s]``, with a the softmax of the scores of all ``[e_i ; x_s]``.

    As a sums to 1, the half of the item is the item itself, and so it is where there is nothing to sum.

    Args:
        count: how many w and b there are.
        width: I.
        other: D of what the item meets.
    """

    def __init__(self, count: int, width: int, other: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width + other))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(
        self,
        item: Float[Tensor, "B I"],
        x: Float[Tensor, "B S D"],
        number: Int[Tensor, "*#B #S"],
        valid: Bool[Tensor, "#B S"],
    ) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B S"]]:
        """R and a: by w and b of that ``number``, and 0 where x is not ``valid``."""
        v = torch.cat([item[:, None].expand(-1, x.shape[1], -1), x], 2)
        weights = masked_softmax(scores(v, self.weight[number], self.bias[number]), valid, dim=1)
        return torch.cat([item, (weights[:, None] @ x)[:, 0]], 1), weights


class Behaviours(nn.Module):
    """IBIM: behaviours meet each other, then the candidate (eq. 3-9).

    Args:
        width: I.
        window: slots of a history.
        place: gives behaviours and slots to the block.
        block: gives behaviours and which of them are valid to the interaction.
        final_norm: whether a norm comes between the two.
        per_slot: whether each slot has its own w and b.
    """

    def __init__(
        self, width: int, *, window: int, place: nn.Module, block: nn.Module, final_norm: bool, per_slot: bool
    ) -> None:
        super().__init__()
        self.place, self.block, self.window = place, block, window
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()
        self.interaction = Interaction(window if per_slot else 1, width, width)
        self.number: Callable[[Tensor], Tensor] = _own if per_slot else _shared

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B T"]]:
        """The candidate, beside what the history has for it, 0 where there is none; and the weights a."""
        slot = slots(inputs.valid, self.window)
        h = self.norm(self.block(self.place(inputs.behaviours, slot), inputs.valid))
        return self.interaction(inputs.item, h, self.number(slot), inputs.valid)


def _own(slot: Tensor) -> Tensor:
    return slot


def _shared(slot: Tensor) -> Tensor:
    return slot.new_zeros(1)


class Fields(nn.Module):
    """IUIM and ICIM: fields of the user or the context meet the candidate, each by its own w (eq. 10-13).

    Args:
        group: ``user`` or ``context``.
        count: of its fields.
        width: I.
        dim: D.
    """

    def __init__(self, group: str, count: int, width: int, dim: int) -> None:
        super().__init__()
        self.group, self.interaction = group, Interaction(count, width, dim)

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B S"]]:
        """The candidate, beside what the fields have for it; and the weights a."""
        x = getattr(inputs, self.group)
        number = torch.arange(x.shape[1], device=x.device)
        return self.interaction(inputs.item, x, number, torch.ones_like(number, dtype=torch.bool)[None])


class Sum(nn.Module):
    """GIM: the parts, mapped to one width, as the sum ``R = sum_l a_l r_l`` (eq. 14 and 15).

    Args:
        widths: of the parts.
        dim: R.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, dim) for width in widths)
        self.weight = nn.Parameter(torch.empty(len(widths), dim))
        self.bias = nn.Parameter(torch.zeros(len(widths)))
        self.out_width = dim

    def forward(self, parts: list[Tensor]) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B L"]]:
        """R and the weights a of the parts."""
        r = torch.stack([project(part) for project, part in zip(self.project, parts, strict=True)], 1)
        weights = scores(r, self.weight, self.bias).softmax(1)
        return (weights[:, None] @ r)[:, 0], weights


class Concat(nn.Module):
    """GIM without maps: the parts side by side, each times its weight.

    Args:
        widths: of the parts.
        dim: not read.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Linear(width, 1) for width in widths)
        self.out_width = sum(widths)

    def forward(self, parts: list[Tensor]) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B L"]]:
        """R and the weights a of the parts."""
        logits = [score(part) for score, part in zip(self.scores, parts, strict=True)]
        weights = torch.cat(logits, 1).tanh().softmax(1)
        weighed = [share * part for share, part in zip(weights.split(1, 1), parts, strict=True)]
        return torch.cat(weighed, 1), weights


class Plain(nn.Module):
    """No GIM: the parts side by side, each of weight 1.

    Args:
        widths: of the parts.
        dim: not read.
    """

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.out_width = sum(widths)

    def forward(self, parts: list[Tensor]) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B L"]]:
        """R and weights of 1."""
        return torch.cat(parts, 1), parts[0].new_ones(len(parts[0]), len(parts))


COMBINE: dict[str, type[Sum] | type[Concat] | type[Plain]] = {"sum": Sum, "concat": Concat, "none": Plain}
HEADS = {"sigmoid": 1, "softmax2": 2}  # outputs


class MIAN(nn.Module):
    """Predicts a click from the candidate, what surrounds it, and how it interacts with each of these.

    Args:
        catalog: sizes, fields and the codes of items.
        item_dim: width of the id of an item and of each of its fields, which make up I.
        field_dim: width D of each field of user and context.
        fields: false to give up user and context entirely: no parts 2, 4, 6 and 7.
        window: longest history.
        positions: whether behaviours know their distance from the last.
        block: ``pre`` or ``post`` for the place of its norms, ``none`` for no transformer.
        heads: of its attention.
        inner: width inside its feed-forward layer.
        final_norm: whether another norm follows it.
        per_slot_score: gives each slot of a history its own w and b in eq. 6, as the paper.
        ibim, iuim, icim: false for the ablations without parts 5, 6 and 7.
        gim_combine: ``sum`` for eq. 15, ``concat`` for the weighed parts side by side, ``none`` for the
            ablation without GIM.
        gim_dim: width of the sum; the others do not read it.
        hidden: widths of the layers between the parts and the output.
        head: ``sigmoid`` of one output, or ``softmax2`` for that of the difference of two.
        dropout: share that training drops.
        std: of the normal distribution, cut at two of it, that all weights are drawn from; biases are 0.
        l2: weight of the squared norms of all that a row looks up.
        l2_dense: weight of the squares of all weight matrices.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: a value makes no sense.

    Attributes:
        parts: their names, in the order of eq. 14.
    """

    def __init__(
        self,
        catalog: ClickCatalog,
        *,
        item_dim: int,
        field_dim: int,
        fields: bool,
        window: int,
        positions: bool,
        block: str,
        heads: int,
        inner: int,
        final_norm: bool,
        per_slot_score: bool,
        ibim: bool,
        iuim: bool,
        icim: bool,
        gim_combine: str,
        gim_dim: int,
        hidden: Sequence[int],
        head: str,
        dropout: float,
        std: float,
        l2: float,
        l2_dense: float,
        sparse: bool,
    ) -> None:
        super().__init__()
        one_of("model.net.block", block, ("pre", "post", "none"))
        sizes = {"item_dim": item_dim, "field_dim": field_dim, "window": window, "heads": heads}
        for key, size in (sizes | {"inner": inner, "gim_dim": gim_dim}).items():
            at_least(f"model.net.{key}", size, 1)
        for key, weight in {"l2": l2, "l2_dense": l2_dense}.items():
            if not weight >= 0:
                raise InputError(f"model.net.{key}={weight}: must be 0 or more")
        if not std > 0:
            raise InputError(f"model.net.std={std}: must be above 0")
        catalog = catalog if fields else catalog._replace(fields=())
        self.tables = Tables(catalog, item_dim=item_dim, field_dim=field_dim, std=std, l2=l2, sparse=sparse)
        width, users, contexts = self.tables.item_width, self.tables.user_fields, self.tables.context_fields
        if width % heads:
            raise InputError(
                f"model.net.heads={heads} does not divide the width of an item, {self.tables.parts} times"
                f" model.net.item_dim={item_dim}"
            )
        widths = {"item": width, "context": contexts * field_dim}  # of the parts, in the paper's order
        widths |= {"behaviours": width, "user": users * field_dim}
        self.raw = [name for name in widths if widths[name]]
        self.interactions = nn.ModuleDict()
        if ibim:
            transformer = Block(width, heads=heads, inner=inner, post=block == "post", dropout=dropout)
            self.interactions["ibim"] = Behaviours(
                width,
                window=window,
                place=Places(window, width, std=std) if positions else Unchanged(),
                block=Unchanged() if block == "none" else transformer,
                final_norm=final_norm,
                per_slot=per_slot_score,
            )
        if iuim and users:
            self.interactions["iuim"] = Fields("user", users, width, field_dim)
        if icim and contexts:
            self.interactions["icim"] = Fields("context", contexts, width, field_dim)
        self.parts = (*self.raw, *self.interactions)
        widths |= {"ibim": 2 * width, "iuim": width + field_dim, "icim": width + field_dim}
        combine = COMBINE[one_of("model.net.gim_combine", gim_combine, COMBINE)]
        self.gim = combine([widths[name] for name in self.parts], gim_dim)
        layers = Hidden(self.gim.out_width, hidden, activation="relu", dropout=dropout, batch_norm=False)
        outputs = HEADS[one_of("model.net.head", head, HEADS)]
        self.head = nn.Sequential(layers, nn.Linear(layers.out_width, outputs))
        self.l2_dense = l2_dense
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for matrix in self._matrices():
            nn.init.trunc_normal_(matrix, std=std, a=-2 * std, b=2 * std)

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 terms of the loss."""
        inputs = self.tables(batch)
        out = self.head(self._joined(inputs)[0])
        logits = out[:, -1] - out[:, :-1].sum(1)  # of two outputs, the difference: their softmax as a logit
        squares = torch.cat([matrix.flatten() for matrix in self._matrices()]).square().sum()
        return logits, inputs.penalty + self.l2_dense * squares

    def weights(self, batch: ClickBatch) -> dict[str, Float[Tensor, "B _"]]:
        """What every softmax over slots or parts gives, by the name of the module.

        ``gim`` weighs ``parts`` (eq. 14, fig. 6), ``ibim`` behaviours (0 on padding), ``iuim`` and ``icim``
        the fields of user and context, in their order; each sums to 1, but for ``ibim`` without behaviours
        and a missing GIM.
        """
        return self._joined(self.tables(batch))[1]

    def _joined(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        raw = {
            "item": inputs.item,
            "context": inputs.context.flatten(1),
            "behaviours": pooled(inputs.behaviours, inputs.valid),
            "user": inputs.user.flatten(1),
        }
        met = {name: interaction(inputs) for name, interaction in self.interactions.items()}
        joined, shares = self.gim([*(raw[name] for name in self.raw), *(part for part, _ in met.values())])
        return joined, {"gim": shares} | {name: weights for name, (_, weights) in met.items()}

    def _matrices(self) -> list[nn.Parameter]:
        """All weights but biases, norms and embeddings."""
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return [p for p in self.parameters() if p.ndim > 1 and id(p) not in tables]
