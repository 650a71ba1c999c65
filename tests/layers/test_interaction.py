"""Interactions of fields, against loops over them."""

import math
from itertools import combinations

import pytest
import torch
from torch.testing import assert_close

from hydrec.errors import InputError
from hydrec.layers import interaction
from hydrec.layers.interaction import (
    CIN,
    FieldMatrix,
    Linear,
    MatrixCross,
    VectorCross,
    compared,
    pairs,
    shared,
)

SETTINGS = {"dim": 3, "history": True, "std": 0.5, "l2": 0.1, "sparse": False}


@pytest.fixture
def make(click_catalog):
    def make(**changes):
        torch.manual_seed(0)
        return FieldMatrix(click_catalog, **SETTINGS | changes).double()

    return make


@pytest.fixture
def fields():
    return torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def grown(layer):
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return layer


# The matrix ---------------------------------------------------------------------------------------------


def test_fields_are_item_history_user_and_context(make, random_clicks):
    matrix, batch = make(), random_clicks()
    inputs = matrix.tables(batch)
    fields, penalty = matrix(batch)
    assert matrix.fields == 3 + 3 + 2 + 3 and fields.shape == (6, 11, 3)
    for row, length in enumerate(batch.lengths.tolist()):
        past = torch.zeros(9, dtype=torch.float64)
        for place in range(length):
            past += inputs.behaviours[row, place] / length
        expected = torch.cat([inputs.item[row], past]).view(6, 3)
        assert_close(fields[row, :6], expected)
        assert_close(fields[row, 6:], torch.cat([inputs.user[row], inputs.context[row]]))
    squares = sum(x.square().sum() for x in (inputs.item, inputs.behaviours, inputs.user, inputs.context))
    assert_close(penalty, 0.1 * squares / 6)


def test_places_are_where_the_fields_are(make, random_clicks):
    matrix, batch = make(), random_clicks()
    fields, inputs = matrix(batch)[0], matrix.tables(batch)
    assert list(matrix.places) == ["item", "history", "user", "context"]
    assert_close(fields[:, matrix.places["item"]].flatten(1), inputs.item)
    assert not fields[-1, matrix.places["history"]].any() and fields[0, matrix.places["history"]].all()
    assert_close(fields[:, matrix.places["user"]], inputs.user)
    assert_close(fields[:, matrix.places["context"]], inputs.context)


def test_without_history_nothing_of_it_is_looked_up(make, random_clicks):
    matrix, batch = make(history=False), random_clicks()
    fields, penalty = matrix(batch)
    whole = make()(batch)[0]
    assert matrix.fields == 8
    assert_close(fields, torch.cat([whole[:, :3], whole[:, 6:]], 1))
    place = matrix.places["history"]
    assert place.start == place.stop == matrix.places["user"].start
    (fields.sum() + penalty).backward()
    candidates = set(batch.candidates.tolist())
    assert set(matrix.tables.item.weight.grad.sum(1).nonzero()[:, 0].tolist()) == candidates
    assert_close(penalty, 0.1 * fields.square().sum() / 6)


def test_a_linear_model_is_a_matrix_of_width_1(click_catalog, random_clicks):
    batch = random_clicks()
    linear = Linear(click_catalog, history=True, std=0.5, l2=0.1, sparse=False)
    with torch.no_grad():
        linear.bias.fill_(2.0)
    logits, penalty = linear(batch)
    weights, expected = linear.weights(batch)
    assert weights.shape == (6, 11, 1)
    assert_close(logits, torch.tensor([2 + sum(weight for (weight,) in row) for row in weights.tolist()]))
    assert_close(penalty, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "model.net.dim=0"),
        ({"std": 0.0}, "model.net.std=0.0: must be above 0"),
        ({"std": math.nan}, "model.net.std=nan"),
        ({"l2": -1.0}, "model.net.l2=-1.0: must be 0 or more"),
        ({"l2": math.nan}, "model.net.l2=nan"),
    ],
    ids=str,
)
def test_bad_values_are_refused(make, change, message):
    with pytest.raises(InputError, match=message):
        make(**change)


# Interactions -------------------------------------------------------------------------------------------


def test_pairs_are_those_of_a_loop(fields):
    expected = [sum((row[i] * row[j]).sum() for i, j in combinations(range(len(row)), 2)) for row in fields]
    assert_close(pairs(fields), torch.stack(expected))
    assert_close(pairs(fields[:, :1]), torch.zeros(4, dtype=torch.float64))


def test_pairs_do_not_know_the_order_of_fields(fields):
    assert_close(pairs(fields), pairs(fields[:, [3, 0, 4, 2, 1]]))


def test_crosses_by_vectors_are_the_loop(fields):
    x = fields.flatten(1)
    cross = grown(VectorCross(15, 3))
    expected = []
    for first in x.tolist():
        row = first
        for weight, bias in zip(cross.weight.tolist(), cross.bias.tolist(), strict=True):
            scale = sum(w * value for w, value in zip(weight, row, strict=True))
            row = [a * scale + b + c for a, b, c in zip(first, bias, row, strict=True)]
        expected.append(row)
    assert_close(cross(x), torch.tensor(expected, dtype=torch.float64))


