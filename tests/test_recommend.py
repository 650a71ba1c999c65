"""Recommendations and click probabilities of tiny runs, from their folders alone."""

import contextlib
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import open_dict

import hydrec
from hydrec import commands, pipeline, recommend
from hydrec.loaded import NOTHING, best, unpacked

ROOT = Path(__file__).parents[1]
TINY = [
    *("dataset.reader.shape=tiny", "trainer=cpu", "trainer.max_epochs=2", "batch_size=128"),
    *("eval_batch_size=16", "logger=none"),
]
RANKING = ["dataset=simulated", "protocol=leave_one_out", "loss=softmax", *TINY]
DIN = ["model=din", "model.net.item_dim=4", "model.net.field_dim=4", *TINY]
# fields of users that are known, derived columns, numbers; histories of all events
LAST = ["dataset=simulated", "protocol=click_last", "protocol.window=8", *DIN]
# no known users' ids; histories of clicks of earlier days
DAYS = ["dataset=simulated_clicks", "protocol=click_days", "protocol.window=6", "protocol.test=3", *DIN]
# histories of what was liked, by the value
LIKED = ["dataset=simulated", "protocol=click_rating", "protocol.window=8", *DIN]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a run in a folder without its data; returns the folder and the data. Each is made once."""
    made = {}

    def make(*overrides):
        if overrides not in made:
            folder = tmp_path_factory.mktemp("made")
            with contextlib.chdir(folder), initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                composed = compose("train", [*overrides], return_hydra_config=True)
                choices = composed.hydra.runtime.choices
                with open_dict(composed):
                    composed.names = {
                        group: choices[group] for group in ("dataset", "protocol", "model", "loss")
                    }
                    del composed["hydra"]
                pipeline.run(composed)
                data = instantiate(composed.dataset, _convert_="all")
                data.prepare()
            (run,) = folder.glob("runs/single/*")
            alone = tmp_path_factory.mktemp("alone") / "run"
            shutil.copytree(run, alone)
            made[overrides] = alone, data
        return made[overrides]

    return make


@pytest.fixture
def hgnn(make):
    return make("model=hgnn", *RANKING)


@pytest.fixture
def answer(capsys, tmp_path, monkeypatch):
    """Answers a command line in an empty folder: status, output, errors."""
    monkeypatch.chdir(tmp_path)

    def answer(*argv):
        status = commands.answer(
            [str(each) for each in argv], {"": recommend.recommend, "score": recommend.score}, recommend.HELP
        )
        return status, *capsys.readouterr()

    return answer


def histories_of(data, whole=False):
    """What the test part saw of each user: its window, or all events before the target; and when it asked."""
    log, test = data.log, data.split.test
    start = log.offsets[log.users[test.target]] if whole else test.first
    frames = [
        pl.DataFrame(
            {
                "user": np.repeat(log.user_ids[log.users[target]], target - first),
                "item": log.item_ids[log.items[first:target]],
                "time": log.times[first:target],
                "value": log.values[first:target],
                "asked": np.repeat(log.times[target], target - first),
            }
        )
        for first, target in zip(start, test.target, strict=True)
    ]
    return pl.concat(frames)


# Ranking ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "mask"),
    [("hgnn", False), ("hgnn", True), ("fpmc", False), ("bert4rec", False), ("itemknn", False)],
)
def test_the_places_of_the_targets_are_those_of_the_test(make, model, mask):
    run, data = make(f"model={model}", f"protocol.mask_history={mask}", *RANKING)
    tested = pl.read_parquet(run / "test.parquet")
    found = hydrec.load(run).recommend(histories_of(data, whole=mask), k=data.log.n_items, now="asked")
    lists = {user: rows for (user,), rows in found.group_by("user")}
    assert len(lists) == len(tested)
    for row in tested.iter_rows(named=True):
        scores = lists[row["user"]]["score"].to_numpy()
        (own,) = lists[row["user"]].filter(pl.col("item") == row["target"])["score"]
        assert ((scores > own).sum(), (scores == own).sum() - 1) == (row["greater"], row["equal"])


def test_best_agrees_with_sorting_whatever_the_parts():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (5, 31), generator=draw) / 2  # many are equal, some are 0
    scores[0] *= -1.0  # and negative zeros
    masked = torch.randint(0, 31, (5, 12), generator=draw)  # 0 is nothing
    items = torch.tensor([item for item in range(1, 31) if item % 4])
    for row in range(5):
        left = [int(item) for item in items if item not in masked[row]]
        expected = sorted(left, key=lambda item: (-float(scores[row, item]), item))
        for k, limit in itertools.product((1, 4, 100), (5, 35, 1000)):
            found = best(lambda some: scores[:, some], 5, items, masked, k=k, limit=limit)
            assert found.shape == (5, min(k, len(items)))
            real = found[row][found[row] != NOTHING]
            values, numbers = unpacked(real[None])
            assert numbers[0].tolist() == expected[:k]
            assert values[0].tolist() == [float(scores[row, item]) for item in expected[:k]]


def test_scores_of_large_and_small_size_survive_their_keys():
    scores = torch.tensor([[3.4e38, -3.4e38, 1e-45, -1e-45, 0.0, -0.0, 1.0, -1.0]])
    keys = best(lambda some: scores[:, some - 1], 1, torch.arange(1, 9), None, k=8, limit=100)
    values, items = unpacked(keys)
    assert values[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    assert items[0].tolist() == [1, 7, 3, 5, 6, 4, 8, 2]


def test_new_users_get_lists_and_unknown_items_are_said(hgnn, caplog):
    run, _ = hgnn
    given = pl.DataFrame(
        {
            "user": ["new", "lost", "new", "new", "also new"],
            "item": ["7", "no such film", "neither", "8", "8"],
            "time": [10, 0, 20, 5, 7],
        }
    )
    found = hydrec.load(run).recommend(given, k=3)
    assert found.columns == ["user", "rank", "item", "score", "title"]
    assert found["user"].to_list() == ["new"] * 3 + ["also new"] * 3
    assert found["rank"].to_list() == [1, 2, 3] * 2
    assert (
        found.filter(pl.col("title") != "Film " + pl.col("item"))
        .filter(~pl.col("title").str.starts_with("Film " + pl.col("item") + " ("))
        .is_empty()
    )
    assert "2 of 5 rows have an item that the run does not know (no such film, neither)" in caplog.text
    assert "1 of 3 users have no known item (lost): left out" in caplog.text
    ordered = given.sort("time").filter(pl.col("item").is_in(["7", "8"]))
    assert hydrec.load(run).recommend(ordered, k=3).sort("user", "rank").equals(found.sort("user", "rank"))


def test_the_window_counts_known_items_only(hgnn):
    run, data = hgnn
    window = data.protocol.window
    kept = [str(item % 20 + 1) for item in range(window)]
    short = pl.DataFrame({"user": "a", "item": kept, "time": range(window)})
    long = pl.DataFrame({"user": "a", "item": ["5", *kept, "none"], "time": [-5 + 5, *range(window), window]})
    loaded = hydrec.load(run)
    assert loaded.recommend(long.with_columns(pl.col("time") + 100), k=9).equals(
        loaded.recommend(short.with_columns(pl.col("time") + 100), k=9, now=100 + window - 1)
    )


def test_masks_and_candidates(hgnn, caplog):
    run, data = hgnn
    loaded = hydrec.load(run)
    log = data.log
    mine = log.item_ids[log.items[log.offsets[1] : log.offsets[2]]]  # more than the window
    given = pl.DataFrame({"user": "1", "item": mine, "time": range(len(mine))})
    assert len(mine) > data.protocol.window
    free = loaded.recommend(given, k=log.n_items, mask_history=False)
    assert len(free) == log.n_items
    assert loaded.recommend(given, k=log.n_items)["item"].to_list() == free["item"].to_list()
    masked = loaded.recommend(given, k=log.n_items, mask_history=True)
    assert masked["item"].to_list() == [item for item in free["item"] if item not in mine]
    wanted = [*mine[:2], *masked["item"][:2], "unheard of"]
    some = loaded.recommend(given, k=9, candidates=wanted, mask_history=False)
    assert some["item"].to_list() == [item for item in free["item"] if item in wanted]
    assert "unheard of" in caplog.text
    nothing = loaded.recommend(given, k=9, candidates=[*mine[:2]], mask_history=True)
    assert nothing.is_empty()
    assert "1 users have met all candidates (1)" in caplog.text


def test_now_is_the_time_of_the_question(hgnn):
    run, data = hgnn
    loaded, given = hydrec.load(run), histories_of(data)
    last = given.with_columns(asked=pl.col("time").max().over("user"))
    plain = loaded.recommend(given, k=9)
    assert plain.equals(loaded.recommend(last, k=9, now="asked"))
    later = int(given["asked"].max()) + 86400
    asked = loaded.recommend(given, k=9, now=later)
    assert not asked["score"].equals(plain["score"])
    day = str(np.datetime64(later, "s"))
    assert asked.equals(loaded.recommend(given, k=9, now=day))
    assert asked.equals(loaded.recommend(given, k=9, now=f"{day}+00:00"))


def test_neither_batches_nor_parts_change_lists(hgnn):
    run, data = hgnn
    loaded, given = hydrec.load(run), histories_of(data)
    plain = loaded.recommend(given, k=9)
    loaded.opened.cfg.model.chunk = 50
    parts = loaded.recommend(given, k=9, batch_size=7)
    assert parts["user"].equals(plain["user"])
    assert np.allclose(parts["score"], plain["score"], rtol=1e-5)


def test_scores_held_at_once_are_bounded(make, memory):
    run, data = make("model=popularity", *RANKING)
    loaded, given = hydrec.load(run), histories_of(data)
    loaded.opened.cfg.model.chunk = 300
    with memory:
        loaded.recommend(given, k=2, batch_size=8)
    rows = len(data.split.test)
    assert 8 * data.log.n_items > 2 * 300
    assert memory.largest <= 2 * max(300, rows)  # the lists of all rows; scores with the best so far


def test_files_of_all_forms_give_what_frames_give(hgnn, answer, tmp_path):
    run, data = hgnn
    given = histories_of(data)
    given.write_csv("a.csv")
    given.write_csv("a.tsv", separator="\t")
    given.with_columns(pl.col("user", "item").cast(pl.Int64), pl.from_epoch("time")).write_parquet(
        "a.parquet"
    )
    pl.DataFrame({"item": given["item"].unique()}).write_csv("c.csv")
    expected = hydrec.load(run).recommend(given, k=4, now="asked", mask_history=True)
    for name in ("a.csv", "a.tsv", "a.parquet"):
        line = [f"run={run}", f"histories={name}", "k=4", "now=asked", "mask_history=true"]
        status, out, err = answer(*line, "out=o.parquet", "candidates=c.csv", "batch_size=16")
        assert (status, err) == (0, "")
        assert f"o.parquet has {len(expected)} items for {given['user'].n_unique()} users" in out
        assert pl.read_parquet("o.parquet").equals(expected)
    assert answer(*line, "out=o.csv")[0] == 0
    assert pl.read_csv("o.csv", infer_schema=False)["item"].to_list() == expected["item"].to_list()


def test_the_command_needs_neither_data_nor_configuration(hgnn, tmp_path):
    run, data = hgnn
    histories_of(data).write_csv(tmp_path / "h.csv")
    done = subprocess.run(
        [sys.executable, "-m", "hydrec.recommend", f"run={run}", "histories=h.csv", "k=2", "out=o.csv"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"h.csv", "o.csv"}
    assert len(pl.read_csv(tmp_path / "o.csv")) == 2 * len(data.split.test)


GOOD = {"user": ["a", "a"], "item": ["1", "2"], "time": ["5", "6"]}


@pytest.mark.parametrize(
    ("columns", "argument", "said"),
    [
        ({"time": None}, "k=3", "no column time, it has user, item; it needs user, item, time"),
        ({"time": ["5", "x"]}, "k=3", "time x is not from 1970 to 2099 in seconds in row 2"),
        ({"time": ["5", "1078705039000"]}, "k=3", "time 1078705039000 is not from 1970 to 2099"),
        ({"user": ["", "a"]}, "k=3", "user is empty in row 1"),
        ({"value": ["1", "much"]}, "k=3", "value much is no number in row 2"),
        ({"item": ["x", "y"]}, "k=3", "no event has an item of the run"),
        ({}, "k=0", "k=0: must be a whole number, 1 or more"),
        ({}, "k=few", "k=few: must be a whole number"),
        ({}, "top=3", "top=3: did you mean"),
        ({}, "now=5", "now=5 is before the last event of 1 users, as of a"),
        ({}, "now=soon", "now=soon: neither seconds, nor an ISO date, nor a column"),
        ({}, "mask_history=maybe", "mask_history=maybe is none of true, false"),
        ({}, "candidates=none.csv", "candidates=none.csv cannot be read: No such file"),
        ({}, "batch_size=0", "batch_size=0: must be a whole number, 1 or more"),
        ({}, "out=o.xlsx", "out=o.xlsx: must be a .csv, .tsv or .parquet file"),
        ({}, "run=nowhere", "run=nowhere is no run folder"),
        ({}, "histories=h.txt", "histories=h.txt: must be a .csv, .tsv or .parquet file"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(hgnn, answer, columns, argument, said):
    table = {key: value for key, value in (GOOD | columns).items() if value is not None}
    pl.DataFrame(table).write_csv("h.csv", null_value="")
    given = {"run": hgnn[0], "histories": "h.csv", "out": "o.csv"}
    key, _, value = argument.partition("=")
    status, out, err = answer(*(f"{key}={value}" for key, value in (given | {key: value}).items()))
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("hydrec: ")]
    assert len(lines) == 1 and said in lines[0]
    assert not Path("o.csv").exists()


def test_folders_that_lack_a_table_say_what_makes_it(hgnn, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(hgnn[0], copy)
    (copy / "users.parquet").unlink()
    with pytest.raises(
        hydrec.errors.InputError, match=r"users\.parquet cannot be read .*fit=false ckpt_path="
    ):
        hydrec.load(copy)


def test_help_and_a_mistyped_command(answer):
    assert answer("--help") == (0, recommend.HELP, "")
    status, _, err = answer("scores", "run=x")
    assert (status, err) == (2, "hydrec: scores is no command: there is score (--help says more)\n")


@pytest.fixture(scope="module")
def undated(tmp_path_factory):
    """Options of a log without times: the order of the rows is all there is."""
    draw = np.random.default_rng(0)
    users = np.repeat([f"u{user}" for user in range(60)], 12)
    path = tmp_path_factory.mktemp("raw") / "log.csv"
    pl.DataFrame({"user": users, "item": draw.integers(100, 140, len(users))}).write_csv(path)
    columns = "{user: user, item: item, time: null, value: null, label: null, title: null}"
    return [
        *("dataset=table", f"dataset.reader.path={path}", f"dataset.reader.columns={columns}"),
        *("trainer=cpu", "trainer.max_epochs=1", "batch_size=128", "eval_batch_size=16", "logger=none"),
    ]


def test_logs_without_times_need_none(make, undated):
    run, data = make("model=hgnn", "protocol=leave_one_out", "protocol.window=5", *undated)
    tested = pl.read_parquet(run / "test.parquet")
    given = histories_of(data, whole=True).drop("time", "asked", "value")
    loaded = hydrec.load(run)
    found = loaded.recommend(given, k=data.log.n_items).rename({"score": "own"})
    own = tested.join(found, left_on=["user", "target"], right_on=["user", "item"]).select(
        "user", "greater", "own"
    )
    above = found.rename({"own": "score"}).join(own, on="user").filter(pl.col("score") > pl.col("own"))
    count = dict(above.group_by("user").len().iter_rows())
    assert [count.get(user, 0) for user in tested["user"]] == tested["greater"].to_list()
    with pytest.raises(hydrec.errors.InputError, match="the data of this run have no times; leave it out"):
        loaded.recommend(given, now=5)


# Clicks -----------------------------------------------------------------------------------------------------


def shown(data, which=slice(None)):
    """The test rows, with the features of their events."""
    log, test = data.log, data.split.test
    row, item = test.row[which], test.item[which]
    columns = {"user": log.user_ids[log.users[row]], "item": log.item_ids[item], "time": log.times[row]}
    for name, feature in log.event_features.items():
        words = np.concatenate([[None, None], feature.vocabulary.astype(object)])
        columns[name] = pl.Series(words[feature.codes[feature.offsets[row]]], dtype=pl.String)
    return pl.DataFrame(columns)


def events(data, rows):
    """Rows of the log."""
    log = data.log
    columns = {"user": log.user_ids[log.users], "item": log.item_ids[log.items], "time": log.times}
    if log.labels is not None:
        columns["label"] = log.labels
    return pl.DataFrame(columns | {"value": log.values})[rows]


def test_logits_are_those_of_the_test(make):
    run, data = make(*LAST)
    before = np.setdiff1d(np.arange(len(data.log)), data.split.test.row)
    found = hydrec.load(run).score(shown(data), histories=events(data, before))
    tested = pl.read_parquet(run / "test.parquet")
    assert found.columns == ["user", "item", "time", "logit", "probability"]
    assert found["item"].equals(tested["item"])
    assert found["logit"].to_list() == tested["logit"].to_list()
    assert found["probability"].to_list() == [
        pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12) for logit in tested["logit"]
    ]


def test_logits_of_logs_without_times(make, undated):
    small = ["model=bst", "model.net.item_dim=4", "model.net.field_dim=4"]
    run, data = make(*small, "protocol=click_last", "dataset.fields.user=[user_id,activity]", *undated)
    before = np.setdiff1d(np.arange(len(data.log)), data.split.test.row)
    loaded, tested = hydrec.load(run), pl.read_parquet(run / "test.parquet")
    found = loaded.score(shown(data).drop("time"), histories=events(data, before).drop("time"))
    assert found["logit"].to_list() == tested["logit"].to_list()
    # of one event: the showing comes after it, not with it
    rows = shown(data)[:1].drop("time")
    one = pl.DataFrame({"user": rows["user"], "item": rows["item"]})
    said = loaded.score(rows.with_columns(activity=pl.lit("1-2")), histories=one)
    assert loaded.score(rows, histories=one)["logit"].equals(said["logit"])
    assert not loaded.score(rows)["logit"].equals(said["logit"])


def test_histories_of_earlier_days_are_found_in_the_whole_log(make):
    run, data = make(*DAYS)
    found = hydrec.load(run).score(shown(data), histories=events(data, np.arange(len(data.log))))
    assert found["logit"].to_list() == pl.read_parquet(run / "test.parquet")["logit"].to_list()
    without = hydrec.load(run).score(shown(data))
    assert found["logit"].to_list() != without["logit"].to_list()


def test_histories_of_what_was_liked(make):
    run, data = make(*LIKED)
    log, row = data.log, data.split.test.row
    first = np.unique(log.users[row], return_index=True)[1]  # of each user's rows
    ahead = np.zeros(log.n_users + 1, np.int64)
    ahead[log.users[row[first]]] = row[first]
    before = np.flatnonzero(np.arange(len(log)) < ahead[log.users])
    given = events(data, before)
    tested = pl.read_parquet(run / "test.parquet")[first]
    found = hydrec.load(run).score(shown(data, first), histories=given)
    # batches of other rows: other shapes round otherwise
    assert np.allclose(found["logit"], tested["logit"], rtol=0, atol=1e-5)
    with pytest.raises(hydrec.errors.InputError, match=r"values of .* and more clicks: it needs a value"):
        hydrec.load(run).score(shown(data, first), histories=given.drop("value"))


def test_a_column_is_read_before_what_could_be_derived_and_null_is_unknown(make, caplog):
    run, data = make(*LAST)
    loaded, rows = hydrec.load(run), shown(data)[:8]
    given = events(data, np.setdiff1d(np.arange(len(data.log)), data.split.test.row))
    plain = loaded.score(rows, histories=given)["logit"]
    words = pl.read_parquet(run / "fields.parquet").filter(pl.col("name") == "since_last")["words"][0]
    gender = data.log.user_features["gender"]
    own = [gender.vocabulary[gender.codes[gender.offsets[int(user)]] - 2] for user in rows["user"]]
    assert loaded.score(rows.with_columns(gender=pl.Series(own)), histories=given)["logit"].equals(plain)
    for column in (pl.lit(None, pl.String).alias("gender"), pl.lit(words[0]).alias("since_last")):
        assert not loaded.score(rows.with_columns(column), histories=given)["logit"].equals(plain)
    # users that nobody knows: their own fields are unknown, as if said so
    strange = rows.with_columns(user="stranger " + pl.col("user"))
    absent = [pl.lit(None, pl.String).alias(name) for name in ("user_id", "gender", "age", "occupation")]
    assert loaded.score(strange)["logit"].equals(loaded.score(strange.with_columns(absent))["logit"])
    with pytest.raises(hydrec.errors.InputError, match="rows: the column device is needed"):
        loaded.score(rows.drop("device"))
    unknown = rows.with_columns(item=pl.when(pl.int_range(8) == 2).then(pl.lit("?")).otherwise("item"))
    assert loaded.score(unknown)["logit"].is_null().to_list() == [place == 2 for place in range(8)]
    assert "1 of 8 rows have an item that the run does not know (?): not scored" in caplog.text


def test_derived_values_that_the_training_part_never_had(make):
    run, data = make(*LAST)
    loaded, rows = hydrec.load(run), shown(data)[:2]
    given = events(data, np.setdiff1d(np.arange(len(data.log)), data.split.test.row))
    # a longer gap than any: unknown, like one that is not said
    late = rows.with_columns(time=pl.col("time") + 5000 * 86400)
    unsaid = late.with_columns(since_last=pl.lit(None, pl.String))
    assert loaded.score(late, histories=given)["logit"].equals(loaded.score(unsaid, histories=given)["logit"])
    # the first showing's user has no past, the second's has
    first = rows.with_columns(user=pl.when(pl.int_range(2) == 0).then(pl.lit("stranger")).otherwise("user"))
    found = loaded.score(first, histories=given)["logit"]
    assert found[1] == pytest.approx(loaded.score(rows, histories=given)["logit"][1], abs=1e-6)
    assert found[0] == pytest.approx(loaded.score(first[:1])["logit"][0], abs=1e-6)


def test_score_writes_a_file_and_each_kind_of_model_refuses_the_other(make, hgnn, answer):
    run, data = make(*DAYS)
    shown(data).write_csv("r.csv")
    events(data, np.arange(len(data.log))).write_parquet("h.parquet")
    status, out, err = answer("score", f"run={run}", "rows=r.csv", "histories=h.parquet", "out=o.parquet")
    assert (status, err) == (0, "")
    assert out == f"o.parquet has the probabilities of {len(data.split.test)} rows\n"
    tested = pl.read_parquet(run / "test.parquet")
    assert pl.read_parquet("o.parquet")["logit"].to_list() == tested["logit"].to_list()
    status, _, err = answer("score", f"run={hgnn[0]}", "rows=r.csv", "out=o.csv")
    assert status == 2 and "ranks items for a history: it recommends" in err
    status, _, err = answer(f"run={run}", "histories=h.parquet", "out=o.csv")
    assert status == 2 and "a model of clicks: it scores showings" in err
