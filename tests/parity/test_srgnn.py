"""SR-GNN against RecBole's model with its weights copied, and against a float64 loop over items.

``fixtures/make_recbole_sessions.py`` made RecBole's numbers.
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD, SequenceBatch
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
VARIANTS = {"srgnn": {}, "srgnn_count": {"edges": "count"}, "two steps": {"steps": 2}}


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


# RecBole ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recbole():
    with np.load(Path(__file__).parent / "fixtures" / "recbole_srgnn.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def batch_of(arrays):
    items, lengths, targets = arrays["items"], arrays["lengths"], arrays["targets"][:, None]
    nothing, rows = torch.zeros_like(items), torch.arange(len(items))
    return SequenceBatch(items, nothing, nothing.float(), lengths, targets, targets * 0, rows * 0, rows)


def copied(net, arrays):
    """The net with RecBole's weights: its update gate is one minus that of a cell, its biases are sums."""
    theirs = {name.removeprefix("weights."): array for name, array in arrays.items()}
    sign = torch.ones(24, 1, dtype=torch.float64)
    sign[8:16] = -1
    after = torch.cat([theirs["gnn.b_iah"], theirs["gnn.b_ioh"]])
    ours = {
        "item.weight": theirs["item_embedding.weight"],
        "refine.incoming.weight": theirs["gnn.linear_edge_in.weight"],
        "refine.incoming.bias": theirs["gnn.linear_edge_in.bias"],
        "refine.outgoing.weight": theirs["gnn.linear_edge_out.weight"],
        "refine.outgoing.bias": theirs["gnn.linear_edge_out.bias"],
        "refine.cell.weight_ih": sign * theirs["gnn.w_ih"],
        "refine.cell.weight_hh": sign * theirs["gnn.w_hh"],
        "refine.cell.bias_ih": sign[:, 0] * (theirs["gnn.b_ih"] + theirs["gnn.w_ih"] @ after),
        "refine.cell.bias_hh": sign[:, 0] * theirs["gnn.b_hh"],
        "last.weight": theirs["linear_one.weight"],
        "each.weight": theirs["linear_two.weight"],
        "each.bias": theirs["linear_one.bias"] + theirs["linear_two.bias"],
        "attention.weight": theirs["linear_three.weight"],
        "join.weight": theirs["linear_transform.weight"],
        "join.bias": theirs["linear_transform.bias"],
    }
    net.load_state_dict(ours)
    return net


def test_scores_and_gradients_are_recboles(recbole, make_net):
    net = copied(make_net("model=srgnn", dim=8, steps=2).double(), recbole)
    scores = scores_of(net, batch_of(recbole))
    np.testing.assert_allclose(scores.detach(), recbole["scores"], rtol=0, atol=1e-10)
    F.cross_entropy(scores, recbole["targets"] - 1).backward()
    np.testing.assert_allclose(net.item.weight.grad[1:], recbole["gradient"], rtol=0, atol=1e-10)


