"""The curves of a study, from its ledger and run folders."""

import json
from statistics import mean, stdev

import polars as pl
import pytest

from hydrec.study import report, results, sensitivity

VALUES = {32: (0.2, 0.3), 8: (0.1, 0.4), 16: (0.5, 0.5)}  # as the study has them, not sorted


@pytest.fixture
def folder(ranked_in, tmp_path):
    """A study of one model with a curve of three values and two seeds, one run of it failed."""
    own = tmp_path / "study"
    jobs = {}
    run = ranked_in(own, "hgnn")
    jobs["hgnn"] = {"kind": "seed", "state": "finished", "folder": run.name, "model": "hgnn"}
    for value, hits in VALUES.items():
        for seed, hit in enumerate(hits):
            name = f"hgnn.dim.{value}-s{seed}"
            (own / name).mkdir()
            (own / name / "metrics.json").write_text(
                json.dumps({"test/hit@10": hit, "test/ndcg@10": hit / 2})
            )
            jobs[name] = {"kind": "curve", "state": "finished", "folder": name, "model": "hgnn"}
            jobs[name] |= {"params": {"model.net.dim": value}, "seed": seed}
    jobs["hgnn.dim.64-s0"] = jobs["hgnn.dim.8-s0"] | {"state": "failed", "params": {"model.net.dim": 64}}
    for job in jobs.values():
        job |= {"dataset": "toy", "protocol": "leave_one_out", "reason": None, "lines": []}
        job |= {"seed": job.get("seed", 0), "value": None, "params": job.get("params")}
    (own / "ledger.json").write_text(json.dumps({"jobs": jobs}))
    (own / "study.yaml").write_text("title: A test\nmodels: [hgnn]\nmetrics: [hit@10, ndcg@10]\n")
    return own


def test_a_curve_has_mean_and_spread_of_each_value_in_the_order_of_the_study(folder):
    found = sensitivity.points(folder, results.ledger(folder), ["hit@10", "ndcg@10"])
    ((name, curve),) = sensitivity.curves(found, ["hit@10", "ndcg@10"])
    assert name == "toy-leave_one_out-hgnn-model.net.dim"
    assert curve["value"].to_list() == ["32", "8", "16"]
    assert curve["seeds"].to_list() == [2, 2, 2]
    for row, hits in zip(curve.iter_rows(named=True), VALUES.values(), strict=True):
        assert row["hit@10"] == pytest.approx(mean(hits))
        assert row["hit@10 sd"] == pytest.approx(stdev(hits))
        assert row["ndcg@10"] == pytest.approx(mean(hits) / 2)


def test_the_report_has_the_curve_and_keeps_its_runs_out_of_the_comparison(folder, tmp_path):
    page = report.write(folder, baseline="", metrics=[], out=tmp_path / "out").read_text()
    assert "What settings are worth" in page
    table = pl.read_csv(tmp_path / "out/tables/curve-toy-leave_one_out-hgnn-model.net.dim.csv")
    assert table["value"].to_list() == [32, 8, 16]
    assert (
        "**0.5000 ± 0.0000**"
        in (tmp_path / "out/tables/curve-toy-leave_one_out-hgnn-model.net.dim.md").read_text()
    )
    assert (tmp_path / "out/figures/values.svg").exists()
    assert len(pl.read_parquet(tmp_path / "out/runs.parquet")) == 1


def test_without_curves_there_is_no_section(ranked, tmp_path):
    run = ranked("hgnn")
    page = report.write(run.parent, baseline="", metrics=[], out=tmp_path / "out").read_text()
    assert "What settings are worth" not in page
    assert (
        sensitivity.figure(sensitivity.points(run.parent, results.ledger(run.parent), ["hit@10"]), "hit@10")
        is None
    )
