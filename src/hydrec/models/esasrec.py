"""eSASRec: SASRec's way of training, LiGR's blocks, and a sampled softmax.

"eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion" (Tikhonovich et al., RecSys 2025;
https://arxiv.org/abs/2508.06450). The blocks are those of "From Features to Transformers: Redefining Ranking
for Scalable Impact" (Borisyuk et al., 2025; https://arxiv.org/abs/2502.03417), as RecTools has them. The
third part is not of the net: train it by `loss=sampled_softmax` with 256 uniform negatives.

Differs from RecTools in that positions are counted from a history's first event: counted from its last, a
position that is trained knows how many events are still to come, and only one of them is ever tested.

Shapes: B rows, T history positions, P scored positions, D width, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import at_least, share_of
from hydrec.layers import attention, scoring, transformer
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class SwiGLU(nn.Module):
    """``W2 (silu(W1 x) * W3 x)``, without biases.

    Args:
        dim: width D of what goes in and comes out.
        inner: width in between.
        dropout: share that training drops before W2.
    """

    def __init__(self, dim: int, *, inner: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.enter = (nn.Linear(dim, inner, bias=False) for _ in range(2))
        self.leave = nn.Linear(inner, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Each position by itself."""
        return self.leave(self.dropout(F.silu(self.gate(x)) * self.enter(x)))


class LiGR(nn.Module):
    """``x1 = x + sigmoid(G1 x) * attention(LN(x))``, then ``x1 + sigmoid(G2 x1) * swiglu(LN(x1))``.

    Args:
        dim: width D.
        heads: of the attention.
        inner: width inside the feed-forward layer.
        dropout: share that training drops of weights of attention and of what both layers give.
    """

    def __init__(self, dim: int, *, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = attention.Attention(dim, heads=heads, dropout=dropout, mix=True)
        self.feed = SwiGLU(dim, inner=inner, dropout=dropout)
        self.attention_gate, self.feed_gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"], seen: Bool[Tensor, "T T"]) -> Float[Tensor, "B T D"]:
        """The next block's positions."""
        y = self.attention_norm(x)
        x = x + self.attention_gate(x).sigmoid() * self.dropout(self.attention(y, y, seen))
        return x + self.feed_gate(x).sigmoid() * self.dropout(self.feed(self.feed_norm(x)))


class ESASRec(nn.Module):
    """Scores items by their inner product with the last block's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and blocks.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        window: longest history.
        dropout: share that training drops, everywhere.

    Raises:
        InputError: a number makes no sense.
    """

    causal = True

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        dropout: float,
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "blocks": blocks, "inner": inner}.items():
            at_least(f"model.net.{key}", size, 1)
        share_of("model.net.dropout", dropout)
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        self.position = transformer.Positions(window, dim, position="real")
        self.enter = Dropout(dropout)
        self.blocks = nn.ModuleList(
            LiGR(dim, heads=heads, inner=inner, dropout=dropout) for _ in range(blocks)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
        with torch.no_grad():
            self.item.weight[PAD] = 0

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The last block's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        x = self.enter(self.item(batch.items) + self.position(batch.lengths, positions))
        seen = attention.causal(positions, x.device)
        for block in self.blocks:
            x = block(x, seen)
        vectors = at_targets(x, batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.item(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.item(items), None
