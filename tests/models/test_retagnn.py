import pytest
import torch

from hydrec.batch import PAD
from hydrec.errors import InputError
from hydrec.layers.scoring import masked_softmax
from hydrec.models.retagnn import Into, RetaGNN
from hydrec.tasks import select

ITEMS = torch.arange(1, 26)


def scores(net, batch):
    return net.score(select(net.encode(batch)[0], batch.targets != PAD), ITEMS)


def with_edges(catalog, users, items):
    """The catalogue with these training rows too."""
    return catalog._replace(users=torch.cat([catalog.users, users]), items=torch.cat([catalog.items, items]))


@pytest.fixture
def options(net_config):
    return {key: value for key, value in net_config("model=retagnn").items() if not key.startswith("_")}


@pytest.fixture
def build(options):
    def build(catalog, **changes):
        torch.manual_seed(0)
        return RetaGNN(catalog, **(options | changes)).double()

    return build


# The target of a training row ---------------------------------------------------------------------------


def test_a_training_row_scores_as_if_its_target_were_no_edge(build, catalog, random_batch):
    batch = random_batch()
    without, known = build(catalog), build(with_edges(catalog, batch.users, batch.targets[:, 0]))
    known.load_state_dict({k: v for k, v in without.state_dict().items() if "graph" not in k}, strict=False)
    torch.testing.assert_close(scores(known, batch), scores(without, batch), rtol=0, atol=1e-12)
    assert not torch.allclose(scores(known.eval(), batch), scores(without.eval(), batch), atol=1e-4)


def test_the_target_is_no_edge_even_if_the_user_took_it_twice(build, catalog, random_batch):
    batch = random_batch()
    users, items = batch.users.repeat(2), batch.targets[:, 0].repeat(2)
    once, twice = build(with_edges(catalog, users[:6], items[:6])), build(with_edges(catalog, users, items))
    assert torch.equal(once.graph.pairs, twice.graph.pairs)
    assert torch.equal(scores(once, batch), scores(twice, batch))


def test_only_the_pairs_of_the_batch_are_left_out(build, catalog):
    graph = build(catalog).graph
    kept = graph.without(torch.tensor([1, 1, 8, 0]), torch.tensor([int(catalog.items[0]), 25, 3, 0]))
    left = {(int(pair) // 26, int(pair) % 26) for pair in graph.pairs[~kept]}
    rows = set(zip(catalog.users.tolist(), catalog.items.tolist(), strict=True))
    assert left == {(1, int(catalog.items[0])), (1, 25), (8, 3)} & rows and len(left) >= 1


# Users without training events --------------------------------------------------------------------------


def test_users_without_training_events_differ_by_their_sessions_only(build, catalog, random_batch):
    net = build(catalog._replace(n_users=10)).eval()
    batch = random_batch(rows=3)
    rows = torch.tensor([0, 0, 0])
    same = type(batch)(*(field[rows] for field in batch))._replace(users=torch.tensor([0, 9, 10]))
    assert torch.equal(net.user.weight[[0, 9, 10]], torch.zeros(3, 64, dtype=torch.float64))
    found = scores(net, same)
    torch.testing.assert_close(found, found[:1].expand(3, -1))
    other = scores(net, batch._replace(users=torch.tensor([0, 9, 10])))
    assert not torch.allclose(other[0], other[1], atol=1e-3)
    assert not torch.allclose(
        found[0], scores(net, same._replace(users=torch.tensor([1, 1, 1])))[0], atol=1e-3
    )


def test_training_leaves_their_vectors_at_0(build, catalog, random_batch):
    net, batch = build(catalog._replace(n_users=10)), random_batch()
    scores(net, batch).sum().backward()
    assert not net.user.weight.grad[[0, 9, 10]].any() and net.user.weight.grad[1:9].any(1).all()


def test_a_graph_without_edges_is_no_trouble(build, catalog, random_batch):
    nobody = torch.empty(0, dtype=torch.int64)
    net = build(catalog._replace(users=nobody, items=nobody))
    scores(net, random_batch()).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# Evaluation ---------------------------------------------------------------------------------------------


def test_an_evaluation_walks_the_graph_once_for_each_state_of_the_weights(
    build, catalog, random_batch, monkeypatch
):
    net, walks = build(catalog).eval(), []
    walk = net._walk
    monkeypatch.setattr(net, "_walk", lambda kept: walks.append(1) or walk(kept))
    expected = scores(net, random_batch())
    assert len(walks) == 1
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(scores(net, random_batch()), expected)
    assert len(walks) == 2
    with torch.no_grad():
        net.long[0].root.add_(1.0)
        changed = scores(net, random_batch())
        assert not torch.allclose(changed, expected, atol=1e-3) and len(walks) == 3
        assert torch.equal(scores(net, random_batch()), changed) and len(walks) == 3
    assert torch.equal(scores(net, random_batch()), changed)


def test_a_checkpoint_carries_the_graph(build, catalog, random_batch):
    net = build(catalog).eval()
    other = build(catalog._replace(users=catalog.users[:7], items=catalog.items[:7])).eval()
    with torch.no_grad():
        before = scores(other, random_batch())
        other.load_state_dict(net.state_dict())
        assert torch.equal(scores(other, random_batch()), scores(net, random_batch()))
        assert not torch.allclose(before, scores(net, random_batch()), atol=1e-3)


# Attention along sparse edges ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_attention_into_nodes_is_dense_attention_with_a_mask(scale):
    draw = torch.Generator().manual_seed(0)
    ends, starts = torch.tensor([2, 0, 2, 3, 0, 2]), torch.tensor([1, 0, 4, 1, 2, 0])
    kept = torch.tensor([True, True, True, False, True, True])  # node 1 has no edge, node 3 none that is kept
    own, other = (scale * torch.randn(n, generator=draw, dtype=torch.float64) for n in (4, 5))
    sent = torch.randn(5, 2, generator=draw, dtype=torch.float64)
    columns = [x.clone().requires_grad_() for x in (own, other, sent)]
    found = Into(ends, starts, 4, 5)(*columns, kept)
    found.square().sum().backward()
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[ends[kept], starts[kept]] = True
    dense = [x.clone().requires_grad_() for x in (own, other, sent)]
    logits = torch.nn.functional.leaky_relu(dense[0][:, None] + dense[1], 0.2)
    expected = masked_softmax(logits, mask, dim=1) @ dense[2]
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)
    for one, two in zip(columns, dense, strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_half_precision_leaves_the_long_term_in_full(build, catalog, random_batch):
    net, batch = build(catalog).float(), random_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(x.dtype == torch.float32 for x in net._long_term(batch))
        close = scores(net, batch).float()
    torch.testing.assert_close(close, scores(net, batch), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"eta": -1.0}, "model.net.eta=-1.0: a weight is 0 or more"),
        ({"parts": 0}, "model.net.parts=0"),
        ({"layers": 0}, "model.net.layers=0"),
        ({"bases": 0}, "model.net.bases=0"),
        ({"dim": 0}, "model.net.dim=0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, line, catalog, options):
    with pytest.raises(InputError, match=line):
        RetaGNN(catalog, **(options | changes))
