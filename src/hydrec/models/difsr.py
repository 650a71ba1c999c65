"""DIF-SR: item, position and side information attend apart, and only their logits meet.

"Decoupled Side Information Fusion for Sequential Recommendation" (Xie, Zhou and Kim, SIGIR 2022;
https://arxiv.org/abs/2204.11046); public code: AIM-SE/DIF-SR, there named SASRecD. Values are made of items
alone. Its own loss is `softmax`.

Differs from the paper in three ways. The side information is the event's intensity (rating, hours) alone:
attributes of items are not in a batch. Logits are summed: the paper's `concat` and `gate` mix the logits of
different keys, later ones among them, before these are masked, so that a position would learn of its future.
And there is no auxiliary loss that predicts attributes of the target: its intensity is not known before it.

Shapes: B rows, T history positions, P scored positions, D width, S width of side information, H heads,
M scored rows, C candidate items.
"""

import math
from functools import partial
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least
from hydrec.layers import attention, scoring, side, transformer
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class Logits(nn.Module):
    """The products of each position's query with each position's key, by heads.

    Args:
        dim: width of what queries and keys are made of.
        heads: their number H.
        scale: factor of the products.
    """

    def __init__(self, dim: int, *, heads: int, scale: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.heads, self.scale = heads, scale

    def forward(self, x: Float[Tensor, "B T S"]) -> Float[Tensor, "B H T T"]:
        """Logits of keys (last axis) for queries."""
        q, k = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (self.query(x), self.key(x)))
        return (q * self.scale) @ k.mT


def fused(
    extra: Float[Tensor, "B H T T"], logits: Float[Tensor, "B H T T"], seen: Bool[Tensor, "T T"]
) -> Float[Tensor, "B H T T"]:
    """Weights of the items' logits and those of everything else."""
    return attention.softmax(logits + extra, seen)


class DIFSR(nn.Module):
    """Scores items by their inner product with the last block's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items, positions and blocks.
        side_dim: width S of the vectors of intensities.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        window: longest history.
        intensity_bins: number of bins of an event's intensity.
        intensity_norm: how intensities are made comparable between histories: ``log1p_minmax`` or ``minmax``.
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
        side_dim: int,
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        intensity_bins: int,
        intensity_norm: str,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(catalog.n_items + 1, at_least("model.net.dim", dim, 1), padding_idx=PAD)
        self.position = transformer.Positions(window, dim, position="real")
        self.intensity = side.Intensity(
            at_least("model.net.side_dim", side_dim, 1), bins=intensity_bins, norm=intensity_norm
        )
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
        if side_dim % heads:
            raise InputError(f"model.net.heads={heads} does not divide model.net.side_dim={side_dim}")
        scale = 1 / math.sqrt(dim / heads)  # of the items' logits, for all
        self.by_position, self.by_intensity = (
            nn.ModuleList(Logits(width, heads=heads, scale=scale) for _ in range(blocks))
            for width in (dim, side_dim)
        )
        transformer.initialise(self, "recbole")

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The last block's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        place = self.position(batch.lengths, positions)
        strength = self.intensity(batch.values, batch.lengths)
        weigh = [
            partial(fused, by_position(place) + by_intensity(strength))
            for by_position, by_intensity in zip(self.by_position, self.by_intensity, strict=True)
        ]
        hidden = self.encoder(self.item(batch.items), attention.causal(positions, batch.items.device), weigh)
        vectors = at_targets(hidden, batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.item(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.item(items), None
