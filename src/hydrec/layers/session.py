"""The graph of a session: a node for each distinct item, an edge for each step from one item to the next.

A node lies where its item first occurs, so a graph has the shape of its row and no item is renumbered; the
other positions have neither node nor edge. Dense, all rows at once: memory grows with B T^2.

Shapes: B rows, T history positions, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.layers.graph import filled


class Session(NamedTuple):
    """The graphs of a batch of rows.

    Attributes:
        valid: (B, T) bool, positions that are no padding.
        nodes: (B, T) bool, positions where an item occurs for the first time.
        alias: (B, T) int64, the node of each position's item; 0 on padding.
        steps: (B, T, T) float, how often node j came directly after node i.
    """

    valid: Tensor
    nodes: Tensor
    alias: Tensor
    steps: Tensor


def session(items: Int[Tensor, "B T"], lengths: Int[Tensor, " B"]) -> Session:
    """The graph of each row of items, of which the first so many are no padding.

    >>> graph = session(torch.tensor([[5, 7, 5, 7, 9, 0]]), torch.tensor([5]))
    >>> graph.alias[0, :5].tolist(), graph.nodes[0].tolist()
    ([0, 1, 0, 1, 4], [True, True, False, False, True, False])
    >>> graph.steps[0].nonzero().tolist(), graph.steps[0, 0, 1].item()
    ([[0, 1], [1, 0], [1, 4]], 2.0)
    """
    length = items.shape[1]
    place = torch.arange(length, device=items.device)
    valid = filled(lengths, length)
    earlier = torch.where(items[:, :, None] == items[:, None, :], place, length)  # (B, T, T)
    alias = torch.where(valid, earlier.amin(2), 0)  # 0 on padding, which is never position 0
    at = F.one_hot(alias, length).float() * valid[:, :, None]
    return Session(valid, alias == place, alias, at[:, :-1].mT @ at[:, 1:])


def positions(nodes: Float[Tensor, "B T D"], graph: Session) -> Float[Tensor, "B T D"]:
    """The node of each position's item."""
    return nodes.gather(1, graph.alias[:, :, None].expand_as(nodes))


def _binary(steps: Tensor) -> Tensor:
    return (steps > 0).to(steps)


def _count(steps: Tensor) -> Tensor:
    return steps


EDGES: dict[str, Callable[[Tensor], Tensor]] = {"binary": _binary, "count": _count}  # what an edge weighs


class GatedGraph(nn.Module):
    """Nodes that take in what comes along their edges, by the gates of a recurrent cell.

    ``a_i = [sum_j I_ij (x_j H_in + b_in) ; sum_j O_ij (x_j H_out + b_out)]`` and ``x'_i = GRU(a_i, x_i)``,
    with the weights of the edges into node i, I, and out of it, O, both divided by their sum.

    "Session-based Recommendation with Graph Neural Networks", Wu et al., AAAI 2019, eq. 1-5. Differs from the
    released code in that nothing is added to the two halves of a: that is the same as the cell's own biases.
    The paper's update gate is one minus that of the cell, which is the released code's.

    Args:
        dim: width D of the nodes.
        steps: how often they take in.
        weigh: one of ``EDGES``.
    """

    def __init__(self, dim: int, *, steps: int, weigh: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.steps, self.weigh = steps, weigh
        self.incoming, self.outgoing = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.cell = nn.GRUCell(2 * dim, dim)

    def forward(self, x: Float[Tensor, "B T D"], graph: Session) -> Float[Tensor, "B T D"]:
        """Nodes after all steps; positions that are no nodes are of no meaning."""
        out = self.weigh(graph.steps).to(x)
        edges_in, edges_out = _shares(out.mT), _shares(out)  # (B, T, T)
        for _ in range(self.steps):
            a = torch.cat([edges_in @ self.incoming(x), edges_out @ self.outgoing(x)], 2)  # (B, T, 2D), eq. 1
            x = self.cell(a.flatten(0, 1), x.flatten(0, 1)).view_as(x)  # eq. 2-5
        return x


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(2, keepdim=True).clamp(min=1)  # a node without edges takes in 0
