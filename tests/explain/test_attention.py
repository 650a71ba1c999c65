"""Where models look, against their weights computed once more, by loops or from the layers' parts."""

import math
from itertools import pairwise

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.cloze import Cloze
from hydrec.explain.attention import Layer, along_edges, collected, last_page, matrices, named, table
from hydrec.explain.case import case_of
from hydrec.explain.run import FinishedRun
from hydrec.layers import graph
from hydrec.layers.attention import Watched


def one(batch, row):
    return type(batch)(*(x[row : row + 1] for x in batch))


def again(batch, items):
    """A row that has other items, some of them again."""
    batch = one(batch, 0)
    lengths = torch.tensor([len(items)])
    return batch._replace(items=torch.tensor([items + [0] * (12 - len(items))]), lengths=lengths)


def entered(module, net, batch):
    """What goes into a module of a net, each time."""
    kept = []
    hook = module.register_forward_pre_hook(lambda _, given: kept.append(given))
    net.encode(batch)
    hook.remove()
    return kept


def softmax(logits):
    """Of a dictionary."""
    total = sum(map(math.exp, logits.values()))
    return {key: math.exp(each) / total for key, each in logits.items()}


def test_weights_of_the_first_layer_are_those_of_a_loop(make_net, random_batch):
    net = make_net("model=sasrec", window=12, dim=8, heads=2).eval()
    batch = one(random_batch(), 2)
    layers = collected(net, batch)
    n = int(batch.lengths[0])
    assert [layer.name for layer in layers] == ["encoder.blocks.0.attention", "encoder.blocks.1.attention"]
    attention = net.encoder.blocks[0].attention
    with torch.no_grad():
        x = net.encoder.enter(net.scale * net.item(batch.items) + net.position(batch.lengths, 12))[0]
        q, k = attention.query(x).double(), attention.key(x).double()
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        for query in range(n):
            logits = [float(q[query, part] @ k[key, part]) / math.sqrt(4) for key in range(query + 1)]
            total = sum(map(math.exp, logits))
            expected = [math.exp(each) / total for each in logits] + [0.0] * (n - query - 1)
            assert layers[0].weights[head, query].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_gcsan_has_the_softmax_of_its_paper_over_all_positions(make_net, random_batch):
    net, batch = make_net("model=gcsan", dim=8).eval(), again(random_batch(), [3, 5, 3, 7, 9, 3, 5])
    (layer,) = collected(net, batch)
    block = net.blocks[0]
    ((x, _),) = entered(block, net, batch)
    x, w_q, w_k = x[0].double(), block.query.weight.double(), block.key.weight.double()
    assert (layer.name, layer.queries, layer.weights.shape) == ("blocks.0.attention", "positions", (1, 7, 7))
    for i in range(7):
        expected = softmax({j: float((w_q @ x[i]) @ (w_k @ x[j])) / math.sqrt(8) for j in range(7)})
        assert layer.weights[0, i].tolist() == pytest.approx([*expected.values()], abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("asked", ["target", "last"])
def test_hstu_has_the_pointwise_weights_of_eq_2(asked, make_net, random_batch):
    net = make_net("model=hstu", window=12, dim=8, heads=2, qk_dim=3, value_dim=4, query_time=asked).eval()
    batch = one(random_batch(), 2)
    n = int(batch.lengths[0])
    layers = collected(net, batch)
    assert [layer.name for layer in layers] == ["units.0.attention", "units.1.attention"]
    times = [*batch.times[0, :n].tolist(), int(batch.target_times[0, 0])]
    for unit, layer in zip(net.units, layers, strict=True):
        ((x, *_),) = entered(unit, net, batch)
        x = x[0, :n].double()
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        y = x @ unit.project.weight.double().T
        y = y / (1 + (-y).exp())
        q, k = y[:, 16:22], y[:, 22:28]  # behind gates and values, 2 heads of 4 each
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            for i in range(n):
                expected = [0.0] * n
                for j in range(i + 1):
                    gap = times[i + 1 if asked == "target" else i] - times[j]
                    bucket = min(int(math.log(max(gap, 1)) / 0.301), 128)
                    logit = float(q[i, part] @ k[j, part] + unit.distance[i - j] + unit.time[bucket])
                    expected[j] = logit / (1 + math.exp(-logit)) / 12
                assert layer.weights[head, i].tolist() == pytest.approx(expected, abs=1e-7)


@torch.no_grad()
def test_fgnn_looks_along_the_edges_of_its_graph_and_reads_all_of_it(make_net, random_batch):
    items = [3, 5, 3, 7, 7, 5, 3]
    nodes = {3: 0, 5: 1, 7: 3}  # where they first occur
    net, batch = make_net("model=fgnn", dim=4, heads=[2, 1], rounds=2).eval(), again(random_batch(), items)
    layers = collected(net, batch)
    edges = {(item, item): 1 for item in nodes}  # that nobody walked, but 7's
    for before, after in pairwise(items):
        edges[before, after] = edges.get((before, after), 0) + 1
    edges[7, 7] = 1
    assert edges == {(3, 3): 1, (5, 5): 1, (7, 7): 1, (3, 5): 1, (5, 3): 2, (3, 7): 1, (7, 5): 1}
    for part, layer in zip(net.layers, layers, strict=False):
        ((x, _),) = entered(part, net, batch)
        for head, weight in enumerate(part.weight.double()):
            y = x[0].double() @ weight
            own, other = (y @ half[head, :, 0].double() for half in (part.own, part.other))
            for i, item in enumerate(items):
                logits = {
                    nodes[before]: float(own[nodes[item]] + other[nodes[before]] + part.edge[head] * walked)
                    for (before, after), walked in edges.items()
                    if after == item
                }
                logits = {at: logit if logit > 0 else 0.2 * logit for at, logit in logits.items()}
                expected = softmax(logits)
                expected = [expected.get(j, 0.0) for j in range(len(items))]
                assert layer.weights[head, i].tolist() == pytest.approx(expected, abs=1e-6)
    ((x, _),) = entered(net.readout, net, batch)
    x, cell = x[0].double(), net.readout.cell.double()
    asked = found = torch.zeros(1, 4, dtype=torch.float64)
    for layer in layers[2:]:
        assert (layer.name, layer.queries, layer.weights.shape) == ("readout.attention", "whole", (1, 1, 7))
        asked = cell(torch.cat([asked, found], 1), asked)
        expected = softmax({at: float(x[at] @ asked[0]) for at in nodes.values()})
        found = sum(share * x[at] for at, share in expected.items())[None]
        expected = [expected.get(j, 0.0) for j in range(len(items))]
        assert layer.weights[0, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert layer.told.equal(layer.weights[:, 0])
    assert len(layers) == 4


@torch.no_grad()
def test_retagnns_positions_count_alike(make_net, random_batch):
    net, batch = make_net("model=retagnn", dim=4).eval(), again(random_batch(), [3, 5, 3, 7, 9])
    (layer,) = collected(net, batch)
    ((x,),) = entered(net.query, net, batch)
    x, w_q, w_k = x[0].double(), net.query.weight.double(), net.key.weight.double()
    total = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        logits = {j: float((w_q @ x[i]) @ (w_k @ x[j])) / math.sqrt(x.shape[1]) for j in range(i + 1)}
        expected = [softmax(logits).get(j, 0.0) for j in range(5)]
        assert layer.weights[0, i].tolist() == pytest.approx(expected, abs=1e-6)
        total += torch.tensor(expected)
    assert layer.queries == "all"
    torch.testing.assert_close(layer.told[0].double(), total / 5, atol=1e-6, rtol=0)


@torch.no_grad()
def test_srgnn_sums_what_matters_to_the_last_event(make_net, random_batch):
    net, items = make_net("model=srgnn").eval(), [3, 5, 3, 7]
    batch = again(random_batch(), items)
    (layer,) = collected(net, batch)
    x = entered(net.each, net, batch)[0][0][0].double()
    own, each, bias, asked = (
        weight.double() for weight in (net.last.weight, net.each.weight, net.each.bias, net.attention.weight)
    )
    expected = [float(asked @ (own @ x[3] + each @ x[event] + bias).sigmoid()) for event in range(4)]
    assert layer.weights.shape == (1, 1, 4)
    assert layer.weights.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("model", ["srgnn", "gcsan", "hstu", "fgnn", "retagnn"])
def test_to_be_watched_costs_nothing(model, make_net):
    net, weights = make_net(f"model={model}"), torch.rand(1, 2, 3, 3, requires_grad=True)
    watched = [module for module in net.modules() if isinstance(module, Watched)]
    assert watched and all(each(weights) is weights and not each.state_dict() for each in watched)


@pytest.mark.parametrize("model", ["sasrec", "sasrec_original", "ia_sasrec_add", "tisasrec", "nova", "difsr"])
def test_every_position_looks_at_itself_and_before(model, make_net, random_batch):
    net = make_net(f"model={model}", window=12).eval()
    for row in (0, 3, 5):
        batch = one(random_batch(), row)
        layers = collected(net, batch)
        assert len(layers) == 2
        for layer in layers:
            n = int(batch.lengths[0])
            assert layer.weights.shape[1:] == (n, n)
            torch.testing.assert_close(layer.weights.sum(2), torch.ones(layer.weights.shape[:2]))
            assert (layer.weights.triu(1) == 0).all()


def test_intensities_change_what_is_seen(make_net, random_batch):
    batch = one(random_batch(), 0)
    weights = {}
    for value in (0.0, 2.0):
        net = make_net("model=ia_sasrec_add", window=12, lambda_value=value).eval()
        weights[value] = collected(net, batch)[0].weights
    plain = collected(make_net("model=sasrec", window=12).eval(), batch)[0].weights
    assert weights[0.0].equal(plain) and not weights[2.0].allclose(plain, atol=1e-3)


def test_graph_attention_gives_what_its_layer_makes_of_it(make_net, random_batch):
    net, batch = make_net("model=hgnn").eval(), random_batch()
    kept = []
    for module in net.modules():
        if isinstance(module, graph.Heads):
            module.register_forward_hook(lambda heads, given, out: kept.append((heads, given, out)))
    net.encode(batch)
    assert len(kept) == 2
    for heads, (x, edges), out in kept:
        shares = along_edges(heads, x, edges)
        y = torch.einsum("btd,hde->hbte", x, heads.weight)
        assert F.elu(shares @ y).permute(1, 2, 0, 3).flatten(2).equal(out)
    layers = collected(net, one(batch, 1))
    n = int(batch.lengths[1])
    assert [layer.weights.shape for layer in layers] == [(2, n, n)] * 2


def test_a_gap_is_a_position_and_a_token_too(make_net, random_batch, catalog):
    batch = one(random_batch(), 3)
    n = int(batch.lengths[0])
    asked = Cloze(catalog, ratio=0.2, last=0.1).ask(batch)
    (layer, _) = collected(make_net("model=bert4rec", window=12).eval(), asked)
    assert layer.weights.shape[1:] == (n + 1, n + 1)
    assert (layer.weights > 0).all()  # it sees both ways
    net = make_net("model=binned_sasrec_tokens", window=12)
    net.fit(catalog)
    (layer, _) = collected(net.eval(), batch)
    assert layer.weights.shape[1:] == (2 * n, 2 * n)
    past = pl.DataFrame({"place": [1, 2], "title": ["Alien", "Brazil"]})
    assert named(past, 2) == ["1 Alien", "1 Alien: token", "2 Brazil", "2 Brazil: token"]


def test_the_net_is_left_as_it_was(make_net, random_batch):
    net, batch = make_net("model=sasrec", window=12).eval(), one(random_batch(), 0)
    before = net.encode(batch)[0].vectors
    collected(net, batch)
    assert net.encode(batch)[0].vectors.equal(before)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("model", ["sasrec", "hgnn"])
def test_the_command_leaves_the_weights_of_a_users_case(model, runs, answer):
    status, out, err = answer("attention", f"run={runs[model]}")
    assert (status, err) == (0, "")
    folder = runs[model] / "explain" / "attention"
    files = [f"{name}.{form}" for name in ("attention", "positions") for form in ("csv", "png", "svg")]
    assert sorted(path.name for path in folder.iterdir()) == sorted({*files} - {"positions.csv"})
    found = pl.read_csv(folder / "attention.csv")
    opened = FinishedRun(str(runs[model]))
    data, task = opened.load()
    batch, _ = case_of(data, "")
    titles = dict(opened.items().select("item", "title").iter_rows())
    for number, layer in enumerate(collected(task.net, batch), 1):
        for row in found.filter(layer=number).iter_rows(named=True):
            weight = float(layer.weights[row["head"] - 1, row["query"] - 1, row["key"] - 1])
            assert row["weight"] == pytest.approx(weight, rel=1e-6)
            assert row["event"] == f"{row['key']} {titles[int(batch.items[0, row['key'] - 1])]}"
        assert len(found.filter(layer=number)) == int((layer.weights != 0).sum())
    last = found.filter(query=found["query"].max()).group_by("key").agg(pl.col("weight").sum() / 4)
    assert f"{last['weight'].max():.3f}" in out


def test_pages_say_what_looks():
    torch.manual_seed(0)
    several = [
        Layer("a", "nodes", torch.rand(2, 3, 3).softmax(2)),
        Layer("b", "whole", torch.rand(1, 1, 3).softmax(2)),
        Layer("c", "whole", torch.rand(1, 1, 3).softmax(2)),
    ]
    labels = ["1 Alien", "2 Brazil", "3 Cube"]
    axes, bar = last_page(several, labels, "head").axes
    assert axes.get_title("left") == (
        "Where these look: the last position (layer 1), the history as a whole (layer 2, 3)"
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1.1", "1.2", "2.1", "3.1"]
    assert bar.get_ylabel() == "weight of the event (they sum to 1)"
    assert [axes.get_title("left") for axes in matrices(several, labels, "head").axes[:2]] == [
        "layer 1, head 1",
        "layer 1, head 2",
    ]
    found = table(several, labels)
    assert found.filter(layer=1)["query"].to_list() == [1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    assert found.filter(pl.col("layer") > 1)["query"].to_list() == [None] * 6
    (alike,) = [Layer("a", "all", torch.tensor([[[1.0, 0.0], [-3.0, 2.0]]]))]
    axes, bar = last_page([alike], labels[:2], "head").axes
    assert axes.get_title("left") == "Where a position, on average, looks"
    assert axes.images[0].get_array().tolist() == [[-1.0], [1.0]]
    assert bar.get_ylabel() == "weight of the event (not normalised)"


@pytest.fixture
def swapped(runs, copied):
    """Makes a run of another net, not trained, of one of a model that ranks items."""

    def swapped(model, **net):
        copy = copied(runs["sasrec"])
        cfg = OmegaConf.load(copy / "config.yaml")
        cfg.model.net, cfg.model.optimiser, cfg.model.samples = net | {"_partial_": True}, None, "prefixes"
        cfg.names.model = model
        OmegaConf.save(cfg, copy / "config.yaml")
        data = FinishedRun(str(copy)).data()
        task = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, 0)
        torch.save({"state_dict": task.state_dict()}, copy / "checkpoints" / "best.ckpt")
        return copy

    return swapped


def test_the_command_shows_a_readout_and_many_heads(swapped, answer):
    net = {"_target_": "hydrec.models.fgnn.FGNN", "dim": 4, "heads": [8, 1], "rounds": 2, "edges": "count"}
    run = swapped("fgnn", **net)
    status, out, err = answer("attention", f"run={run}")
    assert (status, err) == (0, "")
    assert "Where these look: the last position (layer 1, 2), the history as a whole (layer 3, 4)" in out
    found = pl.read_csv(run / "explain" / "attention" / "attention.csv")
    assert found.filter(pl.col("query").is_null())["layer"].unique().sort().to_list() == [3, 4]
    last = found.filter(pl.col("query").is_null() | (pl.col("query") == pl.col("query").max()))
    printed = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert len(printed) == last["event"].n_unique()
    for event, mean, *by_layer in printed:
        of = last.filter(event=event)
        expected = [of.filter(layer=n)["weight"].sum() / heads for n, heads in enumerate([8, 1, 1, 1], 1)]
        assert [mean, *by_layer] == [f"{each:.3f}" for each in (sum(expected) / 4, *expected)]


def test_a_model_that_does_not_attend_is_refused(swapped, refused):
    copy = swapped("markov", _target_="hydrec.models.markov.Markov", prior=1.0)
    refused("is of markov, whose layers have no such attention", "attention", f"run={copy}")
    assert not (copy / "explain").exists()
