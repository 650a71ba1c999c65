import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.tisasrec import TiSASRec, personal_intervals
from hydrec.tasks import select


def test_intervals_are_those_of_each_prefix_by_itself(random_batch):
    times = random_batch(rows=40).times
    whole = personal_intervals(times, longest=256)
    for n in range(1, 13):
        assert torch.equal(personal_intervals(times[:, :n], longest=256)[:, -1], whole[:, n - 1, :n])
    assert whole.max() == 256 and whole.min() == 0


def test_the_last_position_measures_by_the_smallest_gap_of_the_history():
    times = torch.tensor([[0, 100, 100, 130, 190]])
    assert personal_intervals(times, longest=9)[0, -1].tolist() == [6, 3, 3, 2, 0]
    assert personal_intervals(times, longest=4)[0, -1].tolist() == [4, 3, 3, 2, 0]


def test_events_of_one_second_are_no_interval_apart():
    assert personal_intervals(torch.zeros(2, 5, dtype=torch.long), longest=9).sum() == 0


def test_centuries_of_seconds_do_not_overflow():
    times = torch.tensor([[0, 1, 2**40]])
    assert personal_intervals(times, longest=256)[0, -1].tolist() == [256, 256, 0]


@pytest.mark.parametrize("factor", [7, 86400])
def test_the_pace_of_a_user_does_not_matter(factor, make_net, random_batch):
    net, batch = make_net("model=tisasrec").eval(), random_batch()
    slower = batch._replace(times=batch.times * factor)
    assert torch.equal(net.encode(slower)[0].vectors, net.encode(batch)[0].vectors)


def test_time_matters(make_net, random_batch):
    net, batch = make_net("model=tisasrec").eval(), random_batch(every=True)
    other = batch._replace(times=random_batch(seed=1).times.cummax(1).values)
    positions = batch.targets != PAD
    changed, before = (select(net.encode(x)[0], positions).vectors for x in (other, batch))
    assert not torch.allclose(changed, before, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{"dim": 0}, {"blocks": 0}, {"heads": 0}, {"heads": 3}, {"window": 0}, {"longest": 0}, {"dropout": 1.0}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, catalog, net_config):
    options = {key: value for key, value in net_config("model=tisasrec").items() if not key.startswith("_")}
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        TiSASRec(catalog, **(options | changes))
