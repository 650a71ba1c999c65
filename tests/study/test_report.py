"""The command: what it leaves, that it opens anywhere and says the truth, and what it refuses."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from hydrec.study import __main__ as command

ROOT = Path(__file__).parents[2]
STUDY = """\
title: Does <it> help?
models: [base, ia_add]
references: [itemknn]
baseline: base
metrics: [ndcg@10, hit@10]
search: {monitor: valid/ndcg@10}
claims: {source: Table 1, toy: {base: {hit@10: 0.2}}}
"""


@pytest.fixture
def answer(capsys):
    """Answers a command line: status, output, errors."""

    def of(*argv):
        status = command.main(argv)
        said = capsys.readouterr()
        return status, said.out, said.err

    return of


@pytest.fixture(scope="module")
def studied(ranked_in, tmp_path_factory):
    """A study with all that may happen to its jobs, and its report."""
    folder, jobs = tmp_path_factory.mktemp("study"), {}
    for seed in range(3):
        for model, better in (("base", 0), ("ia_add", 6)):
            path = ranked_in(folder, model, seed, better=better)
            jobs[path.name] = {"kind": "seed", "state": "finished", "folder": path.name}
    path = ranked_in(folder, "itemknn", trained=False)
    jobs[path.name] = {"kind": "reference", "state": "finished", "folder": path.name}
    lines = ["epoch 0", "CUDA out of memory. Tried <20 GiB>"]
    jobs["lost"] = {
        "kind": "seed",
        "state": "failed",
        "folder": "lost",
        "reason": "OutOfMemory",
        "lines": lines,
    }
    for number, (state, value) in enumerate(
        (("finished", 0.1), ("finished", 0.3), ("pruned", 0.9), ("failed", None))
    ):
        trial = {
            "kind": "trial",
            "state": state,
            "value": value,
            "params": {"model.optimiser.lr": number / 1000},
        }
        jobs[f"trial-{number}"] = trial | {"folder": f"trials/{number}", "reason": "NaN", "lines": []}
    for name, job in jobs.items():
        model = name.split("-")[1] if name.startswith("toy") else "base"
        job |= {
            "dataset": "toy",
            "protocol": "leave_one_out",
            "model": model,
            "seed": 0,
            "lines": job.get("lines", []),
        }
    (folder / "study.yaml").write_text(STUDY)
    (folder / "ledger.json").write_text(
        json.dumps({"jobs": jobs, "absent": {"steam": "steam_reviews.json.gz lacks"}})
    )
    assert command.main(["report", str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """A page's words, its tables, and whatever it would load."""

    def __init__(self, path):
        super().__init__()
        self.words, self.loads, self.tags, self.rows, self.inside = [], [], [], [], False
        self.feed(path.read_text())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self.inside:
            self.rows[-1][-1] += data.strip()


def test_a_study_leaves_all_its_files(studied) -> None:
    out = studied / "report"
    setting = "toy-leave_one_out"
    names = {f"comparison-{setting}", f"changes-{setting}", f"leads-{setting}", "claims", "cells"}
    tables = {f"{name}.{form}" for name in names for form in ("csv", "md", "tex")}
    assert {path.name for path in (out / "tables").iterdir()} == tables
    drawn = {f"{kind}-{setting}" for kind in ("forest", "curves", "cost", "lambda-steps")} | {
        "lambda-difference"
    }
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{d}.{form}" for d in drawn for form in ("svg", "png")
    }
    assert len(pl.read_parquet(out / "runs.parquet")) == 7
    verdicts = pl.read_csv(out / "verdicts.csv")
    assert verdicts.select("family", "model", "metric", "seeds", "verdict").rows() == [
        ("baseline", "ia_add", "ndcg@10", 3, "robust gain"),
        ("baseline", "ia_add", "hit@10", 3, "robust gain"),
    ]


def test_the_page_says_what_happened(studied) -> None:
    page = Page(studied / "report" / "report.html")
    for text in (
        "Does <it> help?",
        "Of 2 cells against base, 2 are robust gains, 0 are robust losses and 0 show no robust difference.",
        "1 setting, 3 seeds, 60 test users",
        "Robust gain: ia_add in",
        "Not all of the 8 runs of the study are there: 1 failed, 7 finished.",
        "The dataset steam is absent: steam_reviews.json.gz lacks",
        "Seed lost failed: OutOfMemory.",
        "CUDA out of memory. Tried <20 GiB>",
        "1 trial of the search was pruned.",
        "Published: Table 1.",
        "f" * 64,
    ):
        assert text in page.text, text
    assert ["toy", "leave_one_out", "base", "2", "1", "1", "0.3000", "model.optimiser.lr=0.001"] in page.rows


def test_the_page_needs_nothing_else(studied) -> None:
    page = Page(studied / "report" / "report.html")
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert all(load.startswith(("data:image/svg+xml;base64,", "#")) for load in page.loads)
    assert page.tags.count("img") == 5
    text = (studied / "report" / "report.html").read_text()
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert '<meta name="viewport"' in text


def test_the_same_runs_give_the_same_bytes(studied, answer, tmp_path) -> None:
    status, said, errors = answer("report", str(studied), f"out={tmp_path}")
    assert (status, errors) == (0, "") and str(tmp_path / "report.html") in said
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 25
    for path in files:
        assert (tmp_path / path).read_bytes() == (studied / "report" / path).read_bytes(), path


