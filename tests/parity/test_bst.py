"""BST against a slow float64 reference: one showing at a time, written from the equations."""

import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.models.bst import BST, octaves

SMALL = {"item_dim": 4, "field_dim": 3, "heads": 4, "inner": 7, "hidden": [6, 4], "l2": 0.3}
CASES = [{}, {"blocks": 3}, {"heads": 1, "hidden": []}, {"octaves": 12}, {"octaves": 1}]
RIGHT = dict.fromkeys(
    (
        *("candidate", "mask", "time", "octave", "keys", "scale", "residual", "norm", "leak"),
        *("feed", "found", "item", "user", "context"),
    ),
    True,
)


def softmax(logits):
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def norm(w, name, x):
    centred = x - sum(x) / len(x)
    return centred / math.sqrt(sum(centred**2) / len(x) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def embedded(fields, table, codes, weights):
    """The vectors of fields whose codes are side by side, as their tables are below each other."""
    vectors, column, first = [], 0, 0
    for field in fields:
        columns = range(column, column + field.width)
        vectors.append(sum(float(weights[c]) * table[first + int(codes[c])] for c in columns))
        column, first = column + field.width, first + field.size
    return vectors


def octave(seconds, count):
    """How many digits the number has in base 2."""
    return min(int(seconds).bit_length(), count - 1)


def block(w, name, x, o, how):
    """Eq. 2-6 for all items of a sequence."""
    attention = f"{name}.attention."
    queries, keys, values = (
        [linear(w, attention + part, z) for z in x] for part in ("query", "key", "value")
    )
    width, found = len(x[0]) // o["heads"], [np.zeros(len(x[0])) for _ in x]
    for head in range(o["heads"]):
        part = slice(head * width, (head + 1) * width)
        logits = np.array([[q[part] @ k[part] for k in keys] for q in queries])
        logits /= math.sqrt(width) if how["scale"] else 1
        shares = [softmax(line) for line in (logits if how["keys"] else logits.T)]
        for i in range(len(x)):
            for j in range(len(x)):
                found[i][part] += (shares[i][j] if how["keys"] else shares[j][i]) * values[j][part]
    out = []
    for z, f in zip(x, found, strict=True):
        y = (z if how["residual"] else 0) + linear(w, f"{attention}mix", f)
        y = norm(w, f"{name}.attention_norm", y) if how["norm"] else y
        inner = linear(w, f"{name}.feed.0", y)
        inner = np.where(inner > 0, inner, 0.01 * inner if how["leak"] else 0)
        out.append(
            norm(w, f"{name}.feed_norm", (y if how["feed"] else 0) + linear(w, f"{name}.feed.2", inner))
        )
    return out


def showing(o, w, catalog, batch, row, how):
    """The logit of one row, and the squares of what it looks up."""

    def item_of(item):
        codes, weights = catalog.item_codes[item], catalog.item_weights[item]
        table = w.get("tables.item_fields.table.weight")
        return np.concatenate(
            [w["tables.item.weight"][item], *embedded(catalog.item_fields, table, codes, weights)]
        )

    n, now = int(batch.lengths[row]), int(batch.target_times[row])
    item = item_of(int(batch.candidates[row]))
    behaviours = [item_of(int(i)) for i in batch.items[row, :n]]
    table = w.get("tables.fields.table.weight")
    vectors = embedded(catalog.fields, table, batch.codes[row], batch.weights[row])
    squares = sum((v**2).sum() for v in [item, *behaviours, *vectors])

    times = [now - int(t) for t in batch.times[row, :n]] if how["time"] else [0] * n
    number = octave if how["octave"] else lambda t, count: min(t // 86400, count - 1)
    x = [
        np.concatenate([v, w["time.weight"][number(t, o["octaves"])]])
        for v, t in zip([*behaviours, item], [*times, 0], strict=True)
    ]
    if not how["candidate"]:
        x = x[:-1] or x
    if not how["mask"]:
        x = [np.concatenate([0 * item, w["time.weight"][0]])] * (batch.items.shape[1] - n) + x
    for layer in range(o["blocks"]):
        x = block(w, f"blocks.{layer}", x, o, how)
    found = x[-1] if how["found"] else sum(x) / len(x)  # the candidate is last
    groups = {"item": [item], "user": [], "context": []}
    for vector, field in zip(vectors, catalog.fields, strict=True):
        groups[field.group].append(vector)
    x = np.concatenate([found, *(v if how[name] else 0 * v for name, own in groups.items() for v in own)])
    for layer in range(len(o["hidden"])):
        x = np.maximum(linear(w, f"mlp.0.{layer * 3}", x), 0)
    return linear(w, "mlp.1", x)[0], squares


def reference(o, w, catalog, batch, **wrong):
    """Logits and the L2 term."""
    rows = [showing(o, w, catalog, batch, row, RIGHT | wrong) for row in range(len(batch.items))]
    logits, squares = zip(*rows, strict=True)
    return np.array(logits), o["l2"] * np.mean(squares)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(click_catalog, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(catalog=click_catalog, **changes):
        options = net_config("model=bst", "protocol=click_last") | SMALL | changes
        net = instantiate(options)(catalog).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
        return net, options

    return pair


@pytest.fixture
def clicks(random_clicks):
    """Showings of which some follow a behaviour within seconds and others after months."""
    batch = random_clicks(rows=8, window=6)
    ago = torch.tensor([0, 1, 60, 3600, 86400, 10**7, 10**9, 0])
    last = batch.times.amax(1)
    return batch._replace(target_times=torch.where(batch.lengths > 0, last + ago, 0))


def agrees(net, o, catalog, batch):
    logits, auxiliary = net(batch)
    expected, penalty = reference(o, arrays(net), catalog, batch)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-10)
    assert auxiliary.item() == pytest.approx(penalty, rel=1e-12)
    np.testing.assert_allclose(net.float()(batch)[0].detach(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_logits_are_the_equations(changes, pair, click_catalog, clicks):
    agrees(*pair(**changes), click_catalog, clicks)


@pytest.mark.parametrize("group", ["user", "context", "both", "item"])
def test_a_dataset_without_some_fields(group, pair, click_catalog, clicks):
    kept = [field for field in click_catalog.fields if group not in ("both", field.group)]
    columns = [
        group not in ("both", field.group) for field in click_catalog.fields for _ in range(field.width)
    ]
    catalog = click_catalog._replace(fields=tuple(kept))
    if group == "item":
        bare = {"item_codes": catalog.item_codes[:, :0], "item_weights": catalog.item_weights[:, :0]}
        catalog = catalog._replace(item_fields=(), **bare)
    columns = torch.tensor(columns)
    batch = clicks._replace(codes=clicks.codes[:, columns], weights=clicks.weights[:, columns])
    agrees(*pair(catalog), catalog, batch)


@pytest.mark.parametrize("changes", CASES[:3], ids=str)
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
    net, o = pair()
    other = reference(o, arrays(net), click_catalog, clicks, **{wrong: False})[0]
    assert np.abs(net(clicks)[0].detach().numpy() - other).max() > 1e-3


def test_octaves_are_exact_at_their_ends():
    ends = [2**k + shift for k in range(1, 62) for shift in (-1, 0)]
    assert octaves(torch.tensor(ends), 64).tolist() == [octave(end, 64) for end in ends]


def test_order_is_in_the_times_only(pair, click_catalog, clicks):
    net, _ = pair(blocks=2)
    lengths = torch.full((8,), 6)
    batch = clicks._replace(lengths=lengths, items=torch.arange(48).view(8, 6) % 25 + 1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    both = batch._replace(items=batch.items[:, order], times=batch.times[:, order])
    assert_close(net(both)[0], net(batch)[0], rtol=0, atol=1e-10)
    alone = batch._replace(items=batch.items[:, order])
    assert (net(alone)[0] - net(batch)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [{key: 0} for key in ("item_dim", "field_dim", "octaves", "blocks", "heads", "inner")]
    + [{"octaves": 65}, {"heads": 7}, {"std": 0.0}, {"l2": -1.0}, {"dropout": 1.0}, {"activation": "rel"}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, click_catalog, net_config):
    config = net_config("model=bst")
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        BST(click_catalog, **({k: v for k, v in config.items() if not k.startswith("_")} | changes))
