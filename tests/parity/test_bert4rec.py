"""BERT4Rec against a slow float64 reference: one number at a time, written from the paper."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 6, "blocks": 2, "heads": 2, "inner": 5, "window": 6}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("bidirectional", "places", "scale", "enter", "transform", "bias"), True)
MASK = 26


def norm(w, name, x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def gelu(x):
    return np.array([y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in x])


def softmax(logits):
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


def states(o, w, items, how):
    """What the transformer says at each position of one history without padding."""
    places = w["position.table.weight"] * how["places"]
    x = [w["item.weight"][item] + places[place] for place, item in enumerate(items)]
    if how["enter"]:
        x = [norm(w, "encoder.enter.0", y) for y in x]
    e = o["dim"] // o["heads"]
    for block in range(o["blocks"]):
        name = f"encoder.blocks.{block}."
        queries, keys, values = (
            [linear(w, f"{name}attention.{kind}", y) for y in x] for kind in ("query", "key", "value")
        )
        out = []
        for i in range(len(x)):
            found = np.zeros(o["dim"])
            last = len(x) - 1 if how["bidirectional"] else i
            for head in range(o["heads"]):
                own = slice(head * e, head * e + e)
                scale = math.sqrt(e) if how["scale"] else 1
                logits = [queries[i][own] @ keys[j][own] / scale for j in range(last + 1)]
                for j, share in enumerate(softmax(logits)):
                    found[own] += share * values[j][own]
            y = norm(w, f"{name}attention_norm", x[i] + linear(w, f"{name}attention.mix", found))
            inner = gelu(linear(w, f"{name}feed.0", y))
            out.append(norm(w, f"{name}feed_norm", y + linear(w, f"{name}feed.2", inner)))
        x = out
    if how["transform"]:
        x = [norm(w, "leave.2", gelu(linear(w, "leave.0", y))) for y in x]
    return x


def reference(o, w, batch, **wrong):
    """Scores (M, C) of the supervised positions."""
    scores, how = [], RIGHT | wrong
    for row in range(len(batch.items)):
        n = int(batch.lengths[row])
        said = states(o, w, batch.items[row, :n].tolist(), how)
        asked = [n - 1] if batch.targets.shape[1] == 1 else batch.targets[row, :n].nonzero()[:, 0].tolist()
        for place in asked:
            both = ((w["item.weight"][item], w["bias"][item] * how["bias"]) for item in CANDIDATES)
            scores.append([said[place] @ vector + bias for vector, bias in both])
    return np.array(scores)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), CANDIDATES)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def hidden(random_batch):
    """Batches of gaps: anywhere in a history, or behind it."""

    def hidden(every: bool):
        batch = random_batch(window=6, every=every)
        place = torch.arange(6)
        last = place == batch.lengths[:, None] - 1
        if not every:
            return batch._replace(items=torch.where(last, MASK, batch.items))
        gaps = (batch.items != PAD) & ((place + torch.arange(6)[:, None]) % 3 == 0) | last
        return batch._replace(
            items=torch.where(gaps, MASK, batch.items), targets=torch.where(gaps, batch.items, PAD)
        )

    return hidden


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(**changes):
        net = make_net("model=bert4rec", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=bert4rec") | SMALL | changes

    return pair


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("changes", [{}, {"heads": 1, "blocks": 1}, {"heads": 3, "inner": 24}], ids=str)
def test_scores_are_the_equations(changes, every, pair, hidden):
    net, o = pair(**changes)
    batch = hidden(every)
    expected = reference(o, arrays(net), batch)
    np.testing.assert_allclose(scores_of(net, batch).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch).detach(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_equations(pair, hidden):
    net, o = pair()
    batch, step = hidden(every=True), 1e-6
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
def test_a_wrong_equation_is_noticed(wrong, pair, hidden):
    net, o = pair()
    batch = hidden(every=True)
    other = reference(o, arrays(net), batch, **{wrong: False})
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
