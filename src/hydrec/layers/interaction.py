"""Interactions of fields: what click nets without attention to a history are made of.

Shapes: B rows, F fields, D width of a field, I = F * D, L cross layers, M feature maps.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hydrec.batch import ClickBatch, ClickCatalog
from hydrec.errors import InputError, at_least
from hydrec.layers.mlp import linear
from hydrec.layers.tabular import Tables, pooled

BLOCK = 2**21  # products of a layer of CIN held at once


class FieldMatrix(nn.Module):
    """All that is known of a showing, each field a vector of one width.

    A history counts as one more item, the mean of its behaviours, which share the tables of items.

    Args:
        catalog: sizes, fields and the codes of items.
        dim: width D.
        history: false to leave the history out.
        std: of the normal distribution, cut at two of it, that embeddings are drawn from.
        l2: weight of the squared norms of all that a row looks up.
        sparse: whether gradients are of the rows looked up only.

    Raises:
        InputError: ``dim`` or ``std`` is not positive, or ``l2`` is negative.

    Attributes:
        fields: F.
        places: the fields of ``item``, ``history``, ``user`` and ``context`` among them.
    """

    def __init__(
        self, catalog: ClickCatalog, *, dim: int, history: bool, std: float, l2: float, sparse: bool
    ) -> None:
        super().__init__()
        at_least("model.net.dim", dim, 1)
        if not std > 0:
            raise InputError(f"model.net.std={std}: must be above 0")
        if not l2 >= 0:
            raise InputError(f"model.net.l2={l2}: must be 0 or more")
        self.tables = Tables(catalog, item_dim=dim, field_dim=dim, std=std, l2=l2, sparse=sparse)
        self.dim = dim
        self.read = _whole if history else _without_history
        parts = self.tables.parts
        sizes = {"item": parts, "history": parts * history}
        sizes |= {"user": self.tables.user_fields, "context": self.tables.context_fields}
        self.fields = sum(sizes.values())
        ends = accumulate(sizes.values())
        self.places = {
            name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
        }

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, "B F D"], Float[Tensor, ""]]:
        """The fields of each row, and the L2 term of the loss."""
        inputs = self.tables(self.read(batch))
        items = torch.cat([inputs.item, pooled(inputs.behaviours, inputs.valid)], 1)
        items = items.unflatten(1, (-1, self.dim))[:, : self.places["user"].start]
        return torch.cat([items, inputs.user, inputs.context], 1), inputs.penalty


def _whole(batch: ClickBatch) -> ClickBatch:
    return batch


def _without_history(batch: ClickBatch) -> ClickBatch:
    # before the tables: what is not looked up costs no time and no L2
    return batch._replace(items=batch.items[:, :0], lengths=torch.zeros_like(batch.lengths))


class Linear(nn.Module):
    """Logistic regression: a weight for each code, and a bias.

    The weights of a history are those of its items, over their number.

    Args:
        catalog, history, std, l2, sparse: as those of ``FieldMatrix``.
    """

    def __init__(self, catalog: ClickCatalog, *, history: bool, std: float, l2: float, sparse: bool) -> None:
        super().__init__()
        self.weights = FieldMatrix(catalog, dim=1, history=history, std=std, l2=l2, sparse=sparse)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: ClickBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, ""]]:
        """Logits, and the L2 term of the loss."""
        weights, penalty = self.weights(batch)  # (B, F, 1)
        return self.bias + weights.sum((1, 2)), penalty


def pairs(fields: Float[Tensor, "B F D"]) -> Float[Tensor, " B"]:
    """The sum of the products of all pairs of fields, without making the pairs.

    >>> pairs(torch.tensor([[[1.0, 0.0], [2.0, 1.0], [3.0, 1.0]]]))  # 2 + 3 + 7
    tensor([12.])
    """
    return (fields.sum(1).square() - fields.square().sum(1)).sum(1) / 2


def compared(
    layer: nn.Linear, query: Float[Tensor, "B I"], keys: Float[Tensor, "B T I"]
) -> Float[Tensor, "B T H"]:
    """A linear map of ``[q; k; q - k; q * k]`` for each key of each row, of which only two are made."""
    of_query, of_key, of_difference, of_product = layer.weight.chunk(4, 1)
    both = torch.cat([keys, keys * query[:, None]], 2) @ torch.cat([of_key - of_difference, of_product], 1).mT
    return both + F.linear(query, of_query + of_difference, layer.bias)[:, None]


def shared(
    layer: nn.Linear, x: Float[Tensor, "N I"], others: Float[Tensor, "C N J"]
) -> Float[Tensor, "C N H"]:
    """A linear map of ``[x; y]`` for C vectors y that share their x, for which it is made once."""
    of_x, of_other = layer.weight.split([x.shape[1], others.shape[2]], 1)
    return others @ of_other.mT + F.linear(x, of_x, layer.bias)


class VectorCross(nn.Module):
    """Crosses of growing degree, by one vector a layer: ``x_{l+1} = x_0 (x_l . w_l) + b_l + x_l``.

    "Deep & Cross Network for Ad Click Predictions" (https://arxiv.org/abs/1708.05123), eq. 3.

    Args:
        width: I.
        layers: L.

    Raises:
        InputError: ``layers`` is not positive.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        at_least("model.net.cross", layers, 1)
        self.weight = nn.Parameter(torch.empty(layers, width))
        self.bias = nn.Parameter(torch.zeros(layers, width))
        nn.init.normal_(self.weight, std=math.sqrt(2 / (width + 1)))  # Glorot's for a map to one number

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B I"]:
        """x_L of x_0."""
        # every x_l is a number times x_0, plus a vector that rows share: no layer need be made
        scale, shift = x.new_ones(len(x)), torch.zeros_like(self.bias[0])
        for along, weight, bias in zip((x @ self.weight.mT).unbind(1), self.weight, self.bias, strict=True):
            scale = scale + scale * along + shift @ weight
            shift = shift + bias
        return scale[:, None] * x + shift


class MatrixCross(nn.Module):
    """Crosses of growing degree, by one matrix a layer: ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``.

    "DCN V2" (https://arxiv.org/abs/2008.13535), eq. 1, of full rank.

    Args:
        width: I.
        layers: L.

    Raises:
        InputError: ``layers`` is not positive.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        at_least("model.net.cross", layers, 1)
        self.layers = nn.ModuleList(linear(width, width) for _ in range(layers))

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B I"]:
        """x_L of x_0."""
        first = x
        for layer in self.layers:
            x = first * layer(x) + x
        return x


class CIN(nn.Module):
    """Compressed interactions: each layer mixes the products of the last one's maps and the fields to maps.

    ``X^k_m = sum_ij W^k_mij (X^{k-1}_i * X^0_j)``, and the sum of each map over D comes out. All maps go on
    to the next layer and no activation follows, which the paper found best.

    "xDeepFM" (https://arxiv.org/abs/1803.05170), eq. 6. A layer has B * M * F * D products; training holds
    ``BLOCK`` of them at once, and makes them again for the gradient.

    Args:
        fields: F.
        maps: their number in each layer.

    Raises:
        InputError: there is no layer, or one without maps.

    Attributes:
        out_width: maps of all layers.
    """

    def __init__(self, fields: int, maps: Sequence[int]) -> None:
        super().__init__()
        if not maps:
            raise InputError("model.net.maps=[]: give at least one layer its number of maps")
        for number in maps:
            at_least("model.net.maps", number, 1)
        before = [fields, *maps[:-1]]
        self.mix = nn.ModuleList(
            nn.Conv1d(last * fields, number, 1, bias=False) for last, number in zip(before, maps, strict=True)
        )
        for layer in self.mix.parameters():
            nn.init.xavier_normal_(layer)
        self.out_width = sum(maps)

    def forward(self, fields: Float[Tensor, "B F D"]) -> Float[Tensor, "B M"]:
        """The maps of all layers, each summed over D."""
        rows, _, dim = fields.shape
        first = fields.mT.flatten(0, 1)  # (B * D, F)
        mixed = _in_blocks if torch.is_grad_enabled() else _mixed
        x, sums = first, []
        for weight in self.mix.parameters():
            x = mixed(x, first, weight[..., 0])
            sums.append(x.view(rows, dim, -1).sum(1))
        return torch.cat(sums, 1)


def _mixed(x: Tensor, fields: Tensor, weight: Tensor) -> Tensor:
    return (x[:, :, None] * fields[:, None]).flatten(1) @ weight.mT


def _in_blocks(x: Tensor, fields: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _Mixed.apply(x, fields, weight)


class _Mixed(torch.autograd.Function):
    """What ``_mixed`` is, block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fields: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, fields, weight)
        some = max(1, BLOCK // weight.shape[1])
        parts = zip(x.split(some), fields.split(some), strict=True)
        return torch.cat([_mixed(*part, weight) for part in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, fields, weight = ctx.saved_tensors
        some = max(1, BLOCK // weight.shape[1])
        to_x, to_fields, to_weight = [], [], torch.zeros_like(weight)
        for part in zip(x.split(some), fields.split(some), grads[0].split(some), strict=True):
            of_x, of_fields, grad = part
            to_weight.addmm_(grad.mT, (of_x[:, :, None] * of_fields[:, None]).flatten(1))
            to_products = (grad @ weight).view(len(grad), x.shape[1], -1)
            to_x.append((to_products @ of_fields[:, :, None])[:, :, 0])
            to_fields.append((of_x[:, None] @ to_products)[:, 0])
        return torch.cat(to_x), torch.cat(to_fields), to_weight
