"""HSTU against a slow float64 reference: one number at a time, from the paper and the public code."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 5, "blocks": 2, "heads": 2, "qk_dim": 3, "value_dim": 4, "window": 6, "buckets": 30}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("causal", "biased", "gated", "normed", "by_window", "silu"), True)


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6)


def states(o, w, items, times, asked, how):
    """What the last unit says at each position of one history without padding."""
    x = [
        math.sqrt(o["dim"]) * w["item.weight"][item] + w["position.table.weight"][place]
        for place, item in enumerate(items)
    ]
    h, e, v = o["heads"], o["qk_dim"], o["value_dim"]
    for unit in range(o["blocks"]):
        name = f"units.{unit}."
        parts = [silu(w[f"{name}project.weight"] @ norm(y)) for y in x]
        cut = np.cumsum([h * v, h * v, h * e])
        gates, values, queries, keys = zip(*(np.split(part, cut) for part in parts), strict=True)
        out = []
        for i in range(len(x)):
            found = np.zeros(h * v)
            for head in range(h):
                q, own = slice(head * e, head * e + e), slice(head * v, head * v + v)
                for j in range(i + 1 if how["causal"] else len(x)):
                    logit = queries[i][q] @ keys[j][q]
                    if how["biased"]:
                        gap = max(1, asked[i] - times[j])
                        bucket = min(o["buckets"], math.floor(math.log(gap) / 0.301))
                        logit += w[f"{name}distance"][max(i - j, 0)] + w[f"{name}time"][bucket]
                    weight = silu(logit) if how["silu"] else logit
                    found[own] += weight / (o["window"] if how["by_window"] else i + 1) * values[j][own]
            found = norm(found) if how["normed"] else found
            gated = gates[i] * found if how["gated"] else found
            out.append(x[i] + w[f"{name}leave.weight"] @ gated + w[f"{name}leave.bias"])
        x = out
    return [y / np.linalg.norm(y) / o["temperature"] for y in x]


def reference(o, w, batch, **wrong):
    """Scores (M, C) of the supervised positions."""
    scores = []
    for row in range(len(batch.items)):
        n = int(batch.lengths[row])
        items, times = batch.items[row, :n].tolist(), batch.times[row, :n].tolist()
        last = batch.target_times[row, :n][-1].item()
        asked = times if o["query_time"] == "last" else [*times[1:], last]
        said = states(o, w, items, times, asked, RIGHT | wrong)
        for state in said[-1:] if batch.targets.shape[1] == 1 else said:
            vectors = [w["item.weight"][item] for item in CANDIDATES]
            scores.append([state @ vector / np.linalg.norm(vector) for vector in vectors])
    return np.array(scores)


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), CANDIDATES)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(**changes):
        net = make_net("model=hstu", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=hstu") | SMALL | changes

    return pair


VARIANTS = [{}, {"query_time": "last"}, {"heads": 1, "blocks": 1}, {"temperature": 1.0}]


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


@pytest.mark.parametrize("wrong", RIGHT)
def test_a_wrong_equation_is_noticed(wrong, pair, random_batch):
    net, o = pair()
    batch = random_batch(window=6, every=True)
    other = reference(o, arrays(net), batch, **{wrong: False})
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
