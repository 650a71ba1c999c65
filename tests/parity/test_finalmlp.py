"""FinalMLP against a slow float64 reference: one number at a time, written from the equations.

The fields of a row are the net's own, which tests/layers/test_interaction.py checks.
"""

import math

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


def settings(first, second):
    """Of both streams, with gates that read these."""
    same = {"activation": "relu", "dropout": 0.0, "batch_norm": False}
    return {
        "first": {"reads": first, "hidden": [5, 4]} | same,
        "second": {"reads": second, "hidden": [3, 6]} | same,
    }


SMALL = {"dim": 4, "gate_hidden": [7], "heads": 2} | settings("user", "item")
PLACES = {"item": slice(0, 3), "history": slice(3, 6), "user": slice(6, 8), "context": slice(8, 11)}


def stream(weights, name, fields, reads, wrong):
    """The gate of a stream, and its MLP over what it lets through."""
    if reads == "none":
        (context,) = weights[f"{name}.gate.0.vector"]
    else:
        context = [value for field in fields[PLACES[reads]] for value in field]
    opened = times(weights, f"{name}.gate.2", hidden(weights, [f"{name}.gate.1.0"], context))
    gate = [{"once": 1, "no gate": 0}.get(wrong, 2) / (1 + math.exp(-value)) for value in opened]
    x = [value for field in fields for value in field]
    x = [value * (g + (wrong == "no gate")) for value, g in zip(x, gate, strict=True)]
    return hidden(weights, [f"{name}.mlp.0", f"{name}.mlp.2"], x)


def reference(weights, fields, wrong="", reads=("user", "item")):
    """The logit of one row from its fields (F, D)."""
    first = stream(weights, "first", fields, reads[0], wrong)
    second = stream(weights, "second", fields, reads[1], wrong)
    (logit,) = times(weights, "fuse.weigh", first + second)
    for number, form in enumerate(weights["fuse.forms"]):
        height, width = form.shape
        other = 1 - number if wrong == "heads" else number
        for i in range(height):
            for j in range(width):
                product = first[number * height + i] * form[i, j] * second[other * width + j]
                logit += 0.0 if wrong == "sum" else product
    return logit


def expected(net, batch, wrong="", reads=("user", "item")):
    """The logit of each row."""
    weights = {name: x.double().numpy().copy() for name, x in net.state_dict().items()}
    fields = net.fields(batch)[0].detach().double().numpy()
    return np.array([reference(weights, row, wrong, reads) for row in fields])


@pytest.fixture
def make(make_click_net):
    def make(**changes):
        net = make_click_net("model=finalmlp", **SMALL | changes).double()
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


@pytest.mark.parametrize("wrong", ["once", "no gate", "sum", "heads"])
def test_a_wrong_equation_is_noticed(make, random_clicks, wrong):
    net, batch = make(), random_clicks()
    other = expected(net, batch, wrong)
    assert np.abs(net(batch)[0].detach().numpy() - other).max() > 1e-2


def test_number_of_parameters(make):
    rows = 26 + (6 + 9) + (10 + 5 + 4 + 7 + 3)  # items, their fields, fields of user and context
    fields, dim = 2 * 3 + 5, 4
    first, second = (fields * dim + 1) * 5 + (5 + 1) * 4, (fields * dim + 1) * 3 + (3 + 1) * 6
    gates = (2 * dim + 1) * 7 + (3 * dim + 1) * 7 + 2 * (7 + 1) * fields * dim
    fusion = (4 + 6 + 1) + 2 * (4 // 2) * (6 // 2)
    assert (
        sum(parameter.numel() for parameter in make().parameters())
        == rows * dim + first + second + gates + fusion
    )


def test_a_gate_reads_what_it_is_told(make, random_clicks):
    for reads in (("context", "history"), ("none", "user"), ("item", "none")):
        net, batch = make(**settings(*reads)), random_clicks()
        logits = expected(net, batch, reads=reads)
        np.testing.assert_allclose(net(batch)[0].detach(), logits, rtol=0, atol=1e-10)