def test_a_single_run_without_baseline_gives_a_table(ranked, answer) -> None:
    path = ranked("base")
    status, *_ = answer("report", str(path))
    page = Page(path / "report" / "report.html")
    assert status == 0 and "No baseline was named" in page.text
    assert any(row[0] == "base" and len(row) == 5 for row in page.rows)


def test_settings_without_the_baseline_have_tables_and_a_note(ranked, clicked, answer, tmp_path) -> None:
    for seed in range(2):
        ranked("base", seed)
        ranked("good", seed, better=6)
        clicked("din", seed)
        clicked("mian", seed)
        clicked("mian_no_gim", seed, better=-1)
    status, *_ = answer("report", str(tmp_path / "study"), "baseline=base", "metrics=hit@10,auc")
    page = Page(tmp_path / "study" / "report" / "report.html")
    assert status == 0 and "base was not run on toy, click_last: no verdicts there." in page.text
    assert "Of 1 cell against base" in page.text
    tables = {path.stem for path in (tmp_path / "study/report/tables").iterdir()}
    assert {"comparison-toy-click_last", "ablation-toy-click_last-mian"} <= tables
    verdicts = pl.read_csv(tmp_path / "study/report/verdicts.csv")
    assert verdicts.select("family", "baseline", "model", "metric").rows() == [
        ("baseline", "base", "good", "hit@10"),
        ("ablation", "mian", "mian_no_gim", "auc"),
    ]


def test_sources_labels_and_weak_models_are_warned_of(ranked, answer, tmp_path) -> None:
    leaky = {"dataset": {"label": "leaky", "stand_in": True}}
    for seed in range(2):
        ranked("base", seed, better=-40, about=leaky | {"source_digest": str(seed) * 64})
        ranked("good", seed, better=-40, about=leaky)
    answer("report", str(tmp_path / "study"), "baseline=base")
    text = Page(tmp_path / "study" / "report" / "report.html").text
    assert "made by 3 different sources of hydrec: 000000000000 (1 run), 111111111111 (1 run)" in text
    assert "toy, leave_one_out (leaky): the protocol is labelled leaky" in text
    assert "2 of 2 models are worse in Hit@10 than popularity" in text
    assert "is simulated, a stand-in" in text


def test_one_seed_is_said_to_be_too_few(ranked, answer, tmp_path) -> None:
    ranked("base")
    ranked("good", better=6)
    answer("report", str(tmp_path / "study"), "baseline=base")
    text = Page(tmp_path / "study" / "report" / "report.html").text
    assert "0 are robust gains" in text and "With one seed there is no test over seeds" in text
    assert "would have claimed 3 gains on average" in text


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["report"], "report needs one FOLDER"),
        (["report", "baseline=x"], "report needs one FOLDER"),
        (["report", "{}/absent"], "has no finished run"),
        (["report", "{}/study", "base=x"], "did you mean baseline=...?"),
        (["report", "{}/study", "baseline="], "a value is missing"),
        (["report", "{}/study", "baseline=bad"], "baseline=bad is none of base; did you mean base?"),
        (["repot", "{}"], "repot is no command"),
        ([], "nothing is no command"),
        (["lint"], "lint needs one TABLE.csv"),
        (["lint", "a.csv", "b.csv"], "lint needs one TABLE.csv"),
    ],
)
def test_mistakes_are_one_line(ranked, answer, tmp_path, argv, said) -> None:
    ranked("base")
    status, out, errors = answer(*(text.format(tmp_path) for text in argv))
    assert (status, out) == (2, "") and said in errors and errors.count("\n") == 1


def test_nothing_is_written_where_runs_cannot_be_compared(ranked, answer, tmp_path) -> None:
    ranked("base")
    ranked("other", protocol={"candidates": "sampled"})
    status, _, errors = answer("report", str(tmp_path / "study"), "baseline=base")
    assert status == 2 and "protocol.candidates (full, sampled)" in errors
    assert not (tmp_path / "study" / "report").exists()


def test_help(answer) -> None:
    status, said, _ = answer("--help")
    assert status == 0 and "report FOLDER" in said and "lint TABLE.csv" in said


def test_lint_says_what_is_impossible(answer, tmp_path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("model,hit@10,rr@10\nok,0.5000,0.2000\nbad,0.5000,0.6000\n")
    status, said, _ = answer("lint", str(table))
    assert status == 1 and "bad" in said
    table.write_text("model,hit@10,rr@10\nok,0.5,0.2\n")
    assert answer("lint", str(table))[0] == 0


@pytest.mark.slow
def test_what_the_pipeline_leaves_can_be_reported(tmp_path) -> None:
    tiny = ["dataset=simulated", "dataset.reader.shape=tiny", "protocol=leave_one_out", "trainer=cpu"]
    tiny += ["trainer.max_epochs=1", "logger=none"]
    settings = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    settings["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    for model, seed in (
        ("sasrec", 0),
        ("sasrec", 1),
        ("ia_sasrec_add", 0),
        ("ia_sasrec_add", 1),
        ("popularity", 0),
    ):
        line = [sys.executable, str(ROOT / "train.py"), *tiny, f"model={model}", f"seed={seed}"]
        done = subprocess.run(line, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
    line = [sys.executable, "-m", "hydrec.study", "report", "runs/single", "baseline=sasrec"]
    done = subprocess.run(line, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    verdicts = pl.read_csv(tmp_path / "runs/single/report/verdicts.csv")
    assert (
        verdicts["model"].unique().to_list() == ["ia_sasrec_add"] and verdicts["seeds"].to_list() == [2] * 3
    )
    assert (tmp_path / "runs/single/report/figures/lambda-difference.svg").exists()
