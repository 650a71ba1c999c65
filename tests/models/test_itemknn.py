"""Item-kNN against a loop over the log, and by hand."""

import math
from itertools import pairwise

import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.itemknn import ItemKNN
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)


def reference(catalog, last, item, exponent, shrink):
    log = list(zip(catalog.users.tolist(), catalog.items.tolist(), strict=True))
    pairs = [(a[1], b[1]) for a, b in pairwise(log) if a[0] == b[0]]
    as_first = sum(first == last for first, _ in pairs) + shrink
    as_second = sum(second == item for _, second in pairs) + shrink
    return pairs.count((last, item)) / (as_first * as_second or 1) ** exponent


def scores_of(net, batch, items=ITEMS):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), items)


@pytest.mark.parametrize(("exponent", "shrink"), [(0.5, 0.0), (0.5, 20.0), (0.0, 0.0), (0.3, 2.5)])
def test_scores_are_those_of_a_loop(catalog, random_batch, exponent, shrink):
    net, batch = ItemKNN(catalog, exponent=exponent, shrink=shrink), random_batch(every=True)
    net.fit(catalog)
    lasts = batch.items[batch.targets != PAD].tolist()
    expected = [
        [reference(catalog, last, item, exponent, shrink) for item in ITEMS.tolist()] for last in lasts
    ]
    torch.testing.assert_close(scores_of(net, batch), torch.tensor(expected))
    assert any(map(any, expected))


def test_by_hand(catalog, random_batch):
    log = catalog._replace(
        users=torch.tensor([1, 1, 1, 2, 2, 3, 3, 3]), items=torch.tensor([1, 2, 4, 1, 2, 1, 3, 3])
    )
    net = ItemKNN(log, exponent=0.5, shrink=0.0)  # pairs (1, 2) twice, (2, 4), (1, 3), (3, 3)
    net.fit(log)
    batch = random_batch(rows=1, window=1)._replace(items=torch.tensor([[1]]))
    scores = scores_of(net, batch, torch.tensor([2, 3, 4]))
    assert scores[0].tolist() == pytest.approx([2 / math.sqrt(3 * 2), 1 / math.sqrt(3 * 2), 0.0])


def test_fitting_twice_counts_once(catalog, random_batch):
    net = ItemKNN(catalog, exponent=0.5, shrink=1.0)
    net.fit(catalog)
    once = scores_of(net, random_batch())
    net.fit(catalog)
    assert torch.equal(scores_of(net, random_batch()), once)


@pytest.mark.parametrize("key", ["exponent", "shrink"])
def test_negative_options_are_refused(catalog, key):
    with pytest.raises(InputError, match=rf"model.net.{key}=-1\.0"):
        ItemKNN(catalog, **({"exponent": 0.5, "shrink": 1.0} | {key: -1.0}))
