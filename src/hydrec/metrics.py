"""Ranking metrics from two integers per test row: how many candidates score higher, how many the same.

A metric is the mean gain of the places the target may take, ``greater + 1 .. greater + equal + 1``, all as
likely: a constant model gets what chance gets, and never what the order of its candidates happens to give.

Differs from the retrieval metrics of torchmetrics, which store every score and break ties by position, in
that the two integers are the whole state: they give every metric, at every k, under every tie rule.

Shapes: M ranked rows, C candidates, E excluded items, N rows of all processes together.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from hydrec.batch import PAD, EvalCandidates
from hydrec.cases import Cases, exact_mean
from hydrec.errors import InputError, one_of

TIES = ("expected", "pessimistic", "optimistic")
COLUMNS = ("row", "user", "greater", "equal", "candidates")
EXACT = 2**24  # float32 counts exactly up to here


class Ranks(NamedTuple):
    """Where the targets of M rows stand among their candidates.

    Attributes:
        greater: (M,) int64, competitors that score higher than the target.
        equal: (M,) int64, competitors that score the same; the target is not one of them.
        candidates: (M,) int64, the competitors and the target.
    """

    greater: Int[Tensor, " M"]
    equal: Int[Tensor, " M"]
    candidates: Int[Tensor, " M"]


class NonFiniteScores(InputError):
    """A net gave NaN or an infinity.

    Attributes:
        row: position, among the rows ranked together, of the first row with such a score.
        item: the item that got it.
    """

    def __init__(self, row: int, item: int, value: float) -> None:
        super().__init__(
            f"the score of item {item} is {value} in row {row} of those ranked together: "
            "the net has diverged; lower its learning rate or evaluate an earlier checkpoint"
        )
        self.row = row
        self.item = item


@torch.no_grad()
def rank(
    score: Callable[[Tensor], Tensor],
    targets: Int[Tensor, " M"],
    candidates: EvalCandidates,
    *,
    n_items: int,
    limit: int,
) -> Ranks:
    """Counts, for M rows, the candidates that score higher than the target and those that score the same.

    Args:
        score: gives the (M, C) scores of the M rows for items of shape (C,) or (M, C). Those in half
            precision are compared as float32.
        targets: items that followed.
        candidates: competitors of these M rows. Listed items take one call, with the target in column 0; an
            item listed twice counts twice. The whole catalogue is scored in chunks of one width.
        n_items: size V of the catalogue.
        limit: scores of the catalogue held at once; counting them takes as much memory again. With
            ``M <= limit // n_items`` the catalogue is one chunk; of several, those with targets run twice.

    Raises:
        NonFiniteScores: an item of the catalogue, or a target or listed competitor, scores NaN or infinity.

    >>> everything, scores = EvalCandidates(None, None), torch.tensor([[0.3, 0.7, 0.3, 0.1]])
    >>> rank(lambda items: scores, torch.tensor([1]), everything, n_items=4, limit=4)
    Ranks(greater=tensor([1]), equal=tensor([1]), candidates=tensor([4]))
    """
    if candidates.items is None:
        return _among_all(score, targets, candidates.excluded, n_items, limit)
    return _among_listed(score, targets, candidates.items, candidates.excluded, n_items)


def _among_all(
    score: Callable[[Tensor], Tensor], targets: Tensor, excluded: Tensor | None, n_items: int, limit: int
) -> Ranks:
    """Counts every item, then takes the target and the excluded out again by their scores."""
    out = targets[:, None] if excluded is None else torch.cat([targets[:, None], excluded], 1)  # (M, 1 + E)
    width = min(n_items, max(1, limit // max(1, len(targets))), EXACT)

    # BLAS may give equal items other bits in a call of another shape: the last chunk repeats the last item,
    # uncounted, and a target's score comes from the call that its competitors' come from.
    @functools.lru_cache(maxsize=1 if width == n_items else 0)
    def scored(start: int) -> Tensor:
        items = torch.arange(start + 1, start + width + 1, device=targets.device).clamp(max=n_items)
        return _finite(score(items), items)

    def find(items: Tensor, scores: Tensor, start: int, absent: float) -> Tensor:
        here = (items > start) & (items <= start + width)
        return scores.gather(1, (items - 1 - start).clamp(0, width - 1)).where(here, absent)

    def own(start: int) -> Tensor:
        return find(targets[:, None], scored(start), start, absent=0.0)

    held = ((targets - 1) // width).unique().tolist()
    own_score = sum((own(chunk * width) for chunk in held), torch.zeros((), device=targets.device))  # (M, 1)

    def count(start: int) -> Tensor:
        scores = scored(start)
        left = find(out, scores, start, absent=math.nan)
        return _higher_and_same(scores[:, : n_items - start], own_score) - _higher_and_same(left, own_score)

    greater, equal = torch.stack([count(start) for start in range(0, n_items, width)]).sum(0)
    return Ranks(greater, equal, n_items + 1 - (out != PAD).sum(1))


def _among_listed(
    score: Callable[[Tensor], Tensor], targets: Tensor, listed: Tensor, excluded: Tensor | None, n_items: int
) -> Ranks:
    competes = listed != PAD  # (M, C)
    if excluded is not None:
        row = torch.arange(len(listed), device=listed.device)[:, None] * (n_items + 1)
        competes &= ~torch.isin(row + listed, row + excluded)
    items = torch.cat([targets[:, None], listed], 1)
    counted = torch.cat([torch.ones_like(competes[:, :1]), competes], 1)
    scores = _finite(score(items).where(counted, 0.0), items)
    greater, equal = _higher_and_same(scores[:, 1:].where(competes, math.nan), scores[:, :1])
    return Ranks(greater, equal, competes.sum(1) + 1)


def _finite(scores: Tensor, items: Tensor) -> Tensor:
    """Scores in float32 or better, or the first of them that is not finite as an error."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    rows = scores.amax(1).isfinite() & scores.amin(1).isfinite()  # both propagate NaN; no (M, C) temporary
    if not rows.all():
        row = int((~rows).nonzero()[0])
        column = int((~scores[row].isfinite()).nonzero()[0])
        raise NonFiniteScores(row, int(items.expand(scores.shape)[row, column]), float(scores[row, column]))
    return scores


