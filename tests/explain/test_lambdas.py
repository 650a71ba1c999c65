"""What became of lambda, on folders of runs with known lambdas and metrics, against figures by hand."""

import json
import statistics

import polars as pl
import pytest
from scipy.stats import spearmanr

from hydrec.explain.lambdas import spearman


@pytest.fixture
def study(ranked, copied, tmp_path):
    """Writes runs into a folder: a model, its seed, lambda of two blocks by epoch, steps and a metric."""

    def write(name, model, seed, lambdas, ndcg, *, steps=10, tested=None, **values):
        kind = "sasrec" if lambdas is None else "ia_sasrec_add"
        copy = copied(ranked[kind], f"study/{name}", names__model=model, seed=seed, **values)
        for file, changes in (
            ("metrics.json", {"test/ndcg@10": ndcg}),
            ("run.json", {"epochs": {"tested": len(lambdas or [0]) - 1 if tested is None else tested}}),
        ):
            known = json.loads((copy / file).read_text()) | changes
            (copy / file).write_text(json.dumps(known))
        if lambdas is not None:
            rows = [
                {"epoch": e, "step": steps * (e + 1), "lambda/block1": one, "lambda/block2": two}
                for e, (one, two) in enumerate(lambdas)
            ]
            pl.DataFrame(rows).write_csv(copy / "history.csv")
        return tmp_path / "study"

    return write


def read(folder, name):
    return pl.read_csv(folder / "explain" / "lambda" / f"{name}.csv", infer_schema_length=None)


def test_means_and_differences_are_those_by_hand(study, answer):
    study("b0", "sasrec", 0, None, 0.20)
    study("b1", "sasrec", 1, None, 0.25)
    study("a0", "ia_sasrec_add", 0, [(1.1, 0.9), (1.2, 0.6), (1.3, 0.5)], 0.24, tested=1)
    study("a1", "ia_sasrec_add", 1, [(1.0, 0.9), (1.4, 0.8)], 0.22, tested=1)
    folder = study("a2", "ia_sasrec_add", 2, [(0.9, 0.7)], 0.22, tested=0)
    status, out, err = answer("lambda", f"runs={folder}")
    assert (status, err) == (0, "")
    means = {row["layer"]: row for row in read(folder, "lambda").iter_rows(named=True)}
    tested = {"block1": [1.2, 1.4, 0.9], "block2": [0.6, 0.8, 0.7]}
    for layer, values in (tested | {"all": [*tested["block1"], *tested["block2"]]}).items():
        assert means[layer]["mean"] == pytest.approx(statistics.mean(values))
        assert means[layer]["sd"] == pytest.approx(statistics.stdev(values))
        assert (means[layer]["values"], means[layer]["seeds"]) == (len(values), 3)
        assert means[layer]["steps"] == pytest.approx((20 + 20 + 10) / 3)
        assert means[layer]["reach"] == pytest.approx(0.01 * (20 + 20 + 10) / 3)  # learning rate of the runs
        assert f"{statistics.mean(values):.4f}" in out
    beside = {row["run"]: row for row in read(folder, "calibration").iter_rows(named=True)}
    assert beside["a0"]["lambda"] == pytest.approx(0.9)
    assert beside["a0"]["difference"] == pytest.approx(0.04) and beside["a0"]["baseline_run"] == "b0"
    assert beside["a1"]["difference"] == pytest.approx(-0.03) and beside["a1"]["baseline_run"] == "b1"
    assert beside["a2"]["difference"] is None  # the baseline has no such seed
    trajectory = read(folder, "trajectory")
    assert len(trajectory) == 2 * (3 + 2 + 1)
    row = trajectory.filter(run="a0", epoch=2, layer="block2").row(0, named=True)
    assert (row["lambda"], row["step"], row["tested"]) == (0.5, 30, False)
    correlations = read(folder, "spearman")
    assert correlations.filter(of="lambda and difference").is_empty()  # of two runs
    files = {path.name for path in (folder / "explain" / "lambda").iterdir()}
    assert {f"{name}.{form}" for name in ("lambda", "calibration") for form in ("csv", "png", "svg")} <= files


def test_runs_that_differ_in_more_than_the_seed_are_apart(study, answer):
    study("a0", "ia_sasrec_add", 0, [(1.0, 1.0)], 0.2)
    study("a1", "ia_sasrec_add", 1, [(2.0, 2.0)], 0.2)
    folder = study("c0", "ia_sasrec_add", 0, [(5.0, 5.0)], 0.2, model__net__lambda_lr_mult=10.0)
    assert answer("lambda", f"runs={folder}")[0] == 0
    means = read(folder, "lambda").filter(layer="all")
    assert sorted(means["mean"]) == [1.5, 5.0]
    assert means["settings"].n_unique() == 2
    assert sorted(means["reach"]) == pytest.approx([0.1, 1.0])


