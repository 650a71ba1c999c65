"""What every net of conf/model must hold to."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import PAD
from hydrec.cloze import Cloze
from hydrec.tasks import select


@pytest.fixture
def causal(model, build):
    """The net, if it serves every position at once."""
    net = build(model)
    if not getattr(net, "causal", False):
        pytest.skip("not causal")
    return net


@pytest.fixture
def build(make_net, catalog):
    def build(model, seed=0):
        net = make_net(f"model={model}", seed=seed)
        if hasattr(net, "fit"):
            net.fit(catalog)
        return net.eval()

    return build


def scores(net, batch, items=None):
    """Scores of every item, or of some, for every supervised position."""
    items = torch.arange(1, 26) if items is None else items
    state, _ = net.encode(batch)
    return net.score(select(state, batch.targets != PAD), items)


def test_the_state_has_a_row_for_each_position_and_the_auxiliary_term_is_a_number(model, build, random_batch):
    batch = random_batch()
    state, auxiliary = build(model).encode(batch)
    assert all(field.shape[:2] == batch.targets.shape for field in state)
    assert auxiliary.shape == () and auxiliary.isfinite()
    assert scores(build(model), batch).shape == (6, 25)


def test_a_causal_net_has_a_state_for_every_position(causal, random_batch):
    batch = random_batch(every=True)
    state, auxiliary = causal.encode(batch)
    assert all(field.shape[:2] == batch.targets.shape == (6, 12) for field in state)
    assert auxiliary.shape == () and auxiliary.isfinite()
    assert scores(causal, batch).shape == (int(batch.lengths.sum()), 25)


def test_the_last_of_all_positions_scores_as_the_only_one(causal, random_batch):
    every = random_batch(every=True)
    ends = (torch.arange(12) == every.lengths[:, None] - 1)[every.targets != PAD]
    assert_close(scores(causal, every)[ends], scores(causal, random_batch()))


def test_what_comes_later_reaches_no_position(causal, random_batch):
    batch, other = random_batch(every=True), random_batch(seed=1)
    later = torch.arange(12) >= 5
    changed = batch._replace(
        items=torch.where(later & (batch.items != PAD), other.items % 25 + 1, batch.items),
        times=torch.where(later, batch.times + 86400, batch.times),
        values=torch.where(later, 1 - batch.values, batch.values),
        targets=torch.where(later, batch.targets % 25 + (batch.targets != PAD), batch.targets),
        target_times=torch.where(later, batch.target_times + 86400, batch.target_times),
    )
    before = (~later).expand(6, 12)[batch.targets != PAD]
    assert_close(scores(causal, changed)[before], scores(causal, batch)[before])
    assert not torch.equal(scores(causal, changed), scores(causal, batch))


def test_a_net_that_fills_gaps_has_a_state_for_each_and_sees_both_sides(model, build, random_batch, catalog):
    net, batch = build(model), random_batch()
    if not getattr(net, "cloze", False):
        pytest.skip("fills no gaps")
    whole = batch._replace(targets=batch.items, target_times=batch.times)
    last = Cloze(catalog, ratio=0.5, last=1.0).hide(whole, seed=0, epoch=0)
    ends = batch.lengths[:, None] - 1
    alone = last._replace(targets=batch.items.gather(1, ends), target_times=batch.times.gather(1, ends))
    assert_close(scores(net, last), scores(net, alone))
    some = Cloze(catalog, ratio=0.5, last=0.0).hide(whole, seed=0, epoch=0)
    state, auxiliary = net.encode(some)
    assert all(field.shape[:2] == (6, 12) for field in state) and auxiliary.shape == ()
    assert scores(net, some).shape == (int((some.targets != PAD).sum()), 25)
    first = some.targets[0].nonzero()[0, 0]
    later = torch.arange(12) > first
    changed = some._replace(items=torch.where(later & (some.targets == PAD), some.items % 25 + 1, some.items))
    assert not torch.equal(scores(net, changed)[0], scores(net, some)[0])


def test_the_state_dict_carries_the_whole_net(model, build, make_net, random_batch):
    net = build(model)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(torch.rand(tensor.shape))
    fresh = make_net(f"model={model}", seed=1).eval()
    before = scores(fresh, random_batch())
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(scores(fresh, random_batch()), scores(net, random_batch()))
    assert not torch.equal(scores(fresh, random_batch()), before)


def test_more_padding_changes_nothing(model, build, random_batch):
    net, batch = build(model), random_batch(window=12)
    wide = batch._replace(
        items=F.pad(batch.items, (0, 4)), times=F.pad(batch.times, (0, 4)), values=F.pad(batch.values, (0, 4))
    )
    assert_close(scores(net, wide), scores(net, batch))


def test_what_stands_in_the_padding_reaches_nothing(model, build, random_batch):
    net, batch, other = build(model), random_batch(), random_batch(seed=1)
    padding = torch.arange(12) >= batch.lengths[:, None]
    noise = batch._replace(
        items=torch.where(padding, other.items % 25 + 1, batch.items),
        times=torch.where(padding, other.times + 7, batch.times),
        values=torch.where(padding, torch.nan, batch.values),
    )
    assert_close(scores(net, noise), scores(net, batch))
    assert_close(net.encode(noise)[1], net.encode(batch)[1])


def test_shared_and_own_candidates_score_the_same(model, build, random_batch):
    net, items = build(model), torch.tensor([3, 1, 25, 3])
    shared = scores(net, random_batch(), items)
    assert_close(scores(net, random_batch(), items.repeat(6, 1)), shared)
    assert_close(shared, scores(net, random_batch())[:, items - 1])


def test_products_are_what_scores_are_made_of(model, build, random_batch):
    net, batch, items = build(model), random_batch(), torch.tensor([3, 1, 25, 3])
    if not hasattr(net, "products"):
        pytest.skip("its scores are no inner products")
    state, _ = net.encode(batch)
    vectors, table, bias = net.products(select(state, batch.targets != PAD), items)
    assert_close(vectors @ table.T + (0 if bias is None else bias), scores(net, batch, items))


def test_rows_do_not_know_their_place_nor_each_other(model, build, random_batch):
    net, batch = build(model), random_batch()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    moved = type(batch)(*(field[order] for field in batch))
    assert_close(scores(net, moved), scores(net, batch)[order])
    alone = type(batch)(*(field[2:3] for field in batch))
    assert_close(scores(net, alone), scores(net, batch)[2:3])


def test_a_gradient_reaches_every_parameter(model, build, random_batch):
    net = build(model)
    batch = random_batch(every=getattr(net, "causal", False))
    if not list(net.parameters()):
        pytest.skip("nothing to train")
    with torch.no_grad():
        for p in net.parameters():  # behind weights that begin at 0 there is no gradient yet
            p.add_(0.01 * torch.randn(p.shape))
    _, auxiliary = net.encode(batch)
    (F.cross_entropy(scores(net, batch), batch.targets[batch.targets != PAD] - 1) + auxiliary).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_four_rows_can_be_learnt_by_heart(model, build, random_batch):
    net, batch = build(model), random_batch(rows=4)  # without dropout: eighty steps are few
    if not list(net.parameters()):
        pytest.skip("nothing to train")
    supervised = batch.targets != PAD
    targets = batch.targets[supervised] - 1
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(80):
        loss = F.cross_entropy(scores(net, batch), targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(scores(net, batch).argmax(1), targets)
