"""FGNN against a float64 loop over nodes and heads, written from the equations."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from hydrec.batch import PAD
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
SMALL = {"dim": 4, "heads": [3, 1]}
VARIANTS = {
    "fgnn": {},
    "fgnn_binary": {"edges": "binary"},
    "heads that are averaged": {"heads": [2, 3]},
    "one layer": {"heads": [2]},
    "three layers": {"heads": [2, 3, 1]},
    "one round": {"rounds": 1},
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(logits):
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def reference_row(weights, items, *, heads, rounds, edges, wrong=""):
    """Scores of all items for one session without padding."""
    walked = {}
    for before, after in pairwise(items):
        walked[before, after] = walked.get((before, after), 0) + 1
    nodes = list(dict.fromkeys(items))
    for node in nodes:
        if wrong != "no loops":
            walked[node, node] = (
                walked.get((node, node), 0) + 1 if wrong == "loops" else walked.get((node, node), 1)
            )
    if edges == "binary":
        walked = dict.fromkeys(walked, 1)
    if wrong == "direction":
        walked = {(after, before): weight for (before, after), weight in walked.items()}
    x = {node: weights["item.weight"][node] for node in nodes}
    for layer, number in enumerate(heads):
        heads_out = []
        for head in range(number):
            w, own, other, edge = (
                weights[f"layers.{layer}.{it}"][head] for it in ("weight", "own", "other", "edge")
            )
            y = {node: x[node] @ w for node in nodes}
            logits = {}
            for j, i in walked:
                logit = sum(own[:, 0] * y[i]) + sum(other[:, 0] * y[j]) + edge[0, 0] * walked[j, i]
                logits[j, i] = logit if logit > 0 else (0.01 if wrong == "slope" else 0.2) * logit
            out = {node: np.zeros(w.shape[1]) for node in nodes}
            over = 0 if wrong == "sender" else 1  # the public code's shares are of what a node sends
            for step, logit in logits.items():
                total = sum(math.exp(logits[it] - logit) for it in walked if it[over] == step[over])
                out[step[1]] = out[step[1]] + y[step[0]] / total
            heads_out.append(out)
        join = (lambda parts: sum(parts) / len(parts)) if layer == len(heads) - 1 else np.concatenate
        x = {node: np.maximum(join([out[node] for out in heads_out]), 0) for node in nodes}
    read = items if wrong == "positions" else nodes
    q, r = np.zeros(len(x[nodes[0]])), np.zeros(len(x[nodes[0]]))
    for _ in range(rounds):
        given = weights["readout.cell.weight_ih"] @ np.concatenate([q, r]) + weights["readout.cell.bias_ih"]
        held = weights["readout.cell.weight_hh"] @ q + weights["readout.cell.bias_hh"]
        (gr, gz, gn), (hr, hz, hn) = np.split(given, 3), np.split(held, 3)
        z = sigmoid(gz + hz)
        q = (1 - z) * np.tanh(gn + sigmoid(gr + hr) * hn) + z * q
        shares = softmax([sum(x[node] * q) for node in read])
        r = sum(share * x[node] for share, node in zip(shares, read, strict=True))
    return weights["item.weight"][1:] @ (weights["out.weight"] @ np.concatenate([q, r]))


def reference(net, batch, **options):
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    lengths = [batch.items.shape[1]] * 6 if options.get("wrong") == "padding" else batch.lengths.tolist()
    rows = [batch.items[row, :length].tolist() for row, length in enumerate(lengths)]
    return np.array([reference_row(weights, row, **options) for row in rows])


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS).detach().numpy()


@pytest.fixture
def batch(random_batch):
    """Histories of few items: repeats, loops, and steps that come again."""
    batch = random_batch()
    return batch._replace(items=(batch.items % 4 + 1) * (batch.items != PAD))


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and what the reference must know of it."""

    def pair(**changes):
        net = make_net("model=fgnn", **(SMALL | changes)).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        config = net_config("model=fgnn") | SMALL | changes
        return net, {key: config[key] for key in ("heads", "rounds", "edges")}

    return pair


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_equations(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    np.testing.assert_allclose(scores_of(net, batch), reference(net, batch, **options), rtol=0, atol=1e-10)


def test_float32_is_close(pair, batch):
    net, options = pair()
    expected = reference(net, batch, **options)
    np.testing.assert_allclose(scores_of(net.float(), batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": "binary"},
        {"rounds": 2},
        *(
            {"wrong": it}
            for it in ("direction", "sender", "slope", "loops", "no loops", "positions", "padding")
        ),
    ],
    ids=str,
)
def test_a_wrong_equation_is_noticed(wrong, pair, batch):
    net, options = pair()
    other = reference(net, batch, **(options | wrong))
    assert np.abs(scores_of(net, batch) - other).max() > 1e-3


def test_the_variant_is_that_of_conf(net_config):
    assert net_config("model=fgnn_binary") == net_config("model=fgnn") | VARIANTS["fgnn_binary"]
