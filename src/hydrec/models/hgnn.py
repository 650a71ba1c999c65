"""HGNN: hierarchical graph neural network over a timespan-aware sequence graph.

"Modeling Factorial User Preference with Hierarchical Graph Neural Network for Enhanced Sequential
Recommendation"; public code: https://github.com/xlx0010/HGNN (commit 2193524).

Differs from the paper in that the time weights of eq. 9 are clamped like those of the graph: unclamped, a gap
of one minute would outweigh every other term, and no gap at all is infinite. Where the paper is silent, the
number and width of heads and ELU are the public code's, the slope of the rectifier is that of the cited GAT,
self-loops follow from the definition of the graph, and L2 falls on the embeddings that a batch looks up.

Differs from the public code, which does not run, in many ways: conf/experiment/hgnn_public_code.yaml brings
its model back, except what makes NaN.

Shapes: B rows, T history nodes, D width, K factors, M scored rows, C candidate items.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, SequenceBatch
from hydrec.errors import InputError, at_least, one_of
from hydrec.layers import graph, scoring


class Factors(NamedTuple):
    """What a history says of a user: K preferences, each with the time it is from.

    Attributes:
        vectors: (B, 1, K, D) float, c of eq. 5.
        nearness: (B, 1, K) float, tau of eq. 9: how recent each is when the recommendation is asked for.
        valid: (B, 1, K) bool, false for padding, which only occurs without clustering.
    """

    vectors: Tensor
    nearness: Tensor
    valid: Tensor


class HGNN(nn.Module):
    """Groups a history into ``factors`` preferences; scores items by those they match, recent ones first.

    Args:
        catalog: sizes of the data set; only ``n_items`` is read.
        dim: width D of items and factors.
        heads: attention heads of each graph layer.
        head_dim: width of a head.
        factors: number K of preferences.
        unit: mu, the unit of time in days; closer events count as simultaneous.
        time_unit: ``exact``, or ``int_day`` for times rounded down to whole units from the row's first event.
        edges: ``timed`` for weights that fall with the gap, ``constant`` for weights of 1.
        max_gap: largest gap of joined nodes in units of time (T of the paper); ``None`` joins all.
        self_loops: whether a node sees itself.
        gat: ``linear`` for heads mixed by W^z, and by W^s where nodes are assigned to factors; ``two_level``
            for the public code's second attention layer in their place.
        freeze_heads: keeps the weights of the (first level's) heads as they were drawn, as the public code,
            which does not register them. Here a checkpoint carries them all the same.
        refine: false for HGNN-GAT1, without the first graph layer.
        cluster: false for HGNN-GAT2, without the second: each node is a factor.
        gamma: share of the dot product in the logits of eq. 1; the rest is time's.
        gamma_mode: ``mix`` as in eq. 1, ``sum`` for the plain sum of both, which does not read ``gamma``.
        dot_scale: divides the dot product by the root of its width, which the paper does not.
        slope: of the rectifier of eq. 2 for negative logits; 1 is none.
        query_time: when the recommendation is asked for: at the time of the ``target`` (known when serving)
            or of the ``last`` event; ``none`` for tau = 0.
        entropy: lambda1, weight of the assignment entropy of eq. 12.
        l2: lambda2, weight of the squared norms of the embeddings looked up, eq. 13.

    Raises:
        InputError: an option is none of those above, or a number makes no sense.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        dim: int,
        heads: int,
        head_dim: int,
        factors: int,
        unit: float,
        time_unit: str,
        edges: str,
        max_gap: float | None,
        self_loops: bool,
        gat: str,
        freeze_heads: bool,
        refine: bool,
        cluster: bool,
        gamma: float,
        gamma_mode: str,
        dot_scale: bool,
        slope: float,
        query_time: str,
        entropy: float,
        l2: float,
    ) -> None:
        super().__init__()
        for key, size in {"dim": dim, "heads": heads, "head_dim": head_dim, "factors": factors}.items():
            at_least(f"model.net.{key}", size, 1)
        if not unit > 0:
            raise InputError(f"model.net.unit={unit}: a unit of time is a positive number of days")
        self.item = nn.Embedding(catalog.n_items + 1, dim, padding_idx=PAD)
        nn.init.normal_(self.item.weight, std=0.1)
        with torch.no_grad():
            self.item.weight[PAD] = 0

        clocks = {"exact": graph.units, "int_day": graph.whole_units}
        self.clock = partial(_choose("time_unit", time_unit, clocks), days=unit)
        self.join = graph.TimeGraph(
            max_gap=math.inf if max_gap is None else max_gap,
            self_loops=self_loops,
            weigh=_choose("edges", edges, {"timed": graph.closeness, "constant": torch.ones_like}),
        )
        dot, time = _choose("gamma_mode", gamma_mode, {"mix": (gamma, 1 - gamma), "sum": (1.0, 1.0)})

        def attend(width: int, out: int, *, heads: int) -> graph.Heads:
            scaled = dot / math.sqrt(out) if dot_scale else dot
            return graph.Heads(width, out, heads=heads, dot=scaled, time=time, slope=slope)

        def first() -> nn.Module:
            return attend(dim, head_dim, heads=heads).requires_grad_(not freeze_heads)

        def linear(*out: int) -> nn.Module:
            return graph.Attention(first(), graph.Linear(heads * head_dim, *out))

        def two_level(*out: int) -> nn.Module:
            return graph.TwoLevels(first(), attend(heads * head_dim, out[-1], heads=1))

        layer = _choose("gat", gat, {"linear": linear, "two_level": two_level})
        self.refine = layer(dim) if refine else graph.Unchanged()
        self.cluster = graph.Clusters(layer(dim, factors)) if cluster else graph.EachNode()
        times_asked = {"target": _target_times, "last": _last_times, "none": _target_times}
        self.asked = _choose("query_time", query_time, times_asked)
        self.nearness = torch.zeros_like if query_time == "none" else graph.closeness
        self.entropy, self.l2 = entropy, l2

    def encode(self, batch: SequenceBatch) -> tuple[Factors, Float[Tensor, ""]]:
        """The factors of each history, and the entropy term of the loss (eq. 12)."""
        x = self.item(batch.items)  # (B, T, D)
        first = batch.times[:, :1]  # subtracted as int64: float32 would round
        times = self.clock(batch.times - first).to(x)  # (B, T)
        valid = graph.filled(batch.lengths, batch.items.shape[1])
        edges = self.join(times, valid)
        z = self.refine(x, edges)  # (B, T, D), eq. 1-3
        groups = self.cluster(z, edges, times, valid)  # eq. 4, 5 and 8
        asked = self.clock(self.asked(batch) - first).to(x)  # (B, 1)
        nearness = self.nearness(asked - groups.times)  # (B, K), eq. 9
        factors = Factors(groups.vectors[:, None], nearness[:, None], groups.valid[:, None])
        return factors, self.entropy * groups.entropy

    def score(self, state: Factors, items: Int[Tensor, "*M C"]) -> Float[Tensor, "M C"]:
        """Scores of candidates for M selected rows, fields (M, K, ...), of the state."""
        match = scoring.dot(state.vectors, self.item(items))  # (M, K, C), eq. 7
        return scoring.soft_maximum(match, state.nearness, state.valid)  # eq. 9 and 10

    def regulariser(
        self, batch: SequenceBatch, items: Int[Tensor, "*M C"], target: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        """L2 of the embeddings looked up, per row: history, positive, and mean negative (eq. 13).

        Args:
            batch: the histories.
            items: the candidates scored.
            target: column of each row's positive; all others are negatives.
        """
        norms = self.item.weight.square().sum(1)  # (V + 1,); that of PAD is 0
        candidates = norms[items]
        positive = candidates.expand(len(target), -1).gather(1, target[:, None])[:, 0]
        negative = (candidates.sum(-1) - positive) / (items.shape[-1] - 1)
        total = norms[batch.items].sum() + (positive + negative).sum()
        return self.l2 * total / (2 * len(batch.items))


def _choose(key: str, value: str, options: Mapping[str, Any]) -> Any:
    return options[one_of(f"model.net.{key}", value, options)]


def _target_times(batch: SequenceBatch) -> Tensor:
    return batch.target_times  # (B, 1)


def _last_times(batch: SequenceBatch) -> Tensor:
    return batch.times.gather(1, batch.lengths[:, None] - 1)  # (B, 1)
