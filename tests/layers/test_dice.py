"""Dice against a loop over numbers, and what becomes of its statistics."""

import math
import statistics

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers.dice import EPS, MOMENTUM, Dice, perceptron
from hydrec.layers.dropout import Dropout
from hydrec.layers.mlp import MLP

ALPHA = [0.5, -0.25, 0.0]


@pytest.fixture
def dice():
    layer = Dice(3).double()
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor(ALPHA))
    return layer


@pytest.fixture
def x():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(4, 5, 3, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.1]) + 0.7


def expected(x, means, variances):
    out = []
    for row in x.flatten(0, -2).tolist():
        for value, alpha, mean, variance in zip(row, ALPHA, means, variances, strict=True):
            p = 1 / (1 + math.exp(-(value - mean) / math.sqrt(variance + EPS)))
            out.append(p * value + (1 - p) * alpha * value)
    return torch.tensor(out, dtype=torch.float64).view(x.shape)


def moments(x):
    columns = x.flatten(0, -2).T.tolist()
    return [statistics.fmean(c) for c in columns], [statistics.pvariance(c) for c in columns]


def test_training_takes_the_statistics_of_the_batch(dice, x):
    assert_close(dice(x), expected(x, *moments(x)), rtol=0, atol=1e-12)


def test_evaluation_takes_the_averages_of_training(dice, x):
    means, variances = [0.0] * 3, [1.0] * 3
    for batch in (x, 2 * x - 1):
        dice(batch)
        averages = zip((means, variances), moments(batch), strict=True)
        means, variances = (
            [(1 - MOMENTUM) * old + MOMENTUM * new for old, new in zip(*pair, strict=True)]
            for pair in averages
        )
    dice.eval()
    assert_close(dice(x), expected(x, means, variances), rtol=0, atol=1e-12)
    assert_close(dice(x[2:, :1]), dice(x)[2:, :1])  # whoever is beside them
    copy = Dice(3).double().eval()
    copy.load_state_dict(dice.state_dict())
    assert torch.equal(copy(x), dice(x))


def test_gradients_pass_through_the_statistics(dice, x):
    assert torch.autograd.gradcheck(dice, x.flatten(0, 1)[:4].requires_grad_())


def test_alpha_starts_at_0_and_is_learnt(x):
    dice = Dice(3).double()
    assert not dice.alpha.any()
    dice(x).sum().backward()
    assert dice.alpha.grad.abs().min() > 0


def test_no_vector_and_a_single_one(dice, x):
    assert dice(x[:0]).shape == (0, 5, 3)
    assert not dice.mean.any() and (dice.variance == 1).all()
    one = x[0, :1].requires_grad_()
    out = dice(one)  # p is a half
    assert_close(out, one * (1 + torch.tensor(ALPHA)) / 2)
    out.sum().backward()
    assert one.grad.isfinite().all() and dice.variance.isfinite().all()


def test_statistics_of_half_precision_are_kept_in_full(x):
    dice = Dice(3)
    assert dice(x.bfloat16()).isfinite().all()
    assert dice.mean.dtype == torch.float32


def test_a_perceptron_has_it_after_each_hidden_layer():
    torch.manual_seed(0)
    mlp = perceptron(4, [3, 2], activation="dice", dropout=0.5)
    kinds = [nn.Linear, Dice, Dropout] * 2
    assert [type(layer) for layer in mlp[0]] == kinds and isinstance(mlp, MLP)
    assert [len(layer.alpha) for layer in mlp[0] if isinstance(layer, Dice)] == [3, 2]
    plain = perceptron(4, [3], activation="tanh", dropout=0.0)
    assert [type(layer) for layer in plain[0]] == [nn.Linear, nn.Tanh]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "dise"}, r"model.net.activation=dise .* did you mean dice\?"),
        ({"hidden": [0], "key": "model.net.attention_"}, "model.net.attention_hidden=0"),
        ({"dropout": 1.0}, "model.net.dropout=1.0"),
    ],
    ids=str,
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        perceptron(4, **{"hidden": [3], "activation": "dice", "dropout": 0.0} | change)
