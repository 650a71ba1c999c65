"""Is a model better than its baseline? Verdicts that ask for agreement over seeds and over users.

A seed's difference may be luck of the seed, common to all users, which no test over users sees; and few
seeds say little. So a gain or a loss is robust only if a paired t-test over seeds, a paired bootstrap over
users and the sign of most seeds agree (Shyrallyiev and Pyshnograiev, "Architectural limitations in
intensity-aware sequential recommendation", 2026).

Every resampled sum is a sum of whole numbers and so exact: neither the size of a chunk, nor threads, nor BLAS
change a bit of a verdict.

Shapes: C cells (metric and variant), S seeds, U users, N click rows, B draws, M cells of a family.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from hydrec.errors import InputError, one_of

BLOCK = 2**22  # numbers drawn or counted at once: bounds memory, never changes a figure
ENOUGH = 0.9  # share of the draws that must have both labels

POOLINGS = ("users", "rows")
Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]

WEIGHTS: dict[str, Callable[[Ints, Ints], Ints]] = {  # of a user with so many positives and negatives
    "rows": np.add,
    "positives": lambda positives, negatives: positives,
    "uniform": lambda positives, negatives: np.ones_like(positives),
}


@dataclass(frozen=True)
class Verdict:
    """What the data say of one cell: a model beside its baseline in one metric on one data set.

    Attributes:
        seeds: paired runs, S.
        users: those with a test row.
        draws: resamples that could be evaluated, B unless some had one label only.
        baseline_mean, baseline_sd: over seeds (ddof 1; NaN of one seed, as all that needs two).
        model_mean, model_sd: likewise.
        difference: mean over seeds of D, model minus baseline.
        sd: of D over seeds (ddof 1).
        change: by how many per cent the mean of the model is above that of the baseline.
        t: of the paired t-test over seeds.
        p_seeds: two-sided, of t.
        p_users: two-sided, of the bootstrap over users; at least 1 / draws.
        low, high: bounds of the bootstrap interval of the difference, at level 1 - alpha.
        plus, minus: seeds whose own interval is above, and below, 0.
        detectable: the smallest difference that such seeds could tell from 0 with p_seeds < alpha.
        wilcoxon: p of the signed-rank test over users; NaN for AUC, which is no mean over users.
        randomisation: p of swapping model and baseline for a random half of the users; NaN for AUC.
        verdict: ``robust gain``, ``robust loss`` or ``none``.
        reason: what a ``none`` lacks.
    """

    seeds: int
    users: int
    draws: int
    baseline_mean: float
    baseline_sd: float
    model_mean: float
    model_sd: float
    difference: float
    sd: float
    change: float
    t: float
    p_seeds: float
    p_users: float
    low: float
    high: float
    plus: int
    minus: int
    detectable: float
    wilcoxon: float
    randomisation: float
    verdict: str
    reason: str


def resamples(users: int, draws: int, key: str) -> Ints:
    """How often each user is drawn when as many are drawn with replacement, (B, U) uint8.

    One array serves all metrics and models of a data set: their differences are then those of the same users.

    Args:
        users: U.
        draws: B.
        key: names what is drawn, as data set and purpose; another key gives independent draws.

    >>> counts = resamples(users=5, draws=2, key="ml-100k users")
    >>> counts.sum(1)
    array([5, 5], dtype=uint64)
    """
    counts = np.empty((draws, users), dtype=np.uint8)  # 256 of one user is beyond all chance
    for chunk in _chunks(draws, users):
        counts[chunk] = _drawn(users, chunk, key)
    return counts


def _chunks(draws: int, width: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, width))
    return (slice(start, min(start + step, draws)) for start in range(0, draws, step))


def _bits(words: int, chunk: slice, key: str) -> NDArray[np.uint64]:
    """Random words (draws, words) of a chunk; those of a draw depend on its number and the key alone."""
    digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "big")
    fours = -(-words // 4)  # Philox counts in blocks of four words
    # raw words are the same in every version of NumPy, which its generators do not promise
    source = np.random.Philox(key=digest).advance(int(chunk.start * fours))
    draws = chunk.stop - chunk.start
    return np.asarray(source.random_raw(draws * 4 * fours)).reshape(draws, -1)[:, :words]


def _drawn(users: int, chunk: slice, key: str) -> Ints:
    picked = (_bits(users, chunk, key) % np.uint64(users)).astype(np.int64)
    picked += np.arange(len(picked))[:, None] * users
    return np.bincount(picked.ravel(), minlength=len(picked) * users).reshape(-1, users)


def compare(
    baseline: Floats,
    model: Floats,
    rows: ArrayLike,
    counts: Ints,
    *,
    alpha: float,
    pooling: str,
    higher_is_better: bool,
) -> list[Verdict]:
    """Verdicts on metrics that are means over test rows.

    Args:
        baseline: (C, S, U) the sum of a metric over the test rows of each user, in every cell and seed.
        model: (C, S, U) likewise, of the same seeds and users.
        rows: (U,) how many test rows each user has; drawn together. A weighted mean takes sums of weights.
        counts: (B, U) from `resamples`.
        alpha: level of every test.
        pooling: what is drawn for the pooled interval: ``users``, each with the mean of its seeds, or
            ``rows``, S x U pairs of seed and user as if independent, which understates the width.
        higher_is_better: false for losses, whose gain is a drop.

    Raises:
        InputError: ``alpha`` or ``pooling`` is no such value, or a sum is NaN or infinite.

    Three seeds, two users, every draw takes each user once. D is 1, 2, 3: mean 2, sd 1, t = 2 / (1 / sqrt 3).

    >>> difference = np.array([[[1.0, 1.0], [1.0, 3.0], [3.0, 3.0]]])
    >>> verdict, = compare(np.ones((1, 3, 2)), 1 + difference, [1, 1], np.ones((4, 2), int),
    ...                    alpha=0.05, pooling="users", higher_is_better=True)
    >>> verdict.difference, verdict.sd, round(verdict.t, 4), round(verdict.p_seeds, 4), verdict.change
    (2.0, 1.0, 3.4641, 0.0742, 200.0)
    >>> verdict.p_users, verdict.low, verdict.high, verdict.plus, verdict.minus
    (0.25, 2.0, 2.0, 3, 0)
    >>> verdict.verdict, verdict.reason
    ('none', 'p over seeds is not below 0.05; p over users is not below 0.05')
    """
    _level(alpha)
    one_of("pooling", pooling, POOLINGS)
    rows = np.asarray(rows)
    if not (np.isfinite(baseline).all() and np.isfinite(model).all()):
        raise InputError("a user's sum of a metric is NaN or infinite: leave that run out")
    cells, seeds, users = baseline.shape
    exact = _on_grid(model - baseline)
    total = exact.sum(1)  # (C, U)

    columns = np.concatenate([total[:, None], exact], 1).reshape(-1, users)
    means = _means(columns, rows, lambda chunk: counts[chunk], len(counts)).reshape(-1, cells, 1 + seeds)
    means[:, :, 0] /= seeds
    if pooling == "rows" and seeds > 1:  # of one seed, the pairs are the users
        pairs = _means(
            exact.reshape(cells, -1),
            np.tile(rows, seeds),
            lambda chunk: _drawn(seeds * users, chunk, "pairs of seed and user"),
            len(counts),
        )
        means[:, :, 0] = pairs
    usable = means[np.isfinite(means[:, 0]).all(1)]  # without draws of users none of whom has a row

    flipped = _randomisation(total, len(counts))
    present = rows > 0
    ranked = _wilcoxon(total[:, present] / rows[present])
    of_baseline, of_model, of_both = (
        sums.sum(2) / rows.sum() for sums in (baseline, model, model - baseline)
    )  # (C, S)
    return [
        _verdict(
            of_baseline[cell],
            of_model[cell],
            of_both[cell],
            usable[:, cell],
            users=int(present.sum()),
            drawn=len(counts),
            alpha=alpha,
            higher_is_better=higher_is_better,
            wilcoxon=float(ranked[cell]),
            randomisation=float(flipped[cell]),
        )
        for cell in range(cells)
    ]


def compare_auc(
    labels: Ints,
    logits_baseline: NDArray[np.floating[Any]],
    logits_model: NDArray[np.floating[Any]],
    user: Ints,
    counts: Ints,
    *,
    alpha: float,
) -> Verdict:
    """The verdict on AUC, which is no mean over users: each draw of users gives an AUC of their rows.

    A row counts as often as its user is drawn, the same in both models and all seeds; ties are half won.
    Draws with one label only are left out; with more than a tenth of them there is no p over users.

    Args:
        labels: (N,) 0 or 1.
        logits_baseline: (S, N) of the same rows.
        logits_model: (S, N) likewise.
        user: (N,) numbers 0..U-1.
        counts: (B, U) from `resamples`.
        alpha: level of every test.

    Raises:
        InputError: ``alpha`` is no level, a logit is NaN or infinite, or all labels are the same.

    >>> labels, user, base = np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1]), np.zeros((2, 4))
    >>> verdict = compare_auc(labels, base, base + labels, user, np.array([[1, 1], [2, 0]]), alpha=0.05)
    >>> verdict.baseline_mean, verdict.model_mean, verdict.low, verdict.high, verdict.plus
    (0.5, 1.0, 0.5, 0.5, 2)
    """
    _level(alpha)
    both = np.concatenate([logits_baseline, logits_model])
    if not np.isfinite(both).all():
        raise InputError("a logit is NaN or infinite: leave that run out")
    if labels.min() == labels.max():
        raise InputError(f"all {len(labels)} labels are {labels[0]}, and AUC compares both: no verdict on it")
    once = np.ones((1, counts.shape[1]), dtype=np.uint8)
    won, pairs = _won(labels, both, user, once)
    of_baseline, of_model = np.split(won[0] / pairs[0], 2)
    won, pairs = _won(labels, both, user, counts)
    gained = np.subtract(*np.split(won, 2, axis=1)[::-1])[pairs > 0]  # (B, S), in whole half pairs
    seeds = gained.shape[1]
    pooled = gained.sum(1, keepdims=True) / seeds
    return _verdict(
        of_baseline,
        of_model,
        of_model - of_baseline,
        np.concatenate([pooled, gained], 1) / pairs[pairs > 0, None],
        users=len(np.unique(user)),
        drawn=len(counts),
        alpha=alpha,
        higher_is_better=True,
        wilcoxon=np.nan,
        randomisation=np.nan,
    )


def gauc_sums(
    labels: Ints, logits: NDArray[np.floating[Any]], user: Ints, *, users: int, weights: str
) -> tuple[Floats, Ints]:
    """GAUC as a ratio of sums over users, for `compare`: weight times AUC, and weight, of each.

    Args:
        labels: (N,) 0 or 1.
        logits: (S, N) of the same rows.
        user: (N,) numbers 0..U-1.
        users: U.
        weights: a user counts by ``rows``, ``positives`` or one (``uniform``).

    Returns:
        Sums (S, U) and weights (U,), both 0 for users who have one label only.

    Raises:
        InputError: ``weights`` is none of these.

    >>> labels, user = np.array([1, 0, 1, 0, 0, 1]), np.array([0, 0, 1, 1, 1, 2])
    >>> logits = np.array([[2.0, 1.0, 0.0, 0.0, 0.0, 5.0]])
    >>> gauc_sums(labels, logits, user, users=3, weights="rows")
    (array([[2. , 1.5, 0. ]]), array([2, 3, 0]))
    """
    one_of("protocol.metrics.gauc", weights, WEIGHTS)
    positives, negatives = (np.bincount(user[labels == label], minlength=users) for label in (1, 0))
    pairs = positives * negatives
    weight = np.where(pairs > 0, WEIGHTS[weights](positives, negatives), 0)
    first = np.cumsum(negatives) - negatives  # negatives of the users before
    owner = user[labels == 1]
    won = np.empty((len(logits), users))
    for seed, each in enumerate(logits):
        _, place = np.unique(each, return_inverse=True)
        key = user.astype(np.int64) * len(each) + place  # by user, then by logit
        below, to = _places(key[labels == 1], np.sort(key[labels == 0]))
        won[seed] = np.bincount(owner, below + to - 2 * first[owner], minlength=users)
    return weight * won / np.maximum(2 * pairs, 1), weight


def adjust(p: ArrayLike, method: str) -> Floats:
    """The p-values of a family, adjusted for how many they are.

    Args:
        p: (M,) the larger of ``p_seeds`` and ``p_users`` of each cell. NaN stays, and is not of the family.
        method: ``holm`` bounds the chance of one false claim (Holm, 1979), ``bh`` the expected share of
            false claims (Benjamini and Hochberg, 1995).

    Raises:
        InputError: ``method`` is neither.

    >>> adjust([0.01, 0.04, 0.03], "holm")  # 3 x .01; 2 x .03; .04, not below the one before
    array([0.03, 0.06, 0.06])
    >>> adjust([0.01, 0.04, 0.03], "bh")  # 3/1 x .01; 3/3 x .04; 3/2 x .03, not above the one after
    array([0.03, 0.04, 0.04])
    """
    one_of("method", method, ("holm", "bh"))
    p = np.array(p, dtype=np.float64)
    family = p[np.isfinite(p)]
    if method == "bh":
        p[np.isfinite(p)] = stats.false_discovery_control(family)
    else:
        order = family.argsort()
        steps = np.arange(len(family), 0, -1) * family[order]
        family[order] = np.minimum(np.maximum.accumulate(steps), 1)
        p[np.isfinite(p)] = family
    return p


def _level(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1:
        raise InputError(f"alpha={alpha}: a level is above 0 and below 1, such as 0.05")


def _on_grid(differences: Floats) -> Floats:
    """Values (C, S, U) on a grid so fine that no figure shows it, so coarse that all drawn sums are exact.

    Whole multiples of a power of two add up without rounding while the sum is below 2^53 of them. Also, what
    cancels then cancels to 0, which the tests count.
    """
    _, seeds, users = differences.shape
    _, exponent = np.frexp(abs(differences).max((1, 2)) * seeds * users)
    unit = np.ldexp(1.0, exponent - 52)[:, None, None]
    return np.round(differences / unit) * unit


def _means(columns: Floats, rows: Ints, drawn: Callable[[slice], Ints], draws: int) -> Floats:
    """Means over the rows of those drawn, (B, columns); NaN where a draw has no row."""
    means = np.empty((draws, len(columns)))
    for chunk in _chunks(draws, columns.shape[1]):
        counts = drawn(chunk).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means[chunk] = counts @ columns.T / (counts @ rows)[:, None]
    return means


def _randomisation(totals: Floats, draws: int) -> Floats:
    """The p (C,) of as large a sum if each user's sign is random: what swapping equal models does."""
    cells, users = totals.shape
    observed = abs(totals.sum(1))
    as_large = np.zeros(cells)
    for chunk in _chunks(draws, users):
        words = _bits(-(-users // 64), chunk, "signs of users").astype("<u8")
        signs = 1 - 2.0 * np.unpackbits(words.view(np.uint8), axis=1)[:, :users]
        as_large += (abs(signs @ totals.T) >= observed).sum(0)
    return (1 + as_large) / (1 + draws)


def _wilcoxon(differences: Floats) -> Floats:
    """The p (C,) of the signed-rank test over users (C, U); 1 where no user differs."""
    p = np.ones(len(differences))
    some = differences.any(1)
    if some.any():
        p[some] = stats.wilcoxon(differences[some], axis=1).pvalue
    return p


def _places(positives: NDArray[Any], negatives: NDArray[Any]) -> tuple[Ints, Ints]:
    """How many of the sorted negatives are below each positive, and how many are not above it."""
    return np.searchsorted(negatives, positives, "left"), np.searchsorted(negatives, positives, "right")


def _won(labels: Ints, logits: NDArray[Any], user: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Twice the pairs won, (B, R) of R runs (a tie is half won), and twice the pairs, (B,), in each draw."""
    won = np.empty((len(counts), len(logits)), dtype=np.int64)
    pairs = np.empty(len(counts), dtype=np.int64)
    for run, logit in enumerate(logits):
        order = logit.argsort()
        positive, negative = (order[labels[order] == label] for label in (1, 0))
        below, to = _places(logit[positive], logit[negative])
        of_positive, of_negative = user[positive], user[negative]
        before = np.zeros(len(negative) + 1, dtype=np.int64)
        for draw, drawn in enumerate(counts):  # one by one they stay in the cache
            times = drawn.astype(np.int64)
            np.cumsum(times[of_negative], out=before[1:])
            won[draw, run] = (before[below] + before[to]) @ times[of_positive]
            pairs[draw] = 2 * before[-1] * times[of_positive].sum()
    return won, pairs


def _verdict(
    of_baseline: Floats,
    of_model: Floats,
    of_both: Floats,
    draws: Floats,
    *,
    users: int,
    drawn: int,
    alpha: float,
    higher_is_better: bool,
    wilcoxon: float,
    randomisation: float,
) -> Verdict:
    """From the means of each seed (S,) and draws (B, 1 + S) of the pooled difference, then each seed's."""
    seeds = len(of_both)
    mean = of_both.mean()
    sd = _sd(of_both)
    error = sd / np.sqrt(seeds)
    if sd == 0:
        t, p_seeds = (np.copysign(np.inf, mean), 0.0) if mean else (0.0, 1.0)
    else:
        t = mean / error  # NaN of one seed
        p_seeds = 2 * special.stdtr(seeds - 1, -abs(t))
    p_users, low, high, plus, minus = np.nan, np.nan, np.nan, 0, 0
    enough = len(draws) > 0 and len(draws) >= ENOUGH * drawn
    if enough:
        sides = min((draws[:, 0] <= 0).sum(), (draws[:, 0] >= 0).sum())
        p_users = np.clip(2 * sides / len(draws), 1 / len(draws), 1)
        lows, highs = np.quantile(draws, (alpha / 2, 1 - alpha / 2), axis=0)
        low, high = lows[0], highs[0]
        plus, minus = (lows[1:] > 0).sum(), (highs[1:] < 0).sum()
    majority = (plus if mean > 0 else minus) > seeds / 2
    lacks = {
        "one seed: seeds are too few for a test": seeds == 1,
        f"p over seeds is not below {alpha}": seeds > 1 and not p_seeds < alpha,
        f"of {drawn} draws of users only {len(draws)} have both labels": not enough,
        f"p over users is not below {alpha}": enough and not p_users < alpha,
        "no majority of seeds shows it alone": enough and not majority,
    }
    reason = "; ".join(text for text, missing in lacks.items() if missing)
    gain = (mean > 0) == higher_is_better
    return Verdict(
        seeds=seeds,
        users=users,
        draws=len(draws),
        baseline_mean=float(of_baseline.mean()),
        baseline_sd=_sd(of_baseline),
        model_mean=float(of_model.mean()),
        model_sd=_sd(of_model),
        difference=float(mean),
        sd=sd,
        change=float(100 * (of_model.mean() / of_baseline.mean() - 1)) if of_baseline.mean() else np.nan,
        t=float(t),
        p_seeds=float(p_seeds),
        p_users=float(p_users),
        low=float(low),
        high=float(high),
        plus=int(plus),
        minus=int(minus),
        detectable=float(special.stdtrit(seeds - 1, 1 - alpha / 2) * error),
        wilcoxon=wilcoxon,
        randomisation=randomisation,
        verdict="none" if reason else "robust gain" if gain else "robust loss",
        reason=reason,
    )


def _sd(values: Floats) -> float:
    """Standard deviation (ddof 1): NaN of one value, and 0 of equal ones, whatever their mean rounds to."""
    if len(values) == 1:
        return float(np.nan)
    return 0.0 if np.ptp(values) == 0 else float(values.std(ddof=1))
