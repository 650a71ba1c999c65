"""MIAN against a slow float64 reference: one showing at a time, written from the equations."""

import math

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

NAMES = ["mian", "mian_no_iuim", "mian_no_icim", "mian_no_ibim", "mian_no_gim", "mian_no_iuim_icim"]
NAMES += ["mian_drop_raw", "mian_post_ln", "mian_no_transformer", "mian_concat", "mian_softmax2"]
SMALL = {"item_dim": 4, "field_dim": 3, "window": 8, "heads": 3, "inner": 7, "gim_dim": 5, "hidden": [6, 4]}
SMALL |= {"l2": 0.3, "l2_dense": 0.02}
OPTIONS = [{"per_slot_score": True}, {"final_norm": True}, {"positions": False}, {"heads": 1, "hidden": []}]
CASES = [(name, {}) for name in NAMES] + [("mian", changes) for changes in OPTIONS]
RIGHT = dict.fromkeys(
    (
        *("mask", "slots", "last", "keys", "scale", "before", "residual"),
        *("own", "bounded", "item", "mean", "shares", "parts", "sign"),
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


def attention(w, name, x, o, how):
    """What each vector finds among all, eq. 4."""
    queries, keys, values = ([linear(w, f"{name}{part}", z) for z in x] for part in ("query", "key", "value"))
    width, found = len(x[0]) // o["heads"], [np.zeros(len(x[0])) for _ in x]
    for head in range(o["heads"]):
        part = slice(head * width, (head + 1) * width)
        logits = np.array([[q[part] @ k[part] for k in keys] for q in queries])
        logits /= math.sqrt(width) if how["scale"] else 1
        shares = [softmax(line) for line in (logits if how["keys"] else logits.T)]
        for i in range(len(x)):
            for j in range(len(x)):
                found[i][part] += (shares[i][j] if how["keys"] else shares[j][i]) * values[j][part]
    return [linear(w, f"{name}mix", z) for z in found]


def block(w, x, o, how):
    """Eq. 3-5, or the same with norms after the sums."""
    name = "interactions.ibim.block."
    before = (o["block"] == "pre") == how["before"]
    first, second = ("enter", "enter_feed") if o["block"] == "pre" else ("leave", "leave_feed")
    found = attention(w, f"{name}attention.", [norm(w, name + first, z) for z in x] if before else x, o, how)
    h = []
    for z, f in zip(x, found, strict=True):
        y = (z if how["residual"] else 0) + f
        y = y if before else norm(w, name + first, y)
        fed = norm(w, name + second, y) if before else y
        fed = linear(w, f"{name}feed.2", np.maximum(linear(w, f"{name}feed.0", fed), 0))
        h.append(y + fed if before else norm(w, name + second, y + fed))
    return h


def meet(w, name, item, others, numbers, how):
    """The candidate beside the weighed others, eq. 6-9 and 10-13."""
    weight, bias = w[f"{name}.interaction.weight"], w[f"{name}.interaction.bias"]
    g = [weight[s] @ np.concatenate([item, x]) + bias[s] for s, x in zip(numbers, others, strict=True)]
    shares = softmax([math.tanh(v) for v in g] if how["bounded"] else g) if g else []
    nothing = np.zeros(weight.shape[1] - len(item))
    total = sum((a * x for a, x in zip(shares, others, strict=True)), nothing)
    own = item if how["item"] else item / max(len(others), 1)
    return np.concatenate([own, total])


def showing(o, w, catalog, batch, row, how):
    """The logit of one row, the weights of its parts by name, and the squares of what it looks up."""

    def item_of(item):
        codes, weights = catalog.item_codes[item], catalog.item_weights[item]
        table = w.get("tables.item_fields.table.weight")
        return np.concatenate(
            [w["tables.item.weight"][item], *embedded(catalog.item_fields, table, codes, weights)]
        )

    item, n = item_of(int(batch.candidates[row])), int(batch.lengths[row])
    behaviours = [item_of(int(i)) for i in batch.items[row, :n]]
    fields = catalog.fields if o["fields"] else ()
    vectors = embedded(fields, w.get("tables.fields.table.weight"), batch.codes[row], batch.weights[row])
    user = [v for v, field in zip(vectors, fields, strict=True) if field.group == "user"]
    context = [v for v, field in zip(vectors, fields, strict=True) if field.group == "context"]
    squares = sum((v**2).sum() for v in [item, *behaviours, *vectors])

    parts = {"item": item}
    if context:
        parts["context"] = np.concatenate(context)
    count = max(n, 1) if how["mean"] else batch.items.shape[1]
    parts["behaviours"] = sum(behaviours, np.zeros(len(item))) / count
    if user:
        parts["user"] = np.concatenate(user)
    if o["ibim"]:
        filling = 0 if how["mask"] else batch.items.shape[1] - n
        x = behaviours + [np.zeros(len(item))] * filling
        slots = [i + (o["window"] if how["slots"] else batch.items.shape[1]) - n for i in range(n)]
        slots = [s if how["last"] else s - 1 for s in slots] + [0] * filling
        if o["positions"]:
            x = [v + w["interactions.ibim.place.table.weight"][s] for v, s in zip(x, slots, strict=True)]
        if o["block"] != "none" and x:
            x = block(w, x, o, how)
        if o["final_norm"]:
            x = [norm(w, "interactions.ibim.norm", z) for z in x]
        numbers = slots if o["per_slot_score"] else [0] * len(x)
        parts["ibim"] = meet(w, "interactions.ibim", item, x, numbers, how)
    for name, others in {"iuim": user, "icim": context}.items():
        if o[name] and others:
            numbers = range(len(others)) if how["own"] else [0] * len(others)
            parts[name] = meet(w, f"interactions.{name}", item, others, numbers, how)

    vectors = list(parts.values())
    if o["gim_combine"] == "sum":
        vectors = [linear(w, f"gim.project.{part}", v) for part, v in enumerate(vectors)]
        numbers = [part if how["parts"] else 0 for part in range(len(vectors))]
        g = [w["gim.weight"][s] @ v + w["gim.bias"][s] for s, v in zip(numbers, vectors, strict=True)]
    elif o["gim_combine"] == "concat":
        g = [linear(w, f"gim.scores.{part}", v)[0] for part, v in enumerate(vectors)]
    if o["gim_combine"] == "none":
        shares = [1.0] * len(vectors)
    else:
        g = [math.tanh(value) for value in g]
        shares = softmax(g) if how["shares"] else g
    weighed = [a * v for a, v in zip(shares, vectors, strict=True)]
    x = sum(weighed) if o["gim_combine"] == "sum" else np.concatenate(weighed)

    for layer in range(len(o["hidden"])):
        x = np.maximum(linear(w, f"head.0.{layer * 3}", x), 0)
    out = linear(w, "head.1", x)
    if o["head"] == "softmax2":
        clicked = softmax(out)[1 if how["sign"] else 0]
        return math.log(clicked / (1 - clicked)), dict(zip(parts, shares, strict=True)), squares
    return out[0] if how["sign"] else -out[0], dict(zip(parts, shares, strict=True)), squares


def reference(o, w, catalog, batch, **wrong):
    """Logits, the L2 term, and the weights of the parts by name."""
    rows = [showing(o, w, catalog, batch, row, RIGHT | wrong) for row in range(len(batch.items))]
    logits, weights, squares = zip(*rows, strict=True)
    dense = [
        array
        for name, array in w.items()
        if not name.startswith("tables.") and "place" not in name and name.endswith(".weight")
        if not any(norm in name for norm in (".enter", ".leave", ".norm"))
    ]
    penalty = o["l2"] * np.mean(squares) + o["l2_dense"] * sum((array**2).sum() for array in dense)
    return np.array(logits), penalty, {name: np.array([row[name] for row in weights]) for name in weights[0]}


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(click_catalog, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(name, catalog=click_catalog, **changes):
        options = net_config(f"model={name}", "protocol=click_last") | SMALL | changes
        net = instantiate(options)(catalog).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
        return net, options

    return pair


@pytest.fixture
def without(click_catalog):
    """The catalogue without the fields of a group, and what makes batches fit it."""

    def without(group):
        empty = click_catalog.item_codes[:, :0]
        if group == "item":
            bare = click_catalog._replace(
                item_fields=(), item_codes=empty, item_weights=click_catalog.item_weights[:, :0]
            )
            return bare, lambda batch: batch
        kept = [field.group != group for field in click_catalog.fields]
        columns = [
            keep for field, keep in zip(click_catalog.fields, kept, strict=True) for _ in range(field.width)
        ]
        columns = torch.tensor(columns)
        fields = tuple(field for field, keep in zip(click_catalog.fields, kept, strict=True) if keep)
        return click_catalog._replace(fields=fields), lambda batch: batch._replace(
            codes=batch.codes[:, columns], weights=batch.weights[:, columns]
        )

    return without


def agrees(net, o, catalog, batch):
    logits, auxiliary = net(batch)
    expected, penalty, weights = reference(o, arrays(net), catalog, batch)
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-10)
    assert auxiliary.item() == pytest.approx(penalty, rel=1e-12)
    assert net.parts == tuple(weights)
    found = net.weights(batch)["gim"].detach()
    np.testing.assert_allclose(found, np.stack(list(weights.values()), 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(net.float()(batch)[0].detach(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_logits_are_the_equations(name, changes, pair, click_catalog, random_clicks):
    agrees(*pair(name, **changes), click_catalog, random_clicks(window=6))


@pytest.mark.parametrize("group", ["user", "context", "item"])
@pytest.mark.parametrize("name", ["mian", "mian_concat"])
def test_a_dataset_without_some_fields(name, group, pair, without, random_clicks):
    catalog, fit = without(group)
    net, o = pair(name, catalog, heads=2)
    agrees(net, o, catalog, fit(random_clicks(window=6)))
    absent = {"user": {"user", "iuim"}, "context": {"context", "icim"}, "item": set()}[group]
    assert len(net.parts) == 7 - len(absent) and not absent & set(net.parts)


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_gradients_are_the_equations(name, changes, pair, click_catalog, random_clicks):
    net, o = pair(name, **changes)
    batch, step = random_clicks(window=6), 1e-6
    logits, auxiliary = net(batch)
    weight, w = np.random.default_rng(0).normal(size=logits.shape), arrays(net)
    ((logits * torch.tensor(weight)).sum() + auxiliary).backward()

    def loss(name, shift):
        logits, penalty, _ = reference(o, w | {name: w[name] + shift}, click_catalog, batch)
        return (weight * logits).sum() + penalty

    for number, (name, parameter) in enumerate(net.named_parameters()):
        direction = np.random.default_rng(number).normal(size=parameter.shape)
        expected = (loss(name, step * direction) - loss(name, -step * direction)) / (2 * step)
        assert (parameter.grad.numpy() * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, click_catalog, random_clicks):
    net, o = pair("mian")
    batch = random_clicks(window=6)
    other = reference(o, arrays(net), click_catalog, batch, **{wrong: False})[0]
    assert np.abs(net(batch)[0].detach().numpy() - other).max() > 1e-3
