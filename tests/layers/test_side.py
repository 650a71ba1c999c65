import pytest
import torch

from hydrec.layers.side import Intensity


def bins_of(layer: Intensity, values: list[float]) -> list[int]:
    """Numbers of the bins that the events of one history fall into."""
    with torch.no_grad():
        layer.table.weight.copy_(torch.arange(len(layer.table.weight))[:, None].expand(-1, 2))
    return layer(torch.tensor([values]), torch.tensor([len(values)]))[0, :, 0].long().tolist()


def test_events_are_compared_with_those_up_to_them():
    layer = Intensity(2, bins=10, norm="log1p_minmax")
    assert bins_of(layer, [3.0, 1.0, 5.0, 3.0, 0.0]) == [9, 5, 9, 7, 0]  # log 2 / log 4, log 4 / log 6
    assert bins_of(Intensity(2, bins=10, norm="minmax"), [3.0, 1.0, 5.0, 2.5]) == [9, 1, 9, 4]


def test_no_intensity_has_a_bin_of_its_own():
    layer = Intensity(2, bins=4, norm="log1p_minmax")
    assert bins_of(layer, [2.0, torch.nan, 0.0, torch.nan]) == [3, 4, 0, 4]


@pytest.mark.parametrize("norm", ["log1p_minmax", "minmax"])
def test_a_prefix_has_the_bins_it_has_in_the_whole(norm):
    layer, values = Intensity(3, bins=7, norm=norm), torch.rand(5, 9)
    whole = layer(values, torch.full((5,), 9))
    for n in range(1, 10):
        assert torch.equal(layer(values[:, :n], torch.full((5,), n)), whole[:, :n])
