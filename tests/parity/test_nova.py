"""NOVA against a slow float64 reference: one number at a time, written from the paper."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 6, "blocks": 2, "heads": 2, "inner": 5, "window": 6, "intensity_bins": 4}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("causal", "places", "intensity", "scale", "non_invasive", "known"), True)


def norm(w, name, x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def gelu(x):
    return np.array([y * 0.5 * (1 + math.erf(y / math.sqrt(2))) for y in x])


def softmax(logits):
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


def strength(o, w, values, place):
    """The vector of an event's intensity among those up to it."""
    if math.isnan(values[place]):
        return w["intensity.table.weight"][o["intensity_bins"]]
    known = [0 if math.isnan(value) else value for value in values[: place + 1]]
    if o["intensity_norm"] == "minmax":
        spread = max(known) - min(known)
        share = 0.1 + 0.9 * (known[-1] - min(known)) / spread if spread else 1.0
    else:
        share = math.log1p(known[-1]) / math.log1p(max(known))
    return w["intensity.table.weight"][min(int(share * o["intensity_bins"]), o["intensity_bins"] - 1)]


def fuse(o, w, name, parts):
    if o["fusion"] == "add":
        return sum(parts)
    if o["fusion"] == "concat":
        return linear(w, f"{name}map", np.concatenate(parts))
    shares = softmax([w[f"{name}weight"] @ part for part in parts])
    return sum(share * part for share, part in zip(shares, parts, strict=True))


def states(o, w, items, values, how):
    """What the last block says at each position of one history without padding."""
    x = [norm(w, "enter.0", w["item.weight"][item]) for item in items]
    places = w["position.table.weight"] * how["places"]
    known = [(places[i], strength(o, w, values, i) * how["intensity"]) for i in range(len(items))]
    e = o["dim"] // o["heads"]
    for block in range(o["blocks"]):
        name = f"blocks.{block}."
        fused = [fuse(o, w, f"{name}attention.fuse.", [y, *k]) for y, k in zip(x, known, strict=True)]
        queries, keys = (
            [linear(w, f"{name}attention.{kind}", y) for y in fused] for kind in ("query", "key")
        )
        values_of = [linear(w, f"{name}attention.value", y) for y in (x if how["non_invasive"] else fused)]
        out = []
        for i in range(len(x)):
            found = np.zeros(o["dim"])
            last = i if how["causal"] else len(x) - 1
            for head in range(o["heads"]):
                own = slice(head * e, head * e + e)
                scale = math.sqrt(e) if how["scale"] else 1
                logits = [queries[i][own] @ keys[j][own] / scale for j in range(last + 1)]
                for j, share in enumerate(softmax(logits)):
                    found[own] += share * values_of[j][own]
            y = norm(w, f"{name}attention_norm", x[i] + linear(w, f"{name}attention.mix", found))
            inner = gelu(linear(w, f"{name}feed.0", y))
            out.append(norm(w, f"{name}feed_norm", y + linear(w, f"{name}feed.2", inner)))
        x = out
        if not how["known"]:
            known = [(np.zeros(o["dim"]),) * 2] * len(x)
    return x


def reference(o, w, batch, **wrong):
    """Scores (M, C) of the supervised positions."""
    scores = []
    for row in range(len(batch.items)):
        n = int(batch.lengths[row])
        items, values = batch.items[row, :n].tolist(), batch.values[row, :n].tolist()
        said = states(o, w, items, values, RIGHT | wrong)
        for state in said[-1:] if batch.targets.shape[1] == 1 else said:
            scores.append([state @ w["item.weight"][item] for item in CANDIDATES])
    return np.array(scores)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), CANDIDATES)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def batch(random_batch):
    """Makes batches in which every fifth event has no intensity."""

    def batch(every: bool):
        made = random_batch(window=6, every=every)
        none = torch.arange(36).view(6, 6) % 5 == 3
        return made._replace(values=torch.where(none & (made.items != PAD), torch.nan, made.values))

    return batch


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(**changes):
        net = make_net("model=nova", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=nova") | SMALL | changes

    return pair


VARIANTS = [
    {},
    {"fusion": "add"},
    {"fusion": "concat"},
    {"intensity_norm": "minmax", "intensity_bins": 3},
    {"heads": 1, "blocks": 1},
]


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_scores_are_the_equations(changes, every, pair, batch):
    net, o = pair(**changes)
    expected = reference(o, arrays(net), batch(every))
    np.testing.assert_allclose(scores_of(net, batch(every)).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch(every)).detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fusion", ["add", "concat", "gate"])
def test_gradients_are_the_equations(fusion, pair, batch):
    net, o = pair(fusion=fusion)
    step = 1e-6
    scores = scores_of(net, batch(True))
    weight = np.random.default_rng(0).normal(size=scores.shape)
    (scores * torch.tensor(weight)).sum().backward()
    for number, (name, parameter) in enumerate(net.named_parameters()):
        direction = np.random.default_rng(number).normal(size=parameter.shape)
        direction[: name == "item.weight"] = 0  # PAD stays
        there, back = (
            (weight * reference(o, w | {name: w[name] + sign * step * direction}, batch(True))).sum()
            for w, sign in ((arrays(net), 1), (arrays(net), -1))
        )
        slope = (parameter.grad.numpy() * direction).sum()
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, batch):
    net, o = pair()
    other = reference(o, arrays(net), batch(True), **{wrong: False})
    assert np.abs(scores_of(net, batch(True)).detach().numpy() - other).max() > 1e-3
