import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.models.bert4rec import BERT4Rec
from hydrec.tasks import select

MASK = 26


@pytest.fixture
def net(make_net):
    return make_net("model=bert4rec").eval()


def test_it_fills_gaps_and_does_not_predict_the_next_item(net):
    assert net.cloze and not getattr(net, "causal", False)


def test_there_is_a_vector_for_the_mask_and_it_is_trained(net, random_batch):
    batch = random_batch()
    assert net.item.weight.shape == (27, 64)
    masked = batch._replace(items=batch.items.scatter(1, batch.lengths[:, None] - 1, MASK))
    net.score(select(net.encode(masked)[0], batch.targets != PAD), torch.arange(1, 26)).sum().backward()
    assert net.item.weight.grad[MASK].abs().sum() > 0
    assert net.item.weight.grad[PAD].abs().sum() == 0


def test_a_gap_is_filled_from_both_sides(net, random_batch):
    batch = random_batch(every=True)
    items = batch.items.clone()
    items[0, 5] = MASK
    filled = net.encode(batch._replace(items=items))[0].vectors[0, 5]
    for other in (4, 6):
        items[0, other] = items[0, other] % 25 + 1
        changed = net.encode(batch._replace(items=items))[0].vectors[0, 5]
        assert not torch.allclose(changed, filled, atol=1e-4)
        filled = changed


def test_the_last_place_alone_says_what_it_says_among_all(net, random_batch):
    one, every = random_batch(), random_batch(every=True)
    vectors = net.encode(every)[0].vectors[torch.arange(6), every.lengths - 1]
    torch.testing.assert_close(net.encode(one)[0].vectors[:, 0], vectors)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"blocks": 0},
        {"heads": 0},
        {"heads": 3},
        {"inner": 0},
        {"window": 0},
        {"hidden_dropout": 1.0},
        {"attention_dropout": -0.1},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, catalog, net_config):
    options = {key: value for key, value in net_config("model=bert4rec").items() if not key.startswith("_")}
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        BERT4Rec(catalog, **(options | changes))
