"""The Markov chain against a loop over the log, and by hand."""

import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.markov import Markov
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)


def reference(catalog, last, item, prior):
    users, items = catalog.users.tolist(), catalog.items.tolist()
    followers = [items[i + 1] for i in range(len(items) - 1) if users[i] == users[i + 1] and items[i] == last]
    return (followers.count(item) + prior * items.count(item) / len(items)) / (len(followers) + prior)


def scores_of(net, batch, items=ITEMS):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), items)


@pytest.mark.parametrize("prior", [0.01, 1.0, 50.0])
def test_scores_are_those_of_a_loop(catalog, random_batch, prior):
    net, batch = Markov(catalog, prior=prior), random_batch(every=True)
    net.fit(catalog)
    lasts = batch.items[batch.targets != PAD].tolist()
    expected = [[reference(catalog, last, item, prior) for item in ITEMS.tolist()] for last in lasts]
    torch.testing.assert_close(scores_of(net, batch), torch.tensor(expected))


def test_by_hand(catalog, random_batch):
    log = catalog._replace(users=torch.tensor([1, 1, 1, 2, 2]), items=torch.tensor([1, 2, 1, 1, 3]))
    net = Markov(log, prior=2.0)  # pairs (1, 2), (2, 1), (1, 3); shares 3/5, 1/5, 1/5
    net.fit(log)
    batch = random_batch(rows=1, window=1)
    after_one = scores_of(net, batch._replace(items=torch.tensor([[1]])), ITEMS[:4])
    assert after_one[0].tolist() == pytest.approx([1.2 / 4, 1.4 / 4, 1.4 / 4, 0.0])
    after_three = scores_of(net, batch._replace(items=torch.tensor([[3]])), ITEMS[:4])
    assert after_three[0].tolist() == pytest.approx([0.6, 0.2, 0.2, 0.0]), "popularity alone"


def test_scores_are_probabilities(catalog, random_batch):
    net = Markov(catalog, prior=3.0)
    net.fit(catalog)
    torch.testing.assert_close(scores_of(net, random_batch()).sum(1), torch.ones(6))


def test_up_to_a_prior_of_1_what_followed_is_above_what_never_did(catalog, random_batch):
    net, batch = Markov(catalog, prior=1.0), random_batch(rows=25, window=1)
    net.fit(catalog)
    state = net.encode(batch._replace(items=ITEMS[:, None]))[0]
    scores, followed = (
        scores_of(net, batch._replace(items=ITEMS[:, None])),
        net.followed(state.items[:, 0], ITEMS),
    )
    lowest = scores.where(followed > 0, 1.0).amin(1)
    highest = scores.where(followed == 0, 0.0).amax(1)
    assert (lowest > highest).all() and (followed > 0).any(1).sum() > 10


@pytest.mark.parametrize("prior", [0.0, -1.0, float("nan")])
def test_a_chain_without_back_off_is_refused(catalog, prior):
    with pytest.raises(InputError, match="prior="):
        Markov(catalog, prior=prior)
