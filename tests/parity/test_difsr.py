"""DIF-SR against a slow float64 reference: one number at a time, from the paper and the public code."""

import math

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

SMALL = {"dim": 6, "side_dim": 4, "blocks": 2, "heads": 2, "inner": 5, "window": 6, "intensity_bins": 4}
CANDIDATES = torch.tensor([3, 9, 25, 1])
RIGHT = dict.fromkeys(("causal", "by_position", "by_intensity", "scale", "apart"), True)


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
    highest = max(0 if math.isnan(value) else value for value in values[: place + 1])
    share = math.log1p(values[place]) / math.log1p(highest)
    return w["intensity.table.weight"][min(int(share * o["intensity_bins"]), o["intensity_bins"] - 1)]


def product(w, name, query, key, head, heads):
    q, k = (np.split(linear(w, f"{name}.{kind}", x), heads) for kind, x in (("query", query), ("key", key)))
    return q[head] @ k[head]


def states(o, w, items, values, how):
    """What the last block says at each position of one history without padding."""
    places = [w["position.table.weight"][i] for i in range(len(items))]
    x = [w["item.weight"][item] + (0 if how["apart"] else p) for item, p in zip(items, places, strict=True)]
    x = [norm(w, "encoder.enter.0", y) for y in x]
    side = [strength(o, w, values, i) for i in range(len(items))]
    for block in range(o["blocks"]):
        name, out = f"encoder.blocks.{block}.", []
        for i in range(len(x)):
            found = []
            last = i if how["causal"] else len(x) - 1
            for head in range(o["heads"]):
                logits = []
                for j in range(last + 1):
                    logit = product(w, f"{name}attention", x[i], x[j], head, o["heads"])
                    for kind, given in (("by_position", places), ("by_intensity", side)):
                        if how[kind]:
                            logit += product(w, f"{kind}.{block}", given[i], given[j], head, o["heads"])
                    logits.append(logit / (math.sqrt(o["dim"] / o["heads"]) if how["scale"] else 1))
                parts = [np.split(linear(w, f"{name}attention.value", y), o["heads"])[head] for y in x]
                found.append(sum(share * part for share, part in zip(softmax(logits), parts, strict=False)))
            mixed = linear(w, f"{name}attention.mix", np.concatenate(found))
            y = norm(w, f"{name}attention_norm", x[i] + mixed)
            inner = gelu(linear(w, f"{name}feed.0", y))
            out.append(norm(w, f"{name}feed_norm", y + linear(w, f"{name}feed.2", inner)))
        x = out
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
        net = make_net("model=difsr", **(SMALL | changes)).eval().double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, net_config("model=difsr") | SMALL | changes

    return pair


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("changes", [{}, {"heads": 1, "blocks": 1}, {"side_dim": 8}], ids=str)
def test_scores_are_the_equations(changes, every, pair, batch):
    net, o = pair(**changes)
    expected = reference(o, arrays(net), batch(every))
    np.testing.assert_allclose(scores_of(net, batch(every)).detach(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch(every)).detach(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_equations(pair, batch):
    net, o = pair()
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
