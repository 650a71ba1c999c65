"""Hit rates by group against a loop over test cases, and what is refused."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from hydrec.explain.errors import Division, by_popularity, table
from hydrec.explain.run import FinishedRun

UNITS = {"1 s": 1, "1 min": 60, "1 h": 3600, "1 d": 86400, "30 d": 30 * 86400, "1 y": 365.25 * 86400}


def between(group, value):
    low, _, high = group.removeprefix("from ").partition(" to ")
    low, high = (UNITS.get(end) if end in UNITS else end for end in (low, high))
    if group == "0 s":
        return value == 0
    if isinstance(low, (int, float)):
        return low <= value < (high or np.inf)
    return int(low) <= value <= int(high or low)


def test_hit_rates_are_those_of_a_loop_over_cases(runs, answer):
    status, out, err = answer("errors", f"run={runs['hgnn']}", f"other={runs['sasrec']}", "k=5")
    assert (status, err) == (0, "") and "hit@5" in out
    found = pl.read_csv(runs["hgnn"] / "explain" / "errors" / "errors.csv")
    opened = FinishedRun(str(runs["hgnn"]))
    data = opened.data()
    log, genres = data.log, dict(opened.items().select("item", "genres").iter_rows())
    both = [FinishedRun(str(runs[name])).tested() for name in ("hgnn", "sasrec")]
    trained = {}
    for first, target in zip(data.split.train.first, data.split.train.target, strict=True):
        for row in range(first, target + 1):
            trained.setdefault(log.items[row], set()).add(row)
    cases = []
    for place, row in enumerate(both[0]["sample"]):
        user, item = log.users[row], log.items[row]
        begin = log.offsets[user]
        cases.append(
            {
                "history": row - begin,
                "popularity": len(trained.get(item, ())),
                "recency": log.times[row] - log.times[row - 1],
                "met": "met before" if item in log.items[begin:row] else "new to the user",
                "genre": genres[item],
                "hits": [float(each["greater"][place] < 5) for each in both],
            }
        )
        assert all(each["equal"][place] == 0 for each in both)  # else hits are shares
    seen = {}
    for line in found.iter_rows(named=True):
        by, group = line["by"], line["group"]
        some = [
            case
            for case in cases
            if by == "all"
            or (by == "genre" and group in case["genre"])
            or (by == "met" and group == case["met"])
            or (by in ("history", "popularity", "recency") and between(group, case[by]))
        ]
        assert line["cases"] == len(some) > 0, (by, group)
        seen[by] = seen.get(by, 0) + len(some)
        one, two = (np.mean([case["hits"][model] for case in some]) for model in (0, 1))
        assert (line["hit"], line["other"]) == pytest.approx((one, two)), (by, group)
        assert line["difference"] == pytest.approx(one - two)
    assert seen == {
        **{by: len(cases) for by in ("all", "history", "popularity", "recency", "met")},
        "genre": sum(len(case["genre"]) for case in cases),
    }


def test_a_difference_is_surer_than_its_parts_where_models_agree():
    draw = np.random.default_rng(3)
    one = torch.from_numpy((draw.random(400) < 0.3).astype(float))
    other = one.clone()
    other[:20] = 1 - other[:20]
    whole = {"all": Division(np.ones((400, 1), bool), ["all"])}
    row = table(whole, [one, other], torch.arange(400) // 2).row(0, named=True)
    assert row["difference"] == pytest.approx(row["hit"] - row["other"])
    assert row["difference_high"] - row["difference_low"] < 0.7 * (row["hit_high"] - row["hit_low"])
    assert row["users"] == 200


def test_one_model_has_no_difference_and_no_hit_no_interval():
    halves = Division(np.repeat(np.eye(2, dtype=bool), 10, axis=0), ["hit", "missed"])
    hits = torch.cat([torch.tensor([1.0, 0.0] * 5), torch.zeros(10)])
    found = table({"half": halves}, [hits.double()], torch.arange(20))
    assert found.columns == ["by", "group", "cases", "users", "hit", "hit_low", "hit_high"]
    assert found["hit_low"].null_count() == 1 and found.row(1)[-3:] == (0.0, None, None)


def test_targets_that_training_lacks_are_a_group_of_their_own():
    number, labels = by_popularity(np.array([4, 0, 9, 4, 0]))
    assert number.tolist() == [1, 0, 2, 1, 0] and labels == ["0", "4", "9"]
    assert by_popularity(np.array([2, 2])).labels == ["2"]
    assert by_popularity(np.array([0, 0])).labels == ["0"]


def test_the_same_runs_give_the_same_bytes(runs, answer, tmp_path):
    for name in ("one", "two"):
        line = ("errors", f"run={runs['sasrec']}", f"other={runs['sasrec']}", f"out={tmp_path / name}")
        assert answer(*line)[0] == 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["errors.csv", "errors.png", "errors.svg"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_cannot_be_compared_is_one_line(runs, copied, refused):
    for key, said in (("protocol_digest", "differ in their protocol"), ("dataset", "differ in their data")):
        other = copied(runs["sasrec"], key)
        about = json.loads((other / "run.json").read_text())
        about[key] = about[key] | {"fingerprint": "0" * 64} if key == "dataset" else "0" * 64
        (other / "run.json").write_text(json.dumps(about))
        refused(said, "errors", f"run={runs['hgnn']}", f"other={other}")
    fewer = copied(runs["sasrec"], "fewer")
    FinishedRun(str(fewer)).tested()[:50].write_parquet(fewer / "test.parquet")
    refused("scored other test cases", "errors", f"run={runs['hgnn']}", f"other={fewer}")
    clicks = copied(runs["sasrec"], "clicks", model___target_="hydrec.tasks.Click")
    refused("a model of clicks: errors explains models that rank", "errors", f"run={clicks}")


@pytest.mark.parametrize("k", ["0", "-1", "ten", "1.5"])
def test_k_is_a_whole_number(k, refused):
    refused(f"k={k}: must be a whole number, 1 or more", "errors", "run=x", f"k={k}")
