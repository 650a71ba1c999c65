"""GC-SAN: the gated session graph of SR-GNN, then self-attention over the positions of the session.

"Graph Contextualized Self-Attention Network for Session-based Recommendation" (Xu et al., IJCAI 2019;
https://www.ijcai.org/proceedings/2019/547).

Attention is over positions, not nodes: an item that occurs twice is seen twice. ``block: paper`` has one head
without biases, and a feed-forward layer whose input is its residual. ``block: bert`` is RecBole's model of
the same name: norms after each layer, GELU, heads that are mixed. RecBole also hides later positions
(``causal``), which tells from the second block on, as only the last position is scored.

Differs from the paper in that the learning rate stays as it is and that edges weigh the same however often
they are walked (``edges: binary``, as in RecBole), and from RecBole in that L2 falls on all weights by the
optimiser, not on the norm of the item table. Training drops some of what the paper's feed-forward layer
gives, or with ``bert`` of what RecBole drops.

Shapes: B rows, T history positions, D width, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers import attention, scoring, transformer
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets
from hydrec.layers.session import EDGES, GatedGraph, positions, session


class Interest(NamedTuple):
    """What a session is after.

    Attributes:
        vector: (B, 1, D) float, the last event as both see it.
    """

    vector: Tensor


class PaperBlock(nn.Module):
    """``F = softmax((x W_Q) (x W_K)^T / sqrt(D)) (x W_V)``, then ``F + W_2 relu(W_1 F + b_1) + b_2``.

    Args:
        dim: width D.
        inner: width between W_1 and W_2.
        dropout: share that training drops of what W_2 gives.
    """

    def __init__(self, dim: int, *, inner: int, dropout: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.attention = attention.Watched(queries="positions")
        self.feed = nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, dim), Dropout(dropout))

    def forward(self, x: Float[Tensor, "B T D"], seen: Bool[Tensor, "B 1 T T"]) -> Float[Tensor, "B T D"]:
        """The next block's positions, each made of those that it sees."""
        logits = self.query(x) @ self.key(x).mT * x.shape[2] ** -0.5
        weights = self.attention(attention.softmax(logits[:, None], seen))  # (B, 1, T, T)
        found = weights[:, 0] @ self.value(x)
        return found + self.feed(found)


class GCSAN(nn.Module):
    """Scores items by how they match the last event, as the graph sees it and as attention sees it.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and layers.
        steps: how often nodes take in what comes along their edges.
        edges: ``binary`` for edges of equal weight, ``count`` for edges that weigh how often they are walked.
        block: ``paper`` or ``bert``, as above.
        blocks: their number, k.
        heads: of each attention; the paper's block has one.
        inner: width inside the feed-forward layers; the paper's is D.
        causal: whether positions see no later ones.
        dropout: share that training drops, as above.
        weight: share of what attention sees; the rest is the graph's. The paper's are 0.4 to 0.8.

    Raises:
        InputError: an option is none of those above, or a number makes no sense.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        steps: int,
        edges: str,
        block: str,
        blocks: int,
        heads: int,
        inner: int,
        causal: bool,
        dropout: float,
        weight: float,
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "steps": steps, "blocks": blocks, "inner": inner}.items():
            at_least(f"model.net.{key}", size, 1)
        for key, share in {"dropout": dropout, "weight": weight}.items():
            if not 0 <= share <= 1:
                raise InputError(f"model.net.{key}={share}: a share is between 0 and 1")
        if one_of("model.net.block", block, ("paper", "bert")) == "paper" and heads != 1:
            raise InputError(f"model.net.heads={heads}: model.net.block=paper has one; block=bert has more")

        def paper() -> nn.Module:
            return PaperBlock(dim, inner=inner, dropout=dropout)

        def bert() -> nn.Module:
            heeded = attention.Attention(dim, heads=heads, dropout=dropout, mix=True)
            return transformer.PostNorm(heeded, dim, inner=inner, dropout=dropout, eps=1e-12)

        weigh = EDGES[one_of("model.net.edges", edges, EDGES)]
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        self.refine = GatedGraph(dim, steps=steps, weigh=weigh)
        self.blocks = nn.ModuleList({"paper": paper, "bert": bert}[block]() for _ in range(blocks))
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)
        with torch.no_grad():
            self.item.weight[PAD] = 0
        self.seen = attention.causal if causal else _all
        self.weight = weight

    def encode(self, batch: SequenceBatch) -> tuple[Interest, Float[Tensor, ""]]:
        """The interest of each session, and no term of a loss."""
        graph = session(batch.items, batch.lengths)
        x = positions(self.refine(self.item(batch.items), graph), graph)  # (B, T, D)
        seen = self.seen(x.shape[1], x.device) & graph.valid[:, None, None, :]  # (B, 1, T, T)
        attended = x
        for block in self.blocks:
            attended = block(attended, seen)
        both = self.weight * at_targets(attended, batch) + (1 - self.weight) * at_targets(x, batch)
        return Interest(both), x.new_zeros(())

    def score(self, state: Interest, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vector[:, None], self.item(items))[:, 0]

    def products(self, state: Interest, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vector, self.item(items), None


def _all(positions: int, device: torch.device) -> Tensor:
    return torch.ones(positions, positions, dtype=torch.bool, device=device)
