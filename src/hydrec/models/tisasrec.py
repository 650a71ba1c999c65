"""TiSASRec: self-attention that knows the time between two events, measured by the user's own pace.

"Time Interval Aware Self-Attention for Sequential Recommendation" (Li, Wang and McAuley, WSDM 2020;
https://doi.org/10.1145/3336191.3371786). Blocks, residuals and norms are those of the authors' public code
(JiachengLi1995/TiSASRec), which has them from SASRec's. Its own loss is `bce` with one uniform negative.

Differs from the paper and the code in three ways.
1. An interval is a multiple of the user's smallest gap: in the paper of any two events of the user, in the
   code those of validation and test among them. Here of the events up to the position that looks: what a
   position does then depends on no later event, and all can be trained at once. At the last position of a
   history that is the paper's measure of this history; gaps of 0 do not count.
2. Training drops whole entries of the tables of intervals, the same for all pairs of a batch, because the
   vectors of single pairs (B, T, T, D) are never made: logits and values are gathered by interval.
3. Positions are counted from a history's first event; the code pads on the left and counts from the last.

Shapes: B rows, T history positions, P scored positions, D width, H heads, E width of a head, R intervals,
M scored rows, C candidate items.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, share_of
from hydrec.layers import attention, scoring, transformer
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets

NEVER = torch.iinfo(torch.int64).max


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float.
    """

    vectors: Tensor


class Relations(NamedTuple):
    """What attention adds to keys and values.

    Attributes:
        intervals: (B, T, T) int64, r of eq. 2 of each pair of query and key.
        key_time, value_time: (R, D) float, a vector for each interval.
        key_place, value_place: (B, T, D) float, a vector for the key's position.
    """

    intervals: Tensor
    key_time: Tensor
    value_time: Tensor
    key_place: Tensor
    value_place: Tensor


def personal_intervals(times: Int[Tensor, "B T"], longest: int) -> Int[Tensor, "B T T"]:
    """Time from each key (last axis) to each query, in multiples of the smallest gap up to the query.

    Args:
        times: seconds, ascending.
        longest: longer intervals are this; those to later keys are 0.

    >>> personal_intervals(torch.tensor([[0, 0, 60, 90]]), longest=256)
    tensor([[[0, 0, 0, 0],
             [0, 0, 0, 0],
             [1, 1, 0, 0],
             [3, 3, 1, 0]]])
    """
    gaps = F.pad(times.diff(dim=1), (1, 0))
    pace = torch.where(gaps > 0, gaps, NEVER).cummin(1).values
    return ((times[:, :, None] - times[:, None, :]) // pace[:, :, None]).clamp(0, longest)


class TimeAttention(nn.Module):
    """Attention whose keys and values depend on the interval and the place: eq. 6-8 of each head.

    Args:
        dim: width D of what goes in and comes out.
        heads: their number H, of width E = D / H.
        dropout: share of the weights that training drops.

    Raises:
        InputError: there is no head, or ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        if dim % at_least("model.net.heads", heads, 1):
            raise InputError(f"model.net.heads={heads} does not divide model.net.dim={dim}")
        self.heads, self.scale = heads, 1 / math.sqrt(dim / heads)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "B T D"],
        keys: Float[Tensor, "B T D"],
        relations: Relations,
        seen: Bool[Tensor, "T T"],
    ) -> Float[Tensor, "B T D"]:
        """What each query finds among the keys it sees."""
        q = self._split(self.query(queries)) * self.scale  # (B, H, T, E)
        k = self._split(self.key(keys) + relations.key_place)
        v = self._split(self.value(keys) + relations.value_place)
        intervals = relations.intervals[:, None].expand(-1, self.heads, -1, -1)
        by_interval = q @ self._split(relations.key_time).mT  # (B, H, T, R)
        weights = self.dropout(attention.softmax(q @ k.mT + by_interval.gather(3, intervals), seen))
        shares = weights.new_zeros(by_interval.shape).scatter_add(3, intervals, weights)  # of intervals
        found = weights @ v + shares @ self._split(relations.value_time)
        return found.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (..., H, T or R, E)


class TiSASRec(nn.Module):
    """Scores items by their inner product with the last block's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and blocks.
        blocks: their number.
        heads: of each attention.
        window: longest history.
        longest: k, the largest interval.
        dropout: share that training drops, everywhere.
        l2: weight of the squared norms of all tables, as the code has them in its loss.

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
        window: int,
        longest: int,
        dropout: float,
        l2: float,
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "blocks": blocks, "longest": longest}.items():
            at_least(f"model.net.{key}", size, 1)
        share_of("model.net.dropout", dropout)
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        self.key_time, self.value_time = (nn.Embedding(longest + 1, dim) for _ in range(2))
        self.key_place, self.value_place = (
            transformer.Positions(window, dim, position="real") for _ in range(2)
        )
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            transformer.QueryNorm(
                TimeAttention(dim, heads=heads, dropout=dropout), dim, inner=dim, dropout=dropout, eps=1e-8
            )
            for _ in range(blocks)
        )
        self.leave = nn.LayerNorm(dim, 1e-8)
        self.scale, self.longest, self.l2 = math.sqrt(dim), longest, l2
        transformer.initialise(self, "original")

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The last block's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        relations = Relations(
            personal_intervals(batch.times, self.longest),
            self.dropout(self.key_time.weight),
            self.dropout(self.value_time.weight),
            self.dropout(self.key_place(batch.lengths, positions)),
            self.dropout(self.value_place(batch.lengths, positions)),
        )
        x = self.dropout(self.scale * self.item(batch.items))
        seen = attention.causal(positions, x.device)
        for block in self.blocks:
            x = block(x, relations, seen)
        vectors = at_targets(self.leave(x), batch)
        return Hidden(vectors), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], self.item(items))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, self.item(items), None

    def regulariser(
        self, batch: SequenceBatch, items: Int[Tensor, "*M C"], target: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        """L2 of all tables, whatever the batch looks up."""
        tables = (self.item, self.key_time, self.value_time, self.key_place.table, self.value_place.table)
        return self.l2 * torch.stack([table.weight.square().sum() for table in tables]).sum()
