import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import PAD, Catalog
from hydrec.errors import InputError
from hydrec.layers import attention
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)
SASRECS = {"bias": {}, "experts": {"heads": 8}}  # what starts with its bits, and how it must be made


def scores_of(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def train(net, batch, steps=20):
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        loss = F.cross_entropy(scores_of(net, batch), batch.targets[batch.targets != PAD] - 1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.fixture
def build(make_net, catalog):
    def build(use="bias", **changes):
        net = make_net("model=binned_sasrec_bias", **({"heads": 4, "use": use} | changes))
        net.fit(catalog)
        return net

    return build


# Bins -------------------------------------------------------------------------------------------------------


def catalog_of(*histories):
    users = torch.cat([torch.full((len(values),), user) for user, values in enumerate(histories, 1)])
    values = torch.tensor([value for values in histories for value in values])
    return Catalog(len(histories), 25, users, users * 0 + 1, users * 0, values, torch.ones(26).long())


def test_edges_are_percentiles_of_what_training_events_are_like(build):
    draw = np.random.default_rng(0)
    histories = [draw.lognormal(size=n).astype(np.float32).tolist() for n in (1, 5, 12, 13, 30)]
    net = build(bins=5)
    net.fit(catalog_of(*histories))
    found = []
    for history in histories:
        for first in range(0, len(history), 12):
            logs = np.log1p(np.array(history[first : first + 12], np.float64))
            found += (logs / logs.max()).tolist()
    expected = np.percentile(found, [20, 40, 60, 80], method="higher")
    np.testing.assert_allclose(net.edges.numpy(), expected, atol=1e-6)
    shares = np.bincount(torch.bucketize(torch.tensor(found).float(), net.edges)) / len(found)
    assert (abs(shares - 0.2) < 0.05).all()


@pytest.mark.parametrize(
    ("ratings", "bins"),
    [
        ([1, 2, 3, 4, 5, 5, 5, 5], [0, 0, 0, 1, 3, 3, 3, 3]),
        ([1, 4, 5, 5, 5, 5, 5, 5], [0, 0, 3, 3, 3, 3, 3, 3]),
        ([1, 1, 1, 1, 1, 1, 1, 5], [0, 0, 0, 0, 0, 0, 0, 3]),
        ([5, 5, 5, 5, 5, 5, 5, 5], [0, 0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_ratings_may_leave_bins_empty_but_the_highest_are_apart(ratings, bins, build):
    net = build()
    net.fit(catalog_of([float(rating) for rating in ratings]))
    logs = torch.tensor(ratings).float().log1p() / torch.tensor(5.0).log1p()
    assert torch.bucketize(logs, net.edges).tolist() == bins


def test_a_checkpoint_carries_the_edges(build, make_net):
    net = build()
    assert net.edges.abs().sum() > 0
    fresh = make_net("model=binned_sasrec_bias", heads=4)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.edges, net.edges)


# The start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [False, True], ids=["last position", "all positions"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("use", SASRECS)
def test_it_starts_with_sasrecs_bits(use, training, every, make_net, build, random_batch):
    sasrec = make_net("model=sasrec", **({"heads": 4} | SASRECS[use])).train(training)
    ours, batch, found = build(use, **SASRECS[use]).train(training), random_batch(every=every), []
    for net in (sasrec, ours):
        torch.manual_seed(1)  # of dropout
        found.append(scores_of(net, batch))
        F.cross_entropy(found[-1], batch.targets[batch.targets != PAD] - 1).backward()
    assert torch.equal(*found)
    for name, parameter in sasrec.named_parameters():
        own = dict(ours.named_parameters())[name]
        assert torch.equal(own, parameter)
        # above the experts gradients are added up in another order
        torch.testing.assert_close(own.grad, parameter.grad, rtol=0, atol=1e-6 if use == "experts" else 0)


def test_tokens_start_with_their_controls_bits(build, random_batch):
    batch = random_batch(every=True)
    tokens, control = build("tokens").eval(), build("constant_tokens").eval()
    assert torch.equal(scores_of(tokens, batch), scores_of(control, batch))


@pytest.mark.parametrize("use", ["bias", "experts", "hard_experts", "tokens", "constant_tokens"])
def test_all_but_the_control_come_to_know_intensities(use, build, random_batch):
    net, batch = build(use), random_batch(every=True)
    train(net, batch)
    net.eval()
    other = batch._replace(values=batch.values.flip(0))
    assert torch.equal(scores_of(net, other), scores_of(net, batch)) == (use == "constant_tokens")


@pytest.mark.parametrize("use", ["bias", "experts", "hard_experts", "tokens", "constant_tokens"])
def test_each_position_says_what_the_history_up_to_it_says(use, build, random_batch):
    net, batch = build(use), random_batch(every=True)
    train(net, batch, steps=3)
    whole = net.eval().encode(batch)[0].vectors
    for end in range(1, 13):
        targets, real = batch.targets[:, end - 1 : end], batch.lengths >= end
        prefix = batch._replace(lengths=batch.lengths.clamp(max=end), targets=targets)
        assert_close(net.encode(prefix)[0].vectors[real, 0], whole[real, end - 1], rtol=0, atol=1e-4)


# What they do -----------------------------------------------------------------------------------------------


def test_a_bias_of_equal_numbers_is_none(build, random_batch):
    net, batch = build().eval(), random_batch(every=True)
    before = scores_of(net, batch)
    with torch.no_grad():
        for table in net.use.tables:
            table.weight += torch.arange(4.0)  # one for each head, the same for all bins
    assert_close(scores_of(net, batch), before)
    with torch.no_grad():
        net.use.tables[1].weight[2] += 5
    assert not torch.allclose(scores_of(net, batch), before, atol=1e-3)


def test_an_expert_sees_its_bin_and_itself_and_the_other_heads_see_all(build):
    net = build("hard_experts", heads=6, dim=12, blocks=1)
    bins = torch.tensor([0, 3, 1, 1, 2])[None, None].expand(2, 5, 5)
    x = torch.randn(2, 5, 12)
    seen, weigh = net.use(x, x, bins)[1:]
    weights = weigh[0](torch.randn(2, 6, 5, 5), seen)
    past = torch.ones(5, 5).tril().bool()
    for head in range(6):
        own = past if head < 2 else past & ((bins[0] == head - 2) | torch.eye(5).bool())
        assert torch.equal(weights[0, head] > 0, own)
    assert_close(weights.sum(-1), torch.ones(2, 6, 5))


def test_hard_experts_are_experts_that_have_turned(build, random_batch):
    soft, hard, batch = build("experts").eval(), build("hard_experts").eval(), random_batch(every=True)
    assert not torch.allclose(scores_of(soft, batch), scores_of(hard, batch), atol=1e-4)
    with torch.no_grad():
        soft.use.share.fill_(1)
    assert torch.equal(scores_of(soft, batch), scores_of(hard, batch))
    assert "use.share" in dict(soft.named_parameters()) and "use.share" not in dict(hard.named_parameters())


def test_a_token_is_told_by_its_event_not_by_later_ones(build):
    net = build("tokens")
    net.use.table.weight.data = torch.arange(4.0)[:, None].expand(4, 64).clone()
    net.use.kind.data.fill_(0.5)
    bins = torch.tensor([[[0, 0, 0], [2, 1, 0], [3, 3, 2]]])  # keys of three queries
    x, places = torch.randn(1, 3, 64), torch.randn(1, 3, 64)
    both, seen, weigh = net.use(x, places, bins)
    assert_close(both[:, 0::2], x + places)
    assert_close(both[:, 1::2], torch.tensor([0.5, 1.5, 2.5])[None, :, None] + places)
    assert torch.equal(seen, attention.causal(6, x.device)) and len(weigh) == 2


@pytest.mark.parametrize("use", ["bias", "experts", "hard_experts", "tokens"])
def test_nothing_is_nan_whatever_the_intensities(use, build, random_batch):
    net, batch = build(use), random_batch(every=True)
    odd = torch.tensor([torch.nan, torch.inf, -3.0, 0.0, 1e4])
    odd = odd[torch.randint(5, batch.values.shape, generator=torch.Generator().manual_seed(0))]
    vectors = net.encode(batch._replace(values=odd))[0].vectors
    vectors.sum().backward()
    assert vectors.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use": "biases"}, "model.net.use=biases is none of .* did you mean bias"),
        ({"bins": 1}, "model.net.bins=1"),
        ({"use": "experts", "heads": 2}, "model.net.heads=2: each of the 4 bins"),
        ({"intensity_norm": "max"}, "model.net.intensity_norm=max"),
    ],
    ids=str,
)
def test_what_cannot_be_built_names_its_key(changes, said, build):
    with pytest.raises(InputError, match=said):
        build(**changes)


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        ("experts", {"use": "experts", "heads": 8}),
        ("hard_experts", {"use": "hard_experts", "heads": 8}),
        ("tokens", {"use": "tokens"}),
        ("constant_tokens", {"use": "constant_tokens"}),
    ],
)
def test_the_variants_are_those_of_conf(model, difference, net_config):
    assert net_config(f"model=binned_sasrec_{model}") == net_config("model=binned_sasrec_bias") | difference
