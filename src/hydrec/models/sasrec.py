"""SASRec: self-attention over a history, each position predicting the next item.

"Self-Attentive Sequential Recommendation" (Kang and McAuley, ICDM 2018; https://arxiv.org/abs/1808.09781).
Two models go by the name, which is why comparisons with "SASRec" disagree:

`block: original`, that of the authors' public code (kang205/SASRec): the normalised query is the residual,
heads are not mixed, the feed-forward layer is a rectifier of width D, item vectors enter times sqrt(D), and
positions are counted from the last (`position: slot`). Its loss is `bce` with one uniform negative.

`block: recbole`, that of RecBole: norms after each layer, GELU, positions counted from the first
(`position: real`). Its loss is `softmax`, each prefix of a history being a sample. Differs from RecBole in
that padding is no class of the loss and its vector stays 0: there it is a class, drawn at random and trained.

Differs from both in that rows are padded on the right, where no event sees padding. gSASRec (Petrov and
Macdonald, RecSys 2023) is the original block with a table of its own for candidates, and the loss `gbce`.

Shapes: B rows, T history positions, P scored positions, D width, M scored rows, C candidate items.
"""

import math
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import at_least
from hydrec.layers import attention, scoring, transformer
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class SASRec(nn.Module):
    """Scores items by their inner product with the transformer's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and layers.
        block: ``recbole`` or ``original``, as above.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        window: longest history.
        position: ``real`` counts from the first event, ``slot`` from the last.
        scale: whether item vectors enter times the root of D.
        tied: whether candidates have the vectors of the histories' items, or a table of their own.
        hidden_dropout: share that training drops of what enters and of what the layers give.
        attention_dropout: share of the attention's weights that training drops.
        eps: of the layer norms.

    Raises:
        InputError: an option is none of those above, or a number makes no sense.
    """

    causal = True

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        block: str,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        position: str,
        scale: bool,
        tied: bool,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        self.scale = math.sqrt(dim) if scale else 1.0
        self.position = transformer.Positions(window, dim, position=position)
        self.encoder = transformer.Encoder(
            dim,
            block=block,
            blocks=blocks,
            heads=heads,
            inner=inner,
            hidden_dropout=hidden_dropout,
            attention_dropout=attention_dropout,
            eps=eps,
        )
        self.candidate = self.item if tied else nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        transformer.initialise(self, block)

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The transformer's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        x = self.scale * self.item(batch.items) + self.position(batch.lengths, positions)
        hidden = self.encoder(x, attention.causal(positions, x.device))
        vectors = at_targets(hidden, batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.candidate(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.candidate(items), None
