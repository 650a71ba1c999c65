from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.layers import attention, intensity
from hydrec.models.ia_sasrec import FORMS
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
BASES = {"recbole": {}, "original": {"block": "original", "scale": True, "position": "slot", "eps": 1e-8}}
EVERY = pytest.mark.parametrize("every", [False, True], ids=["last position", "all positions"])


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def train_step(net, batch, optimiser, seed):
    torch.manual_seed(seed)
    loss = F.cross_entropy(scores_of(net, batch), batch.targets[batch.targets != PAD] - 1)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


@pytest.fixture
def build(make_net):
    """An IA-SASRec of a form; weights and lambda large enough to matter where ``shake`` is set."""

    def build(form="add", shake=False, **changes):
        net = make_net("model=ia_sasrec_add", form=form, **changes)
        if shake:
            draw = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    if not name.startswith("strengths"):
                        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
        return net

    return build


# The forms --------------------------------------------------------------------------------------------------


def test_mul_raises_a_weak_key_that_a_negative_logit_hid():
    logits, w = torch.tensor([[[[-2.0, 0, 1]]]]), torch.tensor([[[[0.1, 1, 1]]]])
    seen, one = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 1, 1, 1)
    assert attention.softmax(logits, seen)[0, 0, 0, 0].item() == pytest.approx(0.035, abs=5e-4)
    assert FORMS["mul"](w, one, logits, seen)[0, 0, 0, 0].item() == pytest.approx(0.180, abs=5e-4)


def test_add_and_mul_weights_sum_to_one_and_those_of_val_to_less():
    draw = torch.Generator().manual_seed(0)
    logits, w = torch.randn(2, 2, 4, 4, generator=draw), torch.rand(2, 1, 4, 4, generator=draw)
    seen, strength = attention.causal(4, w.device), torch.full((1, 1, 1, 1), 0.6)
    sums = {form: weigh(w, strength, logits, seen).sum(-1) for form, weigh in FORMS.items()}
    assert_close(sums["add"], torch.ones(2, 2, 4))
    assert_close(sums["mul"], torch.ones(2, 2, 4))
    assert (sums["val"] < 1).all()


def test_val_scales_the_values_of_keys():
    torch.manual_seed(0)
    layer, x, w = (
        attention.Attention(6, heads=2, dropout=0.0, mix=False),
        torch.randn(2, 4, 6),
        torch.rand(2, 4),
    )
    seen, strength = attention.causal(4, w.device), torch.full((1, 1, 1, 1), 0.6)
    found = layer(x, x, seen, partial(FORMS["val"], w[:, None, None], strength))
    with_values = layer.value.forward
    layer.value.forward = lambda keys: with_values(keys) * (1 + 0.6 * (w - 1))[:, :, None]
    assert_close(found, layer(x, x, seen))


def test_an_intensity_of_the_query_cannot_reorder_what_its_context_says():
    """The paper's earlier Val: the context times the query's own intensity."""
    torch.manual_seed(0)
    layer, x, w = (
        attention.Attention(8, heads=1, dropout=0.0, mix=False),
        torch.randn(4, 6, 8),
        torch.rand(4, 6),
    )
    seen, items = attention.causal(6, w.device), torch.randn(50, 8)

    def order(weigh):
        return (layer(x, x, seen, weigh) @ items.T).argsort(-1)

    def earlier(logits, seen):
        return attention.softmax(logits, seen) * w[:, None, :, None]

    plain, of_keys = order(attention.softmax), partial(FORMS["val"], w[:, None, None], torch.ones(1, 1, 1, 1))
    assert torch.equal(order(earlier), plain)
    assert not torch.equal(order(of_keys), plain)


# Lambda = 0 -------------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", FORMS)
def test_at_zero_outputs_and_gradients_are_sasrecs_bits(
    form, base, training, every, make_net, build, random_batch
):
    sasrec = make_net("model=sasrec", **BASES[base]).train(training)
    ours = build(form, lambda_value=0.0, intensity_norm="zscore", **BASES[base]).train(training)
    batch = random_batch(every=every)
    batch = batch._replace(values=batch.values.where(batch.values < 0.8, torch.nan) * 500)
    found = []
    for net in (sasrec, ours):
        torch.manual_seed(1)  # of dropout
        found.append(scores_of(net, batch))
        F.cross_entropy(found[-1], batch.targets[batch.targets != PAD] - 1).backward()
    assert torch.equal(*found)
    theirs = dict(sasrec.named_parameters())
    shared = {name: p for name, p in ours.named_parameters() if not name.startswith("strengths")}
    assert shared.keys() == theirs.keys()
    for name, parameter in shared.items():
        assert torch.equal(parameter, theirs[name]) and torch.equal(parameter.grad, theirs[name].grad), name


