import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.hstu import HSTU
from hydrec.tasks import select


def scores(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), torch.arange(1, 26))


@pytest.mark.parametrize("model", ["hstu", "hstu_no_query_time"])
def test_the_time_of_the_target_is_read_where_it_should_be(model, make_net, random_batch):
    net, batch = make_net(f"model={model}").eval(), random_batch()
    later = batch._replace(target_times=batch.target_times + 10**7)
    assert torch.equal(scores(net, later), scores(net, batch)) == (model == "hstu_no_query_time")


def test_every_position_is_asked_at_the_time_of_the_next_event(make_net, random_batch):
    """Whether the targets' times come with the batch or are those of the history."""
    net, batch = make_net("model=hstu").eval(), random_batch()
    times = net.asked(batch)
    for row, n in enumerate(batch.lengths):
        assert times[row, : n - 1].tolist() == batch.times[row, 1:n].tolist()
        assert times[row, n - 1] == batch.target_times[row, 0]
    every = random_batch(every=True)
    assert torch.equal(net.asked(every), every.target_times)


def test_scores_are_cosines_over_the_temperature(make_net, random_batch):
    cosines = scores(make_net("model=hstu", temperature=1.0).eval(), random_batch())
    assert cosines.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(scores(make_net("model=hstu").eval(), random_batch()), cosines / 0.05)


def test_decades_fall_into_the_last_bucket(make_net, random_batch):
    net, batch = make_net("model=hstu", buckets=5).eval(), random_batch()
    assert scores(net, batch._replace(times=batch.times * 10**9)).isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"blocks": 0},
        {"heads": 0},
        {"qk_dim": 0},
        {"value_dim": 0},
        {"window": 0},
        {"buckets": 0},
        {"dropout": 1.0},
        {"temperature": 0.0},
        {"query_time": "now"},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, catalog, net_config):
    options = {key: value for key, value in net_config("model=hstu").items() if not key.startswith("_")}
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        HSTU(catalog, **(options | changes))
