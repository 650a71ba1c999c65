"""Tables by numbers done by hand, and what they look like in Markdown and LaTeX."""

import polars as pl
import pytest

from hydrec.study import tables
from hydrec.study.results import finished, settings, study
from hydrec.study.tables import Cell, Table
from hydrec.study.verdicts import judged


@pytest.fixture
def read(tmp_path):
    """The settings of the runs made so far with the verdicts against ``base``."""

    def of(metrics=(), baseline="base"):
        runs = finished(tmp_path / "study")
        asked = study(tmp_path / "study", runs, baseline, metrics)
        found = settings(runs, asked)
        pairs = {
            each.key: [(baseline, model) for model in each.models if model != baseline] for each in found
        }
        return found, asked, *judged(found, pairs, asked)

    return of


def text(table, row, column):
    cells = {line[0].text: line for line in table.rows}
    return cells[row][table.header.index(column)]


def test_comparison_has_mean_and_sd_and_marks_best_and_second(ranked, read) -> None:
    for seed in range(3):
        ranked("base", seed)
        ranked("good", seed, better=6)
        ranked("bad", seed, better=-6)
    (setting,), asked, verdicts, _ = read(["hit@10"])
    table = tables.comparison(setting, verdicts, asked)
    values = pl.Series([run.metrics["test/hit@10"] for run in setting.models["good"].values()])
    good, base = text(table, "good", "Hit@10"), text(table, "base", "Hit@10")
    assert good.text == f"{values.mean():.4f} ± {values.std():.4f}"
    assert good.bold and not good.underline and good.mark.endswith("▲")
    assert base.underline and not base.bold and base.mark == ""
    assert text(table, "bad", "Hit@10").mark.endswith("▼")
    popularity = text(table, "popularity", "Hit@10")
    assert popularity == Cell("0.2000") and table.references == 1
    assert text(table, "popularity", "seeds").text == ""
    row = table.frame.row(by_predicate=pl.col("model") == "good", named=True)
    assert row["mean"] == pytest.approx(values.mean()) and row["verdict"] == "robust gain"


def test_lower_is_better_where_it_is(clicked, read) -> None:
    clicked("base")
    clicked("good", better=2.0)
    (setting,), asked, verdicts, _ = read()
    table = tables.comparison(setting, verdicts, asked)
    assert table.header == ["model", "seeds", "AUC", "GAUC", "Logloss ↓"]
    best = min(("base", "good", "constant"), key=lambda model: text(table, model, "Logloss ↓").text)
    assert text(table, best, "Logloss ↓").bold


def test_changes_are_ratios_of_means_with_the_detectable_effect(ranked, read) -> None:
    for seed in range(3):
        ranked("base", seed)
        ranked("good", seed, better=6)
    (setting,), _, verdicts, _ = read(["ndcg@10"])
    means, row = {}, verdicts.row(0, named=True)
    for model, runs in setting.models.items():
        means[model] = sum(run.metrics["test/ndcg@10"] for run in runs.values()) / 3
    detectable = 4.302653 * row["sd"] / 3**0.5 / means["base"]  # the quantile of t with 2 degrees of freedom
    cell = text(tables.changes(setting, verdicts), "good", "NDCG@10")
    assert cell.text == f"{100 * (means['good'] / means['base'] - 1):+.1f} % (±{100 * detectable:.1f})"
    assert cell.bold and cell.mark.endswith("▲")


def test_verdicts_of_fewer_seeds_are_noted(ranked, read) -> None:
    for seed in range(3):
        ranked("base", seed)
    for seed in range(2):
        ranked("good", seed, better=6)
    (setting,), asked, verdicts, _ = read(["ndcg@10"])
    notes = tables.comparison(setting, verdicts, asked).notes
    assert notes[1:] == ["good: the verdicts are of the 2 seeds that base has as well."]


def test_leads_are_over_the_strongest_other_family(ranked, read) -> None:
    for model, better in (("base", 0), ("good", 6), ("good_x", 5), ("good_x_y", 4)):
        ranked(model, better=better)
    (setting,), *_ = read(["hit@10"])
    table = tables.leads(setting)
    means = {model: runs[0].metrics["test/hit@10"] for model, runs in setting.models.items()}
    assert (
        text(table, "good_x_y", "Hit@10").text
        == f"{100 * (means['good_x_y'] / means['base'] - 1):+.1f} % (base)"
    )
    best = max(("good", "good_x", "good_x_y"), key=means.get)
    assert text(table, "base", "Hit@10").text.endswith(f"({best})")


