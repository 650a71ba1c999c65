"""BERT4Rec: a transformer that looks both ways fills the gaps of a history; the last gap is the prediction.

"BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from Transformer" (Sun et al.,
CIKM 2019; https://arxiv.org/abs/1904.06690); public code: FeiSun/BERT4Rec. The blocks are those of BERT, the
same as of SASRec's `block: recbole`. Its own loss is `softmax`.

The net does not hide anything: training puts ``MASK`` over some events and asks for them at their places,
prediction puts one behind the history (`samples: cloze`). Published runs are long, 400,000 steps of 256 rows
on MovieLens-1M; most weak results with this model come from stopping early ("A Systematic Review and
Replicability Study of BERT4Rec", Petrov and Macdonald, RecSys 2022).

Differs from the public code in that weights are drawn from N(0, 0.02^2) without cutting its tails.

Shapes: B rows, T history positions, P scored positions, D width, M scored rows, C candidate items.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import at_least
from hydrec.layers import scoring, transformer
from hydrec.layers.graph import filled
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What the rest of a history says of the item at a place.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class BERT4Rec(nn.Module):
    """Scores items for the places that are asked for, the last where one is.

    Args:
        catalog: sizes of the data set; only ``n_items`` V is read. The item V + 1 is ``MASK``.
        dim: width D of items and blocks.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        window: longest history, ``MASK`` included.
        hidden_dropout: share that training drops of what enters and of what the layers give.
        attention_dropout: share of the attention's weights that training drops.
        eps: of the layer norms.

    Raises:
        InputError: a number makes no sense.
    """

    cloze = True

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 2, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        self.position = transformer.Positions(window, dim, position="real")
        self.encoder = transformer.Encoder(
            dim,
            block="recbole",
            blocks=blocks,
            heads=heads,
            inner=inner,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            eps=eps,
        )
        self.leave = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps))
        self.bias = nn.Parameter(torch.zeros(catalog.n_items + 1))
        transformer.initialise(self, "recbole")

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The transformer's output at the places asked for, and no term of a loss."""
        positions = batch.items.shape[1]
        x = self.item(batch.items) + self.position(batch.lengths, positions)
        hidden = self.encoder(x, filled(batch.lengths, positions)[:, None, None])
        vectors = self.leave(at_targets(hidden, batch))
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.item(items))[:, 0] + self.bias[items]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, Tensor]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.item(items), self.bias[items]
