import pytest
import torch

from hydrec.errors import InputError
from hydrec.models.srgnn import SRGNN


def test_the_sum_is_over_positions_not_over_nodes(make_net, random_batch):
    net, batch = make_net("model=srgnn").eval(), random_batch(rows=2)
    there_and_back = torch.tensor([4, 9] * 6) * torch.ones(2, 1, dtype=torch.int64)
    batch = batch._replace(items=there_and_back, lengths=torch.tensor([4, 6]))  # one graph, one last item
    vectors = net.encode(batch)[0].vector
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-3)
    with torch.no_grad():
        net.join.weight[:, :64] = 0  # the sum's half
    vectors = net.encode(batch)[0].vector
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"edges": "counts"}, r"model.net.edges=counts .* did you mean count\?"),
        ({"steps": 0}, "model.net.steps=0"),
        ({"dim": 0}, "model.net.dim=0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line, catalog, net_config):
    options = {key: value for key, value in net_config("model=srgnn").items() if not key.startswith("_")}
    with pytest.raises(InputError, match=line):
        SRGNN(catalog, **(options | changes))
