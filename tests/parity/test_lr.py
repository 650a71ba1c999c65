"""LR against a slow float64 reference: a row as a vector of many codes, and a weight for each."""

from collections import Counter

import numpy as np
import pytest
import torch


def multi_hot(catalog, batch, row, wrong=""):
    """How much of each code of each table a row has."""
    found, length = Counter(), int(batch.lengths[row])

    def add(table, fields, codes, weights, share):
        column, first = 0, 0
        for field in fields:
            for _ in range(field.width):
                found[table, first + int(codes[column])] += share * float(weights[column])
                column += 1
            first += field.size

    def add_item(item, share):
        found["item", item] += share
        add(
            "item_fields.table",
            catalog.item_fields,
            catalog.item_codes[item],
            catalog.item_weights[item],
            share,
        )

    add_item(int(batch.candidates[row]), 1.0)
    for item in batch.items[row, :length].tolist():
        add_item(item, {"sum": 1.0, "no history": 0.0, "padding": 1 / 12}.get(wrong, 1 / length))
    add(
        "fields.table",
        catalog.fields,
        batch.codes[row],
        batch.weights[row],
        0.0 if wrong == "fields" else 1.0,
    )
    return found


def reference(weights, catalog, batch, wrong=""):
    """The logit of each row."""
    logits = []
    for row in range(len(batch.items)):
        hot = multi_hot(catalog, batch, row, wrong)
        terms = [
            x * weights[f"linear.weights.tables.{table}.weight"][code, 0] for (table, code), x in hot.items()
        ]
        logits.append(weights["linear.bias"] + sum(terms))
    return np.array(logits)


def arrays(net):
    return {name: x.double().numpy().copy() for name, x in net.state_dict().items()}


@pytest.fixture
def make(make_click_net):
    def make(**changes):
        net = make_click_net("model=lr", **changes).double()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        return net

    return make


@pytest.mark.parametrize("history", [True, False])
def test_logits_are_the_equation(make, click_catalog, random_clicks, history):
    net, batch = make(history=history), random_clicks()
    expected = reference(arrays(net), click_catalog, batch, "" if history else "no history")
    np.testing.assert_allclose(
        net(batch)[0].detach(), expected, rtol=0, atol=1e-6
    )  # weights of codes: float32
    np.testing.assert_allclose(net.float()(batch)[0].detach(), expected, rtol=0, atol=1e-5)


def test_gradients_are_how_much_a_row_has_of_each_code(make, click_catalog, random_clicks):
    net, batch = make(), random_clicks()
    net(batch)[0][2].backward()
    hot = multi_hot(click_catalog, batch, 2)
    assert net.linear.bias.grad == 1
    for table in ("item", "item_fields.table", "fields.table"):
        gradient = net.get_parameter(f"linear.weights.tables.{table}.weight").grad[:, 0]
        expected = torch.zeros(len(gradient), dtype=torch.float64)
        for (name, code), x in hot.items():
            if name == table:
                expected[code] = x
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", ["sum", "no history", "padding", "fields"])
def test_a_wrong_equation_is_noticed(make, click_catalog, random_clicks, wrong):
    net, batch = make(), random_clicks()
    other = reference(arrays(net), click_catalog, batch, wrong)
    assert np.abs(net(batch)[0].detach().numpy() - other).max() > 1e-2
