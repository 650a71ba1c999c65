"""Each loss against a slow loop written from its formula, and its gradient against differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hydrec.errors import InputError
from hydrec.losses import BCE, BPR, GBCE, BPRMax, Softmax


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


# The others -------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def rows(scores, target):
    """Score of the positive and of its negatives, row by row."""
    for row, place in zip(scores.tolist(), target.tolist(), strict=True):
        yield row[place], row[:place] + row[place + 1 :]


def slow_bpr_max(scores, target, reg):
    losses = []
    for positive, negatives in rows(scores, target):
        total = sum(math.exp(s) for s in negatives)
        weights = [math.exp(s) / total for s in negatives]
        gain = sum(w * sigmoid(positive - s) for w, s in zip(weights, negatives, strict=True))
        losses.append(-math.log(gain) + reg * sum(w * s * s for w, s in zip(weights, negatives, strict=True)))
    return sum(losses) / len(losses)


def slow_bce(scores, target):
    losses = []
    for positive, negatives in rows(scores, target):
        terms = [-math.log(sigmoid(positive)), *(-math.log(1 - sigmoid(s)) for s in negatives)]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def slow_gbce(scores, target, t, n_items):
    """By the transformation of the positive's logit, as the authors' code has it."""
    losses = []
    for positive, negatives in rows(scores, target):
        alpha = len(negatives) / (n_items - 1)
        beta = alpha * ((1 - 1 / alpha) * t + 1 / alpha)
        power = sigmoid(positive) ** -beta
        logit = math.log(1 / (power - 1))
        terms = [-math.log(sigmoid(logit)), *(-math.log(1 - sigmoid(s)) for s in negatives)]
        losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses)


def slow_softmax(scores, target):
    losses = [
        math.log(math.exp(positive) + sum(map(math.exp, negatives))) - positive
        for positive, negatives in rows(scores, target)
    ]
    return sum(losses) / len(losses)


@pytest.fixture
def loss_of(catalog):
    """A loss and its slow twin, by name."""
    return {
        "bpr": (BPR(compare="score"), lambda s, t: slow_bpr(s, t, "score")),
        "bpr_probability": (BPR(compare="probability"), lambda s, t: slow_bpr(s, t, "probability")),
        "bpr_max": (BPRMax(reg=0.3), lambda s, t: slow_bpr_max(s, t, 0.3)),
        "bpr_max_alone": (BPRMax(reg=0.0), lambda s, t: slow_bpr_max(s, t, 0.0)),
        "bce": (BCE(), slow_bce),
        "gbce": (GBCE(catalog, t=0.75), lambda s, t: slow_gbce(s, t, 0.75, 25)),
        "gbce_full": (GBCE(catalog, t=1.0), lambda s, t: slow_gbce(s, t, 1.0, 25)),
        "softmax": (Softmax(), slow_softmax),
    }.__getitem__


NAMES = ["bpr", "bpr_probability", "bpr_max", "bpr_max_alone", "bce", "gbce", "gbce_full", "softmax"]


def some(shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(shape, dtype=torch.float64, generator=draw)
    return scores.requires_grad_(), torch.randint(shape[1], (shape[0],), generator=draw)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (3, 7), (6, 25)])
def test_a_loss_matches_a_slow_loop(loss_of, name, shape):
    fast, slow = loss_of(name)
    scores, target = some(shape)
    assert fast(scores, target).item() == pytest.approx(slow(scores, target), rel=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 2), (3, 7)])
def test_a_gradient_matches_differences(loss_of, name, shape):
    scores, target = some(shape)
    assert torch.autograd.gradcheck(lambda s: loss_of(name)[0](s, target), scores)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_mean_over_rows(loss_of, name):
    """What training relies on where it makes the scores in parts."""
    loss, (scores, target) = loss_of(name)[0], some((7, 5))
    parts = sum(loss(scores[k], target[k]) * len(target[k]) for k in (slice(0, 3), slice(3, 4), slice(4, 7)))
    assert_close(parts / 7, loss(scores, target))


@pytest.mark.parametrize("name", NAMES)
def test_neither_the_positives_column_nor_the_others_order_matters(loss_of, name):
    loss, (scores, target) = loss_of(name)[0], some((4, 6))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    assert_close(loss(scores[:, order], order.argsort()[target]), loss(scores, target))


@pytest.mark.parametrize("name", NAMES)
def test_large_scores_give_finite_losses_and_gradients(loss_of, name):
    scores = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    loss = loss_of(name)[0](scores, torch.tensor([0, 0]))
    loss.backward()
    assert loss.isfinite() and scores.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_no_negatives_are_an_error_for_every_loss(loss_of, name):
    with pytest.raises(InputError, match=r"loss\.candidates"):
        loss_of(name)[0](torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


def test_gbce_without_calibration_is_bce_and_so_it_is_with_all_negatives(catalog):
    scores, target = some((5, 4))
    assert_close(GBCE(catalog, t=0.0)(scores, target), BCE()(scores, target))
    scores, target = some((5, 25))
    assert_close(GBCE(catalog, t=0.6)(scores, target), BCE()(scores, target))
    scores, target = some((5, 60))  # drawn with replacement
    assert_close(GBCE(catalog, t=0.6)(scores, target), BCE()(scores, target))


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_calibration_is_from_0_to_1(catalog, t):
    with pytest.raises(InputError, match=r"loss\.objective\.t="):
        GBCE(catalog, t=t)


@pytest.mark.parametrize("reg", [-0.1, math.nan])
def test_a_weight_is_not_negative(reg):
    with pytest.raises(InputError, match=r"loss\.objective\.reg="):
        BPRMax(reg=reg)


def products(rows, items, dim, *, bias, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors, table = (torch.randn(n, dim, generator=generator, dtype=dtype) for n in (rows, items))
    shift = torch.randn(items, generator=generator, dtype=dtype) if bias else None
    leaves = [x.requires_grad_() for x in (vectors, table, shift) if x is not None]
    return vectors, table, shift, torch.randint(items, (rows,), generator=generator), leaves


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows, items", [(7, 5), (300, 40), (130, 301)])
@pytest.mark.parametrize("limit", [1, 64, 1000, 10**6])  # blocks of rows and items, of rows, one block
def test_a_softmax_of_products_is_that_of_their_scores(rows, items, limit, bias):
    vectors, table, shift, target, leaves = products(rows, items, 6, bias=bias)
    scores = vectors @ table.T + (0 if shift is None else shift)
    want = F.cross_entropy(scores, target)
    by = torch.autograd.grad(3 * want, leaves)
    found = Softmax().of_products(vectors, table, shift, target, limit=limit)
    assert torch.allclose(found, want, rtol=1e-13)
    for mine, theirs in zip(torch.autograd.grad(3 * found, leaves), by, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("limit", [1, 10**6])
def test_a_softmax_of_large_products_is_finite(limit):
    vectors, table, shift, target, leaves = products(70, 50, 4, bias=True, dtype=torch.float32)
    loss = Softmax().of_products(1e3 * vectors, 1e3 * table, shift, target, limit=limit)
    assert loss.isfinite() and loss > 1e5
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss, leaves))


def test_a_softmax_of_products_holds_no_more_scores_than_it_may():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor):
                    self.numel = max(self.numel, each.untyped_storage().nbytes() // each.element_size())
            return out

    for items, limit in ((400, 400 * 70), (3000, 20_000)):
        vectors, table, shift, target, _ = products(1000, items, 4, bias=True)
        with Largest() as largest:
            Softmax().of_products(vectors, table, shift, target, limit=limit).backward()
        assert largest.numel <= limit


def test_a_softmax_of_one_product_is_an_error():
    vectors, table, _, _, _ = products(3, 1, 2, bias=False)
    with pytest.raises(InputError, match="no negative"):
        Softmax().of_products(vectors, table, None, torch.zeros(3, dtype=torch.long), limit=10)
