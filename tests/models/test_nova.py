import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.nova import NOVA


@pytest.mark.parametrize("fusion", ["add", "concat", "gate"])
def test_a_history_of_one_event_is_its_item_whatever_its_intensity(fusion, make_net, random_batch):
    """Attention has nowhere else to look, and values carry the item alone."""
    net = make_net("model=nova", fusion=fusion).eval()
    batch = random_batch(window=1)
    other = batch._replace(values=torch.full((6, 1), torch.nan))
    assert torch.equal(net.encode(other)[0].vectors, net.encode(batch)[0].vectors)


@pytest.mark.parametrize("fusion", ["add", "concat", "gate"])
def test_intensities_matter(fusion, make_net, random_batch):
    net, batch = make_net("model=nova", fusion=fusion).eval(), random_batch(every=True)
    with torch.no_grad():
        net.intensity.table.weight.mul_(100)  # drawn so small that attention hardly turns
    other = batch._replace(values=batch.values.square())
    assert (net.encode(other)[0].vectors - net.encode(batch)[0].vectors).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"blocks": 0},
        {"heads": 0},
        {"heads": 3},
        {"inner": 0},
        {"window": 0},
        {"fusion": "gates"},
        {"intensity_bins": 0},
        {"intensity_norm": "zscore"},
        {"hidden_dropout": 1.0},
        {"attention_dropout": -0.1},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, catalog, net_config):
    options = {key: value for key, value in net_config("model=nova").items() if not key.startswith("_")}
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        NOVA(catalog, **(options | changes))