@pytest.mark.parametrize("form", FORMS)
def test_at_zero_half_precision_gives_sasrecs_bits(form, make_net, build, random_batch):
    batch, found = random_batch(every=True), []
    for net in (make_net("model=sasrec"), build(form, lambda_value=0.0)):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(net.encode(batch)[0].vectors)
    assert torch.equal(*found)


@pytest.mark.parametrize("form", FORMS)
def test_pinned_at_zero_training_gives_sasrecs_bits(form, make_net, build, random_batch):
    nets = {
        "sasrec": make_net("model=sasrec"),
        "pinned": build(form, lambda_mode="pinned", lambda_value=0.0),
        "learnt": build(form, lambda_value=0.0),
    }
    before = nets["sasrec"].item.weight.detach().clone()
    for name, net in nets.items():
        groups = net.parameters() if name == "sasrec" else net.parameter_groups()
        optimiser = torch.optim.Adam(groups, lr=0.001)
        for step in range(20):
            train_step(net, random_batch(seed=step, every=True), optimiser, seed=step)
    theirs = nets["sasrec"].state_dict()
    assert all(torch.equal(nets["pinned"].state_dict()[name], theirs[name]) for name in theirs)
    assert not torch.equal(theirs["item.weight"], before)
    assert not torch.equal(nets["learnt"].state_dict()["item.weight"], theirs["item.weight"])


@pytest.mark.parametrize("mode", ["head", "event", "pinned"])
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_lambda_can_start_as_sasrec_or_as_the_papers(form, mode, make_net, build, random_batch):
    batch = random_batch(every=True)
    starts = {value: build(form, lambda_value=value) for value in (0.0, 1.0)}
    for value, start in starts.items():
        other = build(form, lambda_mode=mode, lambda_value=value)
        assert torch.equal(scores_of(other.eval(), batch), scores_of(start.eval(), batch))
    assert torch.equal(scores_of(starts[0.0], batch), scores_of(make_net("model=sasrec").eval(), batch))
    assert not torch.equal(scores_of(starts[1.0], batch), scores_of(starts[0.0], batch))


# Lambda > 0 -------------------------------------------------------------------------------------------------


def test_add_only_knows_differences_within_a_history(build, random_batch):
    batch = random_batch(every=True)
    shifted = batch._replace(values=batch.values + 2)  # on padding too, where it counts for nothing
    for form, same in {"add": True, "mul": False, "val": False}.items():
        net = build(form, shake=True, intensity_norm="none").eval()
        difference = (scores_of(net, shifted) - scores_of(net, batch)).abs().max()
        assert difference < 1e-4 if same else difference > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_equal_intensities_are_sasrec(form, make_net, build, random_batch):
    batch = random_batch(every=True)
    batch = batch._replace(values=torch.full_like(batch.values, 3.0))
    net = build(form).eval()  # each intensity is 1
    assert_close(scores_of(net, batch), scores_of(make_net("model=sasrec").eval(), batch))


@pytest.mark.parametrize("scope", ["causal", "window"])
@pytest.mark.parametrize("mode", intensity.MODES)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_nan_whatever_the_intensities(form, mode, scope, build, random_batch):
    batch = random_batch(every=scope == "causal")
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -3.0, 0.0, 1e4])
    odd = odd[torch.randint(6, batch.values.shape, generator=torch.Generator().manual_seed(0))]
    if mode == "none":
        odd = odd.nan_to_num(posinf=1e4)  # it leaves them as they are: the scores then overflow
    net = build(form, intensity_norm=mode, norm_scope=scope)
    vectors = net.encode(batch._replace(values=odd))[0].vectors
    vectors.sum().backward()
    assert vectors.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def prefixes_of(net, batch):
    """What the net says of each prefix of the histories, one after the other: (B, T, D)."""
    said = []
    for end in range(1, 13):
        targets = batch.targets[:, end - 1 : end]
        prefix = batch._replace(lengths=batch.lengths.clamp(max=end), targets=targets)
        said.append(net.encode(prefix)[0].vectors)
    return torch.cat(said, 1)


