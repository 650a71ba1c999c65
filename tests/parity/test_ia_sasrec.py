"""IA-SASRec and its binned successors against a float64 loop over keys."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
SMALL = {"dim": 8, "inner": 6, "heads": 2, "blocks": 2, "window": 12, "lambda_value": 0.7}
BINNED = SMALL | {"heads": 4, "dim": 12}
del BINNED["lambda_value"]
ORIGINAL = {"block": "original", "position": "slot", "scale": True, "eps": 1e-8}
VARIANTS = {
    f"{form} {lambda_mode}": {"form": form, "lambda_mode": lambda_mode}
    for form in ("add", "mul", "val")
    for lambda_mode in ("block", "head", "event", "pinned")
} | {
    "add original": ORIGINAL | {"form": "add"},
    "mul original": ORIGINAL | {"form": "mul"},
    "val original": ORIGINAL | {"form": "val"},
    "minmax": {"form": "mul", "intensity_norm": "minmax"},
    "zscore": {"form": "mul", "intensity_norm": "zscore"},
    "none": {"form": "mul", "intensity_norm": "none"},
    "rank": {"form": "mul", "intensity_norm": "rank"},
}
USES = ["bias", "experts", "hard_experts", "tokens", "constant_tokens"]


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(model, **changes):
        net = make_net(f"model={model}", **changes).double().eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(0.5 + 0.3 * noise if "strengths" in name or "share" in name else 0.6 * noise)
            if hasattr(net, "edges"):
                net.edges.copy_(torch.tensor([0.3, 0.55, 0.8]))
        return net, net_config(f"model={model}") | changes

    return pair


@pytest.fixture
def batch(random_batch):
    """Intensities from nothing to hours, on all positions."""
    batch = random_batch(every=True)
    return batch._replace(values=(batch.values * 30).floor().double() / 3)


def normalised(mode, history):
    """Intensities of a history, compared with each other."""
    if mode == "log1p_minmax":
        most = max(math.log(1 + x) for x in history)
        return [math.log(1 + x) / most if most else 0.0 for x in history]
    if mode == "minmax":
        low, high = min(history), max(history)
        return [0.1 + 0.9 * (x - low) / (high - low) if high > low else 1.0 for x in history]
    if mode == "zscore":
        mean, std = np.mean(history), np.std(history)
        return [(x - mean) / std if std else 0.0 for x in history]
    if mode == "rank":
        below = [sum(y < x for y in history) + (1 + sum(y == x for y in history)) / 2 for x in history]
        return [place / len(history) for place in below]
    return history


def strength(weights, o, block, head, w):
    name = f"strengths.{block}"
    if o["lambda_mode"] != "event":
        return weights[f"{name}.value"][0, head if o["lambda_mode"] == "head" else 0, 0, 0]
    inner = [
        max(a * w + b, 0)
        for a, b in zip(weights[f"{name}.inner.weight"][:, 0], weights[f"{name}.inner.bias"], strict=True)
    ]
    return sum(inner * weights[f"{name}.outer.weight"][0]) + weights[f"{name}.outer.bias"][0]


def hidden_states(loops, weights, o, items, values):
    """The last block's output of a history, by the forms of the paper."""

    def weigh(block, head, query, logits):
        scope = values[: query + 1] if o["norm_scope"] == "causal" else values
        ws = normalised(o["intensity_norm"], scope)[: query + 1]
        lambdas = [strength(weights, o, block, head, w) for w in ws]
        if o["form"] == "add":
            return loops.softmax([x + s * w for x, s, w in zip(logits, lambdas, ws, strict=True)])
        factors = [1 + s * (w - 1) for s, w in zip(lambdas, ws, strict=True)]
        if o["form"] == "mul":
            return loops.softmax([x * f for x, f in zip(logits, factors, strict=True)])
        return [share * f for share, f in zip(loops.softmax(logits), factors, strict=True)]

    return loops.encode(loops.vectors(items, weights, o), weights, o, weigh)


