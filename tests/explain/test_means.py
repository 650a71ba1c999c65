"""Means with intervals over users, against a slow loop, and on values whose mean is known."""

import numpy as np
import pytest
import torch

from hydrec.explain import means as module
from hydrec.explain.means import DRAWS, means
from hydrec.sampling import below, hash64


def slow(values, users):
    """One column: every draw of users, case by case."""
    names = sorted({*users})
    cases = {name: [v for v, u in zip(values, users, strict=True) if u == name and v == v] for name in names}
    drawn = []
    for draw in range(DRAWS):
        picked = below(hash64(0, "users of a mean", draw, torch.arange(len(names))), len(names))
        taken = [value for place in picked.tolist() for value in cases[names[place]]]
        if taken:
            drawn.append(sum(taken) / len(taken))
    whole = [v for some in cases.values() for v in some]
    return sum(whole) / len(whole), *np.quantile(drawn, (0.025, 0.975)), len(whole)


def test_means_and_intervals_are_those_of_a_slow_loop():
    draw = np.random.default_rng(0)
    users = np.repeat([3, 8, 4, 5, 9, 6], [1, 4, 5, 2, 5, 3])
    values = draw.normal(size=(20, 3)).astype(np.float32)
    values[users > 4, 1] = np.nan  # a column that some draws have no case of
    values[::3, 2] = np.nan
    found = means(torch.from_numpy(values), torch.from_numpy(users))
    for column in range(3):
        expected = slow(values[:, column].astype(np.float64).tolist(), users.tolist())
        assert [float(each[column]) for each in found[:4]] == pytest.approx(expected, abs=1e-12)
    assert found.users.tolist() == [6, 2, len({*users[~np.isnan(values[:, 2])]})]


def test_of_one_user_there_is_no_interval_and_of_no_case_no_mean():
    values = torch.tensor([[1.0, 5.0, torch.nan], [2.0, torch.nan, torch.nan]])
    found = means(values, torch.tensor([4, 4]))
    assert np.isnan(found.low).all() and np.isnan(found.high).all()
    assert found.mean[:2].tolist() == [1.5, 5.0] and np.isnan(found.mean[2])
    assert found.cases.tolist() == [2, 1, 0] and found.users.tolist() == [1, 1, 0]


def test_values_that_are_all_the_same_have_no_interval():
    values = torch.tensor([[0.0, 0.0, torch.nan], [0.0, 0.0, 2.0], [0.0, 1.0, 2.0]])
    found = means(values, torch.tensor([4, 5, 6]))
    assert np.isnan(found.low).tolist() == np.isnan(found.high).tolist() == [True, False, True]
    assert found.mean.tolist() == pytest.approx([0, 1 / 3, 2])


def test_cases_of_one_user_are_no_further_evidence():
    values, users = torch.randn(50, 1, generator=torch.Generator().manual_seed(1)), torch.arange(50)
    once, thrice = means(values, users), means(values.repeat(3, 1), users.repeat(3))
    alone = means(values.repeat(3, 1), torch.arange(150))
    assert thrice.low == pytest.approx(once.low) and thrice.high == pytest.approx(once.high)
    assert alone.high - alone.low < 0.7 * (once.high - once.low)


def test_95_of_100_intervals_cover_the_mean():
    draw = torch.Generator().manual_seed(2)
    users = torch.arange(120).repeat_interleave(2)
    # 400 columns are as many samples of one kind: users who differ, and their cases who differ less
    own = torch.randn(120, 400, generator=draw).repeat_interleave(2, 0)
    found = means(3 + own + 0.3 * torch.randn(240, 400, generator=draw), users)
    covered = ((found.low < 3) & (found.high > 3)).mean()
    assert 0.9 < covered < 0.98  # the draws are the same for all columns


def test_memory_changes_no_figure(monkeypatch):
    values, users = torch.rand(40, 2), torch.arange(40) // 3
    expected = means(values, users)
    monkeypatch.setattr(module, "BLOCK", 100)
    for one, other in zip(expected, means(values, users), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)