def test_pinned_lambdas_are_shown_and_not_correlated(study, answer):
    for seed, value in enumerate((1.0, 0.9, 0.7, 0.8)):
        study(f"a{seed}", "ia_sasrec_add", seed, [(value, value)], 0.1, steps=10 + seed)
    pinned = {"model__net__lambda_mode": "pinned", "model__net__lambda_value": 0.0}
    folder = study("p", "ia_sasrec_pinned", 0, [(0.0, 0.0)], 0.1, steps=99, **pinned)
    assert answer("lambda", f"runs={folder}")[0] == 0
    assert read(folder, "lambda").filter(model="ia_sasrec_pinned")["reach"].to_list() == [0.0] * 3
    rho = read(folder, "spearman").filter(model="all", of="step and lambda").row(0, named=True)
    assert rho["runs"] == 4
    assert rho["rho"] == pytest.approx(spearmanr([10, 11, 12, 13], [1.0, 0.9, 0.7, 0.8]).statistic)


def test_rank_correlations_are_scipys_with_ties():
    steps, lambdas = [5, 5, 7, 9, 11, 11], [1.0, 0.8, 0.8, 0.9, 0.3, 0.1]
    beside = pl.DataFrame(
        {
            "model": ["add"] * 6,
            "learnt": True,
            "step": steps,
            "lambda": lambdas,
            "reach": [0.1] * 6,
            "difference": [0.1, None, -0.2, 0.0, 0.3, 0.3],
        }
    )
    found = {(model, of): (n, rho) for model, of, n, rho in spearman(beside).iter_rows()}
    for model in ("all", "add"):
        assert found[model, "step and lambda"] == (6, pytest.approx(spearmanr(steps, lambdas).statistic))
        known = spearmanr([1.0, 0.8, 0.9, 0.3, 0.1], [0.1, -0.2, 0.0, 0.3, 0.3]).statistic
        assert found[model, "lambda and difference"] == (5, pytest.approx(known))
    assert ("all", "reach and lambda") not in found  # of runs that all reach as far


def test_the_baseline_is_the_one_with_most_settings_in_common(study, answer):
    study("b_other", "sasrec", 0, None, 0.90, batch_size=512, model__net__inner=99)
    study("b_same", "sasrec", 0, None, 0.20)
    folder = study("a0", "ia_sasrec_add", 0, [(1.0, 1.0)], 0.24)
    assert answer("lambda", f"runs={folder}")[0] == 0
    row = read(folder, "calibration").row(0, named=True)
    assert row["baseline_run"] == "b_same" and row["difference"] == pytest.approx(0.04)


def test_one_run_is_a_folder_of_runs_too(runs, answer, tmp_path):
    run = runs["ia_sasrec_add"]
    status, _, err = answer("lambda", f"runs={run}", "metric=hit@10", "wandb=true")
    assert (status, err) == (0, "")
    history = pl.read_csv(run / "history.csv")
    about = json.loads((run / "run.json").read_text())
    tested = history.filter(epoch=about["epochs"]["tested"])
    means = read(run, "lambda").filter(pl.col("layer") != "all")
    assert means["mean"].to_list() == pytest.approx([tested["lambda/block1"][0], tested["lambda/block2"][0]])
    assert any((run / "wandb").rglob("media/table/explain/trajectory*"))


def test_what_has_no_lambda_is_one_line(runs, study, refused, tmp_path):
    refused("has no finished and tested run of IA-SASRec", "lambda", f"runs={runs['sasrec']}")
    refused("has no finished and tested run of IA-SASRec", "lambda", f"runs={tmp_path}")
    study("a0", "ia_sasrec_add", 0, [(1.0, 1.0)], 0.2)
    folder = study("a1", "ia_sasrec_add", 1, [(1.0, 1.0)], 0.2)
    refused("metric=ndgc@10 is none of", "lambda", f"runs={folder}", "metric=ndgc@10")
    refused("has several runs", "lambda", f"runs={folder}", "wandb=true")
    assert not (folder / "explain").exists()


def test_what_a_repeated_run_set_aside_does_not_count(study, answer):
    study("a0", "ia_sasrec_add", 0, [(1.0, 1.0)], 0.2)
    folder = study("a0.old1", "ia_sasrec_add", 0, [(3.0, 3.0)], 0.2)
    assert answer("lambda", f"runs={folder}")[0] == 0
    assert {*read(folder, "calibration")["run"]} == {"a0"}


def test_trials_of_a_search_do_not_count(study, answer, refused):
    folder = study("trials/t0", "ia_sasrec_add", 0, [(3.0, 3.0)], 0.2, test=False)
    for trial in folder.rglob("metrics.json"):
        trial.write_text('{"valid/ndcg@10": 0.3}')
    refused("has no finished and tested run", "lambda", f"runs={folder}")
    study("a0", "ia_sasrec_add", 0, [(1.0, 1.0)], 0.2)
    assert answer("lambda", f"runs={folder}")[0] == 0
    assert {*read(folder, "calibration")["run"]} == {"a0"}
