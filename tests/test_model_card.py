"""The card of a run, read back: its front matter as the Hub reads it, its figures, and what it warns of."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hydrec.errors import InputError
from hydrec.model_card import card, markdown

ROOT = Path(__file__).parents[1]
TINY = [
    *("dataset=simulated", "dataset.reader.shape=tiny", "trainer=cpu", "trainer.max_epochs=1"),
    *("batch_size=128", "logger=none", "paths.cache=elsewhere"),
]


@pytest.fixture(
    scope="module", params=["model=hgnn protocol=sliding_window", "model=din protocol=click_last"]
)
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    line = [sys.executable, str(ROOT / "train.py"), *request.param.split(), *TINY, "seed=3"]
    done = subprocess.run(
        line, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = folder.glob("runs/single/*")
    return run


@pytest.fixture
def files(run):
    """The three files that a card is made of."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return config, *(json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))


def test_a_run_leaves_its_card(run, files):
    text = (run / "README.md").read_text()
    assert text == markdown(run) == card(run.name, *files)
    with contextlib.chdir(run.parent):
        assert markdown(Path(run.name)) == text


def test_the_front_matter_has_the_figures(run, files):
    _, about, metrics = files
    front = yaml.safe_load(markdown(run).split("---\n")[1])
    assert front["library_name"] == "hydrec"
    assert about["names"]["model"] in front["tags"]
    assert front["datasets"] == [about["dataset"]["name"]]
    (index,) = front["model-index"]
    assert index["name"] == run.name
    (result,) = index["results"]
    assert result["dataset"]["revision"] == about["dataset"]["fingerprint"]
    assert {each["name"]: each["value"] for each in result["metrics"]}.items() <= {
        name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")
    }.items()
    assert {each["type"] for each in result["metrics"]} == set(front["metrics"])
    assert {"hit@10", "ndcg@10"} <= {each["name"] for each in result["metrics"]} or about["names"][
        "loss"
    ] is None


def test_the_table_has_the_references(run, files):
    _, about, metrics = files
    lines = [line.strip("| ").split(" | ") for line in markdown(run).splitlines() if line.startswith("|")]
    header = lines[0]
    rows = {row[0]: row[1:] for row in lines if len(row) == len(header) + 1}
    assert {about["names"]["model"], "popularity"} <= rows.keys()
    for label, cells in rows.items():
        kind = "test" if label == about["names"]["model"] else label
        assert cells == [f"{metrics[f'{kind}/{name}']:.4f}" for name in header]


def test_the_command_repeats_the_run(run, files):
    text = markdown(run)
    (line,) = [line.strip() for line in text.splitlines() if line.startswith("    python train.py")]
    assert line == files[1]["command"]
    assert "paths" not in line and "logger" not in line and "seed=3" in line
    folder = run.parents[2]
    again = [
        sys.executable,
        str(ROOT / "train.py"),
        *line.split()[2:],
        "logger=none",
        "paths.cache=elsewhere",
    ]
    done = subprocess.run(again, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "is finished; rerun=true repeats it" in done.stdout
    without = {key: value for key, value in files[1].items() if key != "command"}
    assert "    python train.py dataset=simulated protocol=" in card(run.name, files[0], without, files[2])


def test_what_a_reader_must_be_warned_of(run, files):
    config, about, metrics = files
    plain = markdown(run)
    assert (
        "leaky" not in plain and "**The data are simulated" not in plain and "drawn candidates" not in plain
    )
    about["dataset"] |= {"label": "leaky", "stand_in": True}
    about["protocol"] |= {"candidates": "sampled", "sampled": {"count": 50}}
    main = "hit@10" if "test/hit@10" in metrics else "auc"
    worst = metrics | {f"test/{main}": 0.0, f"popularity/{main}": 0.1}
    text = card(run.name, config, about, worst)
    for said in (
        "**The protocol is leaky**",
        "**The data are simulated**",
        "against 50 drawn candidates",
        "(leaky)",
        "- leaky\n",
    ):
        assert said in text
    assert "popularity" in text.split("**Below ")[1].split(f" on {main}.**")[0]
    best = metrics | {f"test/{main}": 1.0}
    assert "**Below" not in card(run.name, config, about, best)


def test_a_run_that_was_not_tested_shows_its_validation(run, files):
    config, about, metrics = files
    valid = {name: value for name, value in metrics.items() if name.startswith("valid/")}
    del about["tested_rows"]
    text = card(run.name, config, about, valid)
    assert "Validation part, by which the epoch was chosen; not tested" in text
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["model-index"][0]["results"][0]["dataset"]["split"] == "valid"


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml: No such file .* give the folder of a finished run"):
        markdown(tmp_path)
