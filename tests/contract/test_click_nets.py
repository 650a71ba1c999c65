"""What every click net of conf/model must hold to."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import ClickBatch


@pytest.fixture
def build(click_model, make_click_net):
    return lambda **changes: make_click_net(f"model={click_model}", **changes).eval()


def test_a_logit_for_each_row_and_a_number(build, random_clicks):
    logits, auxiliary = build()(random_clicks())
    assert logits.shape == (6,) and logits.isfinite().all()
    assert auxiliary.shape == () and auxiliary.isfinite()


def test_the_state_dict_carries_the_whole_net(build, random_clicks):
    net, fresh, batch = build(), build(seed=1), random_clicks()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape))
    before = fresh(batch)[0]
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(batch)[0], net(batch)[0])
    assert not torch.equal(fresh(batch)[0], before)


def test_more_padding_changes_nothing(build, random_clicks):
    net, batch = build(), random_clicks(window=8)
    wide = {name: F.pad(getattr(batch, name), (0, 4)) for name in ("items", "times", "values")}
    assert_close(net(batch._replace(**wide)), net(batch))


def test_what_stands_in_the_padding_reaches_nothing(build, random_clicks):
    net, batch, other = build(), random_clicks(), random_clicks(seed=1)
    padding = torch.arange(12) >= batch.lengths[:, None]
    noise = batch._replace(
        items=torch.where(padding, other.items % 25 + 1, batch.items),
        times=torch.where(padding, other.times + 7, batch.times),
        values=torch.where(padding, torch.nan, batch.values),
    )
    assert_close(net(noise), net(batch))


def test_rows_do_not_know_their_place_nor_each_other(build, random_clicks):
    net, batch = build(), random_clicks()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert_close(net(ClickBatch(*(field[order] for field in batch)))[0], net(batch)[0][order])
    assert_close(net(ClickBatch(*(field[5:] for field in batch)))[0], net(batch)[0][5:])


def test_the_label_is_not_read(build, random_clicks):
    net, batch = build(), random_clicks()
    assert torch.equal(net(batch._replace(labels=1 - batch.labels))[0], net(batch)[0])


def test_a_gradient_reaches_every_parameter(build, random_clicks):
    net, batch = build().train(), random_clicks(rows=12)  # auxiliary losses are of training alone
    if not list(net.parameters()):
        pytest.skip("nothing to train")
    logits, auxiliary = net(batch)
    (F.binary_cross_entropy_with_logits(logits, batch.labels.float()) + auxiliary).backward()
    found = {name: p.grad if p.grad is None else p.grad.to_dense() for name, p in net.named_parameters()}
    assert [
        name for name, gradient in found.items() if gradient is None or not gradient.abs().sum() > 0
    ] == []
    assert all(gradient.isfinite().all() for gradient in found.values())


def test_eight_rows_can_be_learnt_by_heart(build, random_clicks):
    net, batch = build(sparse=False), random_clicks(rows=8)
    if not list(net.parameters()):
        pytest.skip("nothing to train")
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        loss = F.binary_cross_entropy_with_logits(net(batch)[0], batch.labels.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(net(batch)[0] > 0, batch.labels == 1)
