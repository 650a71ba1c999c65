import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.fgnn import FGNN


def test_only_the_last_layer_averages_its_heads(make_net):
    net = make_net("model=fgnn", dim=3, heads=[4, 2, 5])
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(4, 3, 3), (2, 12, 3), (5, 6, 3)]
    edges = torch.eye(2)[None]  # loops alone: each node is the one that it takes in
    x = torch.randn(1, 2, 6)
    torch.testing.assert_close(net.layers[2](x, edges), (x @ net.layers[2].weight.mean(0)).relu())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"edges": "counted"}, r"model.net.edges=counted .* did you mean count\?"),
        ({"heads": []}, r"model.net.heads=\[\]: give the heads of at least one layer"),
        ({"heads": [8, 0]}, "model.net.heads=0"),
        ({"rounds": 0}, "model.net.rounds=0"),
        ({"dim": 0}, "model.net.dim=0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line, catalog, net_config):
    options = {key: value for key, value in net_config("model=fgnn").items() if not key.startswith("_")}
    with pytest.raises(InputError, match=line):
        FGNN(catalog, **(options | changes))
