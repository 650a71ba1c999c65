import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.layers import graph, scoring
from hydrec.tasks import select

ABLATIONS = ["hgnn", "hgnn_t", "hgnn_gat1", "hgnn_gat2", "hgnn_no_query_time", "hgnn_constant_weights"]
ALL = torch.arange(1, 26)
DAY = 86400


def scores(net, batch, items=ALL):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), items)


def groups_of(net, batch):
    """The nodes that the clusters are made of, and the clusters."""
    seen = {}
    hook = net.cluster.register_forward_hook(lambda _, inputs, out: seen.update(z=inputs[0], groups=out))
    net.encode(batch)
    hook.remove()
    return seen["z"], seen["groups"]


@pytest.fixture
def sharp(make_net):
    """A float64 net whose weights are large enough for factors to differ."""

    def sharp(model="hgnn", **changes):
        net = make_net(f"model={model}", **changes).double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3)
        return net

    return sharp


@pytest.mark.parametrize("model", ABLATIONS)
def test_only_differences_of_times_matter(model, sharp, random_batch):
    net, batch = sharp(model), random_batch()
    later = batch._replace(times=batch.times + 10**8 + 7, target_times=batch.target_times + 10**8 + 7)
    assert torch.equal(scores(net, later), scores(net, batch))


def test_times_matter(sharp, random_batch):
    net, batch = sharp(), random_batch()
    early = scores(net, batch)
    assert (scores(net, batch._replace(target_times=batch.target_times + 9 * DAY)) - early).abs().max() > 1e-3
    assert (scores(net, batch._replace(times=batch.times // 9)) - early).abs().max() > 1e-3


def test_without_time_any_times_will_do(sharp, random_batch):
    net, batch, other = sharp("hgnn_t"), random_batch(), random_batch(seed=1)
    timeless = batch._replace(times=other.times, target_times=other.target_times)
    assert torch.equal(scores(net, timeless), scores(net, batch))


def test_asked_at_the_last_event_the_targets_time_is_not_read(sharp, random_batch):
    net, batch = sharp(query_time="last"), random_batch()
    moved = batch._replace(target_times=batch.target_times + 9 * DAY)
    assert torch.equal(scores(net, moved), scores(net, batch))


@pytest.mark.parametrize("model", ABLATIONS)
def test_equal_times_give_finite_scores_and_gradients(model, make_net, random_batch):
    net, batch = make_net(f"model={model}"), random_batch()
    batch = batch._replace(
        times=torch.zeros_like(batch.times), target_times=torch.zeros_like(batch.target_times)
    )
    values = scores(net, batch)
    values.sum().backward()
    assert values.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("gat", ["linear", "two_level"])
def test_a_node_without_neighbours_becomes_zero(gat, make_net, random_batch):
    net, batch = make_net("model=hgnn", self_loops=False, gat=gat), random_batch()
    batch = batch._replace(times=torch.arange(12).expand(6, 12) * 31 * DAY)  # all further apart than max_gap
    values = scores(net, batch)
    values.sum().backward()
    assert torch.equal(values, torch.zeros(6, 25))
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("model", ABLATIONS)
def test_the_order_of_nodes_does_not_matter(model, sharp, random_batch):
    net, batch = sharp(model), random_batch(rows=4)
    whole = batch._replace(
        items=torch.where(batch.items == PAD, 1, batch.items), lengths=torch.full_like(batch.lengths, 12)
    )
    order = torch.tensor([0, 7, 3, 11, 1, 9, 10, 2, 8, 4, 6, 5])  # the first sets the origin of time
    moved = whole._replace(items=whole.items[:, order], times=whole.times[:, order])
    assert_close(scores(net, moved), scores(net, whole))
    if model != "hgnn_gat2":  # there a node is a factor, and both move
        assert_close(groups_of(net, moved)[1].shares, groups_of(net, whole)[1].shares[:, order])


@pytest.mark.parametrize("model", ABLATIONS)
def test_chunks_of_the_catalogue_score_as_the_whole(model, sharp, random_batch):
    net = sharp(model)
    state = select(net.encode(random_batch())[0], torch.ones(6, 1, dtype=torch.bool))
    whole = net.score(state, ALL)
    for width in (1, 4, 7):
        chunks = torch.cat([net.score(state, items) for items in ALL.split(width)], 1)
        assert_close(chunks, whole, rtol=0, atol=1e-12)  # BLAS may give other last bits to another shape


@pytest.mark.parametrize("model", ABLATIONS)
def test_groups_share_out_the_nodes(model, sharp, random_batch):
    batch = random_batch()
    z, groups = groups_of(sharp(model), batch)
    real = torch.arange(12) < batch.lengths[:, None]
    assert_close(groups.vectors.sum(1), (z * real[:, :, None]).sum(1))  # sum of c_j = sum of z_i
    assert_close(groups.shares.sum(2), real.double())
    spread = (groups.shares[real].max(1).values - 0.2).max()
    assert spread > 0.1  # or the test would hold for constant shares only


def test_entropy_lies_between_none_and_that_of_chance(sharp, random_batch):
    for scale in (0.0, 1.0, 1000.0):
        net = sharp(entropy=1.0)
        net.cluster.assign.mix[1].weight.data *= scale
        entropy = net.encode(random_batch())[1].item()
        assert 0 <= entropy <= math.log(5) + 1e-12
        if scale == 0.0:
            assert entropy == pytest.approx(math.log(5))
        if scale == 1000.0:
            assert entropy < 0.1


def test_assignments_start_almost_by_chance(make_net, random_batch):
    batch = random_batch(rows=64)
    items = torch.rand(64, 25, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :12] + 1
    times = torch.arange(12).expand(64, 12) * DAY
    full = batch._replace(items=items, times=times, lengths=torch.full((64,), 12))
    start = [make_net("model=hgnn", seed=seed, entropy=1.0).encode(full)[1].item() for seed in range(5)]
    assert sum(start) / 5 == pytest.approx(1.6084, abs=0.0004)  # ln 5 = 1.6094


@pytest.mark.parametrize("model", ["hgnn_gat2", "hgnn_ent"])
def test_without_the_entropy_term_the_loss_has_none(model, make_net, random_batch):
    assert make_net(f"model={model}").encode(random_batch())[1].item() == 0


def test_raising_a_match_by_the_formula():
    match = torch.tensor([[[3.0], [1.0], [0.5]]], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([[0.1, 0.9, 0.3]], dtype=torch.float64)
    score = scoring.soft_maximum(match, bias, torch.ones(1, 3, dtype=torch.bool))
    score.sum().backward()
    beta = torch.softmax(match[0, :, 0] + bias[0], 0)
    assert_close(match.grad[0, :, 0], (beta * (1 + match[0, :, 0] - score)).detach()[0])
    assert match.grad[0, 2, 0] < 0  # 0.5 < score - 1


def test_a_soft_maximum_leaves_out_what_is_not_valid():
    match, bias = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[0.5, 0.5, 0.5]])
    among_all = scoring.soft_maximum(match, bias, torch.tensor([[True, True, False]]))
    assert_close(
        among_all, scoring.soft_maximum(match[:, :2], bias[:, :2], torch.ones(1, 2, dtype=torch.bool))
    )


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_masked_softmax_is_a_softmax_over_what_is_left(scale):
    x = (torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) - 9) * scale
    x.requires_grad_()
    mask = torch.tensor(
        [[True] * 4, [True, False, True, False], [False, True, False, False]] + 2 * [[False] * 4]
    )
    out = scoring.masked_softmax(x, mask, dim=1)
    assert_close(out[0], x[0].softmax(0))
    assert_close(out[1, [0, 2]], x[1, [0, 2]].softmax(0))
    assert torch.equal(out[~mask], torch.zeros(int((~mask).sum())))
    (out * torch.arange(4)).sum().backward()
    assert x.grad.isfinite().all() and not x.grad[3:].any()


def test_time_keeps_its_seconds():
    seconds = torch.tensor([0, 1, 50 * 365 * DAY, 50 * 365 * DAY + 1])
    days = graph.units(seconds, days=1.0)
    assert days.diff()[[0, 2]] * DAY == pytest.approx([1.0, 1.0], rel=1e-4)
    assert graph.units(torch.tensor([7 * DAY]), days=7.0).item() == 1.0
    assert graph.whole_units(torch.tensor([DAY - 1, DAY, 2 * DAY - 1]), days=1.0).tolist() == [0, 1, 1]


def test_the_graph_by_hand():
    times, valid = torch.tensor([[0.0, 0.5, 4.5, 0.0]]), torch.tensor([[True, True, True, False]])
    join = graph.TimeGraph(max_gap=4.0, self_loops=True, weigh=graph.closeness)
    edges = join(times, valid)
    assert edges.mask[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert edges.weights[0, 1].tolist() == [1.0, 1.0, 0.25, 1.0]
    join.self_loops = False
    assert join(times, valid).mask[0].int().tolist() == [
        [0, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 0],
    ]


def test_parameters_are_those_of_the_paper(make_net):
    net = make_net("model=hgnn")
    assert sum(p.numel() for p in net.refine.parameters()) == 16_384
    assert sum(p.numel() for p in net.cluster.parameters()) == 16_384 + 64 * 5
    bound = math.sqrt(6 / (64 + 64))  # Xavier of one head, not of all of them together
    for head in net.refine.heads.weight:
        assert head.abs().max().item() == pytest.approx(bound, rel=0.01)
    wide = make_net("model=hgnn", dim=2000)
    assert wide.item.weight[1:].std().item() == pytest.approx(0.1, rel=0.02)
    assert not wide.item.weight[PAD].any()


@pytest.mark.parametrize("changes", [{}, {"gat": "two_level", "freeze_heads": True}], ids=str)
def test_training_moves_all_but_padding_and_frozen_heads(changes, make_net, random_batch):
    net, batch = make_net("model=hgnn", **changes), random_batch()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    frozen = {"refine.first.weight", "cluster.assign.first.weight"} if changes else set()
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == frozen
    optimiser = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.01)
    candidates, target = torch.tensor([[3, PAD]]).repeat(6, 1), torch.zeros(6, dtype=torch.int64)
    for _ in range(2):
        loss = (
            F.cross_entropy(scores(net, batch, torch.arange(26)), batch.targets[:, 0]) + net.encode(batch)[1]
        )
        (loss + net.regulariser(batch, candidates, target)).backward()
        optimiser.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name
    assert not net.item.weight[PAD].any()


def test_l2_by_hand_for_shared_and_own_candidates(make_net, random_batch):
    net, batch = make_net("model=hgnn", dim=1, l2=1.0), random_batch(rows=2, window=2)
    net.item.weight.data = torch.arange(26.0)[:, None]
    batch = batch._replace(items=torch.tensor([[1, 2], [3, PAD]]), lengths=torch.tensor([2, 1]))
    target = torch.tensor([0, 2])
    history, positives = 1 + 4 + 9, 16 + 36
    negatives = (25 + 36) / 2 + (16 + 25) / 2
    shared = torch.tensor([4, 5, 6])
    expected = (history + positives + negatives) / (2 * 2)
    assert net.regulariser(batch, shared, target).item() == pytest.approx(expected)
    assert net.regulariser(batch, shared.repeat(2, 1), target).item() == pytest.approx(expected)


def test_half_precision_keeps_time(make_net, random_batch):
    times, valid = torch.tensor([[0.0] + 11 * [1001.0]]), torch.ones(1, 12, dtype=torch.bool)
    edges = graph.TimeGraph(max_gap=1e9, self_loops=True, weigh=graph.closeness)(times, valid)
    with torch.autocast("cpu", torch.bfloat16):
        groups = graph.Clusters(graph.Unchanged())(torch.zeros(1, 12, 2), edges, times, valid)
        state, _ = make_net("model=hgnn").encode(random_batch())
    assert_close(groups.times, torch.full((1, 2), 1001 * 11 / 12))  # bfloat16 has 916 and 920 about it
    assert state.nearness.dtype == torch.float32
    assert_close(
        state.vectors.float(), make_net("model=hgnn").encode(random_batch())[0].vectors, rtol=0, atol=0.05
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"gat": "two_levels"},
            "did you mean two_level?",
        ),
        ({"query_time": "now"}, "model.net.query_time=now"),
        ({"edges": "time"}, "did you mean timed?"),
        ({"time_unit": "day"}, "did you mean int_day?"),
        ({"gamma_mode": "max"}, "model.net.gamma_mode=max"),
        ({"dim": 0}, "model.net.dim=0"),
        ({"factors": 0}, "model.net.factors=0"),
        ({"unit": 0.0}, "model.net.unit=0.0"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(changes, said, make_net):
    with pytest.raises(InputError) as error:
        make_net("model=hgnn", **changes)
    assert said in str(error.value) and "\n" not in str(error.value)
