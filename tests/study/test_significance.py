"""Against SciPy, scikit-learn and loops written from the specification."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from hydrec import click_metrics
from hydrec.errors import InputError
from hydrec.study import significance
from hydrec.study.significance import adjust, compare, compare_auc, gauc_sums, resamples

HOW = {"alpha": 0.05, "pooling": "users", "higher_is_better": True}


def runs(cells=3, seeds=5, users=60, effect=0.05, seed=0):
    """Sums of hit and the like: per user one row, whole or 1 / rank; the model is a little better."""
    rng = np.random.default_rng(seed)
    rank = rng.integers(1, 20, (2, cells, seeds, users))
    rank[1] = np.where(rng.random(rank[1].shape) < effect, 1, rank[1])
    values = np.where(rank <= 10, 1 / rank, 0.0)
    values[:, 0] = rank[:, 0] <= 10
    return values[0], values[1]


def figures(verdict):
    return dataclasses.asdict(verdict)


def same(one, other):
    """Bit for bit; NaN is NaN."""
    return repr([figures(v) for v in one]) == repr([figures(v) for v in other])


# Resampling -------------------------------------------------------------------------------------------------


def test_resamples_are_a_function_of_the_key(monkeypatch):
    counts = resamples(users=37, draws=50, key="a users")
    assert counts.shape == (50, 37) and (counts.sum(1) == 37).all()
    assert (resamples(users=37, draws=50, key="a users") == counts).all()
    assert (resamples(users=np.int64(37), draws=20, key="a users") == counts[:20]).all()
    assert (resamples(users=37, draws=50, key="b users") != counts).any()
    monkeypatch.setattr(significance, "BLOCK", 100)
    assert (resamples(users=37, draws=50, key="a users") == counts).all()


def test_every_user_is_drawn_as_often():
    counts = resamples(users=20, draws=5000, key="x").astype(float)
    assert abs(counts.mean(0) - 1).max() < 4 * math.sqrt(0.95 / 5000)  # binomial, 20 draws of 1/20
    assert abs(counts.var(0) - 0.95).max() < 0.15
    pair = np.corrcoef(counts.T)[np.triu_indices(20, 1)]
    assert abs(pair.mean() + 1 / 19) < 0.005  # one more of a user is one less of another


# Means over rows --------------------------------------------------------------------------------------------


def slow_bootstrap(differences, rows, counts):
    """Means of the drawn users, one after the other; differences (S, U)."""
    means = []
    for draw in counts:
        total = drawn = 0.0
        for user, times in enumerate(draw):
            for _ in range(times):
                total += sum(float(each[user]) for each in differences)
                drawn += float(rows[user])
        means.append(total / drawn / len(differences))
    return means


def slow_p(means):
    below, above = sum(m <= 0 for m in means), sum(m >= 0 for m in means)
    return min(max(2 * min(below, above) / len(means), 1 / len(means)), 1)


def slow_percentile(values, q):
    place = q * (len(values) - 1)
    low, part = sorted(values)[int(place)], place - int(place)
    high = sorted(values)[min(int(place) + 1, len(values) - 1)]
    return low + part * (high - low)


@pytest.mark.parametrize("rows_of_a_user", [1, 4])
def test_the_bootstrap_is_that_of_a_loop(rows_of_a_user):
    rng = np.random.default_rng(3)
    rows = rng.integers(1, rows_of_a_user + 1, 30)
    base, model = rng.integers(0, 2**10, (2, 2, 4, 30)) / 2**10  # exact in binary, as the loop has no grid
    model[1] += 2.0**-2
    counts = resamples(users=30, draws=400, key="loop")
    for cell, verdict in enumerate(compare(base, model, rows, counts, **HOW)):
        differences = model[cell] - base[cell]
        means = slow_bootstrap(differences, rows, counts)
        assert verdict.p_users == slow_p(means)
        assert verdict.low == pytest.approx(slow_percentile(means, 0.025), abs=1e-15)
        assert verdict.high == pytest.approx(slow_percentile(means, 0.975), abs=1e-15)
        alone = [slow_bootstrap(each[None], rows, counts) for each in differences]
        assert verdict.plus == sum(slow_percentile(each, 0.025) > 0 for each in alone)
        assert verdict.minus == sum(slow_percentile(each, 0.975) < 0 for each in alone)
        assert verdict.difference == pytest.approx(differences.sum() / rows.sum() / 4, abs=1e-15)


def test_the_drawn_means_themselves_are_those_of_a_loop_exactly():
    rng = np.random.default_rng(4)
    rows = rng.integers(1, 4, 25)
    columns = rng.integers(-(2**20), 2**20, (3, 25)) / 2**20
    counts = resamples(users=25, draws=100, key="exact")
    means = significance._means(columns, rows, lambda chunk: counts[chunk], 100)
    for column, of_column in zip(columns, means.T, strict=True):
        assert of_column.tolist() == slow_bootstrap(column[None], rows, counts)


def test_sums_on_the_grid_are_exact_and_near():
    base, model = runs(users=500)
    grid = significance._on_grid(model - base)
    assert abs(grid - (model - base)).max() < 1e-11
    counts = resamples(users=500, draws=20, key="grid")
    for each in grid.reshape(-1, 500):
        exact = [
            sum((int(n) * Fraction(x) for n, x in zip(draw, each, strict=True)), Fraction(0))
            for draw in counts
        ]
        assert [Fraction(x) for x in (counts.astype(float) @ each).tolist()] == exact


def test_chunks_change_no_bit(monkeypatch):
    base, model = runs()
    counts = resamples(users=60, draws=300, key="chunks")
    rng = np.random.default_rng(0)
    labels, user = np.arange(200) % 2, np.arange(200) // 4
    logits = rng.normal(size=(2, 3, 200)).round(1)
    for pooling in significance.POOLINGS:
        with monkeypatch.context() as patch:
            whole = compare(base, model, np.ones(60), counts, **HOW | {"pooling": pooling})
            auc = compare_auc(labels, *logits, user, counts, alpha=0.05)
            patch.setattr(significance, "BLOCK", 700)
            assert same(compare(base, model, np.ones(60), counts, **HOW | {"pooling": pooling}), whole)
            assert same([compare_auc(labels, *logits, user, counts, alpha=0.05)], [auc])


def test_t_is_that_of_scipy():
    base, model = runs(cells=6, users=300)
    counts = resamples(users=300, draws=50, key="t")
    for cell, verdict in enumerate(compare(base, model, np.ones(300), counts, **HOW)):
        expected = stats.ttest_rel(model[cell].mean(1), base[cell].mean(1))
        assert verdict.t == pytest.approx(expected.statistic, rel=1e-12)
        assert verdict.p_seeds == pytest.approx(expected.pvalue, rel=1e-12)
        sums = (model - base)[cell].mean(1)
        assert verdict.sd == pytest.approx(sums.std(ddof=1), rel=1e-12)
        assert verdict.baseline_sd == pytest.approx(base[cell].mean(1).std(ddof=1), rel=1e-12)
        assert verdict.model_sd == pytest.approx(model[cell].mean(1).std(ddof=1), rel=1e-12)
        change = 100 * (model[cell].mean() / base[cell].mean() - 1)
        assert verdict.change == pytest.approx(change, rel=1e-12)


def test_the_detectable_difference_is_just_significant():
    base, model = runs(cells=1)
    (verdict,) = compare(base, model, np.ones(60), resamples(60, 50, "d"), **HOW)
    assert verdict.detectable == pytest.approx(1.2416 * verdict.sd, rel=1e-4)  # five seeds
    means = (model - base)[0].mean(1)
    for factor, below in ((1.001, True), (0.999, False)):
        shifted = means - means.mean() + factor * verdict.detectable
        assert (stats.ttest_1samp(shifted, 0).pvalue < 0.05) == below


def test_seeds_that_agree_exactly():
    """A standard deviation of 0, also where the mean of equal values is rounded to another."""
    counts = resamples(9, 50, "sd")
    base = np.zeros((1, 3, 9))
    (none,) = compare(base, base, np.ones(9), counts, **HOW)
    assert (none.t, none.p_seeds, none.p_users, none.verdict) == (0.0, 1.0, 1.0, "none")
    assert (none.wilcoxon, none.randomisation, none.plus, none.minus) == (1.0, 1.0, 0, 0)
    assert math.isnan(none.change)
    (some,) = compare(base, base - 0.1, np.ones(9), counts, **HOW)
    assert (some.sd, some.t, some.p_seeds, some.p_users) == (0.0, -math.inf, 0.0, 1 / 50)
    assert (some.plus, some.minus, some.verdict, some.reason) == (0, 3, "robust loss", "")


def test_one_seed_is_too_few():
    base, model = runs(cells=1, seeds=1, users=400, effect=0.5)
    counts = resamples(400, 200, "one")
    (verdict,) = compare(base, model, np.ones(400), counts, **HOW)
    assert all(math.isnan(x) for x in (verdict.t, verdict.p_seeds, verdict.sd, verdict.detectable))
    assert (verdict.p_users, verdict.plus) == (1 / 200, 1)
    assert (verdict.verdict, verdict.reason) == ("none", "one seed: seeds are too few for a test")
    assert same(compare(base, model, np.ones(400), counts, **HOW | {"pooling": "rows"}), [verdict])


def test_pooling_rows_draws_pairs_of_seed_and_user():
    """With an effect that a user keeps over seeds, rows make the interval too narrow, by 1 / sqrt(seeds)."""
    rng = np.random.default_rng(5)
    of_user = rng.normal(size=400)
    model = of_user + 0.01 * rng.normal(size=(1, 5, 400))
    counts = resamples(400, 2000, "pool")
    users, rows = (
        compare(np.zeros((1, 5, 400)), model, np.ones(400), counts, **HOW | {"pooling": pooling})[0]
        for pooling in ("users", "rows")
    )
    assert users.high - users.low == pytest.approx(2 * 1.96 * of_user.std() / 20, rel=0.08)
    assert rows.high - rows.low == pytest.approx((users.high - users.low) / math.sqrt(5), rel=0.08)
    for name in ("p_seeds", "plus", "minus", "difference", "wilcoxon"):
        assert getattr(users, name) == getattr(rows, name)


@pytest.mark.parametrize(
    ("shifts", "plus", "minus", "verdict", "reason"),
    [
        ([3, 3.1, 2.9, 3, 3], 5, 0, "robust gain", ""),
        ([-3, -3.1, -2.9, -3, -3], 0, 5, "robust loss", ""),
        ([3, 3.1, 2.9, 0.5, 0.4], 3, 0, "robust gain", ""),
        ([4, 4, 0.9, 0.9, 0.9], 2, 0, "none", "no majority of seeds shows it alone"),
        ([9, 9.1, 8.9, -3, 3], 4, 1, "none", "p over seeds is not below 0.05"),
    ],
)
def test_most_seeds_must_agree(shifts, plus, minus, verdict, reason):
    """Users at -1 and 1 around the shift of a seed: an interval of about .2 around; pooled, of .04."""
    spread = np.where((np.arange(100) + np.arange(5)[:, None]) % 2, 1.0, -1.0)
    model = (0.1 * np.array(shifts)[:, None] + spread)[None]
    (found,) = compare(np.zeros_like(model), model, np.ones(100), resamples(100, 2000, "m"), **HOW)
    assert (found.plus, found.minus, found.verdict, found.reason) == (plus, minus, verdict, reason)
    assert found.p_users == 1 / 2000  # its floor: no drawn mean is on the other side
    (loss,) = compare(
        np.zeros_like(model),
        model,
        np.ones(100),
        resamples(100, 2000, "m"),
        **HOW | {"higher_is_better": False},
    )
    flipped = {"robust gain": "robust loss", "robust loss": "robust gain", "none": "none"}
    assert loss.verdict == flipped[verdict] and loss.difference == found.difference


def test_two_of_four_seeds_are_no_majority():
    spread = np.where(np.arange(100) % 2, 1.0, -1.0)
    for shifts, verdict in (([0.5, 0.5, 0.19, 0.19], "none"), ([0.5, 0.5, 0.3, 0.19], "robust gain")):
        model = (np.array(shifts)[:, None] + spread)[None]
        (found,) = compare(np.zeros_like(model), model, np.ones(100), resamples(100, 2000, "m"), **HOW)
        assert found.p_seeds < 0.05 and found.verdict == verdict


def test_wilcoxon_is_that_of_scipy():
    base, model = runs(cells=4, users=200)
    rows = np.random.default_rng(0).integers(1, 4, 200)
    rows[:5], base[..., :5], model[..., :5] = 0, 0, 0  # users without a test row
    for cell, verdict in enumerate(compare(base, model, rows, resamples(200, 50, "w"), **HOW)):
        mean = significance._on_grid(model - base)[cell].sum(0)[5:] / rows[5:]
        assert verdict.wilcoxon == pytest.approx(stats.wilcoxon(mean).pvalue, rel=1e-9)
        assert verdict.users == 195


def test_randomisation_swaps_the_two_models_of_a_user():
    """Few users, so that all swaps can be gone through."""
    base, model = runs(cells=4, users=12, effect=0.4)
    totals = significance._on_grid(model - base).sum(1)
    draws = 20_000
    p = significance._randomisation(totals, draws)
    signs = 1 - 2 * (np.arange(2**12)[:, None] >> np.arange(12) & 1)
    exact = (abs(signs @ totals.T) >= abs(totals.sum(1))).mean(0)
    assert (abs(p - exact) < 4 * np.sqrt(exact * (1 - exact) / draws) + 1 / draws).all()
    assert significance._randomisation(np.ones((1, 200)), 99)[0] == 1 / 100  # never 0


def test_what_cannot_be_judged_is_refused():
    base, model = runs(cells=1)
    counts = resamples(60, 20, "bad")
    with pytest.raises(InputError, match="pooling=windows is none of users, rows"):
        compare(base, model, np.ones(60), counts, **HOW | {"pooling": "windows"})
    for alpha in (0, 1, 5, True, "0.05", math.nan):
        with pytest.raises(InputError, match=r"alpha=.*: a level is above 0 and below 1"):
            compare(base, model, np.ones(60), counts, **HOW | {"alpha": alpha})
    model[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        compare(base, model, np.ones(60), counts, **HOW)
    with pytest.raises(InputError, match="all 4 labels are 1"):
        compare_auc(np.ones(4, int), base[0, :, :4], base[0, :, :4], np.arange(4), counts, alpha=0.05)


# Clicks -----------------------------------------------------------------------------------------------------


def clicks(rows=300, users=40, seeds=3, seed=0):
    """Labels, users and tied logits of a baseline and of a better model."""
    rng = np.random.default_rng(seed)
    labels, user = rng.integers(0, 2, rows), rng.integers(0, users, rows)
    base, model = (
        (rng.normal(size=(seeds, rows)) + gain * labels).round(1).astype(np.float32) for gain in (0.3, 1.2)
    )
    return labels, base, model, user


def test_auc_of_every_draw_is_that_of_scikit_learn():
    labels, base, model, user = clicks()
    counts = resamples(40, 60, "auc")
    verdict = compare_auc(labels, base, model, user, counts, alpha=0.05)
    drawn = np.array(
        [
            [roc_auc_score(labels, b, sample_weight=n[user]) for b in model]
            + [-roc_auc_score(labels, b, sample_weight=n[user]) for b in base]
            for n in counts
        ]
    )
    seeds = drawn[:, :3] + drawn[:, 3:]
    mean = seeds.mean(1)
    assert verdict.low == pytest.approx(np.quantile(mean, 0.025), abs=1e-12)
    assert verdict.high == pytest.approx(np.quantile(mean, 0.975), abs=1e-12)
    assert verdict.p_users == slow_p(mean.tolist())
    assert verdict.plus == (np.quantile(seeds, 0.025, axis=0) > 0).sum()
    whole = [[roc_auc_score(labels, each) for each in logits] for logits in (base, model)]
    assert verdict.baseline_mean == pytest.approx(np.mean(whole[0]), abs=1e-12)
    assert verdict.t == pytest.approx(stats.ttest_rel(whole[1], whole[0]).statistic, rel=1e-10)
    assert verdict.users == len(np.unique(user)) and verdict.draws == 60
    assert math.isnan(verdict.wilcoxon) and math.isnan(verdict.randomisation)
    assert verdict.verdict == "robust gain"


def test_equal_models_have_no_difference_in_auc():
    labels, base, _, user = clicks()
    verdict = compare_auc(labels, base, base * 2, user, resamples(40, 60, "auc"), alpha=0.05)
    assert (verdict.difference, verdict.low, verdict.high, verdict.p_users) == (0, 0, 0, 1)


def test_draws_with_one_label_are_left_out():
    labels = np.array([1, 0, 0, 0])
    logits = np.array([[1.0, 2, 0, 0]] * 2)
    better = np.array([[3.0, 2, 0, 0]] * 2)
    user = np.arange(4)
    one = np.array([[0, 2, 1, 1]])  # no positive
    both = np.array([[1, 1, 1, 1], [2, 1, 1, 0]])
    counts = np.concatenate([np.repeat(both, 10, 0), one])
    verdict = compare_auc(labels, logits, better, user, counts, alpha=0.05)
    assert (verdict.draws, verdict.p_users) == (20, 1 / 20)
    assert (verdict.low, verdict.high) == (pytest.approx(1 / 3, abs=0.2), pytest.approx(0.5, abs=0.02))
    many = compare_auc(labels, logits, better, user, np.concatenate([both, one]), alpha=0.05)
    assert math.isnan(many.p_users) and math.isnan(many.low) and many.draws == 2
    assert many.verdict == "none" and "of 3 draws of users only 2 have both labels" in many.reason


@pytest.mark.parametrize("weights", ["rows", "positives", "uniform"])
def test_gauc_is_that_of_the_metric(weights):
    labels, base, model, user = clicks()
    for logits in (base, model):
        sums, weight = gauc_sums(labels, logits, user, users=45, weights=weights)
        for seed, each in enumerate(logits):
            expected, _ = click_metrics.gauc(*map(torch.from_numpy, (user, labels, each)), weights)
            assert sums[seed].sum() / weight.sum() == pytest.approx(float(expected), abs=1e-12)
    (verdict,) = compare(
        *(gauc_sums(labels, x, user, users=45, weights=weights)[0][None] for x in (base, model)),
        weight,
        resamples(45, 200, "gauc"),
        **HOW,
    )
    assert verdict.verdict == "robust gain" and verdict.users == (weight > 0).sum()
    with pytest.raises(InputError, match="did you mean"):
        gauc_sums(labels, base, user, users=45, weights="row")


# Families ---------------------------------------------------------------------------------------------------


def test_holm_and_benjamini_hochberg_against_loops():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7, 50):
        p = rng.random(size).round(2) ** 2
        order = sorted(range(size), key=lambda i: p[i])
        holm, worst = [0.0] * size, 0.0
        for place, i in enumerate(order):
            worst = max(worst, min(1.0, (size - place) * p[i]))
            holm[i] = worst
        bh, best = [0.0] * size, 1.0
        for place in reversed(range(size)):
            best = min(best, size / (place + 1) * p[order[place]])
            bh[order[place]] = best
        assert adjust(p, "holm") == pytest.approx(holm, abs=1e-15)
        assert adjust(p, "bh") == pytest.approx(bh, abs=1e-15)
        assert adjust(p, "bh") == pytest.approx(stats.false_discovery_control(p), abs=1e-15)


def test_cells_without_a_test_are_not_of_the_family():
    for method in ("holm", "bh"):
        with_nan = adjust([0.01, math.nan, 0.04], method)
        assert math.isnan(with_nan[1])
        assert with_nan[[0, 2]].tolist() == adjust([0.01, 0.04], method).tolist()
        assert len(adjust([], method)) == 0 and math.isnan(adjust([math.nan], method)[0])
    with pytest.raises(InputError, match="method=bonferroni"):
        adjust([0.1], "bonferroni")


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "most"), [(0, 0.01), (1, 0.01), (5, 0.05)])
def test_where_nothing_differs_hardly_anything_is_robust(ratio, most):
    """Seed shifts common to all users, in standard errors of a mean over users; benchmarks/ has the curve."""
    rng = np.random.default_rng(ratio)
    families, users = 4000, 100
    shift = ratio * rng.normal(size=(families, 5, 1)) / math.sqrt(users)
    model = shift + rng.normal(size=(families, 5, users))
    found = compare(np.zeros_like(model), model, np.ones(users), resamples(users, 500, "aa"), **HOW)
    robust = sum(verdict.verdict != "none" for verdict in found)
    assert robust <= stats.binom.ppf(0.9999, families, most)
    assert ratio < 5 or robust >= stats.binom.ppf(0.0001, families, 0.035)  # the t-test decides alone there
