"""xDeepFM against a slow float64 reference: one number at a time, written from the equations.

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


def interact(weights, fields, wrong):
    """Eq. 6, map by map; the sums of all maps."""
    before, sums = fields, []
    for number in range(2):
        made = []
        for weight in weights[f"interact.mix.{number}.weight"][:, :, 0]:
            new = np.zeros(len(fields[0]))
            for i, old in enumerate(before):
                for j, field in enumerate(fields if wrong != "own" else before):
                    new += weight[(i * len(fields) + j) % len(weight)] * old * field
            made.append(np.maximum(new, 0) if wrong == "rectified maps" else new)
        before = made
        sums += [0.0 if wrong == "last" and not number else new.sum() for new in made]
    return sums


def reference(weights, fields, wide, wrong=""):
    """The logit of one row from its fields (F, D) and their weights (F,)."""
    linear = weights["linear.bias"] + sum(wide)
    (explicit,) = times(weights, "weigh", interact(weights, fields, wrong))
    x = [value for field in fields for value in field]
    (deep,) = times(weights, "deep.1", hidden(weights, ["deep.0.0", "deep.0.2"], x))
    return {
        "no linear": explicit + deep,
        "no maps": linear + deep,
        "no deep": linear + explicit,
        "rectified": linear + explicit + max(deep, 0.0),  # RecBole's
    }.get(wrong, linear + explicit + deep)


def expected(net, batch, wrong=""):
    """The logit of each row."""
    weights = {name: x.double().numpy().copy() for name, x in net.state_dict().items()}
    fields = net.fields(batch)[0].detach().double().numpy()
    wide = net.linear.weights(batch)[0].detach().double().numpy()[:, :, 0]
    rows = [reference(weights, *row, wrong) for row in zip(fields, wide, strict=True)]
    return np.array(rows)


@pytest.fixture
def make(make_click_net):
    def make(**changes):
        net = make_click_net(
            "model=xdeepfm", **{"dim": 4, "hidden": [5, 3], "maps": [4, 2]} | changes
        ).double()
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


@pytest.mark.parametrize(
    "wrong", ["no linear", "no maps", "no deep", "rectified", "rectified maps", "own", "last"]
)
def test_a_wrong_equation_is_noticed(make, random_clicks, wrong):
    net, batch = make(), random_clicks()
    other = expected(net, batch, wrong)
    assert np.abs(net(batch)[0].detach().numpy() - other).max() > 1e-2


def test_number_of_parameters(make):
    rows = 26 + (6 + 9) + (10 + 5 + 4 + 7 + 3)  # items, their fields, fields of user and context
    fields, dim = 2 * 3 + 5, 4
    maps = 4 * fields * fields + 2 * 4 * fields + (4 + 2 + 1)
    deep = (fields * dim + 1) * 5 + (5 + 1) * 3 + (3 + 1)
    assert sum(parameter.numel() for parameter in make().parameters()) == 1 + rows + rows * dim + maps + deep
