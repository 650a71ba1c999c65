"""Exported scorers of tiny runs, read again without hydrec, against the recommendations of the run."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

ROOT = Path(__file__).parents[1]
TINY = ["trainer=cpu", "trainer.max_epochs=1", "batch_size=128", "eval_batch_size=16", "logger=none"]
RANKING = ("dataset=simulated", "dataset.reader.shape=tiny", "protocol=leave_one_out", "loss=softmax")
PLACES = ["home", "hotel", "away", ""]
PAST = {"u1": ["101", "102", "103", "104"], "u2": ["105"], "new": ["106", "107"]}
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
        ("showings=one.csv", "is of a model that ranks items; drop it"),
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


# Clicks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Options of a table with fields of every form and owner, some of them missing."""
    draw = random.Random(0)
    ages = {user: draw.choice(["", 18, 25, 31.5, 40, 62]) for user in range(40)}
    cities = {user: draw.choice(["", "Rome", "Oslo|Rome", "Oslo|Rome|Kyiv"]) for user in range(40)}
    genres = {item: draw.choice(["", "Drama", "Comedy|Drama"]) for item in range(100, 130)}
    rows = []
    for user in range(40):
        for place in range(12):
            item, price = draw.randrange(100, 130), draw.choice(["", 3, 4.5, 20])
            time = 10**9 + 5000 * place + draw.randrange(3000)
            rows.append(
                (f"u{user}", item, time, ages[user], cities[user], price, draw.choice(PLACES), genres[item])
            )
    names = ["user", "item", "time", "age", "city", "price", "place", "genre"]
    path = tmp_path_factory.mktemp("raw") / "log.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    return (
        *("dataset=table", f"dataset.reader.path={path}", "dataset.reader.user_features=[age,city]"),
        *("dataset.reader.event_features=[price,place]", "dataset.reader.item_features=[genre]"),
        "dataset.reader.multi={city:'|',genre:'|'}",
        *("dataset.fields.user=[user_id,age,city]", "dataset.fields.context=[price,place,since_last]"),
        *("dataset.fields.item=[genre]", "dataset.fields.form={age:bucket,price:number,place:2}"),
    )


def coded(field, row, value):
    """Codes and weights of a value, as the words of scorer.json have it."""
    width, known = field["columns"][1] - field["columns"][0], row["seen"]
    several = value if isinstance(value, list) else [value]
    pairs = []
    for each in several:
        code, weight = 1, 1 / len(several)
        if each is not None and field["form"] == "category":
            word = str(each)[: field.get("first")]
            code = 2 + row["words"].index(word) if word in row["words"] else 1
        elif each is not None and field["form"] == "bucket":
            code = 2 + sum(bound <= each for bound in row["bounds"])
        elif each is not None and field["form"] == "number":
            code, weight = 2, (each - row["mean"]) / row["spread"]
        pairs.append((code if known[code] else 1, weight))
    return pairs + [(0, 0.0)] * (width - len(pairs))