def binned_states(loops, weights, o, items, values):
    """The same with bins."""

    def bins(query):
        ws = normalised(o["intensity_norm"], values[: query + 1])
        return [sum(w > edge for edge in weights["edges"]) for w in ws]

    def weigh(block, head, query, logits):
        if o["use"] == "bias":
            table = weights[f"use.tables.{block}.weight"]
            return loops.softmax([x + table[b, head] for x, b in zip(logits, bins(query), strict=True)])
        own = [
            x if b == head or k == query else -1e30
            for k, (x, b) in enumerate(zip(logits, bins(query), strict=True))
        ]
        share = weights["use.share"][block, head, 0, 0]
        return [
            (1 - share) * a + share * b
            for a, b in zip(loops.softmax(logits), loops.softmax(own), strict=True)
        ]

    x = loops.vectors(items, weights, o)
    if "tokens" not in o["use"]:
        return loops.encode(x, weights, o, weigh)
    both = []
    for place in range(len(items)):
        own = bins(place)[place] if o["use"] == "tokens" else 0
        position = weights["position.table.weight"][place]
        both += [x[place], weights["use.table.weight"][own] + weights["use.kind"] + position]
    return loops.encode(np.array(both), weights, o)[1::2]


def reference(loops, states, weights, o, batch):
    """Scores (M, C) of every supervised position, history by history."""
    out = []
    for row, n in enumerate(batch.lengths.tolist()):
        items, values = batch.items[row, :n].tolist(), batch.values[row, :n].tolist()
        hidden = states(loops, weights, o, items, values)
        hidden = hidden if batch.targets.shape[1] > 1 else hidden[-1:]
        out += [[h @ weights["item.weight"][item] for item in ITEMS.tolist()] for h in hidden]
    return np.array(out)


def last(batch):
    return batch._replace(targets=batch.items[:, :1], target_times=batch.times[:, :1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_equations(variant, pair, loops, batch):
    net, o = pair("ia_sasrec_add", **(SMALL | VARIANTS[variant]))
    expected = reference(loops, hidden_states, arrays(net), o, batch)
    np.testing.assert_allclose(scores_of(net, batch).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["add", "mul", "val"])
def test_scores_by_the_whole_history_are_the_equations(form, pair, loops, batch):
    net, o = pair("ia_sasrec_add", **(SMALL | {"form": form, "norm_scope": "window"}))
    expected = reference(loops, hidden_states, arrays(net), o, last(batch))
    np.testing.assert_allclose(scores_of(net, last(batch)).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", ["add block", "mul head", "val block", "add event", "val original"])
def test_the_gradient_of_lambda_is_the_equations(variant, pair, loops, batch):
    net, o = pair("ia_sasrec_add", **(SMALL | VARIANTS[variant]))
    target, step = batch.targets[batch.targets != PAD] - 1, 1e-5
    F.cross_entropy(scores_of(net, batch), target).backward()
    weights, random = arrays(net), np.random.default_rng(0)

    def loss(changed):
        scores = reference(loops, hidden_states, weights | changed, o, batch)
        return F.cross_entropy(torch.from_numpy(scores), target).item()

    for name, parameter in net.named_parameters():
        if name.startswith("strengths.0"):
            direction = random.normal(size=parameter.shape)
            there, back = (loss({name: weights[name] + sign * step * direction}) for sign in (1, -1))
            slope = (parameter.grad.numpy() * direction).sum()
            assert slope == pytest.approx((there - back) / (2 * step), rel=1e-5, abs=1e-8), name


@pytest.mark.parametrize("use", USES)
def test_scores_with_bins_are_the_equations(use, pair, loops, batch):
    net, o = pair("binned_sasrec_bias", **(BINNED | {"use": use}))
    expected = reference(loops, binned_states, arrays(net), o, batch)
    np.testing.assert_allclose(scores_of(net, batch).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"form": "mul"},
        {"form": "val"},
        {"intensity_norm": "minmax"},
        {"norm_scope": "window"},
        {"lambda_mode": "head"},
    ],
    ids=str,
)
def test_a_wrong_equation_is_noticed(wrong, pair, loops, batch):
    net, o = pair("ia_sasrec_add", **(SMALL | {"form": "add"}))
    weights = arrays(net)
    if "lambda_mode" in wrong:
        weights |= {
            f"strengths.{block}.value": np.array([0.2, 0.9])[None, :, None, None] for block in range(2)
        }
    other = reference(loops, hidden_states, weights, o | wrong, batch)
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
