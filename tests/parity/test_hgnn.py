"""HGNN against a slow float64 reference: one number at a time, written from the paper's equations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD, SequenceBatch
from hydrec.tasks import select

SMALL = {"dim": 4, "head_dim": 3, "factors": 3, "entropy": 0.3, "l2": 0.2}
CANDIDATES = torch.tensor([[3, 9, 3], [1, 2, 25], [7, 7, 8], [25, 24, 23]])
TARGET = torch.tensor([0, 1, 2, 0])

VARIANTS = {
    "hgnn": {},
    "hgnn_gat1": {"refine": False},
    "hgnn_gat2": {"cluster": False},
    "hgnn_t": {"edges": "constant", "max_gap": None, "gamma": 1.0, "query_time": "none"},
    "hgnn_ent": {"entropy": 0.0},
    "hgnn_no_query_time": {"query_time": "none"},
    "hgnn_constant_weights": {"edges": "constant"},
    "two levels": {"gat": "two_level"},
    "two levels for clusters only": {"gat": "two_level", "refine": False},
    "two levels without clusters": {"gat": "two_level", "cluster": False},
    "sum": {"gamma_mode": "sum"},
    "no loops": {"self_loops": False},
    "scaled": {"dot_scale": True},
    "no rectifier": {"slope": 1.0},
    "last event": {"query_time": "last"},
    "whole days": {"time_unit": "int_day"},
    "weeks": {"unit": 7.0, "max_gap": 5.0},
    "public code": {
        "gat": "two_level",
        "gamma_mode": "sum",
        "self_loops": False,
        "slope": 1.0,
        "max_gap": None,
        "time_unit": "int_day",
        "dim": 5,
    },
}


def elu(x):
    return x if x > 0 else math.exp(x) - 1


def softmax(values):
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / sum(weights) for weight in weights]


def attend(x, times, weight, o):
    """Eq. 1-3 of one head: rows of x, one after another."""
    y = [node @ weight for node in x]
    out = []
    for i in range(len(x)):
        seen, logits = [], []
        for j in range(len(x)):
            gap = abs(times[i] - times[j])
            if (o["max_gap"] is not None and gap > o["max_gap"]) or (i == j and not o["self_loops"]):
                continue
            near = 1.0 if o["edges"] == "constant" or gap <= 1 else 1 / gap
            dot = sum(y[i] * y[j])
            if o["dot_scale"]:
                dot /= math.sqrt(len(y[i]))
            mixed = o["gamma"] * dot + (1 - o["gamma"]) * near
            logit = dot + near if o["gamma_mode"] == "sum" else mixed
            seen.append(j)
            logits.append(logit if logit > 0 else o["slope"] * logit)
        shared = np.zeros(weight.shape[1])
        for j, share in zip(seen, softmax(logits) if seen else [], strict=True):
            shared = shared + share * y[j]
        out.append([elu(value) for value in shared])
    return np.array(out)


def gat(x, times, weights, name, o):
    """A graph layer: heads and what comes after them."""
    key = f"{name}.heads.weight" if o["gat"] == "linear" else f"{name}.first.weight"
    columns = np.concatenate([attend(x, times, head, o) for head in weights[key]], axis=1)
    if o["gat"] == "two_level":
        return attend(columns, times, weights[f"{name}.second.weight"][0], o)
    for mix in sorted(key for key in weights if key.startswith(f"{name}.mix.")):
        columns = np.array([weights[mix] @ node for node in columns])
    return columns


def reference_row(o, weights, items, seconds, asked, candidates, clamp=True):
    """Scores of one history without padding, and the entropies of its nodes."""
    days = [second / 86400 for second in seconds]
    times, query = [day / o["unit"] for day in days], asked / 86400 / o["unit"]
    if o["time_unit"] == "int_day":
        times, query = [math.floor(time) for time in times], math.floor(query)
    if o["query_time"] == "last":
        query = times[-1]
    table = weights["item.weight"]
    z = np.array([table[item] for item in items])
    if o["refine"]:
        z = gat(z, times, weights, "refine", o)
    if o["cluster"]:
        logits = gat(z, times, weights, "cluster.assign", o)
        shares = np.array([softmax(list(row)) for row in logits])
        factors, factor_times = [], []
        for k in range(o["factors"]):
            factors.append(sum(shares[i, k] * z[i] for i in range(len(z))))  # eq. 5
            weighted = sum(shares[i, k] * times[i] for i in range(len(z)))
            factor_times.append(weighted / max(sum(shares[i, k] for i in range(len(z))), 1e-8))  # eq. 8
        entropies = [-sum(s * math.log(s) for s in row) for row in shares]
    else:
        factors, factor_times, entropies = list(z), times, []
    scores = []
    for item in candidates:
        match = [sum(factor * table[item]) for factor in factors]  # eq. 7
        gaps = [abs(query - time) for time in factor_times]
        tau = [1 / (max(gap, 1) if clamp else gap) for gap in gaps]
        if o["query_time"] == "none":
            tau = [0.0] * len(tau)
        beta = softmax([m + t for m, t in zip(match, tau, strict=True)])  # eq. 9
        scores.append(sum(b * m for b, m in zip(beta, match, strict=True)))  # eq. 10
    return scores, entropies


def reference(o, weights, batch, candidates, clamp=True):
    """Scores (M, C) and the mean entropy of all nodes."""
    scores, entropies = [], []
    for row in range(len(batch.items)):
        n = int(batch.lengths[row])
        items, seconds = batch.items[row, :n].tolist(), batch.times[row, :n].tolist()
        asked, of_row = int(batch.target_times[row, 0]), candidates[row].tolist()
        row_scores, row_entropies = reference_row(o, weights, items, seconds, asked, of_row, clamp)
        scores.append(row_scores)
        entropies += row_entropies
    return np.array(scores), np.mean(entropies) if entropies else 0.0


def reference_loss(o, weights, batch):
    """Eq. 11-13: BPR, entropy and the L2 of what is looked up."""
    scores, entropy = reference(o, weights, batch, CANDIDATES)
    table, squares, pairs = weights["item.weight"], 0.0, []
    for row, (candidates, positive) in enumerate(zip(CANDIDATES.tolist(), TARGET.tolist(), strict=True)):
        history = batch.items[row, : int(batch.lengths[row])].tolist()
        squares += sum(sum(table[item] ** 2) for item in [*history, candidates[positive]])
        for column, item in enumerate(candidates):
            if column != positive:
                pairs.append(math.log1p(math.exp(scores[row, column] - scores[row, positive])))
                squares += sum(table[item] ** 2) / (len(candidates) - 1)
    return np.mean(pairs) + o["entropy"] * entropy + o["l2"] * squares / (2 * len(batch.items))


def loss_of(net, batch):
    """The same loss from the net."""
    state, auxiliary = net.encode(batch)
    scores = net.score(select(state, batch.targets != PAD), CANDIDATES)
    positive = scores.gather(1, TARGET[:, None])
    negative = torch.ones_like(scores, dtype=torch.bool).scatter(1, TARGET[:, None], False)
    bpr = F.softplus((scores - positive)[negative]).mean()
    return bpr + auxiliary + net.regulariser(batch, CANDIDATES, TARGET)


def scores_of(net, batch, candidates=CANDIDATES):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), candidates).detach().double().numpy()


def arrays(net):
    return {name: tensor.double().numpy().copy() for name, tensor in net.state_dict().items()}


@pytest.fixture
def batch():
    """Four histories whose gaps lie on both sides of a day, of a month and of nothing."""
    hours = torch.tensor([[0, 0, 5, 30, 200, 1300, 1310], [0, 3, 20, 0, 0, 0, 0]])
    hours = torch.cat([hours, torch.tensor([[0, 0, 0, 0, 0, 0, 0], [0, 800, 2000, 2010, 2010, 0, 0]])])
    lengths = torch.tensor([7, 3, 1, 5])
    items = torch.tensor(
        [[3, 8, 3, 11, 25, 1, 9], [2, 2, 5, 0, 0, 0, 0], [7] + 6 * [0], [6, 1, 14, 20, 6, 0, 0]]
    )
    return SequenceBatch(
        items=items,
        times=hours * 3600 + torch.arange(7) * 17 * (items != PAD),
        values=torch.zeros(4, 7),
        lengths=lengths,
        targets=torch.tensor([[4], [5], [6], [7]]),
        target_times=torch.tensor([[1500], [21], [3], [2011]]) * 3600 + 601,
        users=torch.arange(4) + 1,
        rows=torch.arange(4),
    )


@pytest.fixture
def pair(make_net, net_config):
    """A small net with weights large enough to matter, and the options it was built from."""

    def pair(**changes):
        options = net_config("model=hgnn") | SMALL | changes
        net = make_net("model=hgnn", **(SMALL | changes)).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=draw))
            net.item.weight[PAD] = 0
        return net, options

    return pair


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_entropy_are_the_equations(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    expected, entropy = reference(options, arrays(net), batch, CANDIDATES)
    np.testing.assert_allclose(scores_of(net, batch), expected, rtol=0, atol=1e-10)
    assert net.encode(batch)[1].item() == pytest.approx(options["entropy"] * entropy, abs=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_close(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    net = net.float()
    expected, _ = reference(options, arrays(net), batch, CANDIDATES)
    np.testing.assert_allclose(scores_of(net, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_the_equations(variant, pair, batch):
    net, options = pair(**VARIANTS[variant])
    loss = loss_of(net, batch)
    loss.backward()
    weights, step = arrays(net), 1e-5
    assert loss.item() == pytest.approx(reference_loss(options, weights, batch), abs=1e-10)
    random = np.random.default_rng(0)
    for name, parameter in net.named_parameters():
        direction = random.normal(size=parameter.shape)
        if name == "item.weight":
            direction[PAD] = 0
        there, back = (
            reference_loss(options, weights | {name: weights[name] + sign * step * direction}, batch)
            for sign in (1, -1)
        )
        slope = (parameter.grad.numpy() * direction).sum()
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"gamma": 0.2},
        {"gamma_mode": "sum"},
        {"max_gap": None},
        {"self_loops": False},
        {"edges": "constant"},
        {"slope": 0.01},
        {"dot_scale": True},
        {"time_unit": "int_day"},
        {"unit": 2.0},
        {"query_time": "last"},
        {"query_time": "none"},
        {"clamp": False},
    ],
    ids=str,
)
def test_a_wrong_equation_is_noticed(wrong, pair, batch):
    net, options = pair()
    clamp = wrong.get("clamp", True)
    other, _ = reference(options | wrong, arrays(net), batch, CANDIDATES, clamp)
    assert np.abs(scores_of(net, batch) - other).max() > 1e-3


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("hgnn")])
def test_the_ablations_are_those_of_conf(variant, net_config):
    hgnn = {key: value for key, value in net_config("model=hgnn").items()}
    assert net_config(f"model={variant}") == hgnn | VARIANTS[variant]


def test_the_public_codes_options_are_those_of_conf(net_config):
    frozen = {"freeze_heads": True, "dim": 12}
    expected = net_config("model=hgnn") | VARIANTS["public code"] | frozen
    assert net_config("experiment=hgnn_public_code") == expected