@pytest.mark.parametrize("mode", intensity.MODES)
@pytest.mark.parametrize("form", FORMS)
def test_each_position_says_what_the_history_up_to_it_says(form, mode, build, random_batch):
    batch, net = random_batch(every=True), build(form, shake=True, intensity_norm=mode).eval()
    real = batch.items != PAD
    assert_close(net.encode(batch)[0].vectors[real], prefixes_of(net, batch)[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("blocks", "same"), [(1, True), (2, False)])
@pytest.mark.parametrize("form", FORMS)
def test_in_deeper_blocks_the_papers_inner_positions_know_more(form, blocks, same, build, random_batch):
    batch, real = random_batch(every=True), random_batch().items != PAD
    causal, window = (
        build(form, shake=True, blocks=blocks, norm_scope=scope).eval() for scope in ("causal", "window")
    )
    whole, prefixes = causal.encode(batch)[0].vectors[real], prefixes_of(window, batch)[real]
    assert torch.allclose(whole, prefixes, rtol=0, atol=1e-4) == same


def test_a_window_is_refused_where_it_would_leak(build, random_batch):
    net = build(norm_scope="window")
    assert not net.causal and build().causal
    with pytest.raises(InputError, match=r"model.net.norm_scope=window shows .* model.samples=prefixes"):
        net.encode(random_batch(every=True))


# What lambda is and how it learns ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("mode", "sizes"), [("block", [1, 1]), ("head", [2, 2]), ("event", [49, 49])])
def test_every_lambda_learns(mode, sizes, form, build, random_batch):
    net, batch = build(form, shake=True, lambda_mode=mode, lambda_value=0.5), random_batch(every=True)
    assert [sum(p.numel() for p in strength.parameters()) for strength in net.strengths] == sizes
    before = [p.detach().clone() for p in net.strengths.parameters()]
    optimiser = torch.optim.Adam(net.parameter_groups(), lr=0.001)
    for step in range(2):  # a gate's inner layer only learns once its outer one is not 0
        train_step(net, batch, optimiser, seed=step)
    moved = [(p - b).abs().sum() for p, b in zip(net.strengths.parameters(), before, strict=True)]
    assert all(m > 0 for m in moved)


def test_lambda_has_its_own_rate_and_no_decay(build, random_batch):
    net = build(lambda_lr_mult=10.0, lr=0.002)
    others, lambdas = net.parameter_groups()
    assert lambdas["params"] == list(net.strengths.parameters())
    assert len(others["params"]) + 2 == len(list(net.parameters()))
    optimiser = torch.optim.AdamW([others, lambdas], lr=0.002, weight_decay=0.5)
    assert [(g["lr"], g["weight_decay"]) for g in optimiser.param_groups] == [(0.002, 0.5), (0.02, 0.0)]
    train_step(net, random_batch(), optimiser, seed=0)
    for value in net.scalars().values():
        assert abs(value - 1) == pytest.approx(0.02, rel=0.01)  # Adam's first step is the learning rate


def test_lambdas_rate_follows_the_optimisers(make_net):
    net = make_net("model=ia_sasrec_add", "model.optimiser.lr=0.05", "model.net.lambda_lr_mult=10.0")
    assert net.parameter_groups()[1]["lr"] == pytest.approx(0.5)


def test_a_pinned_lambda_is_no_parameter_but_in_the_checkpoint(build):
    net = build(lambda_mode="pinned", lambda_value=0.25)
    assert net.parameter_groups()[1]["params"] == []
    assert net.state_dict()["strengths.1.value"].item() == 0.25


def test_lambda_draws_no_random_number(make_net, build):
    after = []
    for make in (partial(make_net, "model=sasrec"), build, partial(build, lambda_mode="head")):
        make()
        after.append(torch.rand(1).item())
    assert len(set(after)) == 1


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("block", ["block1", "block2"]),
        ("pinned", ["block1", "block2"]),
        ("head", ["block1/head1", "block1/head2", "block2/head1", "block2/head2"]),
        ("event", ["block1/w0", "block1/w1", "block2/w0", "block2/w1"]),
    ],
)
def test_the_history_of_a_run_has_lambda(mode, names, build):
    net = build(lambda_mode=mode, lambda_value=0.75)
    assert net.scalars() == {f"lambda/{name}": 0.75 for name in names}
    with torch.no_grad():
        for parameter in net.strengths.parameters():
            parameter += torch.arange(parameter.numel()).view(parameter.shape)
    if mode == "head":
        assert list(net.scalars().values()) == [0.75, 1.75, 0.75, 1.75]
    if mode == "event":
        assert net.scalars()["lambda/block1/w0"] != net.scalars()["lambda/block1/w1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("form", "adds"),
        ("intensity_norm", "minimax"),
        ("norm_scope", "prefix"),
        ("lambda_mode", "token"),
        ("dim", 0),
    ],
)
def test_what_cannot_be_built_names_its_key(key, value, build):
    with pytest.raises(InputError, match=f"model.net.{key}={value}"):
        build(**{key: value})


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        ("ia_sasrec_mul", {"form": "mul"}),
        ("ia_sasrec_val", {"form": "val"}),
        ("ia_sasrec_window", {"norm_scope": "window"}),
        ("ia_sasrec_pinned", {"lambda_mode": "pinned", "lambda_value": 0.0}),
        ("ia_sasrec_head", {"lambda_mode": "head"}),
        ("ia_sasrec_gate", {"lambda_mode": "event", "lambda_value": 0.0}),
    ],
)
def test_the_variants_are_those_of_conf(model, difference, net_config):
    assert net_config(f"model={model}") == net_config("model=ia_sasrec_add") | difference


def test_the_rest_is_sasrecs(net_config):
    ours, theirs = net_config("model=ia_sasrec_add"), net_config("model=sasrec")
    assert {key: ours[key] for key in theirs if key != "_target_"} == {
        key: value for key, value in theirs.items() if key != "_target_"
    }