def test_ablation_sets_variants_against_their_parent(ranked, read) -> None:
    for seed in range(3):
        ranked("base", seed)
        ranked("base_less", seed, better=-6)
    (setting,), _, verdicts, _ = read(["hit@10"])
    table = tables.ablation(setting, verdicts, "base")
    cell, change = text(table, "base_less", "Hit@10"), verdicts["change"][0]
    assert cell.text == f"{verdicts['model_mean'][0]:.4f} ({change:+.1f} %)" and cell.bold
    assert text(table, "base", "Hit@10").text == f"{verdicts['baseline_mean'][0]:.4f}"


def test_claims_stand_beside_what_was_found(ranked, read, tmp_path) -> None:
    ranked("base")
    ranked("good", better=6)
    toy = "{base: {hit@10: 0.2, mrr@5: 0.1}, good: {hit@10: 0.3}, absent: {hit@10: 1}}"
    claims = f"{{source: Table 9, toy: {toy}}}"
    (tmp_path / "study" / "study.yaml").write_text(
        f"models: [base, good]\nbaseline: base\nmetrics: [hit@10]\nclaims: {claims}"
    )
    found, asked, *_ = read()
    table = tables.claims(found, asked)
    ours = {model: runs[0].metrics["test/hit@10"] for model, runs in found[0].models.items()}
    assert [row[2].text for row in table.rows] == ["base", "base", "good"]
    row = table.frame.row(2, named=True)
    assert row["difference"] == pytest.approx(ours["good"] - 0.3)
    assert row["paper_over_baseline"] == pytest.approx(50)
    assert row["ours_over_baseline"] == pytest.approx(100 * (ours["good"] / ours["base"] - 1))
    assert table.notes == ["Published: Table 9."]


def test_no_claims_no_table(ranked, read) -> None:
    ranked("base")
    found, asked, *_ = read()
    assert tables.claims(found, asked) is None


def test_cells_count_what_single_seeds_would_claim() -> None:
    where = {"dataset": "a", "protocol": "p"}
    verdicts = pl.DataFrame(
        [
            where | {"verdict": "robust gain", "p_holm": 0.04, "p_bh": 0.01},
            where | {"verdict": "robust gain", "p_holm": 0.20, "p_bh": 0.04},
            where | {"verdict": "robust loss", "p_holm": 0.30, "p_bh": 0.06},
            where | {"verdict": "none", "p_holm": 0.01, "p_bh": 0.01},
        ]
    )
    said = [
        (0, "gain"),
        (0, "gain"),
        (0, "loss"),
        (0, "gain"),
        (1, "gain"),
        (1, "none"),
        (1, "loss"),
        (1, "none"),
    ]
    alone = pl.DataFrame([where | {"seed": seed, "verdict": verdict} for seed, verdict in said])
    table = tables.cells(verdicts, alone, 0.05)
    assert table.frame.row(0, named=True) == {
        "setting": "a, p",
        "cells": 4,
        "gains_seed_0": 3,
        "gains_seed_1": 1,
        "gains_mean_of_seeds": 2.0,
        "robust_gains": 2,
        "robust_losses": 1,
        "robust_holm": 1,
        "robust_bh": 2,
    }
    assert [cell.text for cell in table.rows[0]] == ["a, p", "4", "3", "1", "2", "2", "1", "1", "2"]


TABLE = Table(
    name="t",
    title="A & B",
    header=["model", "Hit@10", "Logloss ↓"],
    rows=[
        [Cell("hgnn_t"), Cell("0.5000 ± 0.0100", bold=True, mark="**▲"), Cell("-")],
        [Cell("random"), Cell("0.1000", underline=True), Cell("-3.0 %")],
    ],
    references=1,
    notes=["100 % of it."],
    frame=pl.DataFrame(),
)


def test_markdown() -> None:
    assert tables.markdown(TABLE).splitlines() == [
        "**A & B**",
        "",
        "| model | Hit@10 | Logloss ↓ |",
        "| --- | --- | --- |",
        r"| hgnn\_t | **0.5000 ± 0.0100**\*\*▲ | - |",
        "| random | <ins>0.1000</ins> | -3.0 % |",
        "",
        "100 % of it.",
    ]


def test_latex() -> None:
    assert tables.latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{A \& B. 100 \% of it.}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"model & Hit@10 & Logloss $\downarrow$ \\",
        r"\midrule",
        r"hgnn\_t & \textbf{0.5000 $\pm$ 0.0100}$^{*}$$^{*}$$\blacktriangle$ & - \\",
        r"\midrule",
        r"random & \underline{0.1000} & -3.0 \% \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
