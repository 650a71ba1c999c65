import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.losses import BPR


def slow_bpr(scores, target, on):
    """The mean over pairs, one at a time."""
    link = (lambda s: 1 / (1 + math.exp(-s))) if on == "probability" else float
    terms = [
        -math.log(1 / (1 + math.exp(link(negative) - link(row[positive]))))
        for row, positive in zip(scores.tolist(), target.tolist(), strict=True)
        for column, negative in enumerate(row)
        if column != positive
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("on", ["score", "probability"])
@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (3, 7), (6, 51)])
def test_bpr_matches_a_slow_loop(on, shape):
    torch.manual_seed(0)
    scores = 3 * torch.randn(shape, dtype=torch.float64)
    target = torch.randint(shape[1], (shape[0],))
    assert BPR(compare=on)(scores, target).item() == pytest.approx(slow_bpr(scores, target, on), rel=1e-9)


def test_bpr_by_hand():
    scores = torch.tensor([[2.0, 2.0], [0.0, math.log(3)]], dtype=torch.float64)
    loss = BPR(compare="score")(scores, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)  # softplus(ln 3) = ln 4


def test_a_probability_cannot_reach_below_its_bound():
    scores, target = torch.tensor([[50.0, -50.0]]), torch.tensor([0])
    assert BPR(compare="probability")(scores, target).item() == pytest.approx(math.log(1 + 1 / math.e))
    assert BPR(compare="score")(scores, target).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(("on", "slope"), [("score", 0.5), ("probability", 0.125)])
def test_the_gradient_at_no_gap(on, slope):
    scores = torch.zeros(1, 2, requires_grad=True)
    BPR(compare=on)(scores, torch.tensor([1])).backward()
    assert_close(scores.grad, torch.tensor([[slope, -slope]]))


@given(st.integers(2, 9), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_neither_the_column_of_the_positive_nor_the_order_of_the_others_matters(columns, seed):
    torch.manual_seed(seed)
    scores, target = torch.randn(4, columns, dtype=torch.float64), torch.randint(columns, (4,))
    order = torch.randperm(columns)
    moved = BPR(compare="score")(scores[:, order], order.argsort()[target])
    assert_close(moved, BPR(compare="score")(scores, target))


def test_large_gaps_neither_overflow_nor_lose_their_gradient():
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    loss = BPR(compare="score")(scores, torch.tensor([0, 0]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert_close(scores.grad, torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))


def test_a_positive_alone_is_an_error():
    with pytest.raises(InputError, match=r"loss\.candidates"):
        BPR(compare="score")(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(("on", "nearest"), [("scores", "score"), ("prob", "probability")])
def test_a_mistyped_setting_names_the_nearest(on, nearest):
    with pytest.raises(InputError, match=rf"loss\.objective\.compare={on} .*did you mean {nearest}"):
        BPR(compare=on)


def test_the_setting_has_no_default():
    with pytest.raises(TypeError):
        BPR()
