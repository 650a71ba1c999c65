"""TiSASRec against a slow float64 reference: one number at a time, from the paper and the public code."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 6, "blocks": 2, "heads": 2, "window": 6, "longest": 7, "l2": 0.3}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("causal", "pace", "keys", "values", "places", "scale", "query"), True)


def norm(w, name, x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-8) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def softmax(logits):
    weights = np.exp(np.array(logits) - max(logits))
    return weights / weights.sum()


def interval(times, i, j, longest, personal):
    """Eq. 2 for a user who has done nothing after event i."""
    gaps = [b - a for a, b in pairwise(times[: i + 1]) if b > a]
    pace = min(gaps, default=1) if personal else 3600
    return min(longest, abs(times[i] - times[j]) // pace)


def states(o, w, items, times, how):
    """What the last block says at each position of one history without padding."""
    x = [math.sqrt(o["dim"]) * w["item.weight"][item] for item in items]
    e = o["dim"] // o["heads"]
    for block in range(o["blocks"]):
        name = f"blocks.{block}."
        q_in = [norm(w, f"{name}query_norm", y) for y in x]
        queries = [linear(w, f"{name}attention.query", y) for y in q_in]
        keys = [linear(w, f"{name}attention.key", y) for y in x]
        values = [linear(w, f"{name}attention.value", y) for y in x]
        out = []
        for i in range(len(x)):
            found = np.zeros(o["dim"])
            last = i if how["causal"] else len(x) - 1
            for head in range(o["heads"]):
                own = slice(head * e, head * e + e)
                logits, seen = [], []
                for j in range(last + 1):
                    r = interval(times, i, j, o["longest"], how["pace"])
                    key, value = keys[j][own], values[j][own]
                    key = key + how["keys"] * w["key_time.weight"][r][own]
                    value = value + how["values"] * w["value_time.weight"][r][own]
                    key = key + how["places"] * w["key_place.table.weight"][j][own]
                    value = value + how["places"] * w["value_place.table.weight"][j][own]
                    logits.append(queries[i][own] @ key / (math.sqrt(e) if how["scale"] else 1))
                    seen.append(value)
                for share, value in zip(softmax(logits), seen, strict=True):
                    found[own] += share * value
            residual = q_in[i] if how["query"] else x[i]
            y = norm(w, f"{name}feed_norm", residual + found)
            inner = np.maximum(linear(w, f"{name}feed.0", y), 0)
            out.append(y + linear(w, f"{name}feed.3", inner))
        x = out
    return [norm(w, "leave", y) for y in x]


def reference(o, w, batch, **wrong):
    """Scores (M, C) of the supervised positions."""
    scores = []
    for row in range(len(batch.items)):
        n = int(batch.lengths[row])
        said = states(o, w, batch.items[row, :n].tolist(), batch.times[row, :n].tolist(), RIGHT | wrong)
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
        net = make_net("model=tisasrec", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=tisasrec") | SMALL | changes

    return pair


VARIANTS = [{}, {"heads": 1, "blocks": 1}, {"heads": 3}, {"longest": 100000}]


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
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


def test_the_penalty_is_of_whole_tables(pair, random_batch):
    net, _ = pair()
    names = ("item", "key_time", "value_time", "key_place.table", "value_place.table")
    expected = 0.3 * sum((arrays(net)[f"{name}.weight"] ** 2).sum() for name in names)
    found = net.regulariser(random_batch(), CANDIDATES, torch.tensor([0]))
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, random_batch):
    net, o = pair()
    batch = random_batch(window=6, every=True)
    other = reference(o, arrays(net), batch, **{wrong: False})
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
