"""eSASRec against a slow float64 reference: one number at a time, written from the papers."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 6, "blocks": 2, "heads": 2, "inner": 5, "window": 6}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("causal", "places", "scale", "prenorm", "gate_reads_raw", "gated"), True)


def norm(w, name, x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(logits):
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


def states(o, w, items, how):
    """What the last block says at each position of one history without padding."""
    places = w["position.table.weight"] * how["places"]
    x = [w["item.weight"][item] + places[place] for place, item in enumerate(items)]
    e = o["dim"] // o["heads"]
    for block in range(o["blocks"]):
        name = f"blocks.{block}."
        normed = [norm(w, f"{name}attention_norm", y) if how["prenorm"] else y for y in x]
        queries, keys, values = (
            [linear(w, f"{name}attention.{kind}", y) for y in normed] for kind in ("query", "key", "value")
        )
        out = []
        for i in range(len(x)):
            found = np.zeros(o["dim"])
            last = i if how["causal"] else len(x) - 1
            for head in range(o["heads"]):
                own = slice(head * e, head * e + e)
                scale = math.sqrt(e) if how["scale"] else 1
                logits = [queries[i][own] @ keys[j][own] / scale for j in range(last + 1)]
                for j, share in enumerate(softmax(logits)):
                    found[own] += share * values[j][own]
            read = x[i] if how["gate_reads_raw"] else normed[i]
            gate = sigmoid(linear(w, f"{name}attention_gate", read)) if how["gated"] else 1
            y = x[i] + gate * linear(w, f"{name}attention.mix", found)
            z = norm(w, f"{name}feed_norm", y)
            a = linear(w, f"{name}feed.gate", z)
            fed = linear(w, f"{name}feed.leave", a * sigmoid(a) * linear(w, f"{name}feed.enter", z))
            gate = sigmoid(linear(w, f"{name}feed_gate", y)) if how["gated"] else 1
            out.append(y + gate * fed)
        x = out
    return x


def reference(o, w, batch, **wrong):
    """Scores (M, C) of the supervised positions."""
    scores = []
    for row in range(len(batch.items)):
        said = states(o, w, batch.items[row, : int(batch.lengths[row])].tolist(), RIGHT | wrong)
        for state in said[-1:] if batch.targets.shape[1] == 1 else said:
            scores.append([state @ w["item.weight"][item] for item in CANDIDATES])
    return np.array(scores)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), CANDIDATES)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(**changes):
        net = make_net("model=esasrec", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=esasrec") | SMALL | changes

    return pair


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("changes", [{}, {"heads": 1, "blocks": 1}, {"heads": 3, "inner": 24}], ids=str)
def test_scores_are_the_equations(changes, every, pair, random_batch):
    net, o = pair(**changes)
    batch = random_batch(window=6, every=every)
    expected = reference(o, arrays(net), batch)
    np.testing.assert_allclose(scores_of(net, batch).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch).detach(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_equations(pair, random_batch):
    net, o = pair()
    batch, step = random_batch(window=6, every=True), 1e-6
    scores = scores_of(net, batch)
    weight = np.random.default_rng(0).normal(size=scores.shape)
    (scores * torch.tensor(weight)).sum().backward()
    for number, (name, parameter) in enumerate(net.named_parameters()):
        direction = np.random.default_rng(number).normal(size=parameter.shape)
        direction[: name == "item.weight"] = 0  # PAD stays
        there, back = (
            (weight * reference(o, w | {name: w[name] + sign * step * direction}, batch)).sum()
            for w, sign in ((arrays(net), 1), (arrays(net), -1))
        )
        slope = (parameter.grad.numpy() * direction).sum()
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, random_batch):
    net, o = pair()
    batch = random_batch(window=6, every=True)
    other = reference(o, arrays(net), batch, **{wrong: False})
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
