"""What a click net sees of a batch, against loops over codes."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from hydrec.batch import PAD, Field
from hydrec.layers.tabular import Fields, Tables, embedding, pooled

ITEM, FIELD = 3, 2  # widths


@pytest.fixture
def make(click_catalog):
    """Tables in float64 whose rows, of PAD too, are all different."""

    def make(sparse=False, l2=1.0, **changes):
        torch.manual_seed(0)
        catalog = click_catalog._replace(**changes)
        return Tables(catalog, item_dim=ITEM, field_dim=FIELD, std=0.5, l2=l2, sparse=sparse).double()

    return make


def looked_up(layer, fields, codes, weights):
    """A vector for each field: code by code, each field's table after those of the fields before it."""
    out, column, first = [], 0, 0
    for field in fields:
        total = torch.zeros(layer.dim, dtype=torch.float64)
        for place in range(column, column + field.width):
            total = total + float(weights[place]) * layer.table.weight[first + int(codes[place])]
        out.append(total)
        column, first = column + field.width, first + field.size
    return out


def item(tables, catalog, number):
    """The vectors of an item, its id's first."""
    codes, weights = catalog.item_codes[number], catalog.item_weights[number]
    parts = looked_up(tables.item_fields, catalog.item_fields, codes, weights)
    return torch.cat([tables.item.weight[number], *parts])


def test_everything_is_the_loop(make, click_catalog, random_clicks):
    tables, batch = make(), random_clicks()
    inputs = tables(batch)
    squares = 0.0
    for row, length in enumerate(batch.lengths.tolist()):
        candidate = item(tables, click_catalog, int(batch.candidates[row]))
        assert_close(inputs.item[row], candidate)
        for place, number in enumerate(batch.items[row].tolist()):
            behaviour = item(tables, click_catalog, number) * (place < length)
            assert_close(inputs.behaviours[row, place], behaviour)
            squares = squares + behaviour.square().sum()
        ahead = looked_up(tables.fields, click_catalog.fields, batch.codes[row], batch.weights[row])
        assert_close(inputs.user[row], torch.stack(ahead[:2]))
        assert_close(inputs.context[row], torch.stack(ahead[2:]))
        squares = squares + candidate.square().sum() + torch.stack(ahead).square().sum()
    assert_close(inputs.penalty, squares / len(batch.items))
    assert inputs.valid.sum(1).tolist() == batch.lengths.tolist()


def test_the_penalty_is_weighed(make, random_clicks):
    whole = make()(random_clicks()).penalty
    assert_close(make(l2=0.25)(random_clicks()).penalty, whole / 4)
    none = make(l2=0.0)(random_clicks()).penalty
    assert none == 0 and not none.requires_grad


def test_dense_tables_are_those_of_torch():
    torch.manual_seed(0)
    table, ids = embedding(5, 3, std=1.0, sparse=False).double(), torch.tensor([[4, 0, 4], [1, 4, 2]])
    assert torch.equal(table(ids), F.embedding(ids, table.weight))
    assert table(ids[:, :0]).shape == (2, 0, 3)
    toward = torch.randn(2, 3, 3, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(x, table.weight, toward)[0] for x in (table(ids), F.embedding(ids, table.weight))
    )
    assert_close(found, expected)


def test_sizes_are_those_of_the_catalogue(make):
    tables = make()
    assert (tables.parts, tables.item_width) == (3, 3 * ITEM)
    assert (tables.user_fields, tables.context_fields) == (2, 3)
    assert [len(table.weight) for table in (tables.item, tables.item_fields.table, tables.fields.table)] == [
        26,
        6 + 9,
        10 + 5 + 4 + 7 + 3,
    ]


def test_candidate_and_behaviours_share_their_tables(make, random_clicks):
    tables, batch = make(), random_clicks()
    batch = batch._replace(candidates=batch.items[:, 0].clamp(min=1))
    inputs = tables(batch)
    met = batch.lengths > 0
    assert_close(inputs.item[met], inputs.behaviours[met, 0])
    (inputs.item[0] + 10 * inputs.behaviours[0].sum(0)).sum().backward()
    expected = torch.bincount(batch.items[0], minlength=26) * 10.0
    expected[batch.candidates[0]] += 1
    assert_close(tables.item.weight.grad, expected.double()[:, None].expand(-1, ITEM))