def test_float32_is_close_to_recbole(recbole, make_net):
    net = copied(make_net("model=srgnn", dim=8, steps=2), recbole)
    scores = scores_of(net, batch_of(recbole))
    np.testing.assert_allclose(scores.detach(), recbole["scores"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wrong", ["edges", "direction", "gate", "biases", "steps", "lengths"])
def test_another_model_than_recboles_is_noticed(wrong, recbole, make_net):
    edges, steps = ("count" if wrong == "edges" else "binary"), (1 if wrong == "steps" else 2)
    net = copied(make_net("model=srgnn", dim=8, steps=steps, edges=edges).double(), recbole)
    batch = batch_of(recbole)
    with torch.no_grad():
        if wrong == "direction":
            net.refine.incoming, net.refine.outgoing = net.refine.outgoing, net.refine.incoming
        if wrong == "gate":
            net.refine.cell.weight_ih[8:16] *= -1
        if wrong == "biases":
            net.refine.cell.bias_ih.copy_(recbole["weights.gnn.b_ih"])
        if wrong == "lengths":
            batch = batch._replace(lengths=batch.lengths.clamp(min=2))
    assert (scores_of(net, batch) - recbole["scores"]).abs().max() > 1e-3


# The equations ------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_row(weights, items, *, steps, edges, wrong=""):
    """Scores of all items for one session without padding, node by node."""
    walked = {}
    for before, after in pairwise(items):
        walked[before, after] = 1 if edges == "binary" else walked.get((before, after), 0) + 1
    if wrong == "direction":
        walked = {(after, before): weight for (before, after), weight in walked.items()}
    h = {item: weights["item.weight"][item] for item in items}
    for _ in range(steps):
        new = {}
        for item in h:
            halves = []
            for name, here in (("incoming", 1), ("outgoing", 0)):
                linear, bias = weights[f"refine.{name}.weight"], weights[f"refine.{name}.bias"]
                near = {edge[1 - here]: weight for edge, weight in walked.items() if edge[here] == item}
                total = np.zeros(len(bias))
                for other, weight in near.items():
                    total = total + weight / sum(near.values()) * (linear @ h[other] + bias)
                halves.append(total)
            a = np.concatenate(halves)  # eq. 1
            given = weights["refine.cell.weight_ih"] @ a + weights["refine.cell.bias_ih"]
            held = weights["refine.cell.weight_hh"] @ h[item] + weights["refine.cell.bias_hh"]
            (r, z, n), (r_held, z_held, n_held) = np.split(given, 3), np.split(held, 3)
            z = 1 - sigmoid(z + z_held)  # eq. 2: the paper's gate is one minus that of the cell
            n = np.tanh(n + sigmoid(r + r_held) * n_held)  # eq. 3 and 4
            new[item] = z * h[item] + (1 - z) * n if wrong == "gate" else (1 - z) * h[item] + z * n  # eq. 5
        h = new
    last, total, alphas = h[items[-1]], 0, []
    for item in items:
        inner = weights["last.weight"] @ last + weights["each.weight"] @ h[item] + weights["each.bias"]
        alphas.append(sum(weights["attention.weight"][0] * sigmoid(inner)))  # eq. 6
    if wrong == "softmax":
        alphas = [math.exp(alpha) / sum(math.exp(other) for other in alphas) for alpha in alphas]
    for item, alpha in zip(items, alphas, strict=True):
        total = total + alpha * h[item]
    s = weights["join.weight"] @ np.concatenate([total, last]) + weights["join.bias"]  # eq. 7
    return weights["item.weight"][1:] @ s  # eq. 8


def reference(net, batch, *, steps, edges, wrong=""):
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    lengths = [batch.items.shape[1]] * len(batch.items) if wrong == "padding" else batch.lengths.tolist()
    rows = [batch.items[row, :length].tolist() for row, length in enumerate(lengths)]
    return np.array([reference_row(weights, row, steps=steps, edges=edges, wrong=wrong) for row in rows])


@pytest.fixture
def batch(random_batch):
    """Histories of few items: repeats, loops, and steps that come again."""
    batch = random_batch()
    return batch._replace(items=(batch.items % 4 + 1) * (batch.items != PAD))


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and what the reference must know of it."""

    def pair(**changes):
        net = make_net("model=srgnn", dim=5, **changes).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        config = net_config("model=srgnn") | changes
        return net, {"steps": config["steps"], "edges": config["edges"]}

    return pair


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_equations(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    expected = reference(net, batch, **options)
    np.testing.assert_allclose(scores_of(net, batch).detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "wrong", [{"steps": 2}, {"edges": "count"}, *({"wrong": it} for it in ("direction", "gate", "softmax"))]
)
def test_a_wrong_equation_is_noticed(wrong, pair, batch):
    net, options = pair()
    other = reference(net, batch, **(options | wrong))
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3


def test_the_variant_is_that_of_conf(net_config):
    assert net_config("model=srgnn_count") == net_config("model=srgnn") | VARIANTS["srgnn_count"]
