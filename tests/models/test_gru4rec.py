import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.gru4rec import GRU4Rec

OPTIONS = {"units": 4, "layers": 1, "dropout": 0.0, "tied": True}


@pytest.mark.parametrize(("tied", "tables"), [(True, 1), (False, 2)])
def test_items_have_one_vector_or_two(catalog, tied, tables):
    net = GRU4Rec(catalog, **OPTIONS | {"tied": tied})
    gates = 3 * (4 * 4 + 4 * 4 + 4 + 4)
    assert sum(p.numel() for p in net.parameters()) == tables * 26 * 4 + 26 + gates


def test_each_gate_is_drawn_for_its_own_size(catalog):
    net = GRU4Rec(catalog, **OPTIONS | {"units": 50, "layers": 2})
    for name, weight in net.gru.named_parameters():
        if name.startswith("bias"):
            assert not weight.any()
        else:
            assert 0.9 < weight.abs().max() / (6 / 100) ** 0.5 <= 1
    assert not net.bias.any() and not net.item.weight[0].any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_is_of_training(catalog, random_batch, layers):
    torch.manual_seed(0)
    net, batch = GRU4Rec(catalog, **OPTIONS | {"dropout": 0.5, "layers": layers}), random_batch()
    first, second = (net.encode(batch)[0].vectors for _ in range(2))
    assert not torch.equal(first, second) and (first == 0).any()
    net.eval()
    assert torch.equal(net.encode(batch)[0].vectors, net.encode(batch)[0].vectors)


@pytest.mark.parametrize(("key", "value"), [("units", 0), ("layers", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_options_that_make_no_sense_are_refused(catalog, key, value):
    with pytest.raises(InputError, match=f"model.net.{key}="):
        GRU4Rec(catalog, **OPTIONS | {key: value})
