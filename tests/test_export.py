"""Exported scorers of tiny runs, read again without hydrec, against the recommendations of the run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    *("dataset=simulated", "dataset.reader.shape=tiny", "trainer=cpu", "trainer.max_epochs=1"),
    *("batch_size=128", "eval_batch_size=16", "logger=none"),
]
RANKING = ("protocol=leave_one_out", "loss=softmax")
HISTORIES = {"a": [3, 1, 4, 1, 5], "b": [9, 2], "c": [6], "d": [5, 3, 5, 8, 9, 7]}
ONNX = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="pip install onnx onnxscript onnxruntime"
)
# what a user has who has no hydrec
READ_TORCH = """
import json, sys, torch
scorer = torch.export.load("o/scorer.pt2").module()
inputs = {name: torch.tensor(values) for name, values in json.load(open("inputs.json")).items()}
inputs["values"] = inputs["values"].float()
json.dump(scorer(**inputs).tolist(), open("scores.json", "w"))
assert "hydrec" not in sys.modules
"""
READ_ONNX = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession("o/scorer.onnx")
given = json.load(open("inputs.json"))
inputs = {each.name: numpy.array(given[each.name]) for each in session.get_inputs()}
if "values" in inputs:
    inputs["values"] = inputs["values"].astype(numpy.float32)
json.dump(session.run(None, inputs)[0].tolist(), open("scores.json", "w"))
assert "hydrec" not in sys.modules
"""


def call(folder, *command, status=0):
    """Runs a command in a process of its own: in this one, shapes are checked, which a trace would see."""
    done = subprocess.run(
        [sys.executable, *(str(each) for each in command)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a run of a model, once."""
    runs = {}

    def made(*overrides):
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("made")
            call(folder, ROOT / "train.py", *TINY, *overrides)
            (runs[overrides],) = folder.glob("runs/single/*")
        return runs[overrides]

    return made


@pytest.mark.parametrize(
    ("model", "form", "reader", "free"),
    [
        ("hgnn", "torch", READ_TORCH, "batch and length"),
        pytest.param("gru4rec", "torch", READ_TORCH, "batch", marks=pytest.mark.slow),
        pytest.param("hgnn", "onnx", READ_ONNX, "batch and length", marks=[ONNX, pytest.mark.slow]),
    ],
)
def test_scores_are_those_of_the_run(made, tmp_path, model, form, reader, free):
    run = made(f"model={model}", *RANKING)
    line = [f"run={run.relative_to(run.parents[2])}", f"out={tmp_path / 'o'}", f"format={form}", "rows=8"]
    out, err = call(run.parents[2], "-m", "hydrec.export", *line)
    assert err == "" and f"{free} may vary; on 8 histories it differs by" in out
    about = json.loads((tmp_path / "o" / "scorer.json").read_text())
    assert about["largest_difference"] <= 1e-5
    assert about["varies"] == free
    window = about["sizes"]["T"]
    width = 7 if "length" in free else window
    rows = [
        {"user": user, "item": str(item), "time": 1000 * place}
        for user, items in HISTORIES.items()
        for place, item in enumerate(items)
    ]
    pl.DataFrame(rows).with_columns(asked=pl.col("time").max().over("user") + 86400).write_csv(
        tmp_path / "h.csv"
    )
    line = [f"run={run}", "histories=h.csv", "k=1000", "now=asked", "mask_history=false", "out=r.parquet"]
    call(tmp_path, "-m", "hydrec.recommend", *line)
    number = {raw: item for item, raw in pl.read_csv(tmp_path / "o" / "items.csv").iter_rows()}
    padding = [[0] * (width - len(items)) for items in HISTORIES.values()]
    inputs = {
        "items": [
            [number[item] for item in items] + pad
            for items, pad in zip(HISTORIES.values(), padding, strict=True)
        ],
        "times": [
            [1000 * place for place in range(len(items))] + pad
            for items, pad in zip(HISTORIES.values(), padding, strict=True)
        ],
        "values": [
            [float("nan")] * len(items) + [0.0] * len(pad)
            for items, pad in zip(HISTORIES.values(), padding, strict=True)
        ],
        "lengths": [len(items) for items in HISTORIES.values()],
        "asked": [1000 * (len(items) - 1) + 86400 for items in HISTORIES.values()],
        "users": [0] * len(HISTORIES),
    }
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    call(tmp_path, "-c", reader)
    scores = json.loads((tmp_path / "scores.json").read_text())
    found = pl.read_parquet(tmp_path / "r.parquet")
    assert len(found) == len(HISTORIES) * len(number) == sum(map(len, scores))
    for user, _, item, score, _ in found.iter_rows():
        mine = scores[[*HISTORIES].index(user)][number[int(item)] - 1]
        assert mine == pytest.approx(score, rel=1e-5, abs=1e-5)


@pytest.mark.slow
@ONNX
def test_a_net_that_onnx_cannot_have_says_why_and_leaves_nothing(made, tmp_path):
    run = made("model=itemknn", *RANKING)
    pl.DataFrame({"user": ["a", "b"], "item": ["1", "2"], "time": [0, 0]}).write_csv(tmp_path / "h.csv")
    line = [f"run={run}", "out=o", "format=onnx", "histories=h.csv"]
    out, err = call(tmp_path, "-m", "hydrec.export", *line, status=2)
    assert out == "" and err.count("\n") == 1
    assert err.startswith("hydrec: ItemKNN cannot be exported as onnx: ") and "searchsorted" in err
    assert not (tmp_path / "o").exists()


def test_a_difference_is_refused(made, tmp_path):
    """What is compared is what was written, not the original once more."""
    run = made("model=hgnn", *RANKING)
    code = f"""
import torch
from hydrec import scorer
from hydrec.loaded import LoadedRun
loaded = LoadedRun({str(run)!r})
inputs = scorer._tried(loaded, None, 8)
mine = scorer.Scorer(loaded).eval()
plain = lambda inputs: mine(**inputs)
for free in scorer.FREE:
    assert scorer.difference(mine, plain, inputs, free) == 0
    one_row = lambda inputs: mine(**inputs) + 1e-3 * (inputs["lengths"] == inputs["lengths"].max())[:, None]
    assert scorer.difference(mine, one_row, inputs, free) > scorer.SAME
    nan = lambda inputs: mine(**inputs) * torch.nan
    assert not scorer.difference(mine, nan, inputs, free) <= scorer.SAME
"""
    call(run.parents[2], "-c", code)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("format=pdf", "format=pdf is none of torch, onnx"),
        ("rows=1", "rows=1: must be a whole number, 2 or more"),
        ("histories=one.csv", "an export is tried on two or more"),
        ("file=x", "file=x: did you mean"),
        ("x", "x is no key=value"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(made, tmp_path, argument, said):
    pl.DataFrame({"user": ["a"], "item": ["1"], "time": [0]}).write_csv(tmp_path / "one.csv")
    line = [argument, f"run={made('model=hgnn', *RANKING)}", "out=o"]
    out, err = call(tmp_path, "-m", "hydrec.export", *line, status=2)
    assert (out, err.count("\n")) == ("", 1) and said in err
    assert not (tmp_path / "o").exists()


def test_models_of_clicks_are_refused(made, tmp_path):
    run = made("model=lr", "protocol=click_last")
    _, err = call(tmp_path, "-m", "hydrec.export", f"run={run}", "out=o", status=2)
    assert "is of a model of clicks: only models that rank items are exported" in err