def test_a_field_of_several_values_is_their_mean():
    layer = Fields([Field("genres", "item", 9, 3)], dim=2, std=1.0, sparse=False).double()
    rows = layer.table.weight
    codes = torch.tensor([[4, 6, 8], [4, 6, PAD], [5, PAD, PAD], [PAD, PAD, PAD]])
    present = (codes != PAD).double()
    found = layer(codes, present / present.sum(1, keepdim=True).clamp(min=1))[:, 0]
    expected = [rows[[4, 6, 8]].mean(0), rows[[4, 6]].mean(0), rows[5], torch.zeros(2, dtype=torch.float64)]
    assert_close(found, torch.stack(expected))


def test_a_number_scales_a_vector(make, random_clicks):
    tables, batch = make(), random_clicks()
    price = tables(batch).context[:, 2]
    direction = tables.fields.table.weight[10 + 5 + 4 + 7 + 2]
    assert_close(price, batch.weights[:, 5:].double() * direction)
    assert len(set(price[:, 0].tolist())) == len(price)


def test_every_code_of_every_field_has_a_row_of_its_own():
    fields = [Field("a", "user", 4, 1), Field("b", "user", 3, 2), Field("c", "context", 5, 1)]
    layer = Fields(fields, dim=1, std=1.0, sparse=False)
    with torch.no_grad():
        layer.table.weight.copy_(torch.arange(12)[:, None])
    found = []
    for field, columns, first in zip(fields, ((0,), (1, 2), (3,)), (0, 4, 7), strict=True):
        for column in columns:
            codes, weights = torch.zeros(field.size, 4, dtype=torch.long), torch.zeros(field.size, 4)
            codes[:, column], weights[:, column] = torch.arange(field.size), 1
            number = fields.index(field)
            rows = layer(codes, weights)[:, :, 0]
            assert rows[:, number].tolist() == list(range(first, first + field.size))
            assert not rows[:, [other for other in range(3) if other != number]].any()
            found += rows[:, number].tolist()
    assert set(found) == set(range(12))


def test_padding_is_0_and_gets_no_gradient(make, random_clicks):
    tables, batch = make(), random_clicks()
    assert not tables.items(torch.tensor([PAD, PAD])).any()
    padding = torch.arange(12) >= batch.lengths[:, None]
    noise = batch._replace(items=torch.where(padding, 7, batch.items))
    inputs = tables(noise)
    assert not inputs.behaviours[padding].any()
    assert_close(inputs.penalty, tables(batch).penalty)
    (inputs.behaviours.sum() + inputs.penalty).backward()
    assert not tables.item.weight.grad[PAD].any()
    assert not tables.item_fields.table.weight.grad[[0, 6]].any()  # PAD of both fields
    assert not tables.fields.table.weight.grad[[0, 10, 15, 19, 26]].any()


def test_gradients_are_counted_by_the_loop(make, click_catalog, random_clicks):
    tables, batch = make(), random_clicks()
    draw = torch.Generator().manual_seed(5)

    def random(vectors):
        return torch.randn(vectors.shape, generator=draw, dtype=torch.float64)

    inputs = tables(batch)
    to_item, to_past = random(inputs.item), random(inputs.behaviours)
    to_user, to_context = random(inputs.user), random(inputs.context)
    (inputs.item * to_item).sum().add((inputs.behaviours * to_past).sum()).backward()
    ids, parts = torch.zeros_like(tables.item.weight), torch.zeros_like(tables.item_fields.table.weight)
    for row, length in enumerate(batch.lengths.tolist()):
        met = [(int(batch.candidates[row]), to_item[row])]
        met += [(int(batch.items[row, place]), to_past[row, place]) for place in range(length)]
        for number, gradient in met:
            ids[number] += gradient[:ITEM]
            codes, weights = click_catalog.item_codes[number], click_catalog.item_weights[number]
            parts[codes[0]] += weights[0] * gradient[ITEM : 2 * ITEM]
            for column in (1, 2, 3):
                parts[6 + codes[column]] += weights[column] * gradient[2 * ITEM :]
    assert_close(tables.item.weight.grad, ids)
    assert_close(tables.item_fields.table.weight.grad, parts)
    (inputs.user * to_user).sum().add((inputs.context * to_context).sum()).backward()
    ahead = torch.zeros_like(tables.fields.table.weight)
    for row in range(len(batch.items)):
        gradients = [*to_user[row], *to_context[row, :2], to_context[row, 1], to_context[row, 2]]
        for column, (first, gradient) in enumerate(zip((0, 10, 15, 19, 19, 26), gradients, strict=True)):
            ahead[first + batch.codes[row, column]] += batch.weights[row, column] * gradient
    assert_close(tables.fields.table.weight.grad, ahead)


