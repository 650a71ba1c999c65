import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.difsr import DIFSR


def test_a_history_of_one_event_is_its_item_whatever_its_intensity(make_net, random_batch):
    """Attention has nowhere else to look, and values carry the item alone."""
    net, batch = make_net("model=difsr").eval(), random_batch(window=1)
    other = batch._replace(values=torch.full((6, 1), torch.nan))
    assert torch.equal(net.encode(other)[0].vectors, net.encode(batch)[0].vectors)


def test_without_the_other_logits_it_is_attention_of_items(make_net, random_batch):
    net, batch = make_net("model=difsr").eval(), random_batch(every=True)
    with torch.no_grad():
        for logits in (*net.by_position, *net.by_intensity):
            logits.query.weight.zero_()
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    assert torch.equal(net.encode(batch)[0].vectors, net.encoder(net.item(batch.items), seen))


def test_intensities_matter(make_net, random_batch):
    net, batch = make_net("model=difsr").eval(), random_batch(every=True)
    with torch.no_grad():
        for logits in net.by_intensity:
            logits.query.weight.mul_(100)  # drawn so small that attention hardly turns
            logits.key.weight.mul_(100)
    other = batch._replace(values=batch.values.square())
    assert (net.encode(other)[0].vectors - net.encode(batch)[0].vectors).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dim": 0}, "model.net.dim=0"),
        ({"side_dim": 0}, "model.net.side_dim=0"),
        ({"blocks": 0}, "model.net.blocks=0"),
        ({"heads": 0}, "model.net.heads=0"),
        ({"heads": 3}, "model.net.heads=3 does not divide model.net.dim=64"),
        ({"side_dim": 15}, "model.net.heads=2 does not divide model.net.side_dim=15"),
        ({"inner": 0}, "model.net.inner=0"),
        ({"window": 0}, "model.net.window=0"),
        ({"intensity_bins": 0}, "model.net.intensity_bins=0"),
        ({"intensity_norm": "rank"}, "model.net.intensity_norm=rank"),
        ({"hidden_dropout": 1.0}, "model.net.hidden_dropout=1.0"),
        ({"attention_dropout": -0.1}, "model.net.attention_dropout=-0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line, catalog, net_config):
    options = {key: value for key, value in net_config("model=difsr").items() if not key.startswith("_")}
    with pytest.raises(InputError, match=line):
        DIFSR(catalog, **(options | changes))
