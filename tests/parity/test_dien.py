"""DIEN against a slow float64 reference: one step of one showing at a time, from the equations."""

import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from hydrec.layers.dice import Dice

SMALL = {"item_dim": 2, "field_dim": 2, "aux_hidden": [5, 4], "hidden": [6, 3], "l2": 0.3, "aux": 0.7}
CASES = [{}, {"gate": "code"}, {"activation": "prelu"}, {"aux_hidden": [], "hidden": []}]
RIGHT = dict.fromkeys(
    ("attention", "bilinear", "update", "reset", "hold", "interest", "item", "sum", "product", "user"), True
)


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def perceptron(w, name, x, hidden, activation):
    """Of one vector; Dice as in evaluation."""
    for layer in range(len(hidden)):
        x, own = linear(w, f"{name}.0.{2 * layer}", x), f"{name}.0.{2 * layer + 1}"
        if activation == "sigmoid":
            x = sigmoid(x)
        elif activation == "prelu":
            x = np.where(x > 0, x, w[f"{own}.weight"] * x)
        else:
            p = sigmoid((x - w[f"{own}.mean"]) / np.sqrt(w[f"{own}.variance"] + 1e-8))
            x = p * x + (1 - p) * w[f"{own}.alpha"] * x
    return linear(w, f"{name}.1", x)[0]


def embedded(fields, table, codes, weights):
    """The vectors of fields whose codes are side by side, as their tables are below each other."""
    vectors, column, first = [], 0, 0
    for field in fields:
        columns = range(column, column + field.width)
        vectors.append(sum(float(weights[c]) * table[first + int(codes[c])] for c in columns))
        column, first = column + field.width, first + field.size
    return vectors


def gru(w, x):
    """States after each step; torch's update gate keeps."""
    h, states = np.zeros(len(x[0])) if x else None, []
    for vector in x:
        of_x = w["extract.weight_ih_l0"] @ vector + w["extract.bias_ih_l0"]
        of_h = w["extract.weight_hh_l0"] @ h + w["extract.bias_hh_l0"]
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(of_x, 3), np.split(of_h, 3)
        r, u = sigmoid(r_x + r_h), 1 - sigmoid(z_x + z_h)
        h = (1 - u) * h + u * np.tanh(n_x + r * n_h)
        states.append(h)
    return states


def augru(o, w, x, attention, how):
    h = np.zeros(len(x[0]))
    for vector, a in zip(x, attention, strict=True):
        of_x, of_h = linear(w, "evolve.input", vector), linear(w, "evolve.state", h)
        (u_x, r_x, n_x), (u_h, r_h, n_h) = np.split(of_x, 3), np.split(of_h, 3)
        u, r = sigmoid(u_x + u_h), sigmoid(r_x + r_h) if how["reset"] else 1.0
        n = np.tanh(n_x + r * n_h)
        if o["gate"] == "paper":
            u = a * u if how["update"] else a
            h = (1 - u) * h + u * n
        else:
            u = (1 - a) * u if how["update"] else u
            h = u * h + (1 - u) * n
    return h


def reference(o, w, catalog, batch, drawn=None, **wrong):
    """Logits, and the L2 term with, where items are ``drawn``, the auxiliary loss."""
    how = RIGHT | wrong

    def item_of(item):
        codes, weights = catalog.item_codes[item], catalog.item_weights[item]
        table = w.get("tables.item_fields.table.weight")
        return np.concatenate(
            [w["tables.item.weight"][item], *embedded(catalog.item_fields, table, codes, weights)]
        )

    logits, squares, losses = [], 0.0, []
    for row in range(len(batch.lengths)):
        n, item = int(batch.lengths[row]), item_of(int(batch.candidates[row]))
        behaviours = [item_of(int(i)) for i in batch.items[row, :n]]
        table = w.get("tables.fields.table.weight")
        vectors = embedded(catalog.fields, table, batch.codes[row], batch.weights[row])
        squares += sum((v**2).sum() for v in [item, *behaviours, *vectors])

        states, zero = gru(w, behaviours), 0 * item
        for t in range(n - 1 if drawn is not None else 0):
            other = item_of(int(drawn[len(losses)]))
            real, false = (
                perceptron(w, "follows", np.concatenate([states[t], e]), o["aux_hidden"], "sigmoid")
                for e in (behaviours[t + 1], other)
            )
            losses.append(-math.log(sigmoid(real)) - math.log(1 - sigmoid(false)))

        interest = zero
        if n:
            key = w["attend.weight"] @ item if how["bilinear"] else item
            shares = [math.exp(h @ key) if how["attention"] else 1.0 for h in states]
            shares = [share / sum(shares) for share in shares]
            padding = [] if how["hold"] else [zero] * (batch.items.shape[1] - n)
            interest = augru(o, w, states + padding, shares + [0.0] * len(padding), how)
        total = sum(behaviours, zero)
        parts = {"interest": interest, "item": item, "sum": total, "product": item * total}
        x = [part if how[name] else zero for name, part in parts.items()]
        groups = {"user": [], "context": []}
        for vector, field in zip(vectors, catalog.fields, strict=True):
            groups[field.group].append(vector if how["user"] else 0 * vector)
        x = np.concatenate([*x, *groups["user"], *groups["context"]])
        logits.append(perceptron(w, "mlp", x, o["hidden"], o["activation"]))
    auxiliary = o["aux"] * sum(losses) / max(len(losses), 1)
    return np.array(logits), o["l2"] * squares / len(logits) + auxiliary


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