def _higher_and_same(scores: Tensor, own: Tensor) -> Tensor:
    """How many of the (M, C) scores are above ``own`` (M, 1), and how many the same; NaN: neither."""
    flags = torch.empty_like(scores)  # summed many times faster than booleans
    return torch.stack([compare(scores, own, out=flags).sum(1).long() for compare in (torch.gt, torch.eq)])


def break_ties(ranks: Ranks, ties: str) -> Ranks:
    """Ranks in which the ties are settled, for metrics that then need no tie rule of their own.

    Args:
        ranks: as counted.
        ties: ``expected`` keeps them; the target is last among its equals if ``pessimistic``, first if
            ``optimistic``.
    """
    if ties == "expected":
        return ranks
    ahead = ranks.equal if ties == "pessimistic" else torch.zeros_like(ranks.equal)
    return ranks._replace(greater=ranks.greater + ahead, equal=torch.zeros_like(ranks.equal))


def _mean_gain(gains: Float64[Tensor, " K"], ranks: Ranks) -> Float64[Tensor, " M"]:
    """Mean gain of the places ``greater + 1 .. greater + equal + 1``; those beyond K gain nothing."""
    total = torch.cat([gains.new_zeros(1), gains.cumsum(0)])  # total[r]: places 1..r together
    before = ranks.greater.clamp(max=len(gains))
    last = (ranks.greater + ranks.equal + 1).clamp(max=len(gains))
    return (total[last] - total[before]) / (ranks.equal + 1)


def _places(ranks: Ranks, k: int) -> Float64[Tensor, " K"]:
    return torch.arange(1, k + 1, dtype=torch.float64, device=ranks.greater.device)


def hit(ranks: Ranks, k: int) -> Float64[Tensor, " M"]:
    """Probability that the target is among the first ``k``.

    >>> hit(Ranks(torch.tensor([1]), torch.tensor([3]), torch.tensor([9])), k=2)  # place 2, 3, 4 or 5
    tensor([0.2500], dtype=torch.float64)
    """
    return _mean_gain(torch.ones_like(_places(ranks, k)), ranks)


def recall(ranks: Ranks, k: int) -> Float64[Tensor, " M"]:
    """Share of the relevant items among the first ``k``: with one target, the hit."""
    return hit(ranks, k)


def precision(ranks: Ranks, k: int) -> Float64[Tensor, " M"]:
    """Share of the first ``k`` that is relevant: hit / k, also where candidates are fewer than ``k``."""
    return hit(ranks, k) / k


def mrr(ranks: Ranks, k: int | None = None) -> Float64[Tensor, " M"]:
    """1 / place of the target, 0 beyond ``k`` (RR@k); ``None`` for no cut.

    >>> mrr(Ranks(torch.tensor([1]), torch.tensor([1]), torch.tensor([9])), k=2)  # (1/2 + 0) / 2
    tensor([0.2500], dtype=torch.float64)
    """
    last = int((ranks.greater + ranks.equal).max()) + 1 if k is None and len(ranks.greater) else k or 0
    return _mean_gain(1 / _places(ranks, last), ranks)


def ndcg(ranks: Ranks, k: int) -> Float64[Tensor, " M"]:
    """1 / log2(place + 1) of the target, 0 beyond ``k``: with one target the ideal gain is 1.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4), 2002.

    >>> ndcg(Ranks(torch.tensor([2]), torch.tensor([0]), torch.tensor([9])), k=5)  # 1 / log2(4)
    tensor([0.5000], dtype=torch.float64)
    """
    return _mean_gain(1 / torch.log2(_places(ranks, k) + 1), ranks)


