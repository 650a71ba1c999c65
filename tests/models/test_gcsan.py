import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.gcsan import GCSAN


def test_with_one_block_later_positions_change_nothing_as_only_the_last_is_scored(make_net, random_batch):
    nets = [make_net("model=gcsan", causal=causal).eval() for causal in (False, True)]
    vectors = [net.encode(random_batch())[0].vector for net in nets]
    assert torch.allclose(*vectors, atol=1e-6)


@pytest.mark.parametrize(("model", "places"), [("gcsan", 2), ("gcsan_bert", 4)])
def test_dropout_falls_in_training_only(model, places, make_net, random_batch):
    net, batch = make_net(f"model={model}", blocks=2, dropout=0.3), random_batch()
    assert [it.p for it in net.modules() if isinstance(it, torch.nn.Dropout)] == [0.3] * places
    assert not torch.equal(net.encode(batch)[0].vector, net.encode(batch)[0].vector)
    net.eval()
    assert torch.equal(net.encode(batch)[0].vector, net.encode(batch)[0].vector)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"block": "berta"}, r"model.net.block=berta .* did you mean bert\?"),
        ({"edges": "counts"}, r"model.net.edges=counts .* did you mean count\?"),
        ({"heads": 2}, "model.net.heads=2: model.net.block=paper has one"),
        ({"heads": 3, "block": "bert"}, "model.net.heads=3 does not divide model.net.dim=64"),
        ({"weight": 1.5}, "model.net.weight=1.5: a share is between 0 and 1"),
        ({"dropout": -0.1}, "model.net.dropout=-0.1: a share is between 0 and 1"),
        ({"blocks": 0}, "model.net.blocks=0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line, catalog, net_config):
    options = {key: value for key, value in net_config("model=gcsan").items() if not key.startswith("_")}
    with pytest.raises(InputError, match=line):
        GCSAN(catalog, **(options | changes))
