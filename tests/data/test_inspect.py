"""Every figure of the data card against slow loops in float64, and the command that writes it."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from hydrec.click_metrics import ClickMetrics
from hydrec.data import __main__ as command
from hydrec.data import inspect
from hydrec.data.clicks import ClickDays, ClickGlobalTime, ClickLast, ClickRating, ClickUserSplit
from hydrec.data.inspect import card
from hydrec.data.log import InteractionLog
from hydrec.data.module import LogData
from hydrec.data.page import diagrams, drawn, markdown, tables
from hydrec.data.protocols import GlobalTime, LeaveOneOut, ReleasedWindows, SlidingWindow
from hydrec.errors import InputError
from hydrec.metrics import RankMetrics
from hydrec.sampling import below, hash64

DAY = 86400
ROOT = Path(__file__).parents[2]
SHARED = {
    "mask_history": False,
    "cold": "keep",
    "shuffle_ties": None,
    "candidates": "full",
    "sampled": {},
    "metrics": RankMetrics(at=[5], ties="expected"),
}
PROTOCOLS = {
    "leave_one_out": lambda: LeaveOneOut(window=4, **SHARED),
    "windows": lambda: SlidingWindow(window=4, stride=2, scope="user", valid=0.2, test=0.2, **SHARED),
    "released": lambda: ReleasedWindows(
        window=4, seed=63, valid=0.2, test=0.2, order="string", validation_in_train=True, **SHARED
    ),
    "global_time": lambda: GlobalTime(window=4, valid=0.1, test=0.1, targets="all", **SHARED),
}
CLICK = {"window": 4, "shuffle_ties": None, "metrics": ClickMetrics(gauc="rows", bins=20)}
DRAWN = {"neg_ratio": 2, "neg": "uniform", "seed": 3}
RATED = {"threshold": 2.0, "valid": 0.2, "test": 0.2, "split_seed": 1}
CLICKS = {
    "click_last": lambda: ClickLast(**CLICK, **DRAWN),
    "click_user_split": lambda: ClickUserSplit(
        valid=0.2, test=0.2, split_seed=1, **CLICK, **DRAWN | {"neg": "reviews"}
    ),
    "click_global_time": lambda: ClickGlobalTime(valid=0.1, test=0.1, **CLICK, **DRAWN),
    "click_rating": lambda: ClickRating(cut="time", **CLICK, **RATED),
    "click_rating_users": lambda: ClickRating(cut="user", **CLICK, **RATED),
    "click_days": lambda: ClickDays(threshold=2.0, valid=1, test=1, **CLICK),
    "click_labels": lambda: ClickRating(cut="time", **CLICK, **RATED | {"threshold": None}),
}
SHOWN = {"click_shown": lambda: ClickRating(cut="user", **CLICK, **RATED | {"threshold": None})}
FIELDS = {"user": ["user_id", "activity"], "context": ["weekday*"], "item": ["genres*"]}


class Given:
    """A reader of the events it is made of."""

    name = "given"

    def __init__(self, **columns) -> None:
        self.columns = columns

    def files(self) -> list[Path]:
        return []

    def options(self) -> dict:
        return {key: str(value) for key, value in self.columns.items()}

    def __call__(self) -> InteractionLog:
        return InteractionLog.build(name=self.name, **self.columns)


def random_events(seed=5, **changes):
    """80 users with 1 to 40 events; items repeat, times tie and lie on both sides of 10^9, hours vary."""
    draw = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, 81), draw.integers(1, 41, 80))
    n = len(users)
    items = (30 * draw.random(n) ** 2).astype(int) + 1
    values = np.exp(draw.normal(0, 2, n) + items / 15).round(1).astype(np.float32)
    values[draw.random(n) < 0.05] = np.nan
    values[draw.random(n) < 0.05] = 0
    values[draw.random(n) < 0.05] = 1
    values[draw.random(n) < 0.02] = -1
    times = 10**9 + (draw.integers(-50, 50, n) ** 3)
    return {"users": users, "items": items, "times": times, "values": values} | changes


@pytest.fixture
def make(tmp_path):
    def build(protocol="leave_one_out", protocols=PROTOCOLS | CLICKS | SHOWN, **columns) -> LogData:
        data = LogData(
            reader=Given(**(columns or random_events())),
            download=[],
            stand_in=False,
            fields=FIELDS if "click" in protocol else {},
            protocol=protocols[protocol](),
            samples="clicks" if "click" in protocol else "prefixes",
            batch_size=100,
            eval_batch_size=100,
            cache=str(tmp_path / "cache"),
            seed=0,
            verify=False,
        )
        data.prepare()
        return data

    return build


@pytest.fixture(params=PROTOCOLS)
def data(request, make):
    return make(request.param)


@pytest.fixture(params=CLICKS)
def clicks(request, make):
    events = random_events(item_features={"genres": (np.arange(1, 31), [["x"], ["x", "y"], []] * 10)})
    if request.param in ("click_rating", "click_rating_users", "click_days"):
        events["values"] = np.nan_to_num(events["values"], nan=3.0)
    if request.param == "click_labels":
        events["labels"] = events["values"] > 2
    return make(request.param, **events)


def windows(samples):
    """The rows of each sample: its history and its target."""
    for first, last, target in zip(samples.first, samples.last, samples.target, strict=True):
        yield list(range(first, last)), int(target)


def training_rows(data):
    return sorted({row for history, target in windows(data.split.train) for row in (*history, target)})


# By hand ----------------------------------------------------------------------------------------------------

# user a: 1 2 1 3; user b: 1 2 4; user c: 2. Leave-one-out: a trains on 1 -> 2, is validated by 1 (met before)
# and tested by 3; b is validated by 2 and tested by 4; the first event of b and that of c train nobody.
HAND = {
    "users": list("aaaabbbc"),
    "items": [1, 2, 1, 3, 1, 2, 4, 2],
    "times": [0, DAY, DAY, 3 * DAY, 10, 20, 20, 4 * DAY],
    "values": [1.0, 2.0, 3.0, 5.0, 4.0, math.nan, 2.0, -1.0],
    "item_features": {"genres": ([1, 2, 3], [["x", "y"], ["x"], []])},
    "user_features": {"city": (["a", "b", "c"], ["u", "v", "u"])},
    "event_features": {"device": ["p", "q", "p", "p", None, "p", "p", "p"]},
}


def test_a_log_by_hand(make):
    found = card(make(**HAND), "the command")
    assert found["command"] == "the command"
    assert found["density"] == 8 / (3 * 4)
    assert found["repeated"] == pytest.approx(1 / 8)
    assert found["dataset"]["users_whose_last_two_tie"] == 1
    sizes = {key: value for key, value in found["lengths"]["user"].items() if key != "at_least"}
    assert sizes == pytest.approx(
        {"least": 1, "lower_quartile": 2, "median": 3, "upper_quartile": 3.5, "most": 4, "mean": 8 / 3}
    )
    assert found["lengths"]["user"]["at_least"] == {
        "events": [1, 2, 3, 4],
        "share": pytest.approx([1, 2 / 3, 2 / 3, 1 / 3]),
    }
    assert found["lengths"]["item"]["at_least"]["share"] == pytest.approx([1, 0.5, 0.5])
    time = found["time"]
    assert (time["first"], time["last"]) == ("1970-01-01T00:00:00", "1970-01-05T00:00:00")
    assert (time["days"], time["events_a_day"], time["days_with_events"]) == (4, 2, 4)
    assert sum(time["histogram"]["counts"]) == 8
    assert found["fields"] == {
        "item": {"genres": {"categories": 2, "values_a_row": 5 / 4, "unknown": 0.5}},
        "user": {"city": {"categories": 2, "values_a_row": 1, "unknown": 0}},
        "event": {"device": {"categories": 2, "values_a_row": 1, "unknown": 1 / 8}},
    }
    recency = found["recency"]
    assert recency["train"]["seconds"]["0.5"] == recency["train"]["most_seconds"] == DAY
    assert (recency["valid"]["tied"], recency["valid"]["most_seconds"]) == (0.5, 10)
    assert recency["test"]["seconds"]["0.25"] == DAY / 2
    assert sum(recency["test"]["histogram"]["counts"]) == 1
    intensity = found["intensity"]
    assert (intensity["missing"], intensity["negative"]) == (1, 1)
    assert (intensity["raw"]["cases"], intensity["raw"]["ones"]) == (7, pytest.approx(1 / 7))
    assert intensity["normalised"]["none"]["cases"] == 1
    assert intensity["popularity"]["item_mean"] == {"cases": 0, "rho": None, "interval": None}
    # training ends with the second event of a, after both targets of b
    assert found["leakage"]["valid"] == pytest.approx(
        {
            "targets_in_training_samples": 0,
            "targets_that_are_training_targets": 0,
            "users_with_later_training_events": 0,
            "users_before_the_end_of_training": 0.5,
            "training_events_later": 0.25,
            "samples_sharing_events": 0.5,
            "events_shared": 2 / 5,
            "near_copies": 0.5,
        }
    )
    assert found["leakage"]["test"]["events_shared"] == pytest.approx(2 / 7)
    assert found["leakage"]["test"]["near_copies"] == 0


# Against slow references ------------------------------------------------------------------------------------


def test_recency(data):
    log = data.log
    for name, samples in data.split.parts().items():
        found = card(data, "")["recency"][name]
        gaps = [int(log.times[target]) - int(log.times[history[-1]]) for history, target in windows(samples)]
        assert found["tied"] == pytest.approx(np.mean([gap == 0 for gap in gaps]))
        assert found["reversed"] == pytest.approx(np.mean([gap < 0 for gap in gaps]))
        assert found["most_seconds"] == max(gaps)
        for q, seconds in found["seconds"].items():
            assert seconds == pytest.approx(np.percentile(gaps, 100 * float(q)))
        edges = found["histogram"]["edges"]
        expected = [sum(low <= gap < high for gap in gaps) for low, high in pairwise(edges)]
        assert found["histogram"]["counts"] == expected


def test_reversed_gaps_are_counted(make):
    assert card(make("released"), "")["recency"]["train"]["reversed"] > 0
    assert card(make("leave_one_out"), "")["recency"]["train"]["reversed"] == 0


def test_leakage(data):
    log = data.log
    trained = training_rows(data)
    samples = [{*history, target} for history, target in windows(data.split.train)]
    targets = set(data.split.train.target.tolist())
    for name in ("valid", "test"):
        rows = []
        for history, target in windows(data.split.parts()[name]):
            user, when, own = log.users[target], log.times[target], {*history, target}
            later = [row for row in trained if log.times[row] > when]
            rows.append(
                {
                    "user": int(user),
                    "targets_in_training_samples": target in trained,
                    "targets_that_are_training_targets": target in targets,
                    "own_later": any(log.users[row] == user for row in later),
                    "later": bool(later),
                    "training_events_later": len(later) / len(trained),
                    "samples_sharing_events": bool(own & set(trained)),
                    "shared": len(own & set(trained)),
                    "size": len(own),
                    "near_copies": any(len(own & sample) >= len(own) - 1 for sample in samples),
                }
            )
        users = {row["user"] for row in rows}
        expected = {
            key: np.mean([row[key] for row in rows])
            for key in (
                "targets_in_training_samples",
                "targets_that_are_training_targets",
                "training_events_later",
                "samples_sharing_events",
                "near_copies",
            )
        } | {
            "users_with_later_training_events": len({r["user"] for r in rows if r["own_later"]}) / len(users),
            "users_before_the_end_of_training": len({r["user"] for r in rows if r["later"]}) / len(users),
            "events_shared": sum(row["shared"] for row in rows) / sum(row["size"] for row in rows),
        }
        assert card(data, "")["leakage"][name] == pytest.approx(expected), name


def test_overlap(data):
    samples = [{*history, target} for history, target in windows(data.split.train)]
    for part in data.split.parts().values():
        own = [{*history, target} for history, target in windows(part)]
        expected = [max(len(one & sample) for sample in samples) for one in own]
        assert inspect._overlap(part, data.split.train).tolist() == expected


def test_what_a_cut_in_time_leaves_is_no_leak(make):
    for part in card(make("global_time"), "")["leakage"].values():
        assert [part[key] for key in inspect.LEAKAGE] == [0] * len(inspect.LEAKAGE)
        assert part["samples_sharing_events"] > 0.2


def normalised(mode, history):
    w = np.array([x if x > 0 else 0.0 for x in history.astype(np.float64)])
    if mode == "log1p_minmax":
        return np.log(1 + w) / max(np.log(1 + w).max(), 1e-300)
    if mode == "minmax":
        return 0.1 + 0.9 * (w - w.min()) / np.ptp(w) if np.ptp(w) else np.ones(len(w))
    if mode == "zscore":
        return (w - w.mean()) / w.std() if np.ptp(w) else np.zeros(len(w))
    return w


RANGES = {
    "log1p_minmax": (0, 1),
    "minmax": (0.1, 1),
    "zscore": (-math.sqrt(3), math.sqrt(3)),
    "none": (0, None),
}


def test_normalised_intensities(data):
    log = data.log
    found = card(data, "")["intensity"]["normalised"]
    for mode, (low, high) in RANGES.items():
        cases = [normalised(mode, log.values[history]) for history, _ in windows(data.split.train)]
        every = np.concatenate(cases)
        high = float(np.nanmax(log.values)) if high is None else high
        counts, edges = np.histogram(every.clip(low, high), 50, (low, high))
        share = counts[counts > 0] / counts.sum()
        one = found[mode]
        assert one["cases"] == len(every) == sum(one["histogram"]["counts"])
        assert one["histogram"]["edges"] == pytest.approx(edges.tolist())
        # at an edge the last bit of a float decides
        assert np.abs(np.cumsum(one["histogram"]["counts"]) - np.cumsum(counts)).max() <= 0.005 * len(every)
        assert one["entropy_bits"] == pytest.approx(-(share * np.log2(share)).sum(), abs=0.02)
        assert one["mean_deviation"] == pytest.approx(np.mean([x.std() for x in cases]), rel=1e-4)
        assert one["zeros"] == pytest.approx(np.mean(np.abs(every) < 1e-6))
        assert one["ones"] == pytest.approx(np.mean(np.abs(every - 1) < 1e-6))


def test_the_size_of_a_block_changes_nothing(make, monkeypatch):
    data = make()
    whole = card(data, "")["intensity"]["normalised"]
    monkeypatch.setattr(inspect, "BLOCK", 100)
    for mode, one in card(data, "")["intensity"]["normalised"].items():
        assert one["histogram"] == whole[mode]["histogram"]
        assert one["mean_deviation"] == pytest.approx(whole[mode]["mean_deviation"])


def test_raw_intensities(data):
    values = data.log.values[~np.isnan(data.log.values)].astype(float)
    found = card(data, "")["intensity"]
    assert found["missing"] == np.isnan(data.log.values).sum() > 0
    assert found["negative"] == (values < 0).sum() > 0
    assert found["raw"]["zeros"] == pytest.approx((values == 0).mean())
    counts, edges = np.histogram(values, 50)
    assert found["raw"]["histogram"] == {"edges": edges.tolist(), "counts": counts.tolist()}
    assert found["raw"]["entropy_bits"] == pytest.approx(stats.entropy(counts, base=2))


def normalised_less_user_mean(mode, log, rows, window):
    """Of each event: normalised among the ``window`` of its user that it is in, from the newest back."""
    found = {}
    for user in set(log.users[rows].tolist()):
        own = [row for row in rows if log.users[row] == user]
        normal = {}
        for end in range(len(own), 0, -window):
            history = own[max(end - window, 0) : end]
            normal |= dict(zip(history, normalised(mode, log.values[history]), strict=True))
        usual = np.mean(list(normal.values()))
        found |= {row: round(x - usual, 9) for row, x in normal.items()}
    return [found[row] for row in rows]


def test_popularity_and_intensity(data):
    log = data.log
    rows = training_rows(data)
    n = {item: sum(log.items[row] == item for row in rows) for item in set(log.items[rows].tolist())}
    rows = [row for row in rows if not np.isnan(log.values[row])]
    values = {
        item: [float(log.values[row]) for row in rows if log.items[row] == item]
        for item in sorted(n)
        if n[item] >= 5
    }
    values = {item: known for item, known in values.items() if known}
    met = [n[log.items[row]] for row in rows]
    event = [float(log.values[row]) for row in rows]
    expected = {
        "item_mean": ([n[item] for item in values], [np.mean(known) for known in values.values()]),
        "item_median": ([n[item] for item in values], [np.median(known) for known in values.values()]),
        "event": (met, event),
    }
    found = card(data, "")["intensity"]["popularity"]
    for key, (x, y) in expected.items():
        assert found[key]["cases"] == len(x)
        assert found[key]["rho"] == pytest.approx(stats.spearmanr(x, y).statistic), key
    less_mean = found["event_less_user_mean"]
    assert less_mean.keys() == RANGES.keys()
    for mode, one in less_mean.items():
        apart = normalised_less_user_mean(mode, log, rows, data.protocol.window)
        assert one == {
            "cases": len(rows),
            "rho": pytest.approx(stats.spearmanr(met, apart).statistic),
            "interval": None,
        }
    assert len({round(one["rho"], 6) for one in less_mean.values()}) == len(RANGES)
    assert found["item_mean"]["interval"][0] < found["item_mean"]["rho"] < found["item_mean"]["interval"][1]
    assert found["event"]["interval"] is None

    for octave in found["octaves"]:
        some = [np.mean(values[i]) for i in values if octave["events"] <= n[i] < 2 * octave["events"]]
        assert octave["items"] == len(some)
        quartiles = [octave[key] for key in ("lower_quartile", "median", "upper_quartile")]
        assert quartiles == pytest.approx(np.percentile(some, (25, 50, 75)).tolist())
    assert sum(octave["items"] for octave in found["octaves"]) == len(values)


@pytest.mark.parametrize("block", [inspect.BLOCK, 100])
def test_an_interval_is_that_of_drawn_cases(block, monkeypatch):
    monkeypatch.setattr(inspect, "BLOCK", block)
    draw = np.random.default_rng(0)
    x = draw.integers(1, 12, 37).astype(float)
    y = x + draw.normal(0, 5, 37).round()
    rhos = []
    for number in range(inspect.DRAWS):
        picked = below(hash64(0, "data card", torch.tensor(number), torch.arange(37)), 37).numpy()
        rhos.append(np.corrcoef(stats.rankdata(x[picked]), stats.rankdata(y[picked]))[0, 1])
    assert inspect._interval(x, y) == pytest.approx(np.percentile(rhos, (2.5, 97.5)).tolist())
    assert 0.1 < np.ptp(inspect._interval(x, y)) < 0.8


# Under protocols of clicks ----------------------------------------------------------------------------------


def behaviours(data):
    """The rows of the log that histories are made of, in order."""
    log, name = data.log, data.protocol.name
    if name in ("click_rating", "click_days"):
        clicked = log.labels == 1 if data.protocol.threshold is None else log.values >= 2
        return np.flatnonzero(clicked).tolist()
    return list(range(len(log)))


def showings(data, part):
    """Of each sample the rows of its history, its row, its item and its label."""
    rows, some = behaviours(data), data.split.parts()[part]
    for first, last, row, item, label in zip(
        some.first, some.last, some.row, some.item, some.label, strict=True
    ):
        yield rows[first:last], int(row), int(item), int(label)


def share(flags):
    return float(np.mean(flags)) if len(flags) else None


def test_recency_of_the_last_behaviour(clicks):
    found, times = card(clicks, "")["recency"], clicks.log.times
    assert list(found) == ["train", "valid", "test"]
    for name, one in found.items():
        gaps = [times[row] - times[past[-1]] for past, row, _, _ in showings(clicks, name) if past]
        assert one["tied"] == pytest.approx(share([gap == 0 for gap in gaps]))
        assert one["most_seconds"] == max(gaps)
        assert one["seconds"]["0.75"] == pytest.approx(np.percentile(gaps, 75))


def test_leakage_of_clicks(clicks):
    log = clicks.log
    trained = sorted({r for past, row, _, _ in showings(clicks, "train") for r in (*past, row)})
    for part, found in card(clicks, "")["leakage"].items():
        own, before, later, shared = set(), set(), [], []
        again = {0: [], 1: []}
        users = set()
        for past, row, item, label in showings(clicks, part):
            user, after = int(log.users[row]), [r for r in trained if log.times[r] > log.times[row]]
            users.add(user)
            later.append(len(after) / len(trained))
            before |= {user} if after else set()
            own |= {user} if any(log.users[r] == user for r in after) else set()
            again[label].append(item in log.items[past])
            shared.append([r in trained for r in (*past, row)])
        assert found == pytest.approx(
            {
                "targets_in_training_samples": np.mean([flags[-1] for flags in shared]),
                "users_with_later_training_events": len(own) / len(users),
                "users_before_the_end_of_training": len(before) / len(users),
                "training_events_later": np.mean(later),
                "samples_sharing_events": np.mean([any(flags) for flags in shared]),
                "events_shared": np.mean([flag for flags in shared for flag in flags]),
                "positives_in_history": share(again[1]),
                "negatives_in_history": share(again[0]),
            }
        )


def test_which_protocols_of_clicks_leak(make):
    found = {}
    for protocol in ("click_last", "click_user_split", "click_global_time"):
        found[protocol] = card(make(protocol), "")["leakage"]["test"]
    assert found["click_global_time"]["training_events_later"] == 0
    assert found["click_last"]["training_events_later"] > 0.01
    assert found["click_last"]["negatives_in_history"] == 0
    assert found["click_user_split"]["negatives_in_history"] > 0
    assert found["click_user_split"]["samples_sharing_events"] == 0
    assert found["click_last"]["samples_sharing_events"] > 0.9


@pytest.mark.parametrize("exclude", ["window", "user", "train"])
def test_drawn_candidates_that_the_user_met_before(exclude, make):
    rule = {"count": 27, "exponent": 0.0, "exclude": exclude, "replace": False, "seed": 63}
    shared = SHARED | {"candidates": "sampled", "sampled": rule}
    data = make(protocols={"leave_one_out": lambda: LeaveOneOut(window=4, **shared)})
    log, found = data.log, card(data, "")
    for part in ("valid", "test"):
        known = []
        for target, others in zip(data.split.parts()[part].target, data.feed.lists[part], strict=True):
            past = {int(log.items[row]) for row in range(log.offsets[log.users[target]], target)}
            known += [item in past for item in others.tolist() if item]
        assert found["leakage"][part]["candidates_in_history"] == pytest.approx(np.mean(known))
        assert (np.mean(known) > 0) == (exclude != "user")
    rows = {row[0]: row[1:] for table in tables(found) for row in table.rows if "met before" in table.title}
    shown = [f"{100 * one['candidates_in_history']:.1f} %" for one in found["leakage"].values()]
    assert rows == {"drawn candidates that the user met before": shown}
    assert "candidates_in_history" not in card(make(), "")["leakage"]["test"]


def test_the_digest_of_a_part_is_over_its_samples(make):
    protocols = CLICKS | {"other_clicks": lambda: ClickLast(**CLICK, **DRAWN | {"seed": 4})}
    data, again, other = (make(name, protocols) for name in ("click_last", "click_last", "other_clicks"))
    for name, part in data.split.parts().items():
        content = b"".join(column.tobytes() for column in (part.row, part.item, part.label))
        digests = [each.describe()["parts"][name]["digest"] for each in (data, again, other)]
        assert digests[0] == digests[1] == hashlib.sha256(content).hexdigest() != digests[2]


def test_intensities_of_behaviours(clicks):
    log, found = clicks.log, card(clicks, "")["intensity"]
    histories = {row: past for past, row, _, _ in showings(clicks, "train") if past}
    clicked = {row for _, row, _, label in showings(clicks, "train") if label} | {
        r for past in histories.values() for r in past
    }
    for mode, (low, high) in RANGES.items():
        cases = [normalised(mode, log.values[past]) for past in histories.values()]
        every = np.concatenate(cases)
        high = float(np.nanmax(log.values)) if high is None else high
        counts, _ = np.histogram(every.clip(low, high), 50, (low, high))
        one = found["normalised"][mode]
        assert one["cases"] == len(every)
        apart = np.abs(np.cumsum(one["histogram"]["counts"]) - np.cumsum(counts)).max()
        assert apart <= max(2, 0.005 * len(every))  # at an edge the last bit of a float decides
        assert one["mean_deviation"] == pytest.approx(np.mean([x.std() for x in cases]), rel=1e-4)
    n = np.bincount(log.items[sorted(clicked)])
    rows = [row for row in sorted(clicked) if not np.isnan(log.values[row])]
    event = found["popularity"]["event"]
    assert event["cases"] == len(rows)
    assert event["rho"] == pytest.approx(stats.spearmanr(n[log.items[rows]], log.values[rows]).statistic)


def test_inputs_of_click_models(clicks):
    found = card(clicks, "")
    assert {group: list(fields) for group, fields in found["inputs"].items()} == {
        "user": ["user_id", "activity"],
        "context": ["weekday"],
        "item": ["genres"],
        "behaviour": ["genres"],
    }
    assert found["inputs"]["user"]["user_id"] == clicks.log.n_users + 2
    rows = {row[0]: row[1:] for table in tables(found) for row in table.rows if "click models" in table.title}
    assert rows["context"] == ["1", "weekday 9"]


def test_tables_of_clicks_are_whole(clicks):
    found = card(clicks, "python -m x")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    for table in tables(found):
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert all(cell for row in table.rows for cell in row)
    parts = {row[0]: row[1:] for table in tables(found) for row in table.rows if table.title == "Parts"}
    rates = [part.label.mean() for part in clicks.split.parts().values()]
    assert parts["positives (base rate)"] == [f"{100 * rate:.1f} %" for rate in rates]
    assert drawn(diagrams(found), "png").startswith(b"\x89PNG")


def test_labels_without_intensity_and_past_items_without_times(make, recwarn):
    events = random_events()
    n = len(events["users"])
    labels = np.arange(n) % 3 == 0
    events["values"] = None
    found = card(make("click_labels", **events, labels=labels), "")
    assert found["intensity"] is None and len(found["recency"]) == 3
    diagrams(found)
    past = (np.arange(2 * n) % 30 + 1, np.full(n, 2))
    found = card(make("click_labels", **events, labels=labels, past=past), "")
    assert found["recency"] is None
    assert found["leakage"]["test"]["samples_sharing_events"] is None
    assert not any("Overlap" in table.title for table in tables(found))
    assert found["leakage"]["test"]["negatives_in_history"] > 0
    assert not any("history to the target" in table.title for table in tables(found))
    drawn(diagrams(found), "svg")
    assert not recwarn.list


def test_a_part_of_one_label_is_refused(make):
    events = random_events()
    n = len(events["users"])
    labels = (events["times"] < np.quantile(events["times"], 0.7)) & (np.arange(n) % 2 == 0)
    with pytest.raises(InputError, match="are 0, and AUC compares both"):
        make("click_labels", **events, labels=labels)


# Logs of other kinds ----------------------------------------------------------------------------------------


def test_without_intensity(make):
    events = random_events()
    del events["values"]
    found = card(make(**events), "")
    assert found["intensity"] is None
    assert not any("ntensity" in table.title for table in tables(found))
    assert drawn(diagrams(found), "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_intensity_has_no_correlation_and_no_entropy(value, make):
    events = random_events()
    found = card(make(**events | {"values": np.full(len(events["users"]), value)}), "")
    assert found["intensity"]["raw"]["entropy_bits"] == 0
    assert {one["entropy_bits"] for one in found["intensity"]["normalised"].values()} == {0}
    assert [found["intensity"]["popularity"][key]["rho"] for key in ("item_mean", "event")] == [None, None]
    diagrams(found)


@pytest.mark.parametrize(
    ("protocol", "past"),
    [("leave_one_out", False), ("click_last", False), ("click_shown", False), ("click_shown", True)],
)
def test_a_log_without_times_says_nothing_of_them(protocol, past, make, recwarn):
    events = random_events(times=None, item_features={"genres": ([1, 2], ["x", "y"])})
    n = len(events["users"])
    if protocol == "click_shown":
        events["labels"] = np.arange(n) % 3 == 0
    if past:
        events["past"] = (np.arange(2 * n) % 30 + 1, np.full(n, 2))
    found = card(make(protocol, **events), "python -m x")
    assert found["time"] is None and found["recency"] is None
    assert found["dataset"]["tie_share"] is None and found["dataset"]["users_whose_last_two_tie"] is None
    for part in found["leakage"].values():
        assert [part[key] for key in inspect.LATER] == [None] * len(inspect.LATER)
        assert part["targets_in_training_samples"] == 0
        assert (part["samples_sharing_events"] is None) == past
    shown = tables(found)
    assert all(cell for table in shown for row in table.rows for cell in row)
    said = {row[0] for table in shown for row in table.rows}
    assert {"users", "fingerprint", "targets inside a training sample"} <= said
    for word in ("first event", "days", "last two events tie", "at the time of", "later", "a target"):
        assert not [row for row in said if word in row], word
    assert not any("history to the target" in table.title for table in shown)
    panels = {axes.get_title(loc="left") for axes in diagrams(found).axes}
    assert {"Lengths", "Leakage", "Overlap"} <= panels and "" not in panels
    assert not panels & {"Events over time", "From the last event of a history to the target"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    drawn(diagrams(found), "svg")
    assert not recwarn.list


def test_days_with_events_are_those_of_utc(make):
    days = {time // DAY for time in random_events()["times"].tolist()}
    assert card(make(), "")["time"]["days_with_events"] == len(days) == 4


def test_a_log_of_one_moment(make):
    events = random_events()
    found = card(make(**events | {"times": np.full(len(events["users"]), 7)}), "")
    assert found["time"]["events_a_day"] is None
    assert found["recency"]["test"]["tied"] == 1
    diagrams(found)


def test_a_card_is_shown_as_well_from_its_file(make):
    found = card(make(), "python -m x")
    read = json.loads(json.dumps(found, allow_nan=False))
    assert read == found
    assert tables(read) == tables(found)
    assert markdown(read) == markdown(found)
    assert drawn(diagrams(read), "svg") == drawn(diagrams(found), "svg")


def test_tables_are_whole(data):
    found = card(data, "python -m x")
    for table in tables(found):
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert all(cell for row in table.rows for cell in row)
    text = markdown(found)
    assert text.startswith("## given, ") and "`python -m x`" in text
    assert f"| events | {len(data.log):,} |" in text
    assert text.count("\n### ") == len(tables(found))
    assert ("(leaky)" in text) == (data.protocol.name == "released_windows")


# The command ------------------------------------------------------------------------------------------------

TINY = ["dataset=simulated", "dataset.reader.shape=tiny", "protocol=leave_one_out"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Answers a command line in an empty folder: status, output, errors."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.delenv("HYDREC_DATA", raising=False)

    def run(*argv):
        status = command.main(list(argv))
        return status, *capsys.readouterr()

    return run


def test_the_command_leaves_a_card(run):
    status, out, err = run("inspect", *TINY)
    assert (status, err) == (0, "")
    (folder,) = Path("cards").iterdir()
    assert re.fullmatch("simulated-leave_one_out-[0-9a-f]{10}", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "card.md", "card.png", "card.svg"]
    assert {path.name for path in Path().iterdir()} == {"cards", "cache"}
    found = json.loads((folder / "card.json").read_text())
    assert found["command"] == "python -m hydrec.data inspect " + " ".join(TINY)
    assert found["dataset"]["users"] == 200
    assert (folder / "card.md").read_text() == markdown(found)
    assert "6,000" in out and str(folder) in out

    before = {path: path.read_bytes() for path in folder.iterdir()}
    run("inspect", *TINY)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_cards_of_other_data_or_options_lie_beside_each_other(run):
    for count, change in enumerate([(), ("dataset.reader.seed=1",), ("protocol.window=3",)], 1):
        assert run("inspect", *TINY, *change)[0] == 0
        names = {path.name for path in Path("cards").iterdir()}
        assert len(names) == count
    run("inspect", *TINY, "paths.cache=elsewhere", "seed=3", "batch_size=7", "model=sasrec")
    assert {path.name for path in Path("cards").iterdir()} == names


@pytest.mark.parametrize(
    "line",
    [
        "dataset=simulated dataset.reader.shape=tiny protocol=click_last",
        "dataset=simulated_clicks dataset.reader.shape=tiny protocol=click_days model=hgnn",
        "dataset=simulated dataset.reader.shape=tiny protocol=leave_one_out model=lr",
    ],
)
def test_the_protocol_says_what_a_sample_is_whatever_the_model(line, run):
    status, out, err = run("inspect", *line.split())
    assert (status, err) == (0, "")
    assert ("base rate" in out) == ("click_" in line)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "nothing is no command: use python -m hydrec.data inspect"),
        ("inspct", "inspct is no command"),
        ("dataset=movielens", "dataset=movielens is no command"),
        ("inspect dataset=movielense", "did you mean dataset=movielens?"),
        ("inspect dataset.reader.kcore=5", "did you mean dataset.reader.k_core?"),
        ("inspect protocol.window=0", "protocol.window=0"),
        ("inspect -m seed=0,1", "-m: one card a command"),
        ("inspect --cfg job", "--cfg: one card a command"),
        ("inspect dataset=movielens dataset.stand_in=false", "ml-1m"),
        ("inspect paths.cards=/proc/none " + " ".join(TINY), "cannot write /proc/none"),
    ],
)
def test_a_mistake_is_one_line(line, said, run):
    status, _, err = run(*line.split())
    assert status == 2
    assert said in err
    assert err.count("\n") == 1 and err.startswith("hydrec: ")
    assert not Path("cards").exists()


def test_a_stand_in_says_so(run):
    status, out, _ = run(
        "inspect", "dataset=movielens", "dataset.stand_in.shape=tiny", "protocol=leave_one_out"
    )
    assert status == 0
    assert "movielens-simulated is simulated" in out.splitlines()[-1]
    assert len(list(Path("cards").glob("movielens-simulated-leave_one_out-*"))) == 1


def test_help_is_quick():
    code = "import runpy, sys\nsys.argv = ['data', '--help']\n"
    code += "try: runpy.run_module('hydrec.data', run_name='__main__')\n"
    code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m hydrec.data inspect" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 False"


def test_the_config_tree_of_the_working_directory_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command._conf() == ROOT / "conf"
    (tmp_path / "conf").mkdir()
    assert command._conf() == ROOT / "conf"
    (tmp_path / "conf" / "train.yaml").touch()
    assert command._conf() == tmp_path / "conf"


def test_no_config_tree_is_one_line(run, monkeypatch):
    monkeypatch.setattr(command, "__file__", "/nowhere/src/hydrec/data/__main__.py")
    status, _, err = run("inspect")
    assert (status, err.count("\n")) == (2, 1)
    assert "no train.yaml in" in err


# Real files -------------------------------------------------------------------------------------------------

RAW = Path(os.environ.get("HYDREC_DATA", "/nowhere"))


@pytest.mark.skipif(not (RAW / "ml-1m" / "ratings.dat").exists(), reason="HYDREC_DATA has no ml-1m")
def test_released_windows_leak_on_movielens_1m(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = ["dataset=movielens", "dataset.stand_in=false", "protocol=released_windows"]
    assert command.main(["inspect", *overrides]) == 0
    (file,) = Path("cards").glob("movielens-released_windows-*/card.json")
    found = json.loads(file.read_text())["leakage"]["test"]
    assert round(found["targets_in_training_samples"], 3) == 0.905
    assert round(found["near_copies"], 3) == 0.935


@pytest.mark.skipif(not (RAW / "ctr_alimama_sample").is_dir(), reason="HYDREC_DATA has no ctr_alimama_sample")
def test_the_alimama_sample_has_a_card_without_times(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = (
        "protocol.threshold=null protocol.cut=user protocol.window=50 protocol.valid=0.3 protocol.test=0.3"
    )
    line = f"inspect dataset=alimama protocol=click_rating {overrides}"
    assert command.main(line.split()) == 0
    (file,) = Path("cards").glob("alimama-click_rating-*/card.json")
    found = json.loads(file.read_text())
    assert (found["dataset"]["users"], found["dataset"]["interactions"]) == (230, 500)
    assert found["time"] is None and found["recency"] is None and len(found["inputs"]["context"]) == 14
