"""Perceptrons: their layers one number at a time, and what a configuration may ask of them."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers.mlp import ACTIVATIONS, MLP, Hidden, linear

PLAIN = {"activation": "relu", "dropout": 0.0, "batch_norm": False}
CURVES = {
    "relu": lambda x: max(x, 0.0),
    "prelu": lambda x: max(x, 0.0) + 0.25 * min(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


def grown(layer: nn.Module) -> nn.Module:
    """The layer in float64, with weights large enough to matter and statistics other than 0 and 1."""
    draw = torch.Generator().manual_seed(3)
    layer = layer.double().eval()
    with torch.no_grad():
        for parameter in [*layer.parameters(), *layer.buffers()]:
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_var.abs_().add_(0.5)
        for rectifier in layer.modules():
            if isinstance(rectifier, nn.PReLU):
                rectifier.weight.fill_(0.25)
    return layer


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def times(layer: nn.Linear, x: list[float]) -> list[float]:
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [bias + sum(w * value for w, value in zip(row, x, strict=True)) for row, bias in rows]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_logit_is_the_loop(activation):
    mlp = grown(MLP(3, [4, 2], **PLAIN | {"activation": activation}))
    first, second, last = (layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    x = inputs(5)
    expected = []
    for row in x.tolist():
        for layer in (first, second):
            row = [CURVES[activation](value) for value in times(layer, row)]
        expected += times(last, row)
    assert_close(mlp(x), torch.tensor(expected, dtype=torch.float64))


def test_batch_norm_comes_before_the_activation():
    layers = grown(Hidden(3, [4], **PLAIN | {"batch_norm": True}))
    (map_,) = (layer for layer in layers if isinstance(layer, nn.Linear))
    (norm,) = (layer for layer in layers if isinstance(layer, nn.BatchNorm1d))
    x = inputs(5)
    expected = []
    for row in x.tolist():
        values = zip(
            times(map_, row), *(t.tolist() for t in norm.state_dict().values() if t.dim()), strict=True
        )
        scaled = [(v - mean) / math.sqrt(var + 1e-5) * weight + bias for v, weight, bias, mean, var in values]
        expected.append([max(value, 0.0) for value in scaled])
    assert_close(layers(x), torch.tensor(expected, dtype=torch.float64))


def test_a_logit_may_have_either_sign():
    mlp, x = grown(MLP(3, [8], **PLAIN)), inputs(5)
    logits = mlp(x)
    with torch.no_grad():
        mlp[1].weight.neg_()
        mlp[1].bias.neg_()
    assert logits.all()
    assert_close(mlp(x), -logits)


def test_dropout_is_of_what_an_activation_gives_in_training_only():
    layers = grown(Hidden(3, [1000], **PLAIN | {"activation": "sigmoid", "dropout": 0.2}))
    x = inputs(1)
    torch.manual_seed(0)
    whole, some = layers(x), layers.train()(x)
    dropped = some == 0  # a sigmoid is never 0
    assert 0.15 < dropped.double().mean() < 0.25
    assert_close(some[~dropped], whole[~dropped] / 0.8, rtol=1e-5, atol=0)  # the share is rounded


def test_without_hidden_layers_there_is_a_linear_map():
    assert Hidden(3, [], **PLAIN).out_width == 3
    mlp, x = grown(MLP(3, [], **PLAIN)), inputs(5)
    (last,) = (layer for layer in mlp.modules() if isinstance(layer, nn.Linear))
    assert_close(mlp(x), x @ last.weight[0] + last.bias)


def test_leading_dimensions_are_kept():
    mlp, x = grown(MLP(3, [4], **PLAIN)), inputs(2, 5)
    assert_close(mlp(x), mlp(x.flatten(0, 1)).view(2, 5))


@pytest.mark.parametrize(("batch_norm", "more"), [(False, 0), (True, 2 * (4 + 2))])
def test_number_of_parameters(batch_norm, more):
    count = sum(p.numel() for p in MLP(3, [4, 2], **PLAIN | {"batch_norm": batch_norm}).parameters())
    assert count == (3 + 1) * 4 + (4 + 1) * 2 + (2 + 1) + more


def test_weights_start_by_glorot_and_biases_at_0():
    torch.manual_seed(0)
    layer = linear(300, 100)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "rulu"}, r"model.net.activation=rulu .* did you mean relu\?"),
        ({"dropout": 1.0}, "model.net.dropout=1.0: must be 0 or more, and below 1"),
        ({"dropout": -0.1}, "model.net.dropout=-0.1"),
        ({"dropout": math.nan}, "model.net.dropout=nan"),
        ({"hidden": [8, 0]}, "model.net.hidden=0"),
        ({"hidden": [0], "key": "model.net.first."}, "model.net.first.hidden=0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Hidden, MLP])
def test_bad_values_are_refused(kind, change, message):
    with pytest.raises(InputError, match=message):
        kind(3, **{"hidden": [4]} | PLAIN | change)


@pytest.mark.parametrize("hidden", [[], [4], [4, 2]])
def test_what_comes_after_the_first_map_makes_the_rest(hidden):
    mlp, x = grown(MLP(3, hidden, **PLAIN | {"activation": "tanh"})), inputs(2, 5)
    assert mlp.first.in_features == 3
    assert_close(mlp.after_first(mlp.first(x)), mlp(x))
