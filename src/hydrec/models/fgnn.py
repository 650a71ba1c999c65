"""FGNN: a session as a weighted graph of items, seen through attention and read in an order it learns.

"Rethinking the Item Order in Session-based Recommendation with Graph Neural Networks" (Qiu et al., CIKM 2019;
https://arxiv.org/abs/1911.11942); public code: https://github.com/RuihongQiu/FGNN.

Differs from the public code, which lacks modules that it imports, in that attention is normalised over the
edges into a node, there over those out of the node that sends, and in that layers have no biases. Differs
from both in that the learning rate stays as it is. Layers of 8 heads and of 1 are those that the public code
logs.

Shapes: B rows, T history nodes, H heads, D width, M scored rows, C candidate items.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers import attention, scoring
from hydrec.layers.scoring import masked_softmax
from hydrec.layers.session import EDGES, session


class Interest(NamedTuple):
    """What a session is after.

    Attributes:
        vector: (B, 1, D) float, the session as a vector of the items' space.
    """

    vector: Tensor


class WeightedAttention(nn.Module):
    """Each node takes in the nodes with an edge to it, itself among them (WGAT).

    With y = x W of a head, node i's logit for node j is ``LeakyReLU(a [y_i ; y_j ; w_ji])``, w_ji the weight
    of the edge from j to i; the softmax over the j is its share.

    Args:
        wide: width of the nodes that come in.
        dim: width D of a head.
        heads: their number H.
        mean: whether heads are averaged or, side by side, rectified by themselves.
    """

    def __init__(self, wide: int, dim: int, *, heads: int, mean: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, wide, dim))
        self.own, self.other = (nn.Parameter(torch.empty(heads, dim, 1)) for _ in range(2))
        self.edge = nn.Parameter(torch.empty(heads, 1, 1))
        self.attention = attention.Watched(queries="nodes")
        self.join: Callable[[Tensor], Tensor] = _mean if mean else _side_by_side

    def forward(
        self, x: Float[Tensor, "B T wide"], edges: Float[Tensor, "B T T"]
    ) -> Float[Tensor, "B T out"]:
        """Nodes after one step along the edges, whose weights (from, to) are 0 where there is none."""
        y = torch.einsum("btd,hde->bhte", x, self.weight)
        into = edges.mT[:, None]  # (B, 1, T, T): to, from
        logits = y @ self.own + (y @ self.other).mT + self.edge * into  # (B, H, T, T)
        shares = masked_softmax(F.leaky_relu(logits, 0.2), into > 0, dim=3)
        return self.join(self.attention(shares) @ y).relu()


class Readout(nn.Module):
    """Attention over a set, asked for several times by a recurrent cell (Set2Set with a GRU).

    ``q_t = GRU(q*_{t-1}, q_{t-1})``, ``r_t = sum_i softmax_i(x_i q_t) x_i``, ``q*_t = [q_t ; r_t]``, all 0 at
    first.

    Args:
        dim: width D.
        rounds: number of times t.
    """

    def __init__(self, dim: int, *, rounds: int) -> None:
        super().__init__()
        self.cell, self.rounds = nn.GRUCell(2 * dim, dim), rounds
        self.attention = attention.Watched(queries="whole")

    def forward(self, x: Float[Tensor, "B T D"], nodes: Bool[Tensor, "B T"]) -> Float[Tensor, "B D2"]:
        """The set of ``nodes`` as one vector of width 2 D."""
        asked = x.new_zeros(len(x), x.shape[2])
        found = asked
        for _ in range(self.rounds):
            asked = self.cell(torch.cat([asked, found], 1), asked)
            shares = masked_softmax((x @ asked[:, :, None])[:, :, 0], nodes, dim=1)  # (B, T)
            found = (self.attention(shares[:, None, None])[:, 0] @ x)[:, 0]  # (B, D)
        return torch.cat([asked, found], 1)


class FGNN(nn.Module):
    """Scores items by how they match what is read from the graph of a session.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items, and of each head.
        heads: of each layer in turn; those of the last are averaged, of the others put side by side.
        rounds: how often the graph is read.
        edges: ``count`` for edges that weigh how often they are walked, ``binary`` for edges of weight 1.

    Raises:
        InputError: ``edges`` is neither, there is no layer, or a size is not a positive whole number.
    """

    def __init__(self, catalog: Catalog, *, dim: int, heads: Sequence[int], rounds: int, edges: str) -> None:
        super().__init__()
        for number in heads:
            at_least("model.net.heads", number, 1)
        if not heads:
            raise InputError("model.net.heads=[]: give the heads of at least one layer")
        self.weigh = EDGES[one_of("model.net.edges", edges, EDGES)]
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        widths = [dim, *(dim * number for number in heads[:-1])]
        self.layers = nn.ModuleList(
            WeightedAttention(width, dim, heads=number, mean=layer == len(heads) - 1)
            for layer, (width, number) in enumerate(zip(widths, heads, strict=True))
        )
        self.readout = Readout(dim, rounds=at_least("model.net.rounds", rounds, 1))
        self.out = nn.Linear(2 * dim, dim, bias=False)
        for name, parameter in self.named_parameters():
            if name.startswith("readout.cell.weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.normal_(parameter, std=0.1)
        with torch.no_grad():
            self.item.weight[PAD] = 0

    def encode(self, batch: SequenceBatch) -> tuple[Interest, Float[Tensor, ""]]:
        """The interest of each session, and no term of a loss."""
        graph = session(batch.items, batch.lengths)
        loops = torch.diag_embed(graph.nodes & (graph.steps.diagonal(dim1=1, dim2=2) == 0))
        x = self.item(batch.items)
        edges = self.weigh(graph.steps + loops).to(x)  # (B, T, T); a loop that nobody walked weighs 1
        for layer in self.layers:
            x = layer(x, edges)
        vector = self.out(self.readout(x, graph.nodes))  # (B, D)
        return Interest(vector[:, None]), x.new_zeros(())

    def score(self, state: Interest, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vector[:, None], self.item(items))[:, 0]

    def products(self, state: Interest, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vector, self.item(items), None


def _mean(heads: Tensor) -> Tensor:
    return heads.mean(1)


def _side_by_side(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(2)
