"""DCN-V2 against a slow float64 reference: one number at a time, written from the equations.

The fields of a row are the net's own, which tests/layers/test_interaction.py checks.
"""

import numpy as np
import pytest
import torch


def times(weights, name, x):
    """A linear map, by rows."""
    rows = zip(weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
    return [bias + sum(w * value for w, value in zip(row, x, strict=True)) for row, bias in rows]


def hidden(weights, names, x):
    """Layers with rectifiers."""
    for name in names:
        x = [max(value, 0.0) for value in times(weights, name, x)]
    return x


def cross(weights, first, wrong):
    """Eq. 1, layer by layer."""
    x = first
    for number in range(2):
        mapped = times(weights, f"cross.layers.{number}", x)
        kept = first if wrong == "residual" else x
        front = x if wrong == "front" else first
        x = [a * b + c for a, b, c in zip(front, mapped, kept, strict=True)]
    return x


def reference(weights, fields, wrong="", structure="parallel"):
    """The logit of one row from its fields (F, D)."""
    first = [value for field in fields for value in field]
    crossed = cross(weights, first, wrong)
    if structure == "stacked":
        return times(weights, "weigh", hidden(weights, ["deep.0", "deep.2"], crossed))[0]
    deep = hidden(weights, ["deep.0", "deep.2"], crossed if wrong == "stacked" else first)
    both = deep + crossed if wrong == "order" else crossed + deep
    return times(weights, "weigh", both)[0]


def expected(net, batch, wrong="", structure="parallel"):
    """The logit of each row."""
    weights = {name: x.double().numpy().copy() for name, x in net.state_dict().items()}
    fields = net.fields(batch)[0].detach().double().numpy()
    return np.array([reference(weights, row, wrong, structure) for row in fields])


@pytest.fixture
def make(make_click_net):
    def make(**changes):
        net = make_click_net("model=dcn_v2", **{"dim": 4, "hidden": [5, 3], "cross": 2} | changes).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=draw))
        return net

    return make


def test_logits_are_the_equations(make, random_clicks):
    net, batch = make(), random_clicks()
    logits = expected(net, batch)
    np.testing.assert_allclose(net(batch)[0].detach(), logits, rtol=0, atol=1e-10)
    np.testing.assert_allclose(net.float()(batch)[0].detach(), logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wrong", ["residual", "front", "stacked", "order"])
def test_a_wrong_equation_is_noticed(make, random_clicks, wrong):
    net, batch = make(), random_clicks()
    other = expected(net, batch, wrong)
    assert np.abs(net(batch)[0].detach().numpy() - other).max() > 1e-2


def test_number_of_parameters(make):
    rows = 26 + (6 + 9) + (10 + 5 + 4 + 7 + 3)  # items, their fields, fields of user and context
    fields, dim = 2 * 3 + 5, 4
    cross, deep = 2 * (fields * dim + 1) * fields * dim, (fields * dim + 1) * 5 + (5 + 1) * 3
    assert sum(parameter.numel() for parameter in make().parameters()) == rows * dim + cross + deep + (
        fields * dim + 3 + 1
    )
    stacked = make(structure="stacked")
    assert sum(parameter.numel() for parameter in stacked.parameters()) == rows * dim + cross + deep + (3 + 1)


def test_stacked_is_the_mlp_over_the_crosses(make, random_clicks):
    net, batch = make(structure="stacked"), random_clicks()
    logits = expected(net, batch, structure="stacked")
    np.testing.assert_allclose(net(batch)[0].detach(), logits, rtol=0, atol=1e-10)
