import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.models.mian import MIAN, slots

WIDE, D, J, K = 96, 16, 2, 3  # an item of three parts, and the fields of user and context
PARTS = ("item", "context", "behaviours", "user", "ibim", "iuim", "icim")
WIDTHS = {
    "item": WIDE,
    "context": K * D,
    "behaviours": WIDE,
    "user": J * D,
    "ibim": 2 * WIDE,
    "iuim": WIDE + D,
    "icim": WIDE + D,
}


def shaken(net):
    """The net with weights large enough to matter."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / math.sqrt(parameter.shape[-1]))
    return net


def size(net):
    return sum(p.numel() for name, p in net.named_parameters() if not name.startswith("tables."))


def heard(module, net, batch):
    """What a module of the net takes and gives for a batch."""
    said = []
    hook = module.register_forward_hook(lambda _, taken, given: said.append((taken, given)))
    net(batch)
    hook.remove()
    return said[0]


# Shapes and sizes -----------------------------------------------------------------------------------------


def gim(names):
    return sum(64 * (WIDTHS[name] + 1) for name in names) + 65 * len(names)


def mlp(width, outputs=1):
    return 32 * (width + 1) + 8 * 33 + outputs * 9


BLOCK = 4 * (WIDE * WIDE + WIDE) + 256 * (WIDE + 1) + WIDE * 257 + 2 * 2 * WIDE
PLACES = 30 * WIDE
SCORE = 2 * WIDE + 1  # of behaviours
MET = {"ibim": BLOCK + PLACES + SCORE, "iuim": J * (WIDE + D + 1), "icim": K * (WIDE + D + 1)}
WHOLE = sum(MET.values()) + gim(PARTS) + mlp(64)


def left(*dropped):
    """Parameters without some parts."""
    names = [name for name in PARTS if name not in dropped]
    return sum(MET.get(name, 0) for name in names) + gim(names) + mlp(64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mian", WHOLE),
        ("mian_no_iuim", left("iuim")),
        ("mian_no_icim", left("icim")),
        ("mian_no_ibim", left("ibim")),
        ("mian_no_iuim_icim", left("iuim", "icim")),
        ("mian_drop_raw", left("iuim", "icim", "user", "context")),
        ("mian_no_gim", sum(MET.values()) + mlp(sum(WIDTHS.values()))),
        ("mian_concat", sum(MET.values()) + sum(WIDTHS.values()) + 7 + mlp(sum(WIDTHS.values()))),
        ("mian_post_ln", WHOLE),
        ("mian_no_transformer", WHOLE - BLOCK),
        ("mian_softmax2", WHOLE + 9),
    ],
)
def test_an_ablation_takes_away_what_it_says(name, expected, make_click_net):
    assert size(make_click_net(f"model={name}")) == expected


def test_the_options_cost_what_they_say(make_click_net):
    assert size(make_click_net("model=mian", positions=False)) == WHOLE - PLACES
    assert size(make_click_net("model=mian", per_slot_score=True)) == WHOLE + 29 * SCORE
    assert size(make_click_net("model=mian", final_norm=True)) == WHOLE + 2 * WIDE


def test_the_sizes_that_the_defaults_give(click_catalog, net_config):
    """An item of two parts, seven fields of users and six of the context."""
    user, context = click_catalog.fields[0], click_catalog.fields[2]
    catalog = click_catalog._replace(
        fields=(*[user] * 7, *[context] * 6),
        item_fields=click_catalog.item_fields[:1],
        item_codes=click_catalog.item_codes[:, :1],
        item_weights=click_catalog.item_weights[:, :1],
    )
    net = MIAN(catalog, **options(net_config))
    assert size(net.interactions["ibim"].block) == 49984
    assert size(net.gim) == 40839
    assert size(net.head) == 2353


def options(net_config, **changes):
    config = net_config("model=mian", "protocol=click_last")
    return {key: value for key, value in config.items() if not key.startswith("_")} | changes


def test_weights_start_small_and_biases_at_0(make_click_net):
    net = make_click_net("model=mian_paper")
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".enter" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.abs().max() <= 0.04 and parameter.any(), name
            if parameter.numel() > 1000:
                # the standard deviation of a normal that is cut at two of its own
                assert parameter.std().item() == pytest.approx(0.02 * 0.8796, rel=0.1), name


# Behaviours -----------------------------------------------------------------------------------------------


def test_a_wider_window_with_the_same_distances_changes_nothing(make_click_net, random_clicks):
    for changes in ({}, {"per_slot_score": True}, {"block": "post", "final_norm": True}):
        net = shaken(make_click_net("model=mian", window=30, **changes)).eval().double()
        wide = shaken(make_click_net("model=mian", window=40, **changes)).eval().double()
        weights = net.state_dict()
        for name, tensor in wide.state_dict().items():
            if weights[name].shape[:1] != tensor.shape[:1]:  # one row for each slot
                weights[name] = torch.cat([torch.full_like(tensor[:10], 9.0), weights[name]])
        wide.load_state_dict(weights)
        batch = random_clicks(rows=12, window=30)
        longer = {name: F.pad(getattr(batch, name), (0, 10)) for name in ("items", "times", "values")}
        expected = net(batch)[0]
        assert_close(wide(batch)[0], expected, rtol=0, atol=1e-12)
        assert_close(wide(batch._replace(**longer))[0], expected, rtol=0, atol=1e-12)
        assert expected.std() > 1e-2


def test_slots_count_back_from_the_last():
    lengths = torch.tensor([4, 2, 0])
    found = slots(torch.arange(4) < lengths[:, None], window=6)
    assert found.tolist() == [[2, 3, 4, 5], [4, 5, 0, 0], [0, 0, 0, 0]]


def test_without_behaviours_the_history_says_nothing(make_click_net, random_clicks):
    for name in ("mian", "mian_post_ln", "mian_no_transformer"):
        net = shaken(make_click_net(f"model={name}")).eval()
        batch = random_clicks()._replace(lengths=torch.zeros(6, dtype=torch.long))
        inputs = net.tables(batch)
        found, _ = net.interactions["ibim"](inputs)
        assert torch.equal(found, torch.cat([inputs.item, torch.zeros(6, WIDE)], 1))
        logits, auxiliary = net(batch)
        (logits.sum() + auxiliary).backward()
        assert logits.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_order_matters_through_positions_only(make_click_net, random_clicks):
    batch = random_clicks()._replace(
        lengths=torch.full((6,), 12), items=torch.arange(72).view(6, 12) % 25 + 1
    )
    other = batch._replace(items=batch.items.flip(1))
    net = shaken(make_click_net("model=mian")).eval().double()
    assert (net(batch)[0] - net(other)[0]).abs().min() > 1e-6
    net = shaken(make_click_net("model=mian", positions=False)).eval().double()
    assert_close(net(batch)[0], net(other)[0], rtol=0, atol=1e-12)


# Interactions ---------------------------------------------------------------------------------------------


def test_the_half_of_the_item_is_the_item(make_click_net, random_clicks):
    net = shaken(make_click_net("model=mian")).eval()
    inputs = net.tables(random_clicks())
    for interaction in net.interactions.values():
        found, _ = interaction(inputs)
        assert torch.equal(found[:, :WIDE], inputs.item)
        assert found[0, WIDE:].abs().min() > 0


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_no_weight_is_sharp(factor, make_click_net, random_clicks):
    net = shaken(make_click_net("model=mian")).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(factor)
    batch = random_clicks(rows=40, window=30)
    for name, slots_of in {"ibim": batch.lengths, "iuim": torch.tensor(J), "icim": torch.tensor(K)}.items():
        taken, (_, weights) = heard(net.interactions[name].interaction, net, batch)
        valid = taken[3].expand_as(weights)
        lowest, highest = 1 / (1 + (slots_of - 1) * math.e**2), 1 / (1 + (slots_of - 1) * math.e**-2)
        for bound, sign in ((lowest, 1), (highest, -1)):
            beyond = (weights - bound.reshape(-1, 1)) * sign
            assert beyond[valid].min() > -1e-6
        assert not weights[~valid].any()
        some = valid.any(1)
        assert_close(weights.sum(1)[some], torch.ones(int(some.sum())))
    weights = net.weights(batch)["gim"]
    assert weights.shape == (40, 7)
    assert weights.min() > 0.022 and weights.max() < 0.553


def test_a_negative_differs_from_its_positive_through_the_item_only(make_click_net, random_clicks):
    net, batch = shaken(make_click_net("model=mian")).eval(), random_clicks(rows=2)
    same = [field[:1].expand_as(field) for field in batch]
    pair = type(batch)(*same)._replace(candidates=torch.tensor([3, 8]), labels=torch.tensor([1, 0]))
    (parts,), _ = heard(net.gim, net, pair)
    for name, part in zip(net.parts, parts, strict=True):
        equal = name in ("context", "behaviours", "user")
        assert torch.equal(part[0], part[1]) == equal, name
    assert net(pair)[0].diff().abs() > 1e-3


# Parts and output -----------------------------------------------------------------------------------------


def test_the_weights_shown_are_those_in_use(make_click_net, random_clicks):
    batch = random_clicks()
    for name in ("mian", "mian_concat", "mian_no_gim", "mian_drop_raw", "mian_no_ibim"):
        net = shaken(make_click_net(f"model={name}")).eval()
        (parts,), (joined, weights) = heard(net.gim, net, batch)
        assert torch.equal(net.weights(batch)["gim"], weights) and weights.shape == (6, len(net.parts))
        if name in ("mian_concat", "mian_no_gim"):
            weighed = [w[:, None] * part for w, part in zip(weights.unbind(1), parts, strict=True)]
            assert_close(joined, torch.cat(weighed, 1))
        assert_close(weights.sum(1), torch.full((6,), 7.0 if name == "mian_no_gim" else 1.0))
        shown = net.weights(batch)
        assert shown.keys() == {"gim", *net.interactions} and torch.equal(shown["gim"], weights)
        for of, interaction in net.interactions.items():
            _, (_, used) = heard(interaction.interaction, net, batch)
            assert torch.equal(shown[of], used)
            assert used.shape == (6, {"ibim": 12, "iuim": J, "icim": K}[of])


def test_parts_are_named_in_the_order_of_the_paper(make_click_net):
    assert make_click_net("model=mian").parts == PARTS
    assert make_click_net("model=mian_no_iuim").parts == tuple(name for name in PARTS if name != "iuim")
    assert make_click_net("model=mian_drop_raw").parts == ("item", "behaviours", "ibim")


def test_without_user_and_context_nothing_of_them_is_read(make_click_net, random_clicks):
    net, batch = shaken(make_click_net("model=mian_drop_raw")).eval(), random_clicks()
    other = batch._replace(codes=batch.codes * 0, weights=batch.weights + 1)
    assert_close(net(other), net(batch), rtol=0, atol=0)
    assert net.tables.fields.table is None


def test_a_softmax_of_two_outputs_is_a_sigmoid(make_click_net, random_clicks):
    batch = random_clicks()
    one, two = (shaken(make_click_net(f"model={name}")).eval().double() for name in ("mian", "mian_softmax2"))
    mapped = {
        name: tensor[1:] - tensor[:1] if name.startswith("head.1.") else tensor
        for name, tensor in two.state_dict().items()
    }
    assert not torch.allclose(one(batch)[0], two(batch)[0], rtol=0, atol=1e-3)
    one.load_state_dict(mapped)
    assert_close(one(batch)[0], two(batch)[0], rtol=0, atol=1e-12)
    outputs = heard(two.head, two, batch)[1]
    assert_close(one(batch)[0].sigmoid(), outputs.softmax(1)[:, 1], rtol=0, atol=1e-8)


def test_dropout_is_where_the_docstring_says(make_click_net, random_clicks):
    net, seen = make_click_net("model=mian").train(), []
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p:
            assert module.p == 0.2
            module.register_forward_hook(lambda _, taken, given, name=name: seen.append((name, *given.shape)))
    net(random_clicks())
    block = "interactions.ibim.block.dropout"
    assert seen == [(block, 6, 12, WIDE), (block, 6, 12, WIDE), ("head.0.2", 6, 32), ("head.0.5", 6, 8)]


def test_l2_falls_on_matrices_and_on_what_is_looked_up(make_click_net, random_clicks):
    batch = random_clicks()
    touched = []
    for l2, l2_dense in ((1.0, 0.0), (0.0, 1.0)):
        net = make_click_net("model=mian", l2=l2, l2_dense=l2_dense)
        net(batch)[1].backward()
        touched.append({name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()})
    rows, dense = touched
    assert rows == {name for name in rows | dense if name.startswith("tables.")} and len(rows) == 3
    assert all(name.endswith("weight") for name in dense)
    assert not any(part in name for name in dense for part in ("table", ".enter"))
    assert len(dense) == 4 + 2 + 3 + 7 + 1 + 3  # attention, feed, interactions, maps, scores, head


@pytest.mark.parametrize(
    "changes",
    [{key: 0} for key in ("item_dim", "field_dim", "window", "heads", "inner", "gim_dim")]
    + [{"heads": 7}, {"block": "prenorm"}, {"gim_combine": "add"}, {"head": "softmax"}, {"dropout": 1.0}]
    + [{"std": 0.0}, {"l2": -1.0}, {"l2_dense": -1.0}, {"hidden": [8, 0]}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, click_catalog, net_config):
    key, value = next(iter(changes.items()))
    with pytest.raises(InputError, match=f"model.net.{key}={0 if key == 'hidden' else value}"):
        MIAN(click_catalog, **options(net_config, **changes))
