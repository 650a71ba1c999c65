"""DIN against a slow float64 reference: one behaviour and one showing at a time, from the equations."""

import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from hydrec.layers.dice import Dice

SMALL = {
    "item_dim": 3,
    "field_dim": 2,
    "attention_hidden": [5, 4],
    "hidden": [6, 3],
    "l2": 0.3,
    "l2_aware": 0.2,
}
CASES = [
    {},
    {"softmax": True},
    {"activation": "prelu"},
    {"activation": "sigmoid", "softmax": True},
    {"attention_hidden": [], "hidden": []},
]
RIGHT = dict.fromkeys(
    ("mask", "query", "key", "difference", "product", "scale", "interest", "item", "both", "user", "context"),
    True,
)


def linear(w, name, x):
    return [w[f"{name}.weight"] @ v + w[f"{name}.bias"] for v in x]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def activated(w, name, x, activation, training):
    """The vectors of all rows: Dice in training is of their mean and variance."""
    if activation == "sigmoid":
        return [sigmoid(v) for v in x]
    if activation == "prelu":
        return [np.where(v > 0, v, w[f"{name}.weight"] * v) for v in x]
    mean, variance = w[f"{name}.mean"], w[f"{name}.variance"]
    if training:
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
    p = [sigmoid((v - mean) / np.sqrt(variance + 1e-8)) for v in x]
    return [share * v + (1 - share) * w[f"{name}.alpha"] * v for share, v in zip(p, x, strict=True)]


def perceptron(w, name, x, o, hidden, training):
    for layer in range(len(hidden)):
        x = linear(w, f"{name}.0.{2 * layer}", x)
        x = activated(w, f"{name}.0.{2 * layer + 1}", x, o["activation"], training)
    return [v[0] for v in linear(w, f"{name}.1", x)]


def embedded(fields, table, codes, weights):
    """The vectors of fields whose codes are side by side, as their tables are below each other."""
    vectors, column, first = [], 0, 0
    for field in fields:
        columns = range(column, column + field.width)
        vectors.append(sum(float(weights[c]) * table[first + int(codes[c])] for c in columns))
        column, first = column + field.width, first + field.size
    return vectors


def reference(o, w, catalog, batch, training=False, **wrong):
    """Logits and the L2 terms."""
    how = RIGHT | wrong

    def item_of(item):
        codes, weights = catalog.item_codes[item], catalog.item_weights[item]
        table = w.get("tables.item_fields.table.weight")
        return np.concatenate(
            [w["tables.item.weight"][item], *embedded(catalog.item_fields, table, codes, weights)]
        )

    count, squares, aware = len(batch.lengths), 0.0, 0.0
    items, behaviours, places, vectors = [], [], [], []
    for row in range(count):
        candidate, n = int(batch.candidates[row]), int(batch.lengths[row])
        items.append(item_of(candidate))
        behaviours.append([item_of(int(i)) for i in batch.items[row, :n]])
        if not how["mask"]:
            behaviours[-1] += [0 * items[-1]] * (batch.items.shape[1] - n)
        table = w.get("tables.fields.table.weight")
        vectors.append(embedded(catalog.fields, table, batch.codes[row], batch.weights[row]))
        squares += sum((v**2).sum() for v in [items[-1], *behaviours[-1], *vectors[-1]])
        aware += (w["tables.item.weight"][candidate] ** 2).sum() / max(int(catalog.shown[candidate]), 1)
        places += [(row, t) for t in range(len(behaviours[-1]))]

    pairs = []
    for row, t in places:
        q, k = items[row], behaviours[row][t]
        parts = {"query": q, "key": k, "difference": q - k, "product": q * k}
        pairs.append(np.concatenate([part if how[name] else 0 * part for name, part in parts.items()]))
    scores = perceptron(w, "unit", pairs, o, o["attention_hidden"], training)
    weights = [[0.0] * len(own) for own in behaviours]
    for (row, t), score in zip(places, scores, strict=True):
        weights[row][t] = score / math.sqrt(len(items[0])) if o["softmax"] and how["scale"] else score
    if o["softmax"]:
        exponents = [[math.exp(score) for score in own] for own in weights]
        weights = [[e / sum(own) for e in own] for own in exponents]

    joined = []
    for row in range(count):
        q, zero = items[row], 0 * items[row]
        u = sum((a * k for a, k in zip(weights[row], behaviours[row], strict=True)), zero)
        parts = {"interest": u, "item": q, "both": u * q}
        x = [part if how[name] else zero for name, part in parts.items()]
        groups = {"user": [], "context": []}
        for vector, field in zip(vectors[row], catalog.fields, strict=True):
            groups[field.group].append(vector if how[field.group] else 0 * vector)
        joined.append(np.concatenate([*x, *groups["user"], *groups["context"]]))
    logits = perceptron(w, "mlp", joined, o, o["hidden"], training)
    return np.array(logits), o["l2"] * squares / count + o["l2_aware"] / 2 * aware


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(click_catalog, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(catalog=click_catalog, **changes):
        options = net_config("model=din", "protocol=click_last") | SMALL | changes
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
    expected, penalty = reference(o, arrays(net), catalog, batch, net.training)
    logits, auxiliary = net(batch)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-10)
    assert auxiliary.item() == pytest.approx(penalty, rel=1e-6)  # rarity is float32 at first


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_logits_are_the_equations(changes, pair, click_catalog, clicks):
    net, o = pair(**changes)
    agrees(net, o, click_catalog, clicks)
    expected = net(clicks)[0]
    np.testing.assert_allclose(net.float()(clicks)[0].detach(), expected.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("softmax", [False, True])
def test_training_has_the_statistics_of_valid_behaviours(softmax, pair, click_catalog, clicks):
    net, o = pair(softmax=softmax)
    agrees(net.train(), o, click_catalog, clicks)
    with_padding = reference(o, arrays(net), click_catalog, clicks, True, mask=False)[0]
    assert np.abs(net(clicks)[0].detach().numpy() - with_padding).max() > 1e-3


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


@pytest.mark.parametrize("changes", CASES[:2], ids=str)
def test_gradients_are_the_equations(changes, pair, click_catalog, clicks):
    net, o = pair(**changes)
    logits, auxiliary = net(clicks)
    weight, w, step = np.random.default_rng(0).normal(size=logits.shape), arrays(net), 1e-6
    ((logits * torch.tensor(weight)).sum() + auxiliary).backward()

    def loss(name, shift):
        logits, penalty = reference(o, w | {name: w[name] + shift}, click_catalog, clicks)
        return (weight * logits).sum() + penalty

    for number, (name, parameter) in enumerate(net.named_parameters()):
        direction = np.random.default_rng(number).normal(size=parameter.shape)
        expected = (loss(name, step * direction) - loss(name, -step * direction)) / (2 * step)
        assert (parameter.grad.numpy() * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, click_catalog, clicks):
    net, o = pair(softmax=wrong in ("mask", "scale"))
    other = reference(o, arrays(net), click_catalog, clicks, **{wrong: False})[0]
    assert np.abs(net(clicks)[0].detach().numpy() - other).max() > 1e-3