def served(folder, shown, past):
    """What somebody without hydrec gives to a scorer: by scorer.json and the tables beside it, row by row."""
    about = json.loads((folder / "scorer.json").read_text())
    number = {str(raw): item for item, raw in pl.read_csv(folder / "items.csv").iter_rows()}
    users = {row["raw"]: row for row in pl.read_parquet(folder / "users.parquet").to_dicts()}
    codings = {row["name"]: row for row in pl.read_parquet(folder / "fields.parquet").to_dicts()}
    longest = about["sizes"]["T"] if about["varies"] == "batch" else 3
    found = {name: [] for name in about["inputs"]}
    for row in shown.to_dicts():
        events = [each for each in past.to_dicts() if each["user"] == row["user"]][-longest:]
        first, blank = events[0]["time"] if events else row["time"], [0] * (longest - len(events))
        pairs = []
        for field in about["fields"]:
            if field["name"] in row:
                pairs += coded(field, codings[field["name"]], row[field["name"]])
            elif row["user"] in users:
                own, place = users[row["user"]], slice(*field["own"])
                pairs += zip(own["codes"][place], own["weights"][place], strict=True)
            else:
                pairs += coded(field, codings[field["name"]], None)
        one = {
            "items": [number[each["item"]] for each in events] + blank,
            "times": [each["time"] - first for each in events] + blank,
            "values": [math.nan] * len(events) + blank,
            "lengths": len(events),
            "candidates": number[row["item"]],
            "target_times": row["time"] - first,
            "users": users[row["user"]]["user"] if row["user"] in users else 0,
            "codes": [code for code, _ in pairs],
            "weights": [weight for _, weight in pairs],
        }
        for name, value in one.items():
            found[name].append(value)
    arrays = {name: np.array(found[name], about["inputs"][name]["type"]) for name in about["inputs"]}
    assert arrays["codes"].shape == (len(shown), about["sizes"]["W"])
    return arrays


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=[ONNX, pytest.mark.slow])])
def test_a_click_model_is_served_by_what_lies_beside_it(made, log, tmp_path, form):
    small = ("model.net.item_dim=4", "model.net.field_dim=4", "protocol.window=3")
    run = made("model=din", "protocol=click_last", *small, *log)
    folder = tmp_path / "o"
    line = [f"run={run.relative_to(run.parents[2])}", f"out={folder}", f"format={form}", "rows=9"]
    out, err = call(run.parents[2], "-m", "hydrec.export", *line)
    assert err == "" and "batch and length may vary; on 9 showings it differs by" in out
    about = json.loads((folder / "scorer.json").read_text())
    assert about["largest_difference"] <= 1e-5 and about["showings_tried"] == 9
    read = {name for name, each in about["inputs"].items() if each["read"]}
    assert read == {"items", "lengths", "candidates", "codes", "weights"}
    assert about["output"]["shape"] == ["B"] and "1 / (1 + exp(-logit))" in about["output"]["meaning"]
    assert about["history"] == "the last T events up to the showing"
    assert {field["name"]: field["form"] for field in about["fields"]} == {
        **{"user_id": "category", "age": "bucket", "city": "category"},
        **{"price": "number", "place": "category", "since_last": "category"},
    }
    events = [(user, item, 10**9 + 60 * place) for user in PAST for place, item in enumerate(PAST[user])]
    past = pl.DataFrame(events, schema=["user", "item", "time"], orient="row")
    past.write_csv(tmp_path / "h.csv")
    shown = pl.DataFrame(
        {
            "user": ["u1", "u2", "u3", "new", "u1", "u2", "other"],
            "item": ["101", "102", "103", "104", "129", "105", "106"],
            "time": [10**9 + 86400 + 10 * row for row in range(7)],
            "age": [18.0, 17.5, None, 62.0, 99.0, 31.5, 40.0],
            "city": [
                ["Rome"],
                [],
                ["Oslo", "Kyiv"],
                None,
                ["Oslo", "Rome", "Kyiv"],
                ["Bonn"],
                ["Kyiv", "Bonn"],
            ],
            "price": [3.0, None, 4.5, 100.0, 0.0, 20.0, None],
            "place": ["home", "hotel", "at work", None, "away", "house", ""],
            "since_last": ["1-3 h", None, "15-59 min", "never", "16-59 s", "1-3 h", None],
        }
    ).with_columns(city=pl.when(pl.col("city").list.len() > 0).then("city").otherwise([None]))
    for absent in ("age", "city"):
        rows = shown.drop(absent)
        rows.write_parquet(tmp_path / "rows.parquet")
        line = [f"run={run}", "rows=rows.parquet", "histories=h.csv", "out=scored.csv"]
        call(tmp_path, "-m", "hydrec.recommend", "score", *line)
        expected = pl.read_csv(tmp_path / "scored.csv")["logit"].to_list()
        assert len({round(each, 6) for each in expected}) == 7
        logits = []
        inputs = served(folder, rows, past)
        for part in (slice(0, 5), slice(5, 7)):
            some = {name: value[part] for name, value in inputs.items()}
            if form == "torch":
                scorer = torch.export.load(folder / "scorer.pt2").module()
                logits += scorer(**{name: torch.from_numpy(value) for name, value in some.items()}).tolist()
            else:
                session = importlib.import_module("onnxruntime").InferenceSession(folder / "scorer.onnx")
                logits += session.run(None, {each.name: some[each.name] for each in session.get_inputs()})[
                    0
                ].tolist()
        assert logits == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_click_model_is_tried_on_given_showings(made, log, tmp_path):
    run = made("model=lr", "protocol=click_last", *log)
    rows = {
        "user": ["x", "u1"],
        "item": ["101", "102"],
        "time": [10**9, 10**9],
        "price": [1, 2],
        "place": ["a", "b"],
    }
    pl.DataFrame(rows).write_csv(tmp_path / "rows.csv")
    pl.DataFrame(rows).head(1).write_csv(tmp_path / "one.csv")
    pl.DataFrame({"user": ["x"], "item": ["100"], "time": [10**9 - 4000]}).write_csv(tmp_path / "h.csv")
    line = ["-m", "hydrec.export", f"run={run}", "out=o"]
    out, _ = call(tmp_path, *line, "showings=rows.csv", "histories=h.csv")
    assert "on 2 showings" in out
    for given, said in {
        "histories=h.csv": "is tried on showings=FILE with these histories",
        "showings=one.csv": "an export is tried on two or more",
        "showings=h.csv": "rows: the column price is needed",
    }.items():
        out, err = call(tmp_path, *line[:-1], "out=p", given, status=2)
        assert (out, err.count("\n")) == ("", 1) and said in err
    assert not (tmp_path / "p").exists()
