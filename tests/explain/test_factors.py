"""HGNN's factors: statistics against loops over cases, agreement against scikit-learn, what is refused."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from hydrec.data.protocols import Samples
from hydrec.explain import factors
from hydrec.explain.case import case_of, top
from hydrec.explain.factors import SHUFFLES, Words, known, looked, mutual_information, plane, rand_index
from hydrec.explain.run import FinishedRun


@pytest.fixture
def opened(runs):
    run = FinishedRun(str(runs["hgnn"]))
    return run, *run.load()


@pytest.fixture
def tables(runs, answer):
    """What the command leaves, by name, and what it prints."""

    def tables(*more):
        status, out, err = answer("factors", f"run={runs['hgnn']}", *more)
        assert (status, err) == (0, "")
        folder = runs["hgnn"] / "explain" / "factors"
        names = ("nodes", "edges", "statistics")
        return {name: pl.read_csv(folder / f"{name}.csv", infer_schema_length=None) for name in names}, out

    return tables


# Agreement --------------------------------------------------------------------------------------------------


def labels(seed):
    draw = np.random.default_rng(seed)
    rows = [(draw.integers(0, 4, n), draw.integers(0, 3, n)) for n in (1, 2, 5, 12, 40)]
    rows += [(np.zeros(6, int), np.zeros(6, int)), (np.zeros(6, int), np.arange(6) % 3)]
    rows += [(np.arange(9) % 3, (np.arange(9) + 1) % 3)]  # the same, called otherwise
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_scikit_learns(seed):
    rows = labels(seed)
    counted = torch.zeros(len(rows), 4, 3, dtype=torch.float64)
    for place, (one, other) in enumerate(rows):
        np.add.at(counted[place].numpy(), (one, other), 1)
    expected = [(adjusted_rand_score(a, b), normalized_mutual_info_score(a, b)) for a, b in rows]
    for place, found in enumerate((rand_index(counted), mutual_information(counted))):
        np.testing.assert_allclose(found, [each[place] for each in expected], atol=1e-12)


# The plane --------------------------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_principal_components():
    nodes = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    found, expected = plane(nodes).numpy(), PCA(2, svd_solver="full").fit_transform(nodes.double().numpy())
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)
    assert (found.max(0) == np.abs(found).max(0)).all()
    assert (plane(torch.randn(1, 6)) == 0).all()  # one event spans nothing
    assert (plane(torch.randn(2, 6))[:, 1].abs() < 1e-6).all()


# The case ---------------------------------------------------------------------------------------------------


def test_a_case_has_the_factors_of_the_net(opened, tables):
    found, _ = tables()
    run, data, task = opened
    batch, candidates = case_of(data, "")
    n, net = int(batch.lengths[0]), task.net
    best = int(top(task, batch, candidates, 1).items[0, 0])
    assert best not in batch.items[0].tolist()  # the protocol masks the history
    nodes, edges = found["nodes"], found["edges"]
    raw = dict(run.items().select("item", "raw").iter_rows())
    assert nodes["raw"].cast(str).to_list() == [raw[item] for item in batch.items[0, :n].tolist()]
    with torch.no_grad():
        state, _ = net.encode(batch)
    for name, item in (("recommended", best), ("next", int(batch.targets[0, 0]))):
        some = edges.filter(candidate=name)
        assert {*some["raw"].cast(str)} == {raw[item]}
        scores = [float(vector @ net.item.weight[item].detach()) for vector in state.vectors[0, 0]]
        assert some["score"].to_list() == pytest.approx(scores, rel=1e-5)
        raised = [math.exp(s + float(t)) for s, t in zip(scores, state.nearness[0, 0], strict=True)]
        assert some["weight"].to_list() == pytest.approx([each / sum(raised) for each in raised], rel=1e-5)
        total = sum(w * s for w, s in zip(some["weight"], scores, strict=True))
        with torch.no_grad():
            score = net.score(type(state)(*(x[:, 0] for x in state)), torch.tensor([item]))
        assert total == pytest.approx(float(score), rel=1e-4)  # eq. 10
    shares = nodes.select(f"share_{k}" for k in range(1, 6)).to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert nodes["factor"].to_list() == (shares.argmax(1) + 1).tolist()
    held = (shares[:, :, None] * nodes_of(net, batch)[:n, None, :]).sum(0)  # eq. 5
    np.testing.assert_allclose(held, state.vectors[0, 0], atol=1e-5)


def nodes_of(net, batch):
    return looked(type("Task", (), {"net": net}), batch, batch.targets[:, 0]).nodes[0].numpy()


# The statistics ---------------------------------------------------------------------------------------------


def slow(hard, best, strongest, genres, planted, items):
    """The statistics of one division of one history, event by event."""
    n, found = len(items), {}
    groups = {k: [t for t in range(n) if hard[t] == k] for k in {*hard}}
    inside = {g for t in groups.get(strongest, []) for g in genres[items[t]]}
    if genres[best]:
        found["strongest factor shares a genre with the recommended item"] = bool(inside & {*genres[best]})
    most = 0
    for some in groups.values():
        counted = [g for t in some for g in genres[items[t]]]
        most += max((counted.count(g) for g in counted), default=0)
    found["purity by genre"] = most / sum(bool(genres[item]) for item in items)
    truth = [planted[item] for item in items]
    found["adjusted Rand index"] = adjusted_rand_score(truth, hard)
    found["normalised mutual information"] = normalized_mutual_info_score(truth, hard)
    return found


def test_statistics_are_those_of_a_loop_over_cases(opened, tables):
    found, out = tables()
    run, data, task = opened
    check(found["statistics"], run, data, task, out)


def test_padding_changes_no_statistic(opened):
    run, data, task = opened
    test = data.split.test
    shorter = Samples(test.first + np.arange(len(test)) % 6, test.last, test.target)  # of 3 to 8 events
    data.split = data.feed.split = dataclasses.replace(data.split, test=shorter)
    found = factors.summarised(task, data, known(data, run.items()))
    check(found, run, data, task)


def check(statistics, run, data, task, out=None):
    """Compares statistics with those of a loop over cases, event by event."""
    genres = {item: [*words] for item, words in run.items().select("item", "genres").iter_rows()}
    planted = data.reader.truth().item_factors
    sums, nulls, spread = {}, {}, np.zeros(5)
    cases = 0
    for batch, candidates in data.test_dataloader():
        best = top(task, batch, candidates, 1).items[:, 0]
        seen = looked(task, batch, best)
        real = torch.arange(8) < batch.lengths[:, None]
        orders = [factors._shuffle(batch, real, draw) for draw in range(SHUFFLES)]
        for row in range(len(best)):
            n = int(batch.lengths[row])
            hard, items = seen.hard[row, :n].tolist(), batch.items[row, :n].tolist()
            known = (int(best[row]), int(seen.weight[row].argmax()), genres, planted, items)
            mine = slow(hard, *known)
            shares = seen.groups.shares[row, :n].double()
            mine["factors in use"] = len({*hard})
            mine["entropy of S"] = -sum(float(p) * math.log(p) for p in shares.flatten() if p > 0) / n
            mine["strongest factor holds no event"] = float(known[1] not in hard)
            for name, value in mine.items():
                sums.setdefault(name, []).append(value)
            for order in orders:
                assert sorted(order[row, :n].tolist()) == [*range(n)]
                moved = [hard[t] for t in order[row, :n].tolist()]
                for name, value in slow(moved, *known).items():
                    nulls.setdefault(name, []).append(value)
            spread += np.bincount(hard, minlength=5) / n
            cases += 1
    rows = {row["statistic"]: row for row in statistics.iter_rows(named=True)}
    for name, values in sums.items():
        assert rows[name]["value"] == pytest.approx(np.mean(values), abs=1e-6), name
        assert rows[name]["cases"] == len(values)
        if name in nulls:
            assert rows[name]["shuffled"] == pytest.approx(np.mean(nulls[name]), abs=1e-6), name
            difference = np.mean(values) - np.mean(nulls[name])
            assert rows[name]["difference"] == pytest.approx(difference, abs=1e-6)
    assert [rows[f"events in factor {k}"]["value"] for k in range(1, 6)] == pytest.approx(spread / cases)
    assert out is None or f"{np.mean(sums['entropy of S']):.3f}" in out


def test_factors_that_are_the_planted_ones_agree_and_shuffled_ones_do_not(opened, monkeypatch):
    run, data, task = opened
    words = known(data, run.items())
    single = torch.nn.functional.one_hot(words.planted.clamp(min=0), 8).bool()

    def planted(task, batch, best):
        seen = looked(task, batch, best)
        shares = single[batch.items].float() * (batch.items > 0)[:, :, None]
        weight = single[best].float()
        return seen._replace(groups=seen.groups._replace(shares=shares), weight=weight)

    monkeypatch.setattr(factors, "looked", planted)
    found = factors.summarised(task, data, Words(single, words.planted))
    rows = {row["statistic"]: row for row in found.iter_rows(named=True)}
    for name in ("adjusted Rand index", "normalised mutual information", "purity by genre"):
        assert rows[name]["value"] == pytest.approx(1)
        assert rows[name]["shuffled_high"] < 0.9 and rows[name]["difference_low"] > 0.1
    shared = rows["strongest factor shares a genre with the recommended item"]
    empty = rows["strongest factor holds no event"]
    assert shared["value"] == pytest.approx(1 - empty["value"]) and shared["difference_low"] > 0


def test_items_without_genres_leave_what_needs_none(opened):
    run, data, task = opened
    bare = run.items().with_columns(genres=pl.lit([], pl.List(pl.String)))
    words = known(data, bare)
    assert words.genres.shape == (task.n_items + 1, 0)
    found = factors.summarised(task, data, words._replace(planted=None))
    assert {*found["unit"]} == {"share", "factors", "nats"} and found["shuffled"].is_null().all()


def test_genres_are_those_of_the_catalogue(opened):
    run, data, _ = opened
    words = known(data, run.items())
    assert not words.genres[0].any()
    names = sorted({each for some in run.items()["genres"] for each in some})
    for item, genres in run.items().select("item", "genres").iter_rows():
        assert [names[g] for g in words.genres[item].nonzero()[:, 0]] == sorted(genres)
    assert words.planted.tolist() == data.reader.truth().item_factors.tolist()


# The command ------------------------------------------------------------------------------------------------


def test_two_models_stand_beside_each_other(runs, copied, tables):
    other = copied(runs["hgnn"], names__model="hgnn_ent", model__net__entropy=0.0)
    found, out = tables(f"other={other}")
    names = ["hgnn, entropy 0.0001, seed 0", "hgnn_ent, entropy 0, seed 0"]
    for table in found.values():
        assert table["run"].unique(maintain_order=True).to_list() == names
        one, two = (part.drop("run") for part in table.partition_by("run"))
        assert one.equals(two)  # the same weights
    assert all(name in out for name in names)
    files = {path.name for path in (runs["hgnn"] / "explain" / "factors").iterdir()}
    pages = {f"{name}.{form}" for name in ("factors", "statistics") for form in ("png", "svg")}
    assert files == pages | {"nodes.csv", "edges.csv", "statistics.csv"}


def test_what_has_no_factors_is_one_line(runs, copied, refused):
    refused("is of sasrec: factors explains HGNN", "factors", f"run={runs['sasrec']}")
    alone = copied(runs["hgnn"], names__model="hgnn_gat2", model__net__cluster=False)
    refused("is of hgnn_gat2, which groups nothing", "factors", f"run={runs['hgnn']}", f"other={alone}")
    refused("user=nobody is no user", "factors", f"run={runs['hgnn']}", "user=nobody")
