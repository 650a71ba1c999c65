"""GRU4Rec against a slow float64 reference from the equations, and against cells stepped one by one.

The second is how the authors' code computes: a cell for each layer, the items' vectors shared by input and
output.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hydrec.batch import PAD
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
VARIANTS = {
    "gru4rec": {},
    "two layers": {"layers": 2},
    "separate": {"tied": False},
    "separate, three layers": {"tied": False, "layers": 3},
}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def step(x, h, weights, layer, wrong=""):
    """The next state of a layer, unit by unit."""
    ih, hh = weights[f"gru.weight_ih_l{layer}"], weights[f"gru.weight_hh_l{layer}"]
    b_ih, b_hh = weights[f"gru.bias_ih_l{layer}"], weights[f"gru.bias_hh_l{layer}"]
    units = len(h)

    def parts(gate, unit):
        row = gate * units + unit
        return sum(ih[row] * x) + b_ih[row], sum(hh[row] * h) + b_hh[row]

    new = []
    for unit in range(units):
        r, z = sigmoid(sum(parts(0, unit))), sigmoid(sum(parts(1, unit)))
        given, before = parts(2, unit)
        candidate = math.tanh(given + (before if wrong == "reset" else r * before))
        new.append(
            z * candidate + (1 - z) * h[unit] if wrong == "gate" else (1 - z) * candidate + z * h[unit]
        )
    return np.array(new)


def reference(weights, batch, layers, wrong=""):
    """Scores of all items for each supervised position, in order."""
    scores = []
    for row, targets in enumerate(batch.targets.tolist()):
        states = [np.zeros(weights["item.weight"].shape[1]) for _ in range(layers)]
        length = batch.items.shape[1] if wrong == "padding" else int(batch.lengths[row])
        for place, item in enumerate(batch.items[row, :length].tolist()):
            x = weights["item.weight"][item]
            for layer in range(layers):
                x = states[layer] = step(x, states[layer], weights, layer, wrong)
            if len(targets) > 1 or place == length - 1:
                bias = 0.0 if wrong == "bias" else weights["bias"][1:]
                scores.append(weights["output.weight"][1:] @ x + bias)
    return np.array(scores)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def arrays(net):
    return {name: x.double().numpy().copy() for name, x in net.state_dict().items()}


@pytest.fixture
def build(make_net):
    """A small net with weights large enough to matter."""

    def build(**changes):
        net = make_net("model=gru4rec", **({"units": 4} | changes)).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in net.parameters():
                weight.copy_(0.8 * torch.randn(weight.shape, generator=draw))
            net.item.weight[PAD] = net.output.weight[PAD] = 0
        return net.eval()

    return build


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_equations(variant, build, random_batch, every):
    net, batch = build(**VARIANTS[variant]), random_batch(every=every)
    expected = reference(arrays(net), batch, net.gru.num_layers)
    np.testing.assert_allclose(scores_of(net, batch).detach().numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch).detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_equations(variant, build, random_batch):
    net, batch = build(**VARIANTS[variant]), random_batch(rows=3, window=4)
    random = np.random.default_rng(0)
    against = random.normal(size=(3, 25))
    (scores_of(net, batch) * torch.from_numpy(against)).sum().backward()
    weights = arrays(net)

    def value(changed):
        if net.output is net.item:
            changed = changed | {"output.weight": changed["item.weight"]}
        return (reference(changed, batch, net.gru.num_layers) * against).sum()

    for name, weight in net.named_parameters():
        direction = random.normal(size=weight.shape)
        if "weight" in name and "gru" not in name:
            direction[PAD] = 0
        there, back = (value(weights | {name: weights[name] + sign * 1e-5 * direction}) for sign in (1, -1))
        slope = (weight.grad.numpy() * direction).sum()
        assert slope == pytest.approx((there - back) / 2e-5, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize("wrong", ["gate", "reset", "bias", "padding"])
def test_a_wrong_equation_is_noticed(wrong, build, random_batch):
    net, batch = build(), random_batch()
    other = reference(arrays(net), batch, 1, wrong)
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_of_cells_go_over_unchanged(layers, build, random_batch):
    batch = random_batch()
    torch.manual_seed(5)
    cells = nn.ModuleList(nn.GRUCell(4, 4) for _ in range(layers)).double()
    vectors, bias = nn.Embedding(25, 4).double(), nn.Embedding(25, 1).double()  # without a row for PAD
    net = build(layers=layers)
    with torch.no_grad():
        for layer, cell in enumerate(cells):
            for name, weight in cell.named_parameters():
                getattr(net.gru, f"{name}_l{layer}").copy_(weight)
        net.item.weight[1:], net.bias[1:] = vectors.weight, bias.weight[:, 0]
    states = [torch.zeros(6, 4).double() for _ in cells]
    for place in range(batch.items.shape[1]):
        real = (place < batch.lengths)[:, None]
        x = vectors((batch.items[:, place] - 1).clamp(min=0))
        for layer, cell in enumerate(cells):
            states[layer] = torch.where(real, cell(x, states[layer]), states[layer])
            x = states[layer]
    expected = x @ vectors.weight.T + bias.weight.T
    torch.testing.assert_close(scores_of(net, batch), expected, rtol=0, atol=1e-10)
