"""The gim command on a tiny run: its figures against loops over the net's weights, and what it refuses."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.explain import gim, gim_page
from hydrec.explain.groups import by_recency, by_size
from hydrec.explain.run import FinishedRun, evenly

ROOT = Path(__file__).parents[2]
TINY = [
    *("dataset=simulated_clicks", "dataset.reader.shape=tiny", "protocol=click_days", "protocol.window=6"),
    *("protocol.test=3", "model.optimiser.lr=0.01"),
    *("model=mian", "model.net.item_dim=4", "model.net.field_dim=4", "model.net.heads=2"),
    *("model.net.inner=8", "model.net.gim_dim=8", "trainer=cpu", "trainer.max_epochs=2", "batch_size=256"),
    *("eval_batch_size=64", "logger=wandb"),
]
PARTS = ["item", "context", "behaviours", "user", "ibim", "iuim", "icim"]
FILES = ["gim.csv", "gim.png", "gim.svg", "means.csv", "means.png", "means.svg"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, in the folder that it was made from; with what the command left there and printed."""
    folder = tmp_path_factory.mktemp("explained")
    settings = {"cwd": folder, "capture_output": True, "text": True, "timeout": 300}
    settings["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *TINY], **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs" / "single").iterdir()
    line = [sys.executable, "-m", "hydrec.explain", "gim", f"run={run.relative_to(folder)}", "wandb=true"]
    done = subprocess.run(line, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return run, done.stdout


@pytest.fixture
def run(made, monkeypatch):
    monkeypatch.chdir(made[0].parents[2])  # where the cache is
    return made[0]


@pytest.fixture
def changed(run, copied):
    """Makes a copy of the run with other values in its configuration, and, if asked, fresh weights for it."""

    def changed(weights=False, **values):
        copy = copied(run, **values)
        if weights:
            cfg = OmegaConf.load(copy / "config.yaml")
            data = instantiate(cfg.dataset, _convert_="all")
            data.prepare()
            task = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, 0)
            torch.save({"state_dict": task.state_dict()}, copy / "checkpoints" / "best.ckpt")
        return copy

    return changed


def tables(folder):
    return (pl.read_csv(folder / f"{name}.csv", infer_schema_length=None) for name in ("gim", "means"))


def of(summary, module, by="all"):
    """Rows of the summary by group and name."""
    rows = summary.filter(of=module, by=by).iter_rows(named=True)
    return {(row["group"], row["name"]): row for row in rows}


# The table of cases -----------------------------------------------------------------------------------------


def test_cases_have_the_weights_of_the_net_and_the_logits_of_the_test(run):
    cases, _ = tables(run / "explain" / "gim")
    tested = pl.read_parquet(run / "test.parquet")
    assert cases["label"].is_sorted()
    for part in cases.partition_by("label"):
        assert part["logit"].is_sorted()
    by_sample = cases.sort("sample")
    assert by_sample["sample"].equals(tested["sample"])
    for name in ("user", "item"):
        assert by_sample[name].cast(str).equals(tested[name])
    np.testing.assert_allclose(by_sample["logit"], tested["logit"], atol=1e-6)

    data, task = FinishedRun(str(run)).load()
    assert not task.training
    assert cases.columns[-7:] == [f"gim_{part}" for part in PARTS]
    for batch in data.test_dataloader():
        some = by_sample[batch.rows.numpy()]
        weights = some[:, -7:].to_numpy()
        np.testing.assert_allclose(weights, task.net.weights(batch)["gim"].detach(), rtol=1e-6)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        assert some["history"].to_list() == batch.lengths.tolist()
        last = [int(times[n - 1]) if n else None for times, n in zip(batch.times, batch.lengths, strict=True)]
        gaps = [None if a is None else int(b) - a for a, b in zip(last, batch.target_times, strict=True)]
        assert some["seconds_since_last"].to_list() == gaps
    assert cases["history"].min() == 0 and cases["seconds_since_last"].null_count() > 0


