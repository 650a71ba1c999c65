"""Metrics of click models from the label and the logit of each test row.

Differs from the metrics of torchmetrics and scikit-learn in that probabilities come from logits in float64
and are never clipped, in that every sum is correctly rounded, and in that rows of one logit share their
labels: no metric depends on the order of rows.

Shapes: M rows of one call, N rows of all processes together, G groups, K bins.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from hydrec.cases import Cases, exact_mean
from hydrec.errors import InputError, at_least, one_of

COLUMNS = ("row", "user", "label", "logit")
PIECE = 2**14  # elements that torch leaves to one thread

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of a user with so many positives and negatives
    "rows": torch.add,
    "positives": lambda positives, negatives: positives,
    "uniform": lambda positives, negatives: torch.ones_like(positives),
}


def auc(labels: Int[Tensor, " N"], logits: Float[Tensor, " N"]) -> Float64[Tensor, ""]:
    """Share of the pairs of a positive and a negative in which the positive's logit is higher, ties half.

    It is the area under the ROC curve, and the rank sum of Mann and Whitney with ties sharing their mean
    rank, in integers. Both labels must occur.

    >>> auc(torch.tensor([0, 1, 1, 0]), torch.tensor([0.0, 0.0, 1.0, -1.0]))  # (1/2 + 1 + 1 + 1) / 4
    tensor(0.8750, dtype=torch.float64)
    """
    positives = int(labels.sum())
    won = _won(labels, logits, torch.zeros_like(labels), 1)
    return _number(int(won) / (2 * positives * (len(labels) - positives)))


def gauc(
    users: Int[Tensor, " N"], labels: Int[Tensor, " N"], logits: Float[Tensor, " N"], weights: str
) -> tuple[Float64[Tensor, ""] | None, Float64[Tensor, ""]]:
    """Weighted mean of the AUC of each user who has both labels.

    Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018.

    Args:
        users: user of each row.
        labels: 0 or 1.
        logits: of the same rows.
        weights: a user counts by ``rows``, ``positives`` or one (``uniform``).

    Returns:
        The mean, ``None`` where no user has both labels; and the share of rows whose users have one label.

    >>> users, labels = torch.tensor([7, 7, 8, 8, 8, 9]), torch.tensor([1, 0, 1, 0, 0, 1])
    >>> gauc(users, labels, torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, 5.0]), "rows")  # (2 * 1 + 3 / 2) / 5
    (tensor(0.7000, dtype=torch.float64), tensor(0.1667, dtype=torch.float64))
    """
    _, user, rows = users.unique(return_inverse=True, return_counts=True)
    positives = torch.zeros_like(rows).index_add_(0, user, labels)
    negatives = rows - positives
    won = _won(labels, logits, user, len(rows))
    both = (positives > 0) & (negatives > 0)
    excluded = _number(int(rows[~both].sum()) / len(users))
    if not both.any():
        return None, excluded
    weight = WEIGHTS[weights](positives, negatives)[both]
    of_user = won[both] / (2 * positives * negatives)[both].double()
    return _number(math.fsum((weight * of_user).tolist()) / int(weight.sum())), excluded


def _won(labels: Tensor, logits: Tensor, group: Tensor, groups: int) -> Int[Tensor, " G"]:
    """Twice the pairs that positives win against negatives of their group 0..G-1; a tie is half won."""
    order = logits.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    label, logit, group = labels[order], logits[order], group[order]
    first = torch.ones_like(group, dtype=torch.bool)  # of the rows that tie
    first[1:] = (logit[1:] != logit[:-1]) | (group[1:] != group[:-1])
    tie, owner = first.cumsum(0) - 1, group[first]
    positives, negatives = (torch.zeros_like(owner).index_add_(0, tie, x) for x in (label, 1 - label))
    in_group = group.new_zeros(groups).index_add_(0, owner, negatives)
    below = (negatives.cumsum(0) - negatives) - (in_group.cumsum(0) - in_group)[owner]
    return group.new_zeros(groups).index_add_(0, owner, positives * (2 * below + negatives))


def probability(logits: Float[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """1 / (1 + exp(-logit)).

    >>> probability(torch.tensor([0.0, math.log(3)]))
    tensor([0.5000, 0.7500], dtype=torch.float64)
    """
    return _pieces(torch.sigmoid, logits.double())


def logloss(labels: Int[Tensor, " N"], logits: Float[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """-ln of the probability that each label was given: softplus(logit) - label * logit, no digit lost.

    >>> logloss(torch.tensor([1, 0, 1]), torch.tensor([0.0, 0.0, math.log(3)]))  # ln 2, ln 2, ln 4/3
    tensor([0.6931, 0.6931, 0.2877], dtype=torch.float64)
    """
    against = torch.where(labels == 1, -logits.double(), logits.double())
    return _pieces(lambda z: z.clamp(min=0) + torch.log1p(torch.exp(-z.abs())), against)


def entropy(rate: float) -> float:
    """Logloss of the best constant where so many of the labels are 1, strictly between 0 and 1.

    >>> entropy(0.5) == math.log(2)
    True
    """
    return -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


class Reliability(NamedTuple):
    """How often the labels of rows of similar probability are 1: the points of a calibration curve.

    Attributes:
        mean_p: (K,) float64, mean probability of each bin, ascending.
        mean_y: (K,) float64, share of its labels that are 1.
        rows: (K,) int64, how many it has.
    """

    mean_p: Float64[Tensor, " K"]
    mean_y: Float64[Tensor, " K"]
    rows: Int[Tensor, " K"]


def reliability(labels: Int[Tensor, " N"], logits: Float[Tensor, " N"], bins: int) -> Reliability:
    """The rows in order of their logits, in bins whose numbers of rows differ by one at most.

    Rows of one logit count as their mean label each, so it is no matter which of them a cut takes where.

    Differs from Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015,
    in that the bins are of equal numbers and not of equal width: clicks are rare, and one wide bin has all.

    Args:
        labels: 0 or 1.
        logits: of the same rows.
        bins: how many, at least 1; fewer than that many rows make a bin each.

    >>> reliability(torch.tensor([0, 1, 1]), torch.tensor([0.0, 0.0, math.log(3)]), bins=2)
    Reliability(mean_p=tensor([0.5000, 0.7500], dtype=torch.float64), \
mean_y=tensor([0.5000, 1.0000], dtype=torch.float64), rows=tensor([2, 1]))
    """
    values, tie, rows = logits.unique(return_inverse=True, return_counts=True)
    share = torch.zeros_like(rows).index_add_(0, tie, labels) / rows.double()
    place = torch.arange(len(values)).repeat_interleave(rows)
    parts = place.tensor_split(min(bins, len(place)))
    mean_p, mean_y = (
        torch.stack([exact_mean(x[part]) for part in parts]) for x in (probability(values), share)
    )
    return Reliability(mean_p, mean_y, torch.tensor([len(part) for part in parts]))


def relaimpr(model: float, base: float) -> float:
    """RelaImpr of one AUC over another: by how many per cent the lead over chance grows.

    Yan et al., "Coupled group lasso for web-scale CTR prediction in display advertising", ICML 2014.
    ``ratio`` is another measure: percentages of the two are not to be compared.

    Args:
        model: AUC of the model.
        base: AUC of the baseline, above 0.5.

    Raises:
        InputError: the baseline is no better than chance.

    >>> round(relaimpr(0.8, 0.7), 9)  # 0.3 / 0.2
    50.0
    """
    if not base > 0.5:
        raise InputError(f"RelaImpr over an AUC of {base}: the baseline must be above 0.5; use the ratio")
    return 100 * ((model - 0.5) / (base - 0.5) - 1)


def ratio(model: float, base: float) -> float:
    """By how many per cent a metric is above that of a baseline, as in the tables of MIAN; not ``relaimpr``.

    >>> round(ratio(0.8209, 0.8159), 2)
    0.61
    """
    return 100 * (model / base - 1)


class ClickMetrics(Cases):
    """Every click metric of the test rows that all processes saw, each row once.

    AUC is exact and the means are correctly rounded sums in float64: neither the order of batches nor the
    number of processes changes a bit.

    Args:
        gauc: weight of a user in GAUC: ``rows``, ``positives`` or ``uniform``.
        bins: of the expected calibration error, at least 1.

    Raises:
        InputError: ``gauc`` or ``bins`` is none of these.
    """

    def __init__(self, *, gauc: str, bins: int) -> None:
        super().__init__(COLUMNS)
        self.gauc = one_of("protocol.metrics.gauc", gauc, WEIGHTS)
        self.bins = at_least("protocol.metrics.bins", bins, 1)

    def update(
        self,
        rows: Int[Tensor, " M"],
        users: Int[Tensor, " M"],
        labels: Int[Tensor, " M"],
        logits: Float[Tensor, " M"],
    ) -> None:
        """Adds judged rows.

        Args:
            rows: name of each sample.
            users: user of each row.
            labels: 0 or 1.
            logits: log odds that the label is 1, kept as float32.

        Raises:
            InputError: a label is neither 0 nor 1, or a logit NaN or infinite; names the row.
        """
        logits = logits.float()
        lower = "the net has diverged; lower model.optimiser.lr"
        _refuse(~logits.isfinite(), rows, users, "logit", logits, lower)
        _refuse((labels != 0) & (labels != 1), rows, users, "label", labels, "clicks are 0 or 1")
        assert isinstance(self.cases, list)
        bits = logits.view(torch.int32)  # integers, as all columns; exact
        self.cases.append(torch.stack([rows, users, labels, bits.long()], 1))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        """The metrics of all rows, on the CPU.

        ``auc``; ``gauc``, absent where no user has both labels, and ``gauc_excluded``, the share of rows
        whose users have one; ``logloss``, in nats; ``base_rate``, the share of ones, and ``base_logloss``,
        what that constant gets; ``ne`` (normalised entropy), the quotient of both: above 1 is worse than the
        constant; ``mean_p``, the mean probability; ``calibration``, that over the base rate; ``ece``, the
        mean distance of both over bins of equal numbers of rows. Every process must call it, and gets the
        same.

        Raises:
            InputError: a row was added twice, or none at all, or all labels are the same.
        """
        table = self._table()
        users, labels, logits = table["user"], table["label"], table["logit"]
        if not len(labels):
            raise InputError("no row was judged: the part is empty; raise protocol.valid or protocol.test")
        rate = exact_mean(labels)
        if labels.min() == labels.max():
            raise InputError(
                f"the labels of all {len(labels)} rows of the part are {int(rate)}, and AUC compares both: "
                "raise protocol.valid or protocol.test, or choose a protocol that draws negatives"
            )
        by_user, excluded = gauc(users, labels, logits, self.gauc)
        loss, base = exact_mean(logloss(labels, logits)), _number(entropy(float(rate)))
        mean_p = exact_mean(probability(logits))
        curve = reliability(labels, logits, self.bins)
        missed = (curve.mean_p - curve.mean_y).abs() * curve.rows
        return {
            "auc": auc(labels, logits),
            **({} if by_user is None else {"gauc": by_user}),
            "gauc_excluded": excluded,
            "logloss": loss,
            "base_rate": rate,
            "base_logloss": base,
            "ne": loss / base,
            "mean_p": mean_p,
            "calibration": mean_p / rate,
            "ece": _number(math.fsum(missed.tolist()) / len(labels)),
        }

    @property
    def directions(self) -> dict[str, str]:
        """The metrics that may choose an epoch, and whether the highest or the lowest is best."""
        return dict.fromkeys(("auc", "gauc"), "max") | dict.fromkeys(("logloss", "ne", "ece"), "min")

    @property
    def main(self) -> str:
        """The metric by which an epoch is chosen if nothing else is asked for."""
        return "auc"

    @property
    def headline(self) -> list[str]:
        """The metrics that a table shows, the base rate beside every logloss."""
        return ["auc", "gauc", "logloss", "base_rate", "ne", "ece"]

    def identity(self) -> dict[str, Any]:
        """What runs must share to be compared; the version stands for the definitions of the metrics."""
        return {"version": 1, "gauc": self.gauc, "bins": self.bins}

    def _table(self) -> dict[str, Tensor]:
        table = super()._table()
        return table | {"logit": table["logit"].int().view(torch.float32)}


def _refuse(wrong: Tensor, rows: Tensor, users: Tensor, what: str, values: Tensor, why: str) -> None:
    if wrong.any():
        at = int(wrong.nonzero()[0])
        where = f"row {int(rows[at])}, of user number {int(users[at])},"
        raise InputError(f"the {what} of {where} is {values[at].item()}: {why}")


def _pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function of each element, the same bits on any number of threads.

    The last bit depends on where threads split a tensor; one of so few elements is never split.
    """
    return torch.cat([function(piece) for piece in x.split(PIECE)])


def _number(value: float) -> Float64[Tensor, ""]:
    return torch.tensor(value, dtype=torch.float64)
