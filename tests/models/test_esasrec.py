import pytest
import torch
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.models.esasrec import ESASRec


def test_closed_gates_leave_items_and_positions_as_they_are(make_net, random_batch):
    net, batch = make_net("model=esasrec").eval(), random_batch(every=True)
    with torch.no_grad():
        for block in net.blocks:
            for gate in (block.attention_gate, block.feed_gate):
                gate.weight.zero_()
                gate.bias.fill_(-1e3)
    expected = net.item(batch.items) + net.position(batch.lengths, 12)
    assert_close(net.encode(batch)[0].vectors, expected)


def test_dropout_falls_in_training_only(make_net, random_batch):
    net, batch = make_net("model=esasrec"), random_batch()
    assert not torch.equal(net.encode(batch)[0].vectors, net.encode(batch)[0].vectors)
    net.eval()
    assert torch.equal(net.encode(batch)[0].vectors, net.encode(batch)[0].vectors)


@pytest.mark.parametrize(
    "changes",
    [{"dim": 0}, {"blocks": 0}, {"heads": 0}, {"heads": 3}, {"inner": 0}, {"window": 0}, {"dropout": -0.1}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, catalog, net_config):
    options = {key: value for key, value in net_config("model=esasrec").items() if not key.startswith("_")}
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        ESASRec(catalog, **(options | changes))
