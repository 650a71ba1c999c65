"""Runs read back: sums over users against loops, what is refused and how, and which runs count."""

import json
import re

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from hydrec.errors import InputError
from hydrec.study.results import finished, frame, ledger, settings, study
from hydrec.study.verdicts import judged


@pytest.fixture
def read(tmp_path):
    """The settings of the runs made so far."""

    def of(baseline="", metrics=()):
        runs = finished(tmp_path / "study")
        asked = study(tmp_path / "study", runs, baseline, metrics)
        return settings(runs, asked), asked

    return of


def verdicts_of(read, baseline="base", metrics=()):
    found, asked = read(baseline, metrics)
    pairs = {each.key: [(baseline, model) for model in each.models if model != baseline] for each in found}
    return judged(found, pairs, asked)


def test_sums_over_users_are_those_of_a_loop(ranked, read, slow_metric) -> None:
    path = ranked("base")
    (setting,), _ = read(metrics=["hit@5", "mrr@10", "ndcg@10"])
    sums = setting.sums(setting.models["base"][0])
    users = sorted(f"u{n:03d}" for n in range(60))
    for name in ("hit@5", "mrr@10", "ndcg@10"):
        slow = dict.fromkeys(users, 0.0)
        for row in pl.read_parquet(path / "test.parquet").iter_rows(named=True):
            slow[row["user"]] += slow_metric(name, row["greater"], row["equal"])
        np.testing.assert_allclose(sums[name], [*slow.values()], atol=1e-12)
    assert setting.rows.sum() == 90 and setting.rows.max() > 1


def test_verdicts_pair_equal_seeds_and_users(ranked, read) -> None:
    for seed in range(4):
        ranked("base", seed)
    for seed in (1, 3, 5):
        ranked("good", seed, better=6)
    frame_, alone = verdicts_of(read, metrics=["ndcg@10"])
    (row,) = frame_.iter_rows(named=True)
    means = {
        model: [
            json.loads((path / "metrics.json").read_text())["test/ndcg@10"]
            for path in sorted(finished_path(read, model))
            if path.name[-1] in "13"
        ]
        for model in ("base", "good")
    }
    assert row["seeds"] == 2
    assert row["difference"] == pytest.approx(np.subtract(means["good"], means["base"]).mean(), abs=1e-12)
    assert row["change"] == pytest.approx(100 * (np.mean(means["good"]) / np.mean(means["base"]) - 1))
    assert alone["seed"].to_list() == [1, 3] and alone["verdict"].to_list() == ["gain", "gain"]


def finished_path(read, model):
    (setting,), _ = read()
    return [run.folder for run in setting.models[model].values()]


def test_a_planted_gain_and_loss_are_robust_and_nothing_else_is(ranked, read) -> None:
    for seed in range(5):
        ranked("base", seed)
        ranked("good", seed, better=6)
        ranked("bad", seed, better=-6)
        ranked("same", seed, better=0)
    found, _ = verdicts_of(read)
    verdicts = dict(found.group_by("model").agg("verdict").iter_rows())
    assert verdicts == {"good": ["robust gain"] * 3, "bad": ["robust loss"] * 3, "same": ["none"] * 3}
    # Holm by hand: the smallest of m times m, the next times m - 1 ...
    larger = sorted(np.maximum(found["p_seeds"], found["p_users"]))
    steps = np.minimum(1, np.maximum.accumulate([p * (9 - place) for place, p in enumerate(larger)]))
    np.testing.assert_allclose(sorted(found["p_holm"]), steps)


def test_one_seed_gives_no_verdict(ranked, read) -> None:
    ranked("base")
    ranked("good", better=6)
    found, alone = verdicts_of(read)
    assert found["verdict"].unique().to_list() == ["none"] and found["p_seeds"].null_count() == 3
    assert alone["verdict"].unique().to_list() == ["gain"]


def test_click_runs_are_compared_by_auc_gauc_and_logloss(clicked, read) -> None:
    for seed in range(3):
        clicked("base", seed)
        clicked("good", seed, better=1.0)
    found, _ = verdicts_of(read)
    assert found["metric"].to_list() == ["auc", "gauc", "logloss"]
    assert (found["verdict"] == "robust gain").all()
    assert found["difference"].to_list()[2] < 0 < found["difference"].to_list()[0]
    (setting,), _ = read()
    for model, column in (("base", "baseline_mean"), ("good", "model_mean")):
        tables = [pl.read_parquet(run.folder / "test.parquet") for run in setting.models[model].values()]
        auc = np.mean([roc_auc_score(table["label"], table["logit"]) for table in tables])
        assert found[column][0] == pytest.approx(auc, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"about": {"dataset": {"fingerprint": "0" * 64}}},
            r"dataset fingerprint \(ffffffffffff, 000000000000\)",
        ),
        ({"about": {"dataset": {"label": "leaky"}}}, r"dataset label \(, leaky\)"),
        ({"protocol": {"candidates": "sampled"}}, r"protocol.candidates \(full, sampled\)"),
        ({"protocol": {"cold": "drop"}}, r"protocol.cold \(None, drop\)"),
        (
            {"protocol": {"metrics": {"version": 1, "at": [5, 10], "ties": "optimistic"}}},
            "protocol.metrics.ties",
        ),
        ({"drop": 1}, r"number of test rows \(90, 89\)"),
    ],
)
def test_runs_of_other_data_or_protocol_are_refused(ranked, read, changes, said) -> None:
    ranked("base")
    ranked("other", **changes)
    with pytest.raises(InputError, match=rf"toy-base-s0 and .*toy-other-s0 cannot be compared: .*{said}"):
        read()


