"""NOVA: side information says where attention looks and never mixes with what it finds.

"Non-invasive Self-attention for Side Information Fusion in Sequential Recommendation" (Liu et al., AAAI 2021;
https://arxiv.org/abs/2103.03578). There is no public code. Queries and keys are made of item, position and
side information, values of the item's representation alone; side information enters each block as it is.

Differs from the paper's NOVA-BERT in that blocks are causal and every position predicts the next item, as
SASRec's, where the paper looks both ways and fills gaps; the sigma of the gate is read as a softmax over what
is fused; and the side information is the event's intensity (rating, hours) alone: attributes of items are not
in a batch.

Shapes: B rows, T history positions, P scored positions, D width, H heads, E width of a head, K kinds of side
information, N = K + 1 fused parts, M scored rows, C candidate items.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of, share_of
from hydrec.layers import attention, scoring, side, transformer
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class Add(nn.Module):
    """The sum of ``parts`` vectors of width ``dim``."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()

    def forward(self, parts: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T D"]:
        """Fused parts."""
        return parts.sum(2)


class Concat(nn.Module):
    """A linear map of ``parts`` vectors of width ``dim``, side by side."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.map = nn.Linear(parts * dim, dim)

    def forward(self, parts: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T D"]:
        """Fused parts."""
        return self.map(parts.flatten(2))


class Gate(nn.Module):
    """A mean of ``parts`` vectors of width ``dim``, weighted by the softmax of their products with one."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, parts: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T D"]:
        """Fused parts."""
        return ((parts @ self.weight).softmax(2)[..., None] * parts).sum(2)


FUSIONS: dict[str, type[Add] | type[Concat] | type[Gate]] = {"add": Add, "concat": Concat, "gate": Gate}


class NonInvasive(nn.Module):
    """Attention whose queries and keys are fused with side information, and whose values are not.

    Args:
        dim: width D of what goes in and comes out.
        heads: their number H, of width E = D / H.
        dropout: share of the weights that training drops.
        fuse: from items and side information to what queries and keys are made of.

    Raises:
        InputError: there is no head, or ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float, fuse: nn.Module) -> None:
        super().__init__()
        if dim % at_least("model.net.heads", heads, 1):
            raise InputError(f"model.net.heads={heads} does not divide model.net.dim={dim}")
        self.heads, self.scale = heads, 1 / math.sqrt(dim / heads)
        self.fuse = fuse
        self.query, self.key, self.value, self.mix = (nn.Linear(dim, dim) for _ in range(4))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        items: Float[Tensor, "B T D"],
        _: Float[Tensor, "B T D"],
        known: Float[Tensor, "B T K D"],
        seen: Bool[Tensor, "T T"],
    ) -> Float[Tensor, "B T D"]:
        """What each position finds among those it sees.

        Args:
            items: representations of the items; the second argument of a block's attention is the same.
            known: K vectors of what else is known of each event.
            seen: which positions (last axis) each sees.
        """
        fused = self.fuse(torch.cat([items[:, :, None], known], 2))
        q, k, v = map(self._split, (self.query(fused), self.key(fused), self.value(items)))
        weights = self.dropout(attention.softmax((q * self.scale) @ k.mT, seen))
        return self.mix((weights @ v).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, T, E)


class NOVA(nn.Module):
    """Scores items by their inner product with the last block's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items, side information and blocks.
        blocks: their number.
        heads: of each attention.
        inner: width inside the feed-forward layers.
        window: longest history.
        fusion: of what queries and keys are made: ``add``, ``concat`` or ``gate``.
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
        blocks: int,
        heads: int,
        inner: int,
        window: int,
        fusion: str,
        intensity_bins: int,
        intensity_norm: str,
        hidden_dropout: float,
        attention_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "blocks": blocks, "inner": inner}.items():
            at_least(f"model.net.{key}", size, 1)
        for key, share in {"hidden": hidden_dropout, "attention": attention_dropout}.items():
            share_of(f"model.net.{key}_dropout", share)
        fuse = FUSIONS[one_of("model.net.fusion", fusion, FUSIONS)]
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        self.position = transformer.Positions(window, dim, position="real")
        self.intensity = side.Intensity(dim, bins=intensity_bins, norm=intensity_norm)
        self.enter = nn.Sequential(nn.LayerNorm(dim, eps), Dropout(hidden_dropout))
        self.blocks = nn.ModuleList(
            transformer.PostNorm(
                NonInvasive(dim, heads=heads, dropout=attention_dropout, fuse=fuse(dim, 3)),
                dim,
                inner=inner,
                dropout=hidden_dropout,
                eps=eps,
            )
            for _ in range(blocks)
        )
        transformer.initialise(self, "recbole")

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The last block's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        places = self.position(batch.lengths, positions)
        known = torch.stack([places, self.intensity(batch.values, batch.lengths)], 2)
        x, seen = self.enter(self.item(batch.items)), attention.causal(positions, batch.items.device)
        for block in self.blocks:
            x = block(x, known, seen)
        vectors = at_targets(x, batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.item(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.item(items), None
