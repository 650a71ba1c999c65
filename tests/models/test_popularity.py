import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.popularity import Popularity, RecentPopularity
from hydrec.tasks import select


@pytest.mark.parametrize("count", ["targets", "rows"])
def test_scores_are_counts(count, catalog, random_batch):
    net, batch = Popularity(catalog, count=count), random_batch()
    net.fit(catalog)
    counted = catalog.items.tolist()[:: 2 if count == "targets" else 1]
    state, auxiliary = net.encode(batch)
    scores = net.score(select(state, batch.targets != PAD), torch.tensor([7, 3, 25]))
    assert scores.tolist() == [[float(counted.count(item)) for item in (7, 3, 25)]] * 6
    assert auxiliary == 0


def test_the_two_ways_to_count_differ(catalog):
    nets = [Popularity(catalog, count=count) for count in ("targets", "rows")]
    for net in nets:
        net.fit(catalog)
    assert nets[0].counts.sum() == 20 and nets[1].counts.sum() == 40


def test_fitting_twice_counts_once(catalog):
    net = Popularity(catalog, count="rows")
    net.fit(catalog)
    net.fit(catalog)
    assert net.counts.sum() == 40


def test_another_way_to_count_is_refused(catalog):
    with pytest.raises(InputError, match=r"model.net.count=row .* did you mean rows\?"):
        Popularity(catalog, count="row")


def test_recent_popularity_counts_the_last_days(catalog, random_batch):
    net, batch = RecentPopularity(catalog, days=0.5), random_batch()
    net.fit(catalog)  # an event an hour: the last twelve hours and both ends
    counted = catalog.items.tolist()[-13:]
    state, _ = net.encode(batch)
    scores = net.score(select(state, batch.targets != PAD), torch.arange(26))
    assert scores.tolist() == [[float(counted.count(item)) for item in range(26)]] * 6


def test_the_last_days_are_those_of_time_not_of_the_log(catalog):
    net = RecentPopularity(catalog, days=0.5)
    net.fit(catalog._replace(times=catalog.times.flip(0)))
    assert torch.equal(net.counts, torch.bincount(catalog.items[:13], minlength=26).float())


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan")])
def test_days_that_are_none_are_refused(catalog, days):
    with pytest.raises(InputError, match=f"model.net.days={days}"):
        RecentPopularity(catalog, days=days)
