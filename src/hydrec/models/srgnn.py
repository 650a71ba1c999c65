"""SR-GNN: a session as a graph of items, read by gated nodes and by attention from the last item.

"Session-based Recommendation with Graph Neural Networks" (Wu et al., AAAI 2019;
https://arxiv.org/abs/1811.00855); public code: https://github.com/CRIPAC-DIG/SR-GNN.

Differs from the paper in that an edge weighs the same however often it is walked (``edges: count`` weighs it
by that) and in the bias of W_3, both as in the public code. Differs from both in that the learning rate stays
as it is.

Shapes: B rows, T history positions, D width, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import at_least, one_of
from hydrec.layers import attention, scoring
from hydrec.layers.history import at_targets
from hydrec.layers.session import EDGES, GatedGraph, positions, session


class Interest(NamedTuple):
    """What a session is after.

    Attributes:
        vector: (B, 1, D) float, s_h of eq. 7.
    """

    vector: Tensor


class SRGNN(nn.Module):
    """Scores items by how they match the last item of a session and a sum of those that matter to it.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and nodes.
        steps: how often nodes take in what comes along their edges.
        edges: ``binary`` for edges of equal weight, ``count`` for edges that weigh how often they are walked.

    Raises:
        InputError: ``edges`` is neither, or a size is not a positive whole number.
    """

    def __init__(self, catalog: Catalog, *, dim: int, steps: int, edges: str) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        weigh = EDGES[one_of("model.net.edges", edges, EDGES)]
        self.refine = GatedGraph(dim, steps=at_least("model.net.steps", steps, 1), weigh=weigh)
        self.last = nn.Linear(dim, dim, bias=False)  # W_1
        self.each = nn.Linear(dim, dim)  # W_2 and c
        self.attention = nn.Linear(dim, 1, bias=False)  # q
        self.watched = attention.Watched(queries="whole")
        self.join = nn.Linear(2 * dim, dim)  # W_3
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)
        with torch.no_grad():
            self.item.weight[PAD] = 0

    def encode(self, batch: SequenceBatch) -> tuple[Interest, Float[Tensor, ""]]:
        """The interest of each session, and no term of a loss."""
        graph = session(batch.items, batch.lengths)
        x = positions(self.refine(self.item(batch.items), graph), graph)  # (B, T, D), eq. 1-5
        last = at_targets(x, batch)  # (B, 1, D), s_l
        weights = (
            self.attention((self.last(last) + self.each(x)).sigmoid()) * graph.valid[:, :, None]
        )  # eq. 6
        weights = self.watched(weights.mT[:, None])[:, 0].mT  # (B, T, 1)
        total = (weights * x).sum(1, keepdim=True)  # grows with the session
        return Interest(self.join(torch.cat([total, last], 2))), x.new_zeros(())  # eq. 7

    def score(self, state: Interest, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state (eq. 8)."""
        return scoring.dot(state.vector[:, None], self.item(items))[:, 0]

    def products(self, state: Interest, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vector, self.item(items), None