# The means --------------------------------------------------------------------------------------------------


def test_means_are_those_of_a_loop_over_cases(run):
    cases, summary = tables(run / "explain" / "gim")
    data, task = FinishedRun(str(run)).load()
    lengths = dict(cases.select("sample", "history").iter_rows())
    sums, counts, relative = {}, {}, {}
    names = {"gim": PARTS, "iuim": ["segment", "gender", "age", "city"], "icim": ["daypart", "position"]}
    names["icim"] += ["device"]
    for batch in data.test_dataloader():
        weights = {name: found.tolist() for name, found in task.net.weights(batch).items()}
        for place, row in enumerate(batch.rows.tolist()):
            n = lengths[row]
            shown = {
                module: dict(zip(names[module], weights[module][place], strict=True)) for module in names
            }
            shown["ibim"] = {str(n - t): weights["ibim"][place][t] for t in range(n)}
            for module, each in shown.items():
                for name, weight in each.items():
                    key = module, name
                    counts[key] = counts.get(key, 0) + 1
                    sums[key] = sums.get(key, 0) + weight
                    relative[key] = relative.get(key, 0) + weight * len(each)
    found = {(row["of"], row["name"]): row for row in summary.filter(by="all").iter_rows(named=True)}
    assert found.keys() == counts.keys()
    for key, row in found.items():
        assert row["cases"] == counts[key]
        assert row["mean"] == pytest.approx(sums[key] / counts[key], rel=1e-5), key
        assert row["relative"] == pytest.approx(relative[key] / counts[key], rel=1e-5), key
        assert row["low"] < row["mean"] < row["high"], key
        assert row["relative_low"] < row["relative"] < row["relative_high"], key
    assert {"1", "6"} <= {name for module, name in found if module == "ibim"}


def test_groups_are_of_cases_like_these(run):
    cases, summary = tables(run / "explain" / "gim")

    def matches(some, group, by):
        rows = of(summary, "gim", by)
        assert len(some) == rows[group, "item"]["cases"] > 0
        for part in PARTS:
            assert rows[group, part]["mean"] == pytest.approx(some[f"gim_{part}"].mean(), rel=1e-5)
        return len(some)

    seen = 0
    for group in dict.fromkeys(group for group, _ in of(summary, "gim", "history")):
        low, _, high = group.partition(" to ")
        seen += matches(
            cases.filter(pl.col("history").is_between(int(low), int(high or low))), group, "history"
        )
    assert seen == len(cases)
    units = {"1 s": 1, "1 min": 60, "1 h": 3600, "1 d": 86400, "30 d": 30 * 86400, "1 y": 365.25 * 86400}
    seen = 0
    for group in dict.fromkeys(group for group, _ in of(summary, "gim", "recency")):
        low, _, high = group.partition(" to ")
        since = pl.col("seconds_since_last")
        seen += matches(cases.filter(since.is_between(units[low], units[high], "left")), group, "recency")
    assert seen == len(cases) - cases["seconds_since_last"].null_count()


def test_recency_in_words():
    seconds = [0, 1, 59, 60, 86399, 86400, 10**9, -1, 3600 * 24 * 30]
    number, labels = by_recency(torch.tensor(seconds))
    said = [labels[each] if each >= 0 else None for each in number.tolist()]
    assert said == [
        *("0 s", "1 s to 1 min", "1 s to 1 min", "1 min to 1 h", "1 h to 1 d", "1 d to 30 d"),
        *("from 1 y", None, "30 d to 1 y"),
    ]
    assert by_recency(torch.tensor([-1, -1])).labels == []


def test_histories_of_one_length_are_one_group():
    number, labels = by_size(torch.full((9,), 30))
    assert number.tolist() == [0] * 9 and labels == ["30"]
    number, labels = by_size(torch.arange(100))
    assert number.bincount().tolist() == [20, 20, 20, 20, 20]
    assert (labels[0], labels[-1]) == ("0 to 19", "80 to 99")