def test_sparse_gradients_are_the_dense_ones(make, random_clicks):
    batch, gradients = random_clicks(), []
    for sparse in (False, True):
        tables = make(sparse=sparse)
        inputs = tables(batch)
        total = sum((part**3).sum() for part in (inputs.item, inputs.behaviours, inputs.user, inputs.context))
        (total + inputs.penalty).backward()
        gradients.append([table.grad for table in tables.parameters()])
    for dense, sparse in zip(*gradients, strict=True):
        assert sparse.is_sparse and not dense.is_sparse
        assert_close(sparse.to_dense(), dense)
    touched = gradients[1][0].coalesce().indices()[0].tolist()
    assert set(touched) == {PAD, *batch.items.flatten().tolist(), *batch.candidates.tolist()}


@pytest.mark.parametrize("missing", ["fields", "item_fields", "user", "context"])
def test_fields_that_a_dataset_does_not_have(make, click_catalog, random_clicks, missing):
    batch, all_ = random_clicks(), make()(random_clicks())
    if missing == "item_fields":
        none = {"item_codes": torch.zeros(26, 0, dtype=torch.long), "item_weights": torch.zeros(26, 0)}
        inputs = make(item_fields=(), **none)(batch)
        assert inputs.item.shape == (6, ITEM) and inputs.behaviours.shape == (6, 12, ITEM)
        assert_close(inputs.item, all_.item[:, :ITEM])
        assert inputs.user.shape == (6, 2, FIELD)
        return
    dropped = {"fields": range(6), "user": (0, 1), "context": range(2, 6)}[missing]
    kept = [column for column in range(6) if column not in dropped]
    batch = batch._replace(codes=batch.codes[:, kept], weights=batch.weights[:, kept])
    fields = tuple(field for field in click_catalog.fields if missing not in ("fields", field.group))
    inputs = make(fields=fields)(batch)
    assert inputs.user.shape == (6, 2 if missing == "context" else 0, FIELD)
    assert inputs.context.shape == (6, 3 if missing == "user" else 0, FIELD)
    assert_close(inputs.item, all_.item)
    inputs.penalty.backward()


def test_all_fields_of_one_value_are_read_as_those_of_several():
    single = Fields([Field("a", "user", 4, 1), Field("b", "user", 3, 1)], dim=2, std=1.0, sparse=False)
    several = Fields([Field("a", "user", 4, 1), Field("b", "user", 3, 2)], dim=2, std=1.0, sparse=False)
    several.load_state_dict(single.state_dict())
    codes, weights = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1.0, 2.0], [0.5, 1.0]])
    wide, with_pad = torch.cat([codes, codes[:, :1] * 0], 1), torch.cat([weights, weights[:, :1] * 0], 1)
    assert_close(single(codes, weights), several(wide, with_pad))


def test_no_behaviours_at_all(make, random_clicks):
    batch = random_clicks()
    empty = batch._replace(items=batch.items[:, :0], lengths=torch.zeros_like(batch.lengths))
    inputs = make()(empty)
    assert inputs.behaviours.shape == (6, 0, 3 * ITEM)
    assert_close(inputs.item, make()(batch).item)
    assert not pooled(inputs.behaviours, inputs.valid).any()


def test_pooled_is_the_mean_of_the_valid(make, random_clicks):
    batch = random_clicks()
    inputs = make()(batch)
    means = pooled(inputs.behaviours, inputs.valid)
    for row, length in enumerate(batch.lengths.tolist()):
        if length:
            assert_close(means[row], inputs.behaviours[row, :length].mean(0))
        else:
            assert not means[row].any()


def test_a_state_dict_carries_the_tables_only(make):
    names = ["item.weight", "item_fields.table.weight", "fields.table.weight"]
    assert list(make().state_dict()) == names


def test_embeddings_are_cut_at_two_standard_deviations():
    torch.manual_seed(0)
    weight = embedding(1000, 20, std=0.02, sparse=False).weight
    assert 0.0395 < weight.abs().max() <= 0.04
    assert weight.std().item() == pytest.approx(0.88 * 0.02, rel=0.02)
