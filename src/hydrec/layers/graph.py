"""Attention over the nodes of a sequence graph, and the grouping of nodes into factors.

A graph has one node per interaction, so a repeated item is several nodes; everything is dense and batched.

Shapes: B rows, T history nodes, D width, H heads, E width of a head, K factors or groups of nodes.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.layers.scoring import masked_softmax

DAY = 86400  # seconds


class Edges(NamedTuple):
    """A dense graph over the T nodes of each row.

    Attributes:
        mask: (B, T, T) bool, whether node i sees node j; symmetric.
        weights: (B, T, T) float, how strongly time connects the two, in (0, 1]; of no meaning where masked.
    """

    mask: Tensor
    weights: Tensor


class Groups(NamedTuple):
    """Nodes summed into K groups.

    Attributes:
        shares: (B, T, K) float, how much of each node goes to each group: rows sum to 1, on padding to 0.
        vectors: (B, K, D) float, the sums of the shared nodes; the scale grows with their number.
        times: (B, K) float, mean times of the shared nodes, in the unit of the times given.
        valid: (B, K) bool, false for a group that stands for padding.
        entropy: scalar, mean entropy in nats of a node's shares.
    """

    shares: Tensor
    vectors: Tensor
    times: Tensor
    valid: Tensor
    entropy: Tensor


def units(seconds: Int[Tensor, "..."], days: float) -> Float[Tensor, "..."]:
    """Times in units of ``days`` days, as float64: float32 Unix seconds would be 64 s or more apart."""
    return seconds.double() / (DAY * days)


def whole_units(seconds: Int[Tensor, "..."], days: float) -> Float[Tensor, "..."]:
    """Like ``units``, rounded down to whole units."""
    return units(seconds, days).floor()


def filled(lengths: Int[Tensor, " B"], positions: int) -> Bool[Tensor, "B T"]:
    """Which of the ``positions`` positions of each row are no padding."""
    return torch.arange(positions, device=lengths.device) < lengths[:, None]


def closeness(gap: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``1 / max(|gap|, 1)``: 1 within a unit of time, then falling with the gap; never infinite."""
    return gap.abs().clamp(min=1.0).reciprocal()


class TimeGraph(nn.Module):
    """Joins the nodes of a row that are close in time.

    Args:
        max_gap: largest gap in time of two joined nodes, in the unit of the times; may be infinite.
        self_loops: whether a node sees itself.
        weigh: from the gaps (B, T, T) to the weights of the edges.
    """

    def __init__(self, *, max_gap: float, self_loops: bool, weigh: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.max_gap, self.self_loops, self.weigh = max_gap, self_loops, weigh

    def forward(self, times: Float[Tensor, "B T"], valid: Bool[Tensor, "B T"]) -> Edges:
        """The graph of each row; padding is joined to nothing."""
        gap = (times[:, :, None] - times[:, None, :]).abs()
        loops = torch.eye(times.shape[1], dtype=torch.bool, device=times.device)
        mask = (gap <= self.max_gap) & valid[:, :, None] & valid[:, None, :] & (~loops | self.self_loops)
        return Edges(mask, self.weigh(gap))


class Heads(nn.Module):
    """Dot-product attention along the edges of a graph, several heads side by side.

    With y = x W of a head, the logit of node i for node j is ``dot * y_i y_j + time * weights_ij``; a leaky
    rectifier and a softmax over the nodes that i sees make it a share; ELU of the shared y_j comes out. A
    node that sees none gets 0.

    Args:
        dim: width D of the nodes.
        width: width E of a head.
        heads: their number H.
        dot: factor of the dot product.
        time: factor of the edges' weights, which all heads share.
        slope: of the rectifier for negative logits; 1 is none.
    """

    def __init__(self, dim: int, width: int, *, heads: int, dot: float, time: float, slope: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, dim, width))
        for head in self.weight:
            nn.init.xavier_uniform_(head)
        self.dot, self.time, self.slope = dot, time, slope

    def forward(self, x: Float[Tensor, "B T D"], edges: Edges) -> Float[Tensor, "B T HE"]:
        """Concatenated heads."""
        y = torch.einsum("btd,hde->hbte", x, self.weight).contiguous()  # one product for all heads
        logits = self.dot * gram(y) + self.time * edges.weights  # (H, B, T, T), eq. 1
        shares = masked_softmax(F.leaky_relu(logits, self.slope), edges.mask, dim=3)  # eq. 2
        return F.elu(shares @ y).permute(1, 2, 0, 3).flatten(2)  # eq. 3


