import numpy as np
import pytest
import torch

from hydrec.layers.session import EDGES, GatedGraph, positions, session


@pytest.fixture
def rows():
    """Forty rows of few kinds of items, so with loops and steps that come again; padding holds anything."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 10, (40,), generator=draw)
    kinds = torch.randint(1, 6, (40, 1), generator=draw)
    items = 1 + (torch.rand(40, 9, generator=draw) * kinds).long()
    return items, lengths


def test_the_graph_is_the_one_that_walking_along_a_row_makes(rows):
    items, lengths = rows
    graph = session(items, lengths)
    steps, nodes = np.zeros((40, 9, 9)), np.zeros((40, 9), bool)
    for row, length in enumerate(lengths.tolist()):
        walk = items[row, :length].tolist()
        for place, item in enumerate(walk):
            assert graph.alias[row, place] == walk.index(item)
            nodes[row, walk.index(item)] = True
            if place:
                steps[row, walk.index(walk[place - 1]), walk.index(item)] += 1
    np.testing.assert_array_equal(graph.steps, steps)
    np.testing.assert_array_equal(graph.nodes, nodes)
    np.testing.assert_array_equal(graph.valid, np.arange(9) < lengths.numpy()[:, None])
    assert steps.max() > 2 and np.trace(steps.sum(0)) > 10  # steps that come again, and loops


def test_positions_hold_the_node_of_their_item(rows):
    items, lengths = rows
    graph = session(items, lengths)
    found = positions(items[:, :, None].double(), graph)[:, :, 0]
    assert torch.equal(found[graph.valid], items[graph.valid].double())


def test_what_is_no_node_reaches_no_node(rows):
    graph = session(*rows)
    layer = GatedGraph(4, steps=3, weigh=EDGES["count"])
    x = torch.randn(40, 9, 4, generator=torch.Generator().manual_seed(1))
    other = torch.where(graph.nodes[:, :, None], x, 100.0)
    assert torch.equal(layer(x, graph)[graph.nodes], layer(other, graph)[graph.nodes])
    assert not torch.equal(layer(x, graph), layer(other, graph))


def test_edges_that_are_counted_differ_from_edges_that_are_not(rows):
    graph = session(*rows)
    assert torch.equal(EDGES["count"](graph.steps), graph.steps)
    assert torch.equal(EDGES["binary"](graph.steps), (graph.steps > 0).float())
