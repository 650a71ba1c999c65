"""EASE against the definition of its optimum, one column at a time, and by hand."""

import numpy as np
import pytest
import torch

import hydrec.models.ease as module
from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.ease import EASE
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)


def reference(catalog, l2):
    """Each column: ridge regression of who met the item on who met the others."""
    met = np.zeros((catalog.n_users + 1, catalog.n_items + 1))
    for user, item in zip(catalog.users.tolist(), catalog.items.tolist(), strict=True):
        met[user, item] = 1.0
    weights = np.zeros((catalog.n_items + 1, catalog.n_items + 1))
    for item in range(catalog.n_items + 1):
        others = [other for other in range(catalog.n_items + 1) if other != item]
        x = met[:, others]
        weights[others, item] = np.linalg.solve(x.T @ x + l2 * np.eye(len(others)), x.T @ met[:, item])
    return weights


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


@pytest.mark.parametrize("block", [1, 3, 4096])
@pytest.mark.parametrize("l2", [0.1, 2.0])
def test_scores_are_those_of_the_regressions(catalog, random_batch, monkeypatch, l2, block):
    monkeypatch.setattr(module, "BLOCK", block)
    net, batch, weights = EASE(catalog, l2=l2, memory=1.0), random_batch(), reference(catalog, l2)
    net.fit(catalog)
    expected = []
    for items, length in zip(batch.items.tolist(), batch.lengths.tolist(), strict=True):
        expected.append([sum(weights[j, i] for j in set(items[:length])) for i in ITEMS.tolist()])
    np.testing.assert_allclose(scores_of(net, batch), expected, rtol=0, atol=1e-6)
    assert np.abs(expected).max() > 0.05


def test_by_hand(catalog, random_batch):
    """Users 1 and 2 met items 1 and 2, user 3 item 2 twice: the weight from 1 to 2 is 2 / (2 + lambda)."""
    log = catalog._replace(
        n_users=3, n_items=2, users=torch.tensor([1, 1, 2, 2, 3, 3]), items=torch.tensor([1, 2, 2, 1, 2, 2])
    )
    net = EASE(log, l2=0.5, memory=1.0)
    net.fit(log)
    batch = random_batch(rows=1, window=2)._replace(items=torch.tensor([[1, 1]]), lengths=torch.tensor([2]))
    state = select(net.encode(batch)[0], batch.targets != PAD)
    assert net.score(state, torch.tensor([1, 2])).tolist()[0] == pytest.approx([0.0, 2 / 2.5])
    assert net.weights[2, 1].item() == pytest.approx(2 / 3.5)


def test_a_catalogue_too_large_for_the_memory_is_refused_before_it_is_taken(catalog):
    large = catalog._replace(n_items=10**6)
    with pytest.raises(InputError, match=r"model.net.memory=4.0: .* 1,000,000 items takes 22351.8 GiB"):
        EASE(large, l2=1.0, memory=4.0)


def test_no_penalty_is_refused(catalog):
    with pytest.raises(InputError, match=r"model.net.l2=0\.0"):
        EASE(catalog, l2=0.0, memory=1.0)
