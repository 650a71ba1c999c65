"""RetaGNN against a float64 loop over users, items and parts, written from the equations."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
SMALL = {"dim": 3, "eta": 0.3}
VARIANTS = {
    "retagnn": {},
    "retagnn_free": {"eta": 0.0},
    "one layer": {"layers": 1},
    "three layers": {"layers": 3},
    "one base": {"bases": 1},
    "one part": {"parts": 1},
    "five parts": {"parts": 5},
}


def softmax(logits):
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def matrices(weights, layer, wrong=""):
    """What users send to items by, and what items send to users by."""
    mix, bases = weights[f"{layer}.mix"], weights[f"{layer}.bases"]
    both = [sum(mix[r, b] * bases[b] for b in range(len(bases))) for r in range(2)]
    return both[::-1] if wrong == "relations" else both


def step(weights, layer, x, near, matrix, wrong=""):
    """A node from the vectors of its neighbours."""
    own, total = x @ weights[f"{layer}.root"], 0
    if near:
        sent = [other @ matrix for other in near]
        logits = [sum(weights[f"{layer}.own"] * own) + sum(weights[f"{layer}.other"] * y) for y in sent]
        shares = softmax([logit if logit > 0 else 0.2 * logit for logit in logits])
        shares = [1 / len(near)] * len(near) if wrong == "mean" else shares
        total = sum(share * y for share, y in zip(shares, sent, strict=True))
    return np.tanh(own + total + weights[f"{layer}.bias"])


def walk(weights, edges, o, wrong=""):
    """Users and items after each layer on the training graph: {user: [vectors]}, {item: [vectors]}."""
    users, items = weights["user.weight"], weights["item.weight"]
    found_users, found_items = [[] for _ in users], [[] for _ in items]
    for layer in (f"long.{number}" for number in range(o["layers"])):
        from_users, from_items = matrices(weights, layer, wrong)
        new_users = [
            step(weights, layer, x, [items[v] for w, v in edges if w == u], from_items, wrong)
            for u, x in enumerate(users)
        ]
        items = [
            step(weights, layer, x, [users[u] for u, w in edges if w == v], from_users, wrong)
            for v, x in enumerate(items)
        ]
        users = new_users
        for found, now in ((found_users, users), (found_items, items)):
            for all_of_them, x in zip(found, now, strict=True):
                all_of_them.append(x)
    return found_users, found_items


def reference_row(weights, users, items, user, history, o, wrong=""):
    """Scores of all items for one user and its session without padding."""
    x, y = users[user][-1], {item: items[item][-1] for item in history}
    whole_x, whole_y = list(users[user]), {item: list(items[item]) for item in history}
    for layer in (f"short.{number}" for number in range(o["layers"])):
        from_users, from_items = matrices(weights, layer, wrong)
        for part in range(o["parts"]):
            met = [v for t, v in enumerate(history) if t * o["parts"] // len(history) == part]
            met = met if wrong == "positions" else list(dict.fromkeys(met))
            new = step(weights, layer, x, [y[v] for v in met], from_items, wrong)
            y = {v: step(weights, layer, y[v], [x] if v in met else [], from_users, wrong) for v in y}
            x = new
        whole_x.append(x)
        for v in y:
            whole_y[v].append(y[v])
    s = np.concatenate(whole_x)
    session = [np.concatenate(whole_y[v]) for v in history]
    q, k, values = ([weights[f"{it}.weight"] @ v for v in session] for it in ("query", "key", "value"))
    scale = math.sqrt(len(history) if wrong == "scale" else len(s))
    for i in range(len(session)):
        seen = range(len(session)) if wrong == "mask" else range(i + 1)
        shares = softmax([sum(q[i] * k[j]) / scale for j in seen])
        s = s + sum(share * values[j] for share, j in zip(shares, seen, strict=True))
    return weights["candidate.weight"][1:] @ s + weights["bias.weight"][1:, 0]


def reference(net, catalog, batch, o, wrong=""):
    """Scores of all items, and the regularising term."""
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    edges = set(zip(catalog.users.tolist(), catalog.items.tolist(), strict=True))
    if net.training and wrong != "target":
        edges -= set(zip(batch.users.tolist(), batch.targets[:, 0].tolist(), strict=True))
    users, items = walk(weights, edges, o, wrong)
    lengths = [batch.items.shape[1]] * len(batch.items) if wrong == "padding" else batch.lengths.tolist()
    scores = [
        reference_row(weights, users, items, user, history[:length], o, wrong)
        for user, history, length in zip(batch.users.tolist(), batch.items.tolist(), lengths, strict=True)
    ]
    pairs = [matrices(weights, f"{kind}.{n}") for kind in ("long", "short") for n in range(o["layers"])]
    return np.array(scores), o["eta"] * sum(((second - first) ** 2).sum() for first, second in pairs)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS).detach().numpy()


@pytest.fixture
def batch(random_batch, catalog):
    """Histories of few items, which come again; half of the targets are edges of the training graph."""
    batch = random_batch()
    edges = (catalog.users[:, None] == batch.users).int().argmax(0)  # a training row of each user
    targets = torch.where(torch.arange(6) % 2 == 0, catalog.items[edges], batch.targets[:, 0])
    return batch._replace(items=(batch.items % 6 + 1) * (batch.items != PAD), targets=targets[:, None])


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and what the reference must know of it."""

    def pair(**changes):
        net = make_net("model=retagnn", **(SMALL | changes)).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = net.candidate.weight[PAD] = net.bias.weight[PAD] = 0
        return net, net_config("model=retagnn") | SMALL | changes

    return pair


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_the_regularising_term_are_the_equations(variant, training, pair, catalog, batch):
    net, options = pair(**VARIANTS[variant])
    net.train(training)
    scores, term = reference(net, catalog, batch, options)
    np.testing.assert_allclose(scores_of(net, batch), scores, rtol=0, atol=1e-10)
    assert net.encode(batch)[1].item() == pytest.approx(term, abs=1e-10)


def test_float32_is_close(pair, catalog, batch):
    net, options = pair()
    expected, _ = reference(net, catalog, batch, options)
    np.testing.assert_allclose(scores_of(net.float(), batch), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", ["target", "relations", "mean", "mask", "scale", "positions", "padding", {"parts": 2}], ids=str
)
def test_a_wrong_equation_is_noticed(wrong, pair, catalog, batch):
    net, options = pair()
    options, wrong = (options | wrong, "") if isinstance(wrong, dict) else (options, wrong)
    other, _ = reference(net, catalog, batch, options, wrong)
    assert np.abs(scores_of(net, batch) - other).max() > 1e-3


def test_the_variant_is_that_of_conf(net_config):
    assert net_config("model=retagnn_free") == net_config("model=retagnn") | VARIANTS["retagnn_free"]