def test_an_undated_log_has_no_recency(run):
    data, task = FinishedRun(str(run)).load()
    for change in ({"dated": False}, {"past_items": data.log.items}):
        data.log, dated = dataclasses.replace(data.log, **change), data.log
        facts, weights = gim.collected(task.net, data)
        data.log = dated
        divisions = {"history": by_size(facts["history"]), "recency": by_recency(facts["gap"])}
        summary = gim.summarised(weights, gim.named(task.net, data), facts["users"], divisions)
        assert {*summary["by"]} == {"history"}
        assert (gim.case_table(facts, weights["gim"], PARTS, data)["seconds_since_last"].null_count()) == len(
            facts["gap"]
        )


# Figures ----------------------------------------------------------------------------------------------------


def test_the_heat_map_has_the_weights_of_cases_from_end_to_end(run):
    cases, summary = tables(run / "explain" / "gim")
    some = cases[evenly(len(cases), gim_page.COLUMNS)]
    assert len(some) == gim_page.COLUMNS < len(cases)
    assert some["sample"][0] == cases["sample"][0] and some["sample"][-1] == cases["sample"][-1]
    (axes, _) = gim_page.heat_map(some, PARTS, summary, "title", len(cases)).axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), some[:, -7:].to_numpy().T)
    (boundary,) = axes.lines
    assert boundary.get_xdata()[0] == (some["label"] == 0).sum() - 0.5
    texts = [text.get_text() for text in axes.texts]
    assert texts[-7:] == [f"{cases[f'gim_{part}'].mean():.3f}" for part in PARTS]
    assert f"200 of {len(cases):,} test cases" in axes.get_xlabel()


def test_the_page_of_means_has_a_panel_for_all_there_is(run):
    _, summary = tables(run / "explain" / "gim")
    titles = [axes.get_title(loc="left") for axes in gim_page.means(summary, "title").axes]
    assert [title.partition(" ")[0] for title in titles] == [
        *("Parts", "Parts", "Parts", "Behaviours", "Fields", "Fields")
    ]
    fewer = summary.filter(pl.col("of") == "gim", pl.col("by") == "all")
    assert len(gim_page.means(fewer, "title").axes) == 1


# The command ------------------------------------------------------------------------------------------------


def test_the_command_leaves_files_and_says_so(made):
    run, printed = made
    folder = run / "explain" / "gim"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert "warning" not in printed and "runs/single" in printed.splitlines()[-1]
    for part in PARTS:
        assert part in printed


def test_the_same_run_gives_the_same_bytes(run, answer, tmp_path):
    status, _, err = answer("gim", f"run={run}", f"out={tmp_path / 'there'}")
    assert (status, err) == (0, "")
    for name in FILES:
        assert (tmp_path / "there" / name).read_bytes() == (run / "explain" / "gim" / name).read_bytes(), name