@pytest.mark.parametrize("column", ["user", "target", "sample", "candidates"])
def test_other_test_rows_are_refused(ranked, read, column) -> None:
    ranked("base")
    path = ranked("other") / "test.parquet"
    table = pl.read_parquet(path).sort("sample")
    last = table[column].to_list()
    table.with_columns(
        pl.Series(column, [*last[:-1], last[-1] + ("x" if column in ("user", "target") else 1)])
    ).write_parquet(path)
    with pytest.raises(
        InputError, match=f"toy-base-s0 and .*toy-other-s0 cannot be compared: .*column {column}"
    ):
        read()


def test_runs_of_one_model_with_other_settings_are_refused(ranked, read) -> None:
    ranked("base", 0)
    ranked("base", 1)  # paths, devices and seed may differ
    read()
    ranked("base", 0, net={"dim": 16}, suffix="-x")
    with pytest.raises(
        InputError, match=r"toy-base-s0 and .*toy-base-s0-x .*model\.net\.dim \(8, 16\).*move one away"
    ):
        read()


def test_one_seed_twice_is_refused(ranked, read) -> None:
    ranked("base", 0)
    ranked("base", 0, suffix="-x")
    with pytest.raises(InputError, match="differ in nothing: which of them counts"):
        read()


def test_a_test_table_of_another_run_is_refused(ranked, read) -> None:
    ranked("base")
    path = ranked("good", better=6)
    metrics = json.loads((path / "metrics.json").read_text())
    (path / "metrics.json").write_text(json.dumps(metrics | {"test/hit@10": 0.123}))
    with pytest.raises(InputError, match=r"hit@10 is \S+ by test.parquet and 0.123 by metrics.json"):
        verdicts_of(read)


def test_damaged_files_are_named(ranked, read) -> None:
    path = ranked("base")
    (path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        read()


def test_unknown_names_are_refused(ranked, read) -> None:
    ranked("base")
    with pytest.raises(InputError, match="baseline=bass is none of base; did you mean base"):
        read("bass")
    with pytest.raises(InputError, match=r"metrics=ndgc@10 .* did you mean ndcg@10"):
        read(metrics=["ndgc@10"])


def test_what_was_set_aside_or_not_tested_does_not_count(ranked, read, tmp_path) -> None:
    ranked("base")
    ranked("base", suffix=".old1")
    path = ranked("other")
    (path / "metrics.json").write_text('{"valid/hit@10": 0.5}')
    ranked("unfinished").joinpath("metrics.json").unlink()
    assert [run.model for run in finished(tmp_path / "study")] == ["base"]
    with pytest.raises(InputError, match="no finished run"):
        finished(tmp_path)


def test_the_ledger_says_which_runs_count_and_what_they_are_called(ranked, read, tmp_path) -> None:
    jobs = {}
    for kind, name in (("seed", "base"), ("seed", "deep"), ("reference", "popularity"), ("timing", "quick")):
        path = ranked("base", suffix=f"-{name}", net={"dim": len(name)})
        jobs[name] = {"kind": kind, "model": name, "folder": path.name, "state": "finished", "dataset": "toy"}
    jobs["data"] = {
        "kind": "data",
        "state": "absent",
        "dataset": "steam",
        "folder": None,
        "lines": ["no", "file"],
    }
    (tmp_path / "study" / "ledger.json").write_text(json.dumps({"jobs": jobs, "absent": {"yelp": "gone"}}))
    (tmp_path / "study" / "study.yaml").write_text(
        "models: [deep, base]\nreferences: [popularity]\nbaseline: base"
    )
    (setting,), asked = read()
    assert [*setting.models] == ["base", "deep"] and [*setting.references] == ["popularity"]
    assert asked.baseline == "base" and ledger(tmp_path / "study").absent == {"steam": "file", "yelp": "gone"}


def test_untrained_models_are_references_without_a_study(ranked, read) -> None:
    ranked("base")
    ranked("itemknn", trained=False)
    (setting,), _ = read()
    assert [*setting.models] == ["base"] and [*setting.references] == ["itemknn"]
    assert setting.prefixes() == ["popularity"]


def test_the_frame_has_a_row_a_run_with_its_identity(ranked, tmp_path) -> None:
    ranked("base", 0)
    ranked("base", 1)
    table = frame(finished(tmp_path / "study"))
    assert table["seed"].to_list() == [0, 1] and table["test_rows"].to_list() == [90, 90]
    row = table.row(0, named=True)
    assert (row["fingerprint"], row["protocol_digest"], row["source_digest"]) == (
        "f" * 64,
        "b" * 64,
        "c" * 64,
    )
    assert row["steps"] == 20 and row["seconds_fit"] == 2.0 and re.match("python 3", row["versions"])
    assert (
        row["test/hit@10"]
        == json.loads((tmp_path / "study/toy-base-s0/metrics.json").read_text())["test/hit@10"]
    )


def test_the_baseline_may_be_a_reference(ranked, read) -> None:
    ranked("good", better=6)
    ranked("itemknn", trained=False)
    (setting,), _ = read("itemknn")
    assert [*setting.models] == ["itemknn", "good"] and not setting.references