def test_crosses_by_matrices_are_the_loop(fields):
    x = fields.flatten(1)
    cross = grown(MatrixCross(15, 3))
    expected = []
    for first in x.tolist():
        row = first
        for layer in cross.layers:
            rows = zip(first, layer.weight.tolist(), layer.bias.tolist(), row, strict=True)
            row = [a * (sum(w * v for w, v in zip(ws, row, strict=True)) + b) + c for a, ws, b, c in rows]
        expected.append(row)
    assert_close(cross(x), torch.tensor(expected, dtype=torch.float64))


def test_a_matrix_of_equal_rows_is_a_vector(fields):
    x = fields.flatten(1)
    vector, matrix = grown(VectorCross(15, 2)), MatrixCross(15, 2).double()
    with torch.no_grad():
        vector.bias.zero_()
        for layer, weight in zip(matrix.layers, vector.weight, strict=True):
            layer.weight.copy_(weight.expand(15, -1))
    assert_close(vector(x), matrix(x))


@pytest.mark.parametrize("kind", [VectorCross, MatrixCross])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_l_layers_give_polynomials_of_degree_l_plus_1(kind, layers):
    cross = grown(kind(4, layers))
    draw = torch.Generator().manual_seed(1)
    direction = torch.randn(4, generator=draw, dtype=torch.float64)
    steps = torch.linspace(-1, 1, layers + 3, dtype=torch.float64)[:, None]
    points = cross(steps * direction)[:, 0]
    for order in range(1, layers + 3):  # differences of points at equal distances
        points = points.diff()
        assert (points.abs() > 1e-9).any() == (order <= layers + 1)


def test_compressed_interactions_are_the_loop(fields):
    maps = [4, 2, 3]
    cin = grown(CIN(5, maps))
    expected = []
    for row in fields:
        before, sums = row, []
        for mix in cin.mix:
            made = []
            for weight in mix.weight[:, :, 0]:
                new = torch.zeros(3, dtype=torch.float64)
                for i in range(len(before)):
                    for j in range(5):
                        new = new + weight[i * 5 + j] * before[i] * row[j]
                made.append(new)
            before = torch.stack(made)
            sums += [new.sum() for new in made]
        expected.append(torch.stack(sums))
    assert_close(cin(fields), torch.stack(expected))
    assert cin.out_width == 9


def test_compressed_interactions_have_no_activation(fields):
    cin = grown(CIN(5, [4, 2]))
    first, second = cin(fields).split([4, 2], 1)
    doubled, tripled = cin(-2 * fields).split([4, 2], 1)
    assert_close(doubled, 4 * first)
    assert_close(tripled, -8 * second)


@pytest.mark.parametrize("kind", [VectorCross, MatrixCross])
def test_crosses_have_a_layer(kind):
    with pytest.raises(InputError, match=r"model\.net\.cross=0"):
        kind(4, 0)


@pytest.mark.parametrize(
    ("maps", "message"), [([], r"model.net.maps=\[\]: give"), ([3, 0], "model.net.maps=0")]
)
def test_maps_are_some(maps, message):
    with pytest.raises(InputError, match=message):
        CIN(5, maps)


def test_weights_start_by_glorot():
    torch.manual_seed(0)
    assert VectorCross(1999, 5).weight.std().item() == pytest.approx(math.sqrt(2 / 2000), rel=0.03)
    mix = CIN(40, [50]).mix[0].weight
    assert mix.std().item() == pytest.approx(math.sqrt(2 / (40 * 40 + 50)), rel=0.03)


@pytest.mark.parametrize("held", [1, 35, 2**21])
def test_blocks_of_products_change_nothing(fields, held, monkeypatch):
    monkeypatch.setattr(interaction, "BLOCK", held)  # one row, one and three, all at once
    cin = grown(CIN(5, [3, 2]))
    given = fields.clone().requires_grad_()
    found = cin(given)
    with torch.no_grad():
        assert_close(found, cin(fields))
    assert torch.autograd.gradcheck(cin, given)
    weights = [mix.weight for mix in cin.mix]
    toward = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view(found.shape)
    x, sums = given, []
    for weight in weights:
        x = torch.einsum("mhf,bhd,bfd->bmd", weight.view(len(weight), -1, 5), x, given)
        sums.append(x.sum(2))
    expected = torch.autograd.grad((torch.cat(sums, 1) * toward).sum(), [given, *weights])
    assert_close(torch.autograd.grad((found * toward).sum(), [given, *weights]), expected)


# First layers ---------------------------------------------------------------------------------------------


def test_a_comparison_is_the_map_of_what_it_does_not_make(fields):
    layer = grown(torch.nn.Linear(4 * 3, 7))
    for row, keys in enumerate(fields):
        q = keys[0]
        for place, k in enumerate(keys):
            expected = layer(torch.cat([q, k, q - k, q * k]))
            assert_close(compared(layer, fields[:, 0], fields)[row, place], expected)
    assert compared(layer, fields[:, 0], fields[:, :0]).shape == (4, 0, 7)


def test_what_is_shared_is_mapped_with_each_that_shares_it(fields):
    layer, x = grown(torch.nn.Linear(2 + 3, 7)), torch.randn(5, 2, dtype=torch.float64)
    found = shared(layer, x, fields)
    for number, others in enumerate(fields):
        assert_close(found[number], layer(torch.cat([x, others], 1)))
    assert shared(layer, x[:0], fields[:, :0]).shape == (4, 0, 7)
