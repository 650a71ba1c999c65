"""GC-SAN against RecBole's model with its weights copied, and its own block against a float64 loop.

``fixtures/make_recbole_sessions.py`` made RecBole's numbers. The graph layer is SR-GNN's, which its own tests
compare; the loop starts from what it gives.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD, SequenceBatch
from hydrec.layers.session import session
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
SMALL = {"dim": 8, "steps": 2, "inner": 12}
VARIANTS = {
    "gcsan": {},
    "two blocks": {"blocks": 2},
    "causal": {"blocks": 2, "causal": True},
    "other weight": {"weight": 0.3},
    "counted": {"edges": "count"},
}


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


# RecBole ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recbole():
    with np.load(Path(__file__).parent / "fixtures" / "recbole_gcsan.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def batch_of(arrays):
    items, lengths, targets = arrays["items"], arrays["lengths"], arrays["targets"][:, None]
    nothing, rows = torch.zeros_like(items), torch.arange(len(items))
    return SequenceBatch(items, nothing, nothing.float(), lengths, targets, targets * 0, rows * 0, rows)


PLACES = {  # ours in each block, and RecBole's in each of its layers
    "attention.query": "multi_head_attention.query",
    "attention.key": "multi_head_attention.key",
    "attention.value": "multi_head_attention.value",
    "attention.mix": "multi_head_attention.dense",
    "attention_norm": "multi_head_attention.LayerNorm",
    "feed.0": "feed_forward.dense_1",
    "feed.2": "feed_forward.dense_2",
    "feed_norm": "feed_forward.LayerNorm",
}


def copied(net, arrays):
    """The net with RecBole's weights: its update gate is one minus that of a cell."""
    theirs = {name.removeprefix("weights."): array for name, array in arrays.items()}
    sign = torch.ones(24, dtype=torch.float64)
    sign[8:16] = -1
    ours = {"item.weight": theirs["item_embedding.weight"]}
    for kind in ("weight", "bias"):
        for place, edge in {"incoming": "in", "outgoing": "out"}.items():
            ours[f"refine.{place}.{kind}"] = theirs[f"gnn.linear_edge_{edge}.{kind}"]
        for side in ("ih", "hh"):
            array = theirs[f"gnn.{kind[0]}_{side}"]
            ours[f"refine.cell.{kind}_{side}"] = torch.einsum("g,g...->g...", sign, array)
        for block in range(2):
            for place, their in PLACES.items():
                their = f"self_attention.layer.{block}.{their}.{kind}"
                ours[f"blocks.{block}.{place}.{kind}"] = theirs[their]
    net.load_state_dict(ours)
    return net


def bert(make_net, **changes):
    return make_net("model=gcsan_bert", **(SMALL | changes)).eval()


def test_scores_and_gradients_are_recboles(recbole, make_net):
    net = copied(bert(make_net).double(), recbole)
    scores = scores_of(net, batch_of(recbole))
    np.testing.assert_allclose(scores.detach(), recbole["scores"], rtol=0, atol=1e-10)
    F.cross_entropy(scores, recbole["targets"] - 1).backward()
    np.testing.assert_allclose(net.item.weight.grad[1:], recbole["gradient"], rtol=0, atol=1e-10)


def test_float32_is_close_to_recbole(recbole, make_net):
    scores = scores_of(copied(bert(make_net), recbole), batch_of(recbole))
    np.testing.assert_allclose(scores.detach(), recbole["scores"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"causal": False}, {"edges": "count"}, {"steps": 1}, {"heads": 4}, {"weight": 0.5}, {"heads": 1}],
    ids=str,
)
def test_another_model_than_recboles_is_noticed(wrong, recbole, make_net):
    net = copied(bert(make_net, **wrong).double(), recbole)
    assert (scores_of(net, batch_of(recbole)) - recbole["scores"]).abs().max() > 1e-3


# The paper's block --------------------------------------------------------------------------------------


def reference_row(weights, h, *, blocks, causal, weight, wrong=""):
    """Scores of all items, from what the graph says of each position of a session without padding."""
    e = list(h)
    for block in range(blocks):
        q, k, v = (
            [weights[f"blocks.{block}.{it}.weight"] @ x for x in e] for it in ("query", "key", "value")
        )
        new = []
        for i in range(len(e)):
            scale = 1 if wrong == "scale" else math.sqrt(len(q[i]))
            seen = [j for j in range(len(e)) if j <= i or not causal]
            logits = [sum(q[i] * k[j]) / scale for j in seen]
            shares = [math.exp(logit - max(logits)) for logit in logits]
            f = sum(share / sum(shares) * v[j] for share, j in zip(shares, seen, strict=True))
            first, second = (f"blocks.{block}.feed.{number}" for number in (0, 2))
            inner = np.maximum(weights[f"{first}.weight"] @ f + weights[f"{first}.bias"], 0)
            out = weights[f"{second}.weight"] @ inner + weights[f"{second}.bias"]
            new.append(out + (e[i] if wrong == "residual" else f))
        e = new
    return weights["item.weight"][1:] @ (weight * e[-1] + (1 - weight) * h[-1])


def reference(net, batch, *, blocks, causal, weight, wrong=""):
    graph = session(batch.items, batch.lengths)
    nodes = net.refine(net.item(batch.items), graph).detach().numpy()
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    scores = []
    for row, length in enumerate(batch.lengths.tolist()):
        items = batch.items[row].tolist()
        real = range(batch.items.shape[1] if wrong == "padding" else length)
        h = [nodes[row, items.index(items[place])] for place in real]
        h = list(dict(zip(items, h, strict=False)).values()) if wrong == "nodes" else h
        h[-1] = nodes[row, items.index(items[length - 1])]
        scores.append(reference_row(weights, h, blocks=blocks, causal=causal, weight=weight, wrong=wrong))
    return np.array(scores)


@pytest.fixture
def batch(random_batch):
    """Histories of few items, which come again."""
    batch = random_batch()
    return batch._replace(items=(batch.items % 4 + 1) * (batch.items != PAD))


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and what the reference must know of it."""

    def pair(**changes):
        net = make_net("model=gcsan", **(SMALL | changes)).double().eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        config = net_config("model=gcsan") | changes
        return net, {key: config[key] for key in ("blocks", "causal", "weight")}

    return pair


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_are_the_equations(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    expected = reference(net, batch, **options)
    np.testing.assert_allclose(scores_of(net, batch).detach(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [{"causal": True}, {"weight": 0.4}, *({"wrong": it} for it in ("scale", "residual", "padding", "nodes"))],
    ids=str,
)
def test_a_wrong_equation_is_noticed(wrong, pair, batch):
    net, options = pair(blocks=2)
    other = reference(net, batch, **(options | wrong))
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3
