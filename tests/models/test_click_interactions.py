"""What the nets of interactions hold to beyond the contract of click nets."""

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers.interaction import FieldMatrix

NETS = ["lr", "fm", "wide_deep", "deepfm", "dcn", "dcn_v2", "xdeepfm", "finalmlp"]
SMALL = {"dim": 4, "hidden": [5], "std": 0.3}


def loss_of(net, batch):
    logits, auxiliary = net(batch)
    return F.binary_cross_entropy_with_logits(logits, batch.labels.to(logits)) + auxiliary


@pytest.fixture(params=NETS)
def make(request, make_click_net):
    return lambda **changes: make_click_net(f"model={request.param}", **SMALL | changes)


def test_gradients_are_slopes(make, random_clicks):
    net, batch, step = make(l2=0.1).double(), random_clicks(), 1e-6
    loss_of(net, batch).backward()
    draw = torch.Generator().manual_seed(4)
    for name, parameter in net.named_parameters():
        direction = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                ends.append(loss_of(net, batch).item())
                parameter.sub_(sign * step * direction)
        slope = (parameter.grad * direction).sum().item()
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-8), name


def test_sparse_gradients_are_the_dense_ones(make, random_clicks):
    nets, batch = [make(sparse=sparse, l2=0.1) for sparse in (False, True)], random_clicks()
    for net in nets:
        loss_of(net, batch).backward()
    for (name, dense), sparse in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert sparse.grad.is_sparse == ("tables" in name)
        assert_close(sparse.grad.to_dense() if sparse.grad.is_sparse else sparse.grad, dense.grad)


def test_the_auxiliary_term_is_l2_of_all_that_is_looked_up(make, random_clicks):
    net, batch = make(l2=0.1), random_clicks()
    matrices = [module for module in net.modules() if isinstance(module, FieldMatrix)]
    assert len(matrices) >= 1
    penalties = [matrix.tables(matrix.read(batch)).penalty for matrix in matrices]
    assert_close(net(batch)[1], sum(penalties))
    assert_close(make(l2=0.2)(batch)[1], 2 * sum(penalties))
    assert make(l2=0.0)(batch)[1] == 0


@pytest.mark.parametrize("history", [True, False])
def test_the_history_can_be_left_out(make, random_clicks, history):
    net, batch = make(history=history, l2=0.1).eval(), random_clicks()
    other = batch._replace(items=torch.where(batch.items > 0, batch.items % 25 + 1, 0))
    same = net(batch)[0] == net(other)[0]
    assert same.tolist() == ([False] * 5 + [True] if history else [True] * 6)  # the last row has none
    assert (net(batch)[1] == net(other)[1]) == (not history)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("history", [True, False])
def test_a_dataset_may_declare_no_field(name, history, click_catalog, net_config, random_clicks):
    torch.manual_seed(0)
    config = net_config(f"model={name}", "protocol=click_last") | {"history": history}
    bare = click_catalog._replace(fields=(), item_fields=())
    bare = bare._replace(item_codes=bare.item_codes[:, :0], item_weights=bare.item_weights[:, :0])
    net, batch = instantiate(config)(bare), random_clicks()
    batch = batch._replace(codes=batch.codes[:, :0], weights=batch.weights[:, :0])
    loss_of(net, batch).backward()
    assert net(batch)[0].isfinite().all() and net(batch)[0].shape == (6,)
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("name", NETS[2:7])
def test_settings_of_the_mlp_arrive(name, make_click_net, random_clicks):
    batch = random_clicks()
    norm, drop = {"batch_norm": True}, {"dropout": 0.5}
    trained = make_click_net(f"model={name}", **SMALL | norm).train()
    statistics = [x for x in trained.state_dict() if "running_mean" in x]
    trained(batch)
    assert statistics and all(trained.state_dict()[x].any() for x in statistics)
    net = make_click_net(f"model={name}", **SMALL | drop)
    assert not torch.equal(net.train()(batch)[0], net(batch)[0])
    assert torch.equal(net.eval()(batch)[0], net(batch)[0])
    smooth = make_click_net(f"model={name}", **SMALL | {"activation": "tanh"})
    assert [type(x).__name__ for x in smooth.modules()].count("Tanh") == 1
    with pytest.raises(InputError, match=r"model\.net\.activation=rulu"):
        make_click_net(f"model={name}", activation="rulu")


def test_an_unknown_structure_is_refused(make_click_net):
    with pytest.raises(InputError, match=r"model\.net\.structure=stack .* did you mean stacked\?"):
        make_click_net("model=dcn_v2", structure="stack")
