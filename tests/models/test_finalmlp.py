import pytest
import torch
from hydra.utils import instantiate

from hydrec.errors import InputError
from hydrec.models.finalmlp import FinalMLP, Fusion, Learnt, Part

PLAIN = {"activation": "relu", "dropout": 0.0, "batch_norm": False}


@pytest.fixture
def make(click_catalog):
    def make(first=None, second=None, **changes):
        streams = {
            "first": {"reads": "user", "hidden": [8]} | PLAIN | (first or {}),
            "second": {"reads": "item", "hidden": [4]} | PLAIN | (second or {}),
        }
        options = {
            "dim": 3,
            "history": True,
            "gate_hidden": [5],
            "heads": 2,
            "std": 0.1,
            "l2": 0.0,
            "sparse": False,
        }
        torch.manual_seed(0)
        return FinalMLP(click_catalog, **options | streams | changes)

    return make


def gate_of(stream, net, batch):
    return stream.gate(net.fields(batch)[0])


def test_gates_start_open_and_let_at_most_double_pass(make, random_clicks):
    net, batch = make(), random_clicks()
    for stream in (net.first, net.second):
        assert (gate_of(stream, net, batch) - 0.5).abs().max() < 0.1  # times 2
        with torch.no_grad():
            stream.gate[2].bias.fill_(100.0)
        assert (gate_of(stream, net, batch) == 1).all()


def test_a_gate_is_the_same_for_all_with_what_it_reads(make, random_clicks):
    net, batch = make(second={"reads": "none"}), random_clicks()
    batch = batch._replace(codes=batch.codes.clone())
    batch.codes[1, :2] = batch.codes[0, :2]  # the same user fields, all else different
    gate = gate_of(net.first, net, batch)
    assert torch.equal(gate[0], gate[1]) and not torch.isclose(gate[0], gate[2]).all()
    assert gate_of(net.second, net, batch).shape[0] == 1


def test_a_gate_without_fields_to_read_learns_a_vector(click_catalog, net_config):
    config = net_config("model=finalmlp", "protocol=click_last")
    whole = instantiate(config)(click_catalog)
    assert isinstance(whole.first.gate[0], Part) and isinstance(whole.second.gate[0], Part)
    context = tuple(field for field in click_catalog.fields if field.group == "context")
    bare = instantiate(config)(click_catalog._replace(fields=context))
    assert isinstance(bare.first.gate[0], Learnt) and isinstance(bare.second.gate[0], Part)
    assert bare.first.gate[0].vector.any()


def test_one_head_is_the_whole_bilinear_form():
    torch.manual_seed(0)
    fusion = Fusion(4, 6, heads=1)
    first, second = torch.randn(5, 4), torch.randn(5, 6)
    expected = ((first @ fusion.forms[0]) * second).sum(1)
    expected = expected + fusion.weigh(torch.cat([first, second], 1))[:, 0]
    torch.testing.assert_close(fusion(first, second), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, r"model\.net\.heads=3: .* 8 and 4"),
        ({"heads": 8}, r"model\.net\.heads=8: .* 8 and 4"),
        ({"heads": 0}, r"model\.net\.heads=0"),
        ({"first": {"reads": "users"}}, r"model\.net\.first\.reads=users .* did you mean user\?"),
        ({"second": {"dropout": 1.0}}, r"model\.net\.second\.dropout=1\.0"),
        ({"second": {"hidden": [0]}}, r"model\.net\.second\.hidden=0"),
        ({"gate_hidden": [0]}, r"model\.net\.gate_hidden=0"),
    ],
    ids=str,
)
def test_bad_values_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)
