import csv
import os
from pathlib import Path

import pytest
import sides

TINY = ("--steps", "1", "--warmup", "1", "--threads", "1")
ROOT = Path(os.environ.get("HYDREC_PEERS", sides.HERE.parent / ".peers"))


def positive(row: dict[str, str], *columns: str) -> bool:
    return all(float(row[column].replace(",", "")) > 0 for column in columns)


def test_evaluation(script, tmp_path):
    rows = script(
        "evaluation.py", "--cases", "sasrec", "hgnn", "--turns", "1", "--threads", "1", "--out", str(tmp_path)
    )
    assert [row["scores"] for row in rows] == ["sasrec", "hgnn"]
    assert all(positive(row, "s", "product, s", "x product") for row in rows)
    with open(tmp_path / "evaluation.csv") as file:
        assert len(list(csv.reader(file))) == 3


def test_vocabulary(script, tmp_path):
    rows = script(
        "vocabulary.py", "--items", "100", "1000", "--steps", "1", "--threads", "1", "--out", str(tmp_path)
    )
    assert [(row["loss"], row["items"]) for row in rows] == [
        ("softmax", "100"), ("softmax", "1,000"), ("sampled_softmax", "100"), ("sampled_softmax", "1,000"),
    ]  # fmt: skip
    assert all(positive(row, "s a step", "CPU s", "peak MiB") for row in rows)
    assert {file.suffix for file in tmp_path.iterdir()} == {".csv", ".svg", ".png"}


def test_start(script):
    rows = script("start.py", "--turns", "1", "--threads", "1")
    assert len(rows) == 4 and all(positive(row, "s", "CPU s") for row in rows)
    seconds = {row[""]: float(row["s"]) for row in rows}
    assert seconds["`--help`"] < seconds["the first training step"]


@pytest.mark.parametrize(
    "name, arguments, columns",
    [
        ("sequences.py", (), ("s an epoch", "targets/s", "x floor", "test, s")),
        ("arithmetic.py", ("--cases", "office"), ("mean length", "targets/s", "x floor")),
        ("graphs.py", ("--models", "srgnn"), ("rows/s", "x floor", "s an epoch of windows")),
        ("ctr.py", ("--models", "deepfm"), ("rows/s", "first step after, s", "peak MiB")),
    ],
)
def test_our_side_alone(script, real, name, arguments, columns):
    (row,) = script(name, *arguments, *TINY)
    assert positive(row, *columns)


def test_time_to_quality(script, real, tmp_path):
    rows = script("time_to_quality.py", *TINY[:1], "3", *TINY[2:], "--every", "0", "--out", str(tmp_path))
    assert rows and float(rows[0]["best test"]) < 0.1
    assert {file.suffix for file in tmp_path.iterdir()} == {".csv", ".svg", ".png"}


@pytest.mark.parametrize("peer", ["recbole", "rectools", "replay"])
def test_sequences_of_a_peer(script, real, peer):
    if not (ROOT / peer / "bin" / "python").exists():
        pytest.skip(f"no environment {ROOT / peer}")
    rows = script("sequences.py", "--peers", peer, "--root", str(ROOT), *TINY)
    assert [row["SASRec"] for row in rows] == ["hydrec", peer, peer][: len(rows)] and len(rows) >= 2
    assert all(positive(row, "targets/s", "targets/s over the best peer's") for row in rows)


@pytest.mark.parametrize("peer", ["recbole", "deepctr", "fuxictr"])
def test_clicks_of_a_peer(script, real, peer):
    if not (ROOT / peer / "bin" / "python").exists():
        pytest.skip(f"no environment {ROOT / peer}")
    rows = script("ctr.py", "--models", "deepfm", "--peers", peer, "--root", str(ROOT), *TINY)
    assert {row["side"].split(",")[0] for row in rows} == {"hydrec", peer}


def test_sides_that_saw_other_rows_are_refused():
    with pytest.raises(SystemExit, match="rows"):
        sides.same({"a": {"rows": 1}, "b": {"rows": 2}}, "rows")
    sides.same({"a": {"rows": 1}, "b": {"rows": 1}}, "rows")


def test_a_peer_without_environment_is_said_so(tmp_path, capsys):
    args = sides.parser(None).parse_args(["--peers", "--root", str(tmp_path)])
    assert sides.chosen(args, "recbole") == ["hydrec", "recbole"]
    assert sides.drive("recbole", args) == []
    assert "environments.py" in capsys.readouterr().err