def drawn_items(batch, seed):
    """What a net draws first after torch is given this seed: an item for each behaviour after the first."""
    follow = [
        int(i) for row, n in zip(batch.items, batch.lengths, strict=True) for i in row[1 : max(int(n), 1)]
    ]
    torch.manual_seed(seed)
    further = torch.randint(1, 25, (len(follow),))
    return [(item - 1 + int(step)) % 25 + 1 for item, step in zip(follow, further, strict=True)]


@pytest.fixture
def pair(click_catalog, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(catalog=click_catalog, **changes):
        options = net_config("model=dien", "protocol=click_last") | SMALL | changes
        net = instantiate(options)(catalog).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
            for dice in net.modules():
                if isinstance(dice, Dice):
                    dice.mean.copy_(torch.randn(dice.mean.shape, generator=draw))
                    dice.variance.copy_(torch.rand(dice.mean.shape, generator=draw) + 0.1)
        return net, options

    return pair


@pytest.fixture
def clicks(random_clicks):
    return random_clicks(rows=7, window=5)


def agrees(net, o, catalog, batch):
    expected, penalty = reference(o, arrays(net), catalog, batch)
    logits, auxiliary = net(batch)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-10)
    assert auxiliary.item() == pytest.approx(penalty, rel=1e-12)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_logits_are_the_equations(changes, pair, click_catalog, clicks):
    net, o = pair(**changes)
    agrees(net, o, click_catalog, clicks)
    expected = net(clicks)[0]
    np.testing.assert_allclose(net.float()(clicks)[0].detach(), expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", CASES[2:], ids=str)
def test_training_adds_the_auxiliary_loss(changes, pair, click_catalog, clicks):
    net, o = pair(**{"activation": "prelu"} | changes)
    drawn = drawn_items(clicks, seed=5)
    expected, penalty = reference(o, arrays(net), click_catalog, clicks, drawn)
    torch.manual_seed(5)
    logits, auxiliary = net.train()(clicks)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-10)
    assert auxiliary.item() == pytest.approx(penalty, rel=1e-12)


@pytest.mark.parametrize("group", ["user", "context", "both", "item"])
def test_a_dataset_without_some_fields(group, pair, click_catalog, clicks):
    kept = [field for field in click_catalog.fields if group not in ("both", field.group)]
    columns = torch.tensor(
        [group not in ("both", field.group) for field in click_catalog.fields for _ in range(field.width)]
    )
    catalog = click_catalog._replace(fields=tuple(kept))
    if group == "item":
        bare = {"item_codes": catalog.item_codes[:, :0], "item_weights": catalog.item_weights[:, :0]}
        catalog = catalog._replace(item_fields=(), **bare)
    batch = clicks._replace(codes=clicks.codes[:, columns], weights=clicks.weights[:, columns])
    agrees(*pair(catalog), catalog, batch)


@pytest.mark.parametrize("gate", ["paper", "code"])
def test_gradients_are_the_equations(gate, pair, click_catalog, clicks):
    net, o = pair(gate=gate, activation="prelu")
    drawn, w, step = drawn_items(clicks, seed=5), arrays(net), 1e-6
    torch.manual_seed(5)
    logits, auxiliary = net.train()(clicks)
    weight = np.random.default_rng(0).normal(size=logits.shape)
    ((logits * torch.tensor(weight)).sum() + auxiliary).backward()

    def loss(name, shift):
        logits, penalty = reference(o, w | {name: w[name] + shift}, click_catalog, clicks, drawn)
        return (weight * logits).sum() + penalty

    for number, (name, parameter) in enumerate(net.named_parameters()):
        direction = np.random.default_rng(number).normal(size=parameter.shape)
        expected = (loss(name, step * direction) - loss(name, -step * direction)) / (2 * step)
        assert (parameter.grad.numpy() * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("wrong", RIGHT)
@pytest.mark.parametrize("gate", ["paper", "code"])
def test_a_wrong_equation_is_noticed(gate, wrong, pair, click_catalog, clicks):
    net, o = pair(gate=gate)
    other = reference(o, arrays(net), click_catalog, clicks, **{wrong: False})[0]
    gap = np.abs(net(clicks)[0].detach().numpy() - other).max()
    if (gate, wrong) == ("paper", "hold"):  # where attention is 0 the paper's state stays by itself
        assert gap < 1e-10
    else:
        assert gap > 1e-3
