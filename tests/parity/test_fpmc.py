"""FPMC against a slow float64 reference: one number at a time, written from the equations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hydrec.batch import PAD
from hydrec.tasks import select

CANDIDATES = torch.tensor([3, 9, 25, 1])


def reference(weights, user, last, item, wrong=""):
    """The score: product of user and item, and of last item and item."""
    of_user = sum(a * b for a, b in zip(weights["user"][user], weights["to_user"][item], strict=True))
    here, there = ("to_last", "last") if wrong == "direction" else ("last", "to_last")
    of_last = sum(a * b for a, b in zip(weights[here][last], weights[there][item], strict=True))
    return {"no user": of_last, "no last": of_user}.get(wrong, of_user + of_last)


def cases(batch):
    """User and last item of each supervised position, in order."""
    for row, targets in enumerate(batch.targets.tolist()):
        history = batch.items[row, : int(batch.lengths[row])].tolist()
        if len(targets) == 1:
            yield int(batch.users[row]), history[-1]
        else:
            yield from ((int(batch.users[row]), item) for item in history)


def reference_loss(weights, batch, candidates, target, l2):
    """BPR over the pairs, and the squares of what a position looks up."""
    pairs, squares = [], 0.0
    for (user, last), items, positive in zip(cases(batch), candidates, target, strict=True):
        scores = [reference(weights, user, last, item) for item in items]
        squares += sum(weights["user"][user] ** 2) + sum(weights["last"][last] ** 2)
        for column, item in enumerate(items):
            share = 1 if column == positive else 1 / (len(items) - 1)
            squares += share * (sum(weights["to_user"][item] ** 2) + sum(weights["to_last"][item] ** 2))
            if column != positive:
                pairs.append(math.log1p(math.exp(scores[column] - scores[positive])))
    return np.mean(pairs) + l2 * squares / (2 * len(target))


def scores_of(net, batch, items=CANDIDATES):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), items)


def arrays(net):
    return {name.removesuffix(".weight"): x.double().numpy().copy() for name, x in net.state_dict().items()}


@pytest.fixture
def net(make_net):
    net = make_net("model=fpmc", dim=5, l2=0.3).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for table in net.parameters():
            table[1:] = torch.randn(table[1:].shape, generator=draw)
    return net


@pytest.mark.parametrize("every", [False, True])
def test_scores_are_the_equations(net, random_batch, every):
    batch = random_batch(every=every)
    items = CANDIDATES.tolist()
    expected = [[reference(arrays(net), *case, item) for item in items] for case in cases(batch)]
    np.testing.assert_allclose(scores_of(net, batch).detach().numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(scores_of(net.float(), batch).detach().numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("every", [False, True])
def test_loss_and_gradients_are_the_equations(net, random_batch, every, shared):
    batch = random_batch(every=every)
    draw = torch.Generator().manual_seed(4)
    count = int((batch.targets != PAD).sum())
    items = torch.randint(1, 26, (count, 4), generator=draw)
    items = CANDIDATES if shared else items
    target = torch.randint(4, (count,), generator=draw)
    scores = scores_of(net, batch, items)
    negative = torch.ones_like(scores, dtype=torch.bool).scatter(1, target[:, None], False)
    loss = F.softplus((scores - scores.gather(1, target[:, None]))[negative]).mean()
    loss = loss + net.regulariser(batch, items, target)
    loss.backward()
    weights, step = arrays(net), 1e-5
    rest = (batch, items.expand(count, -1).tolist(), target.tolist(), 0.3)
    assert loss.item() == pytest.approx(reference_loss(weights, *rest), abs=1e-10)
    random = np.random.default_rng(0)
    for name, table in weights.items():
        direction = random.normal(size=table.shape)
        direction[PAD] = 0
        there, back = (
            reference_loss(weights | {name: table + sign * step * direction}, *rest) for sign in (1, -1)
        )
        slope = (getattr(net, name).weight.grad.numpy() * direction).sum()
        assert slope == pytest.approx((there - back) / (2 * step), rel=1e-6, abs=1e-8), name


@pytest.mark.parametrize("wrong", ["no user", "no last", "direction"])
def test_a_wrong_equation_is_noticed(net, random_batch, wrong):
    batch = random_batch()
    items = CANDIDATES.tolist()
    other = [[reference(arrays(net), *case, item, wrong) for item in items] for case in cases(batch)]
    assert np.abs(scores_of(net, batch).detach().numpy() - other).max() > 1e-3


def test_by_hand(make_net, random_batch):
    net = make_net("model=fpmc", dim=2)
    with torch.no_grad():
        for table in net.parameters():
            table.zero_()
        net.user.weight[7] = torch.tensor([1.0, 2.0])
        net.to_user.weight[9] = torch.tensor([3.0, -1.0])
        net.last.weight[4] = torch.tensor([10.0, 0.0])
        net.to_last.weight[3] = torch.tensor([0.5, 8.0])
    batch = random_batch(rows=1, window=2)._replace(items=torch.tensor([[25, 4]]), users=torch.tensor([7]))
    batch = batch._replace(lengths=torch.tensor([2]))
    assert scores_of(net, batch).tolist() == [[5.0, 1.0, 0.0, 0.0]]