def gram(y: Float[Tensor, "... T E"]) -> Float[Tensor, "... T T"]:
    """``y y^T``, whose gradient takes one product where autograd takes two."""
    product = y.detach() @ y.mT
    if product.requires_grad:
        product.register_hook(lambda gradient: gradient + gradient.mT)
    return product


class Linear(nn.Sequential):
    """Linear maps from each width to the next, without biases, done in one step by the product of all.

    Args:
        widths: of the columns that go in, those in between, and those that come out.
    """

    def __init__(self, *widths: int) -> None:
        layers = [nn.Linear(*pair, bias=False) for pair in pairwise(widths)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        super().__init__(*layers)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... O"]:
        """Mapped columns."""
        product: Tensor
        product, *others = self.parameters()
        for weight in others:
            product = weight @ product
        return F.linear(x, product)


class Attention(nn.Module):
    """Heads, mixed node by node.

    Args:
        heads: a layer with the signature of ``Heads``.
        mix: from its columns to those that come out.
    """

    def __init__(self, heads: nn.Module, mix: nn.Module) -> None:
        super().__init__()
        self.heads, self.mix = heads, mix

    def forward(self, x: Float[Tensor, "B T D"], edges: Edges) -> Float[Tensor, "B T O"]:
        """Nodes after one step along the edges."""
        return self.mix(self.heads(x, edges))


class TwoLevels(nn.Module):
    """Attention over the outcome of attention, along the same edges.

    Args:
        first: a layer with the signature of ``Heads``.
        second: another, from what the first gives.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Float[Tensor, "B T D"], edges: Edges) -> Float[Tensor, "B T O"]:
        """Nodes after two steps along the edges."""
        return self.second(self.first(x, edges), edges)


class Unchanged(nn.Module):
    """Leaves the nodes as they are: the null of ``Attention``."""

    def forward(self, x: Float[Tensor, "B T D"], edges: Edges) -> Float[Tensor, "B T D"]:
        """Returns ``x``."""
        return x


class Clusters(nn.Module):
    """Shares every node out among K groups and sums each group.

    Args:
        assign: from nodes and edges to K logits a node.
    """

    def __init__(self, assign: nn.Module) -> None:
        super().__init__()
        self.assign = assign

    def forward(
        self,
        z: Float[Tensor, "B T D"],
        edges: Edges,
        times: Float[Tensor, "B T"],
        valid: Bool[Tensor, "B T"],
    ) -> Groups:
        """Groups of the nodes ``z``."""
        logs = F.log_softmax(self.assign(z, edges), dim=2)  # (B, T, K)
        shares = logs.exp() * valid[:, :, None]
        size = shares.sum(1)  # (B, K)
        # not a matrix product: half precision would round times to days
        mean_times = (shares * times[:, :, None]).sum(1) / size.clamp(min=1e-8)
        entropy = -(shares * logs).sum() / valid.sum()
        return Groups(shares, shares.mT @ z, mean_times, torch.ones_like(size, dtype=torch.bool), entropy)


class EachNode(nn.Module):
    """Makes each node a group of its own: the null of ``Clusters``."""

    def forward(
        self,
        z: Float[Tensor, "B T D"],
        edges: Edges,
        times: Float[Tensor, "B T"],
        valid: Bool[Tensor, "B T"],
    ) -> Groups:
        """The nodes themselves; the entropy is 0."""
        shares = torch.diag_embed(valid.to(z.dtype))
        return Groups(shares, z, times, valid, z.new_zeros(()))
