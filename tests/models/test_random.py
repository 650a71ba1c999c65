"""Random: what chance gives, the same in every batch."""

import torch
from torch.testing import assert_close

from hydrec.batch import PAD, EvalCandidates
from hydrec.metrics import RankMetrics, rank
from hydrec.models.random import Random
from hydrec.tasks import select

V = 200
ITEMS = torch.arange(1, V + 1)


def scores_of(net, batch, items=ITEMS):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), items)


def test_it_ranks_as_the_formula_says(catalog, random_batch):
    torch.manual_seed(0)
    net, batch = Random(catalog), random_batch(rows=20_000, window=1)
    batch = batch._replace(targets=batch.rows[:, None] % V + 1)  # what a poor hash would find out
    metrics = RankMetrics(at=[1, 10], ties="expected")
    state = select(net.encode(batch)[0], batch.targets != PAD)
    everything = EvalCandidates(None, None)
    ranks = rank(
        lambda items: net.score(state, items), batch.targets[:, 0], everything, n_items=V, limit=10**7
    )
    metrics.update(batch.rows, batch.users, ranks)
    found, formula = metrics.compute(), metrics.random_row(ranks.candidates)
    assert abs(found["hit@10"] - formula["hit@10"]) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    assert abs(found["hit@1"] - formula["hit@1"]) < 4 * (0.005 * 0.995 / 20_000) ** 0.5
    assert abs(found["mean_rank"] - 100.5) < 4 * V / (12 * 20_000) ** 0.5
    assert found["mean_equal"] < 1e-3


def test_a_sample_has_one_order_whatever_the_batch(catalog, random_batch):
    net, batch = Random(catalog), random_batch()
    alone = type(batch)(*(field[2:3] for field in batch))
    assert torch.equal(scores_of(net, batch)[2:3], scores_of(net, alone))
    assert torch.equal(scores_of(net, batch)[:, [6, 2]], scores_of(net, batch, torch.tensor([7, 3])))
    assert len(scores_of(net, batch).argsort(1).unique(dim=0)) == 6


def test_the_orders_go_with_the_seed(make_net, random_batch):
    first, again, other = (
        scores_of(make_net("model=random", seed=seed), random_batch()) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_samples_far_apart_and_neighbouring_items_are_unrelated(catalog, random_batch):
    net, batch = Random(catalog), random_batch(rows=500, window=1)
    batch = batch._replace(rows=torch.arange(500) * 2**21)
    scores = scores_of(net, batch)
    related = torch.corrcoef(torch.stack([scores[:-1].flatten(), scores[1:].flatten()]))[0, 1]
    neighbours = torch.corrcoef(torch.stack([scores[:, :-1].flatten(), scores[:, 1:].flatten()]))[0, 1]
    assert max(abs(related), abs(neighbours)) < 4 / 100_000**0.5
    assert_close(scores.mean(), torch.tensor(0.5), rtol=0, atol=4 / (12 * 100_000) ** 0.5)
