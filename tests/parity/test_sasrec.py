"""SASRec against RecBole's model with its weights copied, and against a float64 loop over keys.

``fixtures/make_recbole_sasrec.py`` made RecBole's numbers.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD, SequenceBatch
from hydrec.tasks import select

FIXTURES = Path(__file__).parent / "fixtures"
ITEMS = torch.arange(1, 26)
RECBOLE = {"dim": 8, "inner": 12, "heads": 2, "blocks": 2}  # the sizes of the fixture
NAMES = {  # ours: theirs
    "item": "item_embedding",
    "position.table": "position_embedding",
    "encoder.enter.0": "LayerNorm",
}
LAYERS = {
    "attention.query": "multi_head_attention.query",
    "attention.key": "multi_head_attention.key",
    "attention.value": "multi_head_attention.value",
    "attention.mix": "multi_head_attention.dense",
    "attention_norm": "multi_head_attention.LayerNorm",
    "feed.0": "feed_forward.dense_1",
    "feed.2": "feed_forward.dense_2",
    "feed_norm": "feed_forward.LayerNorm",
}
NAMES |= {
    f"encoder.blocks.{b}.{ours}": f"trm_encoder.layer.{b}.{theirs}"
    for b in range(2)
    for ours, theirs in LAYERS.items()
}
SMALL = {"dim": 6, "inner": 6, "heads": 2, "blocks": 2, "window": 12}
VARIANTS = {
    "sasrec": SMALL | {"inner": 10},
    "sasrec_original": SMALL,
    "gsasrec": SMALL | {"heads": 1},
}


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


# RecBole ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recbole():
    with np.load(FIXTURES / "recbole_sasrec.npz") as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


@pytest.fixture
def copied(make_net, recbole):
    """Our net with RecBole's weights, and its histories."""

    def copied(**changes):
        net = make_net("model=sasrec", **(RECBOLE | changes)).double().eval()
        theirs = {name.removeprefix("weights."): array for name, array in recbole.items()}
        ours = {}
        for name in net.state_dict():
            module, _, kind = name.replace("candidate.", "item.").rpartition(".")
            ours[name] = theirs[f"{NAMES[module]}.{kind}"]
        net.load_state_dict(ours)
        items, lengths, targets = recbole["items"], recbole["lengths"], recbole["targets"][:, None]
        nothing, rows = torch.zeros_like(items), torch.arange(len(items))
        return net, SequenceBatch(
            items, nothing, nothing.float(), lengths, targets, targets * 0, rows * 0, rows
        )

    return copied


def test_scores_and_the_gradient_of_the_items_are_recboles(copied, recbole):
    net, batch = copied()
    scores = scores_of(net, batch)
    F.cross_entropy(scores, recbole["targets"] - 1).backward()
    torch.testing.assert_close(scores, recbole["scores"], rtol=0, atol=1e-10)
    torch.testing.assert_close(net.item.weight.grad[1:], recbole["gradient"], rtol=0, atol=1e-10)


def test_float32_is_close_to_recbole(copied, recbole):
    net, batch = copied()
    assert (scores_of(net.float(), batch) - recbole["scores"]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"position": "slot"}, {"scale": True}, {"heads": 1}, {"eps": 1e-2}], ids=str
)
def test_another_model_is_not_recboles(wrong, copied, recbole):
    net, batch = copied(**wrong)
    assert (scores_of(net, batch) - recbole["scores"]).abs().max() > 1e-3


@pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="RecBole is not installed")
def test_the_installed_recbole_gives_the_same(recbole):
    spec = importlib.util.spec_from_file_location("make_recbole_sasrec", FIXTURES / "make_recbole_sasrec.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    for name, array in make.arrays(make.recbole_sasrec()).items():
        torch.testing.assert_close(torch.from_numpy(array), recbole[name], rtol=0, atol=1e-10)


# The equations ----------------------------------------------------------------------------------------------


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(model, **changes):
        changes = VARIANTS[model] | changes
        net = make_net(f"model={model}", **changes).double().eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
        return net, net_config(f"model={model}") | changes

    return pair


def reference(loops, weights, o, batch):
    """Scores (M, C) of every supervised position, history by history."""
    out = []
    for row, length in enumerate(batch.lengths.tolist()):
        x = loops.vectors(batch.items[row, :length].tolist(), weights, o)
        hidden = loops.encode(x, weights, o)
        hidden = hidden if batch.targets.shape[1] > 1 else hidden[-1:]
        out += [[h @ weights["candidate.weight"][item] for item in ITEMS.tolist()] for h in hidden]
    return np.array(out)


@pytest.mark.parametrize("every", [False, True], ids=["last position", "all positions"])
@pytest.mark.parametrize("model", VARIANTS)
def test_scores_are_the_equations(model, every, pair, loops, random_batch):
    net, o = pair(model)
    batch = random_batch(every=every)
    expected = reference(loops, arrays(net), o, batch)
    np.testing.assert_allclose(scores_of(net, batch).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("model", VARIANTS)
def test_gradients_are_the_equations(model, pair, loops, random_batch):
    net, o = pair(model)
    batch, step = random_batch(rows=3, every=True), 1e-5
    target = batch.targets[batch.targets != PAD] - 1
    F.cross_entropy(scores_of(net, batch), target).backward()
    weights, random = arrays(net), np.random.default_rng(0)

    def loss(changed):
        scores = torch.from_numpy(reference(loops, weights | changed, o, batch))
        return F.cross_entropy(scores, target).item()

    for name in ("item.weight", "position.table.weight", "encoder.blocks.0.attention.key.weight"):
        gradient = dict(net.named_parameters())[name].grad.numpy()
        direction = random.normal(size=gradient.shape)
        names = [name, "candidate.weight"] if name == "item.weight" and o["tied"] else [name]
        there, back = (
            loss({one: weights[one] + sign * step * direction for one in names}) for sign in (1, -1)
        )
        slope = (gradient * direction).sum()
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize(
    "wrong",
    [{"position": "real"}, {"scale": False}, {"eps": 1e-2}, {"heads": 1}],
    ids=str,
)
def test_a_wrong_equation_is_noticed(wrong, pair, loops, random_batch):
    net, o = pair("sasrec_original")
    other = reference(loops, arrays(net), o | wrong, random_batch())
    assert np.abs(scores_of(net, random_batch()).detach().numpy() - other).max() > 1e-3
