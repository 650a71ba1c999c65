"""HSTU: attention without softmax, gated, that knows how long ago each event was.

"Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative Recommendations"
(Zhai et al., ICML 2024; https://arxiv.org/abs/2402.17152). This is the sequential recommender of its section
4.1.1, as in the public code (meta-recsys/generative-recommenders, research/), not the ranking model that
interleaves items with actions. Its own loss is `sampled_softmax` with 128 uniform negatives.

Differs from the public code in that attention is divided by the window, there by the window and the room left
for outputs; the layer norm after it makes that matter only while attention is small.

`query_time: target` is the public code's choice: the bias of a position is by the time of the event that
*follows* it, the time at which a recommendation is asked for. `last` is the time of the position itself.

Shapes: B rows, T history positions, P scored positions, D width, H heads, E width of a head's queries, V of
its values, M scored rows, C candidate items.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of, share_of
from hydrec.layers import attention, scoring, transformer
from hydrec.layers.dropout import Dropout
from hydrec.layers.history import at_targets

EPS = 1e-6  # of the norms
STEP = 0.301  # of the natural logarithm of seconds, between two buckets of time


class Hidden(NamedTuple):
    """What a history says of the next item.

    Attributes:
        vectors: (B, P, D) float, of the length 1 / temperature.
    """

    vectors: Tensor


class Unit(nn.Module):
    """One sequential transduction unit.

    Args:
        dim: width D.
        heads: their number H.
        qk_dim: width E of a head's queries and keys.
        value_dim: width V of a head's values and gates.
        window: longest history; attention is divided by it.
        buckets: number of the longest bucket of time.
        dropout: share that training drops of what leaves the gate.
    """

    def __init__(
        self, dim: int, *, heads: int, qk_dim: int, value_dim: int, window: int, buckets: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.widths = [heads * width for width in (value_dim, value_dim, qk_dim, qk_dim)]
        self.project = nn.Linear(dim, sum(self.widths), bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        self.distance = nn.Parameter(0.02 * torch.randn(window))
        self.time = nn.Parameter(0.02 * torch.randn(buckets + 1))
        self.attention = attention.Watched(queries="positions")
        self.dropout = Dropout(dropout)
        self.leave = nn.Linear(heads * value_dim, dim)
        nn.init.xavier_uniform_(self.leave.weight)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        distance: Int[Tensor, "T T"],
        time: Int[Tensor, "B T T"],
        seen: Bool[Tensor, "T T"],
    ) -> Float[Tensor, "B T D"]:
        """The next unit's positions.

        Args:
            x: positions.
            distance: how many positions each key (last axis) is behind each query.
            time: bucket of the time between both.
            seen: which keys a query sees.
        """
        gate, *vqk = F.silu(self.project(_norm(x))).split(self.widths, -1)  # eq. 1
        v, q, k = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in vqk)  # (B, H, T, V or E)
        bias = self.distance[distance] + self.time[time]  # (B, T, T)
        weights = self.attention(F.silu(q @ k.mT + bias[:, None]) * seen / self.window)
        found = (weights @ v).transpose(1, 2).flatten(2)  # (B, T, HV), eq. 2
        return x + self.leave(self.dropout(gate * _norm(found)))  # eq. 3


class HSTU(nn.Module):
    """Scores items by the cosine of their vectors with the last unit's output at the position before them.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and units.
        blocks: number of units.
        heads: of each unit.
        qk_dim: width of a head's queries and keys.
        value_dim: width of a head's values and gates.
        window: longest history.
        buckets: number of the longest bucket of time; they begin at 1, 1.35, 1.35^2, ... seconds.
        query_time: ``target`` or ``last``, as above.
        dropout: share that training drops of what enters, and of what leaves a gate.
        temperature: divides the cosine.

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
        qk_dim: int,
        value_dim: int,
        window: int,
        buckets: int,
        query_time: str,
        dropout: float,
        temperature: float,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "blocks": blocks, "heads": heads, "qk_dim": qk_dim, "value_dim": value_dim}
        for key, size in (sizes | {"buckets": buckets}).items():
            at_least(f"model.net.{key}", size, 1)
        share_of("model.net.dropout", dropout)
        if not temperature > 0:
            raise InputError(f"model.net.temperature={temperature}: must be above 0")
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        nn.init.normal_(self.item.weight, std=0.02)
        with torch.no_grad():
            self.item.weight[PAD] = 0
        self.position = transformer.Positions(window, dim, position="real")
        nn.init.normal_(self.position.table.weight, std=dim**-0.5)
        self.enter = Dropout(dropout)
        self.units = nn.ModuleList(
            Unit(
                dim,
                heads=heads,
                qk_dim=qk_dim,
                value_dim=value_dim,
                window=window,
                buckets=buckets,
                dropout=dropout,
            )
            for _ in range(blocks)
        )
        self.asked = {"target": _next_times, "last": _own_times}[
            one_of("model.net.query_time", query_time, ("target", "last"))
        ]
        self.window, self.buckets = window, buckets
        self.scale, self.temperature = math.sqrt(dim), temperature

    def encode(self, batch: SequenceBatch) -> tuple[Hidden, Float[Tensor, ""]]:
        """The last unit's output where something is supervised, and no term of a loss."""
        positions = batch.items.shape[1]
        x = self.enter(self.scale * self.item(batch.items) + self.position(batch.lengths, positions))
        place = torch.arange(positions, device=x.device)
        distance = (place[:, None] - place).clamp(0, self.window - 1)  # padding may reach beyond
        gap = self.asked(batch)[:, :, None] - batch.times[:, None, :]  # int64: float32 would round
        time = (gap.clamp(min=1).log() / STEP).long().clamp(max=self.buckets)
        seen = attention.causal(positions, x.device)
        for unit in self.units:
            x = unit(x, distance, time, seen)
        vectors = at_targets(x, batch)
        return Hidden(_unit_length(vectors) / self.temperature), vectors.new_zeros(())

    def score(self, state: Hidden, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, D), of the state."""
        return scoring.dot(state.vectors[:, None], _unit_length(self.item(items)))[:, 0]

    def products(self, state: Hidden, items: Int[Tensor, " C"]) -> tuple[Tensor, Tensor, None]:
        """What `score` multiplies: vectors (M, D), of items (C, D), and what it adds (C,)."""
        return state.vectors, _unit_length(self.item(items)), None


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def _unit_length(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=EPS)


def _own_times(batch: SequenceBatch) -> Tensor:
    return batch.times


def _next_times(batch: SequenceBatch) -> Tensor:
    """(B, T) int64, when what followed each position happened."""
    if batch.target_times.shape == batch.times.shape:
        return batch.target_times
    return batch.times.roll(-1, 1).scatter(1, batch.lengths[:, None] - 1, batch.target_times)
