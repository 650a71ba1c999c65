import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.models.dien import AUGRU, DIEN


def shaken(net):
    """The net with weights large enough to matter."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return net


def auxiliary(net, batch, seed=0):
    """The auxiliary loss of a batch, without its weight."""
    inputs = net.tables(batch)
    torch.manual_seed(seed)
    return net.auxiliary(batch, inputs, net.extract(inputs.behaviours)[0])


def test_number_of_parameters(make_click_net):
    """An item of three parts of 32, five fields of 16."""
    net = make_click_net("model=dien")
    dense = sum(p.numel() for name, p in net.named_parameters() if not name.startswith("tables."))
    recurrent = 3 * 96 * (96 + 96 + 2)
    follows = (2 * 96 + 1) * 100 + (100 + 1) * 50 + 51
    last = (4 * 96 + 5 * 16 + 1) * 200 + 200 + (200 + 1) * 80 + 80 + 81
    assert dense == 2 * recurrent + 96 * 96 + follows + last


# The second network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["paper", "code"])
def test_where_attention_is_0_the_state_stays_in_the_paper_only(gate):
    augru = shaken(AUGRU(4, gate=gate))
    x, valid = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 6).bool()
    attention = torch.tensor([0.3, 0.7, 0.0, 0.0, 0.0, 0.0]).expand(2, 6)
    before, after = augru(x[:, :2], attention[:, :2], valid[:, :2]), augru(x, attention, valid)
    assert before.abs().min() > 1e-4
    if gate == "paper":
        assert torch.equal(after, before)
    else:
        assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("gate", ["paper", "code"])
def test_where_attention_is_1_a_gru_takes_over(gate):
    """The paper's is a GRU then, and the code's takes all of what is new."""
    augru = shaken(AUGRU(4, gate=gate))
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    gru = torch.nn.GRU(4, 4, batch_first=True)  # r, z and n; z is 1 - u
    with torch.no_grad():
        for name, own in (("ih", augru.input), ("hh", augru.state)):
            for kind in ("weight", "bias"):
                u, r, n = getattr(own, kind).chunk(3)
                keep = -u if gate == "paper" else u * 0 - (20 if kind == "bias" else 0)
                getattr(gru, f"{kind}_{name}_l0").copy_(torch.cat([r, keep, n]))
    state = augru(x, torch.ones(2, 5), torch.ones(2, 5).bool())
    assert_close(state, gru(x)[1][0])


@pytest.mark.parametrize("name", ["dien", "dien_official"])
@pytest.mark.parametrize("training", [False, True])
def test_without_behaviours_there_is_no_interest(training, name, make_click_net, random_clicks):
    batch = random_clicks()._replace(lengths=torch.zeros(6, dtype=torch.long))
    net = shaken(make_click_net(f"model={name}")).train(training)
    states = []
    net.evolve.register_forward_hook(lambda *heard: states.append(heard[2]))
    logits, penalty = net(batch)
    assert not states[0].any()
    (logits.sum() + penalty).backward()
    assert logits.isfinite().all() and penalty.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", ["dien", "dien_official"])
def test_order_matters(name, make_click_net, random_clicks):
    batch = random_clicks()._replace(
        lengths=torch.full((6,), 12), items=torch.arange(72).view(6, 12) % 25 + 1
    )
    net = shaken(make_click_net(f"model={name}")).eval()
    assert (net(batch._replace(items=batch.items.flip(1)))[0] - net(batch)[0]).abs().min() > 1e-6


# The auxiliary loss ---------------------------------------------------------------------------------------


def test_padding_has_no_part_in_it_and_draws_nothing(make_click_net, random_clicks):
    net, batch = shaken(make_click_net("model=dien")), random_clicks()
    wide = {name: F.pad(getattr(batch, name), (0, 4), value=3) for name in ("items", "times", "values")}
    assert_close(auxiliary(net, batch._replace(**wide)), auxiliary(net, batch))
    short = batch._replace(lengths=batch.lengths.clamp(max=1))
    assert auxiliary(net, batch) > 0 and auxiliary(net, short) == 0


def test_only_training_has_it_and_draws_as_torch_is_seeded(make_click_net, random_clicks):
    batch = random_clicks()

    def penalties(training, *seeds, **changes):
        net = shaken(make_click_net("model=dien", l2=0.0, **changes)).train(training)
        return [torch.manual_seed(seed) and net(batch)[1].item() for seed in seeds]

    one, same, other = penalties(True, 1, 1, 2)
    assert one == same != other
    assert penalties(True, 1, aux=2.0) == [pytest.approx(2 * one)]
    assert penalties(True, 1, aux=0.0) == [0]
    assert penalties(False, 1) == [0]
    net = make_click_net("model=dien").eval()
    before = torch.get_rng_state()
    net(batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_other_item_is_drawn_as_often(make_click_net, random_clicks):
    net, batch = make_click_net("model=dien"), random_clicks(rows=400)
    batch = batch._replace(
        items=torch.full((400, 12), 7).clone(), lengths=torch.full((400,), 12)
    )  # 4400 draws
    looked_up = []
    net.tables.item.register_forward_hook(lambda *heard: looked_up.append(heard[1][0]))
    auxiliary(net, batch)
    counts = torch.bincount(looked_up[-1], minlength=26)
    assert counts[0] == counts[7] == 0
    others = counts[torch.arange(26).sub(7).abs().mul(torch.arange(26)) > 0].float()
    assert len(others) == 24
    assert (others - 4400 / 24).abs().max() < 5 * (4400 / 24) ** 0.5


def test_it_trains_the_first_network_and_the_items(make_click_net, random_clicks):
    net = shaken(make_click_net("model=dien"))
    auxiliary(net, random_clicks()).backward()
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None}
    assert trained == {"tables", "extract", "follows"}
    assert net.tables.item.weight.grad.any() and net.extract.weight_hh_l0.grad.any()


@pytest.mark.parametrize(
    "changes",
    [{key: 0} for key in ("item_dim", "field_dim")]
    + [{"aux_hidden": [0]}, {"hidden": [8, 0]}, {"activation": "dise"}, {"dropout": 1.0}]
    + [{"gate": "papers"}, {"std": 0.0}, {"l2": -1.0}, {"aux": -1.0}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, click_catalog, net_config):
    config = net_config("model=dien")
    ((key, value),) = changes.items()
    value = 0 if isinstance(value, list) else value
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        DIEN(click_catalog, **({k: v for k, v in config.items() if not k.startswith("_")} | changes))