def test_the_wandb_run_has_figures_and_tables(run):
    first, again = sorted((run / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == again.name.rpartition("-")[2]
    media = {path.name.partition("_table")[0]: path for path in again.rglob("media/table/**/*.json")}
    shown = {name: json.loads(path.read_text()) for name, path in media.items()}
    cases, summary = tables(run / "explain" / "gim")
    assert shown["means"]["columns"] == summary.columns and len(shown["means"]["data"]) == len(summary)
    assert len(shown["gim"]["data"]) == len(cases)
    drawn = {path.read_bytes() for path in again.rglob("media/images/**/*.png")}
    assert drawn == {(run / "explain" / "gim" / f"{name}.png").read_bytes() for name in ("gim", "means")}


@pytest.mark.parametrize(
    ("changes", "parts", "modules"),
    [
        ({"ibim": False}, [part for part in PARTS if part != "ibim"], ["gim", "iuim", "icim"]),
        ({"fields": False}, ["item", "behaviours", "ibim"], ["gim", "ibim"]),
        ({"gim_combine": "concat", "iuim": False}, [*PARTS[:5], "icim"], ["gim", "ibim", "icim"]),
    ],
    ids=str,
)
def test_variants_show_the_parts_that_they_have(changes, parts, modules, changed, answer):
    copy = changed(weights=True, **{f"model__net__{key}": value for key, value in changes.items()})
    status, out, err = answer("gim", f"run={copy}")
    assert (status, err) == (0, "")
    assert "warning: logits differ from those in test.parquet by up to" in out  # nobody trained these
    cases, summary = tables(copy / "explain" / "gim")
    assert cases.columns[-len(parts) :] == [f"gim_{part}" for part in parts]
    assert {*summary["of"]} == {*modules}


def test_a_run_that_tested_a_checkpoint_is_explained_by_it(run, changed, answer):
    copy = changed(fit=False, ckpt_path=str(run / "checkpoints" / "best.ckpt"))
    (copy / "checkpoints" / "best.ckpt").unlink()
    status, out, err = answer("gim", f"run={copy}")
    assert (status, err) == (0, "") and "warning" not in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__net___target_": "hydrec.models.din.DIN", "names__model": "din"}, "is of din: gim explains"),
        ({"model__net__gim_combine": "none"}, "has no GIM: each part weighs 1, nothing to show"),
        ({"model__net__gim_dim": 9}, "best.ckpt does not fit the net that these sources of hydrec make"),
        ({"dataset__reader__seed": 1}, "was run on other data (fingerprint"),
        ({"fit": False, "ckpt_path": "/nowhere/best.ckpt"}, "/nowhere/best.ckpt: no such file"),
    ],
    ids=str,
)
def test_what_cannot_be_explained_is_one_line(changes, said, changed, refused):
    copy = changed(**changes)
    refused(said, "gim", f"run={copy}")
    assert not (copy / "explain").exists()


def test_a_folder_that_is_no_finished_run_is_one_line(changed, refused, tmp_path):
    refused("is no run folder: config.yaml cannot be read", "gim", f"run={tmp_path}")
    refused("is no run folder: config.yaml cannot be read", "gim", f"run={__file__}")
    copy = changed()
    refused("has no W&B run", "gim", f"run={copy}", "wandb=true")
    refused("cannot write /proc/none", "gim", f"run={copy}", "out=/proc/none")
    (copy / "metrics.json").unlink()
    refused("is not finished: its command, given again, continues it", "gim", f"run={copy}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "nothing is no command: there is gim"),
        ("gym run=x", "gym is no command"),
        ("gim", "run=... is needed"),
        ("gim run=", "run=: a value is missing; write run=VALUE"),
        ("gim run=x folder=y", "folder=y: did you mean"),
        ("gim run=x wandb=yes", "wandb=yes is none of true, false"),
        ("gim -m run=x", "-m: did you mean"),
        ("lambda run=x", "run=x: did you mean runs=...?"),
        ("user run=x k=many", "k=many: must be a whole number, 1 or more"),
    ],
)
def test_a_mistake_is_one_line(line, said, refused):
    refused(said, *line.split())


def test_help_is_quick():
    code = "import runpy, sys\nsys.argv = ['explain', '--help']\n"
    code += "try: runpy.run_module('hydrec.explain', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("gim", "factors", "lambda", "attention", "user", "errors"):
        assert f"python -m hydrec.explain {name} run" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_difference_that_is_no_number_is_one_that_is_too_large(capsys):
    tested = pl.DataFrame({"sample": [0, 1], "logit": [0.5, 1.0]})
    for logit, warned in ((1.0005, False), (1.002, True), (math.nan, True)):
        gim._compare({"row": torch.tensor([1, 0]), "logit": torch.tensor([logit, 0.5])}, tested)
        assert ("warning" in capsys.readouterr().out) == warned
