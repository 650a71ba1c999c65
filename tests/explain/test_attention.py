"""Where models look, against their weights computed once more, by loops or from the layers' parts."""

import math

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.cloze import Cloze
from hydrec.explain.attention import along_edges, collected, named
from hydrec.explain.case import case_of
from hydrec.explain.run import FinishedRun
from hydrec.layers import graph


def one(batch, row):
    return type(batch)(*(x[row : row + 1] for x in batch))


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


def test_a_model_that_does_not_attend_is_refused(runs, copied, refused):
    net = {"_target_": "hydrec.models.markov.Markov", "_partial_": True, "prior": 1.0}
    copy = copied(runs["sasrec"])
    cfg = OmegaConf.load(copy / "config.yaml")
    cfg.model.net, cfg.model.optimiser, cfg.model.samples = net, None, "prefixes"
    cfg.names.model = "markov"
    OmegaConf.save(cfg, copy / "config.yaml")
    data = FinishedRun(str(copy)).data()
    task = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, 0)
    torch.save({"state_dict": task.state_dict()}, copy / "checkpoints" / "best.ckpt")
    refused("is of markov, whose layers have no such attention", "attention", f"run={copy}")
    assert not (copy / "explain").exists()
