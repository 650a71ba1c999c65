"""Pairs of items: what is counted, what is looked up, and what a state dict carries."""

from itertools import pairwise

import pytest
import torch

from hydrec.batch import Catalog
from hydrec.layers.pairs import Pairs, transitions


@pytest.fixture
def filled():
    table = Pairs(9)
    table.fill(torch.tensor([2, 2, 9]), torch.tensor([1, 9, 8]), torch.tensor([0.5, 2.0, -1.0]).double())
    return table


def test_pairs_are_those_of_one_user_and_have_a_direction(catalog):
    log = [(1, 3), (1, 4), (1, 3), (1, 4), (2, 4), (2, 3), (3, 3), (4, 9), (4, 9)]
    users, items = torch.tensor(log).T
    found = transitions(catalog._replace(users=users, items=items))
    assert list(zip(*(column.tolist() for column in found), strict=True)) == [(3, 4, 2), (4, 3, 2), (9, 9, 1)]


def test_pairs_are_those_of_a_loop(catalog):
    catalog = catalog._replace(items=catalog.items % 3 + 1)
    counts: dict[tuple[int, int], int] = {}
    log = list(zip(catalog.users.tolist(), catalog.items.tolist(), strict=True))
    for (user, first), (other, second) in pairwise(log):
        if user == other:
            counts[first, second] = counts.get((first, second), 0) + 1
    first, second, count = transitions(catalog)
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), count.tolist(), strict=True)) == counts


def test_what_was_not_given_is_0(filled):
    expected = torch.zeros(10, 10)
    expected[2, 1], expected[2, 9], expected[9, 8] = 0.5, 2.0, -1.0
    assert torch.equal(filled(torch.arange(10), torch.arange(10)), expected)
    assert not Pairs(9)(torch.arange(10), torch.arange(10)).any()


def test_rows_share_candidates_or_have_their_own(filled):
    first, second = torch.tensor([2, 9, 2]), torch.tensor([[9, 1], [9, 8], [3, 9]])
    assert filled(first, second).tolist() == [[2.0, 0.5], [0.0, -1.0], [0.0, 2.0]]
    assert filled(first, second[1]).tolist() == [[2.0, 0.0], [0.0, -1.0], [2.0, 0.0]]


def test_filling_again_forgets(filled):
    filled.fill(torch.tensor([1]), torch.tensor([1]), torch.tensor([1.0]))
    assert filled(torch.arange(10), torch.arange(10)).sum() == 1


def test_a_state_dict_brings_its_size_and_all_bits(filled):
    values = torch.tensor([0.1, 1 / 3]).double()
    large = Pairs(10**6)
    large.fill(torch.tensor([1, 10**6]), torch.tensor([10**6, 10**6 - 1]), values)
    fresh = Pairs(10**6)
    fresh.load_state_dict(large.state_dict())
    items = torch.tensor([10**6 - 1, 10**6])
    assert torch.equal(fresh(torch.tensor([1, 10**6]), items), torch.tensor([[0, 0.1], [1 / 3, 0]]))
    filled.load_state_dict(fresh.state_dict())
    assert len(filled.keys) == 3


def test_a_catalogue_without_pairs(catalog):
    one = torch.tensor([1])
    found = transitions(Catalog(**catalog._asdict() | {"users": one, "items": one, "times": one}))
    table = Pairs(25)
    table.fill(*found)
    assert not table(torch.arange(26), torch.arange(26)).any()