def average_precision(ranks: Ranks, k: int) -> Float64[Tensor, " M"]:
    """Mean precision at the places of the relevant items (MAP@k): with one target, RR@k."""
    return mrr(ranks, k)


def mean_rank(ranks: Ranks) -> Float64[Tensor, " M"]:
    """Mean place of the target, from 1.

    >>> mean_rank(Ranks(torch.tensor([1]), torch.tensor([1]), torch.tensor([9])))  # 2 or 3
    tensor([2.5000], dtype=torch.float64)
    """
    return ranks.greater + 1 + ranks.equal.double() / 2


AT_K: dict[str, Callable[[Ranks, int], Tensor]] = {
    "hit": hit,
    "recall": recall,
    "precision": precision,
    "mrr": mrr,
    "ndcg": ndcg,
    "map": average_precision,
}


class RankMetrics(Cases):
    """Every ranking metric of the test rows that all processes saw, each row once.

    The means are correctly rounded sums in float64: neither the order of batches nor the number of processes
    changes a bit.

    Args:
        at: the k of the metrics that have one, each at least 1.
        ties: ``expected``, ``pessimistic`` or ``optimistic``, as in ``break_ties``.

    Raises:
        InputError: ``at`` or ``ties`` is none of these.
    """

    def __init__(self, *, at: Sequence[int], ties: str) -> None:
        super().__init__(COLUMNS)
        if not isinstance(at, Sequence) or not at or any(type(k) is not int or k < 1 for k in at):
            raise InputError(f"protocol.metrics.at={at} is no list of whole numbers from 1; try at=[5,10]")
        self.at = tuple(at)
        self.ties = one_of("protocol.metrics.ties", ties, TIES)

    def update(self, rows: Int[Tensor, " M"], users: Int[Tensor, " M"], ranks: Ranks) -> None:
        """Adds ranked rows.

        Args:
            rows: name of each sample, its target's row in the log.
            users: user of each row.
            ranks: what ``rank`` counted for them.
        """
        assert isinstance(self.cases, list)
        self.cases.append(torch.stack([rows, users, *ranks], 1))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """Means over all rows, as ``hit@5`` or ``mrr``, on the CPU.

        ``user/hit@5`` and so on are the means over users of the mean of each, where users differ in rows.
        ``mean_equal`` is how many candidates tie with a target: far above 0, the tie rule makes the numbers.
        Every process must call it, and gets the same.

        Raises:
            InputError: a row was added twice, or none at all.
        """
        table = self._table()
        if not len(table["row"]):
            raise InputError("no row was ranked: the part is empty; raise protocol.valid or protocol.test")
        ranks = Ranks(table["greater"], table["equal"], table["candidates"])
        _, user, counts = table["user"].unique(return_inverse=True, return_counts=True)
        means, user_means = {}, {}
        for name, values in self._values(break_ties(ranks, self.ties)):
            means[name] = exact_mean(values)
            if counts.min() < counts.max():
                user_means[f"user/{name}"] = exact_mean(torch.bincount(user, weights=values) / counts)
        return means | {"mean_equal": exact_mean(ranks.equal)} | user_means

    def random_row(self, candidates: Int[Tensor, " N"]) -> dict[str, Float64[Tensor, ""]]:
        """The means of a random order in closed form: each place is as likely, whatever the tie rule.

        Args:
            candidates: how many each row has, its target with them.
        """
        candidates = candidates.cpu()
        ranks = Ranks(torch.zeros_like(candidates), candidates - 1, candidates)
        return {name: exact_mean(values) for name, values in self._values(ranks)}

    def identity(self) -> dict[str, Any]:
        """What runs must share to be compared; the version stands for the definitions of the metrics."""
        return {"version": 1, "at": list(self.at), "ties": self.ties}

    @property
    def directions(self) -> dict[str, str]:
        """The metrics that may choose an epoch, and whether the highest or the lowest is best."""
        cut = {f"{name}@{k}": "max" for k in self.at for name in AT_K}
        return cut | {"mrr": "max", "mean_rank": "min"}

    @property
    def main(self) -> str:
        """The metric by which an epoch is chosen if nothing else is asked for."""
        return f"hit@{10 if 10 in self.at else self.at[-1]}"

    @property
    def headline(self) -> list[str]:
        """The metrics that a table shows."""
        usual = [f"{name}@{k}" for k in (5, 10) if k in self.at for name in ("hit", "mrr", "ndcg")]
        return usual or [f"{name}@{self.at[-1]}" for name in ("hit", "mrr", "ndcg")]

    def _values(self, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
        for k in self.at:
            for name, metric in AT_K.items():
                yield f"{name}@{k}", metric(ranks, k)
        yield "mrr", mrr(ranks)
        yield "mean_rank", mean_rank(ranks)
