import pytest
import torch
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.models.din import DIN


def shaken(net):
    """The net with weights large enough to matter."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net


def test_number_of_parameters(make_click_net):
    """An item of three parts of 32, five fields of 16."""
    net = make_click_net("model=din")
    dense = sum(p.numel() for name, p in net.named_parameters() if not name.startswith("tables."))
    unit = (4 * 96 + 1) * 80 + 80 + (80 + 1) * 40 + 40 + 41
    last = (3 * 96 + 5 * 16 + 1) * 200 + 200 + (200 + 1) * 80 + 80 + 81
    assert dense == unit + last


@pytest.mark.parametrize("training", [False, True])
def test_without_behaviours_there_is_no_interest(training, make_click_net, random_clicks):
    batch = random_clicks()._replace(lengths=torch.zeros(6, dtype=torch.long))
    for name in ("din", "din_softmax"):
        net = shaken(make_click_net(f"model={name}")).train(training)
        assert not net.weights(net.tables(batch)).any()
        logits, auxiliary = net(batch)
        (logits.sum() + auxiliary).backward()
        assert logits.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_weights_sum_to_one_with_softmax_only(make_click_net, random_clicks):
    batch = random_clicks()
    sums = {}
    for name in ("din", "din_softmax"):
        net = shaken(make_click_net(f"model={name}")).eval()
        weights = net.weights(net.tables(batch))
        assert not weights[torch.arange(12) >= batch.lengths[:, None]].any()
        sums[name] = weights.sum(1)[batch.lengths > 0]
    assert_close(sums["din_softmax"], torch.ones_like(sums["din_softmax"]))
    assert (sums["din"] - 1).abs().min() > 1e-2


def test_order_does_not_matter(make_click_net, random_clicks):
    batch = random_clicks()._replace(
        lengths=torch.full((6,), 12), items=torch.arange(72).view(6, 12) % 25 + 1
    )
    net = shaken(make_click_net("model=din")).eval()
    assert_close(net(batch._replace(items=batch.items.flip(1)))[0], net(batch)[0])


def test_in_training_padding_changes_no_statistics(make_click_net, random_clicks):
    """Twice as much padding, as it comes with a longer row elsewhere."""
    nets = [shaken(make_click_net("model=din")).train() for _ in range(2)]
    batch = random_clicks()
    wide = batch._replace(items=torch.cat([batch.items, batch.items], 1))
    assert_close(nets[0](batch)[0], nets[1](wide)[0])
    buffers = zip(nets[0].buffers(), nets[1].buffers(), strict=True)
    assert all(torch.allclose(one, other) for one, other in buffers)


def test_in_an_epoch_each_id_shown_counts_once(click_catalog, make_click_net, random_clicks):
    """Mini-batch aware L2 adds up, over batches that show ids as often as training does, to eq. 4."""
    net = shaken(make_click_net("model=din", l2=0.0, l2_aware=2.0)).eval()
    shown = torch.arange(26).repeat_interleave(click_catalog.shown)
    parts = shown[torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))].split(16)
    one = random_clicks(rows=1)
    total = 0.0
    for part in parts:
        rows = type(one)(*(field.expand(len(part), *field.shape[1:]) for field in one))
        total += net(rows._replace(candidates=part))[1]
    assert_close(total, net.tables.item.weight[1:].square().sum())
    assert net(one)[1] > 0 and make_click_net("model=din", l2=0.0)(one)[1] == 0


def test_what_catalogues_count_is_not_of_the_checkpoint(make_click_net):
    assert "rarity" not in make_click_net("model=din").state_dict()


@pytest.mark.parametrize(
    "changes",
    [{key: 0} for key in ("item_dim", "field_dim")]
    + [{"attention_hidden": [0]}, {"hidden": [8, 0]}, {"activation": "dise"}, {"dropout": 1.0}]
    + [{"std": 0.0}, {"l2": -1.0}, {"l2_aware": -1.0}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, click_catalog, net_config):
    config = net_config("model=din")
    ((key, value),) = changes.items()
    value = 0 if isinstance(value, list) else value
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        DIN(click_catalog, **({k: v for k, v in config.items() if not k.startswith("_")} | changes))
