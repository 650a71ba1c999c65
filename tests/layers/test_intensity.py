"""Normalised intensities against the formulas, one history at a time in float64."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hydrec.layers.graph import filled
from hydrec.layers.intensity import MODES, causal

B, T = 40, 9


def reference(mode: str, history: np.ndarray) -> np.ndarray:
    """The formulas for one history without padding."""
    w = np.array([x if x > 0 else 0.0 for x in history.astype(np.float64)])  # NaN > 0 is false
    if mode == "log1p_minmax":
        most = max(math.log(1 + x) for x in w)
        return np.array([math.log(1 + x) / most if most else 0.0 for x in w])
    if mode == "minmax":
        low, high = min(w), max(w)
        return np.array([0.1 + 0.9 * (x - low) / (high - low) if high > low else 1.0 for x in w])
    if mode == "zscore":
        mean = sum(w) / len(w)
        std = math.sqrt(sum((x - mean) ** 2 for x in w) / len(w))
        return (w - mean) / std if max(w) > min(w) else 0 * w
    if mode == "rank":
        places = sorted(w)
        first, last = np.array([places.index(x) for x in w]), [len(w) - places[::-1].index(x) for x in w]
        return (first + 1 + last) / 2 / len(w)
    return w


@pytest.fixture
def histories():
    """Ratings, heavy-tailed hours, zeros, missing, negative and equal values; padding holds anything."""
    draw = np.random.default_rng(3)
    values = np.exp(draw.normal(0, 3, (B, T)))
    values[:10] = draw.integers(1, 6, (10, T))
    values[10:20] *= draw.random((10, T)) < 0.5
    values[20:25][draw.random((5, T)) < 0.4] = np.nan
    values[25:30] *= draw.choice([-1, 1], (5, T))
    values[30:36] = np.array([0.1, 0.3, 1 / 3, 7.7, 0, 1e4])[:, None]
    lengths = torch.from_numpy(draw.integers(1, T + 1, B))
    lengths[::7] = T
    return torch.from_numpy(values.astype(np.float32)), lengths


@pytest.mark.parametrize("mode", MODES)
def test_a_history_is_normalised_by_itself(mode, histories):
    values, lengths = histories
    found = MODES[mode](values, filled(lengths, T))
    for row, n in enumerate(lengths.tolist()):
        expected = reference(mode, values[row, :n].numpy())
        assert_close(found[row, :n].double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
        assert (found[row, n:] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_position_knows_nothing_of_later_ones(mode, histories):
    values, lengths = histories
    valid = filled(lengths, T)
    found = MODES[mode](values[:, None], causal(valid))
    assert found.shape == (B, T, T)
    for position in range(T):
        prefix = MODES[mode](values[:, : position + 1], valid[:, : position + 1])
        assert_close(found[:, position, : position + 1], prefix)
        assert (found[:, position, position + 1 :] == 0).all()
    last = found[torch.arange(B), lengths - 1]
    assert_close(last, MODES[mode](values, valid))


@pytest.mark.parametrize(
    ("mode", "history", "expected"),
    [
        ("log1p_minmax", [0, 0, 0], [0, 0, 0]),
        ("log1p_minmax", [0.1, 0.1, 0.1], [1, 1, 1]),
        ("log1p_minmax", [math.nan, -3, 7], [0, 0, 1]),
        ("minmax", [0.1, 0.1, 0.1], [1, 1, 1]),
        ("minmax", [0, 0, 0], [1, 1, 1]),
        ("minmax", [math.nan, 1, 2], [0.1, 0.55, 1]),
        ("zscore", [0.1, 0.1, 0.1], [0, 0, 0]),
        ("zscore", [1e4 + 0.1] * 3, [0, 0, 0]),
        ("zscore", [7], [0]),
        ("none", [math.nan, -3, 7.5], [0, 0, 7.5]),
        ("rank", [0.1, 0.1, 0.1], [2 / 3, 2 / 3, 2 / 3]),
        ("rank", [math.nan, -3, 7.5], [0.5, 0.5, 1]),
        ("rank", [7], [1]),
    ],
)
def test_histories_without_differences(mode, history, expected):
    values = torch.tensor([history], dtype=torch.float32)
    found = MODES[mode](values, torch.ones_like(values, dtype=torch.bool))
    assert_close(found, torch.tensor([expected], dtype=torch.float32), atol=1e-7, rtol=0)


def test_the_published_ratings():
    found = MODES["log1p_minmax"](torch.tensor([[1.0, 2, 3, 4, 5]]), torch.ones(1, 5, dtype=torch.bool))
    assert_close(found, torch.tensor([[0.39, 0.61, 0.77, 0.90, 1]]), atol=0.005, rtol=0)


@pytest.mark.parametrize("mode", ["log1p_minmax", "minmax"])
def test_the_highest_is_exactly_one(mode, histories):
    values, lengths = histories
    valid = filled(lengths, T)
    found = MODES[mode](values, valid)
    known = torch.where(valid, values.nan_to_num(0).clamp(min=0), -1)
    highest = (known == known.amax(1, keepdim=True)) & (known > 0)
    assert highest.sum() > B / 2
    assert (found[highest] == 1).all()
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("huge", [math.inf, 3e38, 1e-40])
def test_nothing_is_nan_or_infinite(mode, huge):
    values = torch.tensor([[huge, 1.0, huge, 0.0], [huge, huge, huge, math.nan], [1.0, 2.0, 3.0, 4.0]])
    seen = torch.tensor([[True, True, True, False], [True, True, True, True], [False] * 4])
    assert MODES[mode](values, seen).isfinite().all()
    assert (MODES[mode](values, seen)[2] == 0).all()
