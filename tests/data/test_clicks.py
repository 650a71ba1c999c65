"""Showings are what a slow loop makes them; no negative that may not be, and every one that may."""

import os
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydrec.click_metrics import ClickMetrics
from hydrec.data.clicks import ClickDays, ClickGlobalTime, ClickLast, ClickRating, ClickSplit, ClickUserSplit
from hydrec.data.log import InteractionLog
from hydrec.errors import InputError

DAY = 86400
SHARED = {"window": 3, "shuffle_ties": None, "metrics": ClickMetrics(gauc="rows", bins=20)}
DRAWN = {"neg_ratio": 2, "neg": "uniform", "seed": 7}


def last(**changes) -> ClickLast:
    return ClickLast(**(SHARED | DRAWN | changes))


def user_split(**changes) -> ClickUserSplit:
    shares = {"valid": 0.2, "test": 0.2, "split_seed": 1}
    return ClickUserSplit(**(SHARED | DRAWN | shares | {"neg": "reviews"} | changes))


def global_time(**changes) -> ClickGlobalTime:
    return ClickGlobalTime(**(SHARED | DRAWN | {"valid": 0.1, "test": 0.1} | changes))


def rating(**changes) -> ClickRating:
    own = {"threshold": 4.0, "cut": "time", "valid": 0.1, "test": 0.1, "split_seed": 1}
    return ClickRating(**(SHARED | own | changes))


def days(**changes) -> ClickDays:
    return ClickDays(**(SHARED | {"threshold": None, "valid": 1, "test": 1} | changes))


def random_log(seed: int, *, users: int = 12, most: int = 12, items: int = 30, **more) -> InteractionLog:
    """Events with ties and repeats; items of three categories and some of none."""
    draw = np.random.default_rng(seed)
    user = draw.permutation(np.repeat(np.arange(100, 100 + users), draw.integers(1, most, users)))
    n = len(user)
    if "labels" in more:
        more["labels"] = draw.integers(0, 2, n)
    kinds = [[["b", "c"], ["c"], ["a"], []][item % 4] for item in range(items)]
    return InteractionLog.build(
        name="toy",
        users=user,
        items=draw.integers(0, items, n),
        times=draw.integers(0, 40, n) * more.pop("step", 1),
        values=draw.integers(1, 6, n).astype(float),
        item_features={"genres": (np.arange(items), kinds)},
        **more,
    )


def rows_of(log: InteractionLog, user: int) -> list[int]:
    return list(range(log.offsets[user], log.offsets[user + 1]))


def shown(split: ClickSplit, part: str) -> list[tuple]:
    """(row, item, label, history as items) of each sample, as a loop reads them."""
    some, past = split.parts()[part], split.behaviours.items
    return [
        (int(row), int(item), int(label), past[first:last].tolist())
        for first, last, item, label, row in zip(
            some.first, some.last, some.item, some.label, some.row, strict=True
        )
    ]


def positives(split: ClickSplit, part: str) -> list[int]:
    rows = [row for row, _, label, _ in shown(split, part) if label]
    assert rows == sorted(set(rows)), "a positive comes once, in the log's order"
    return rows


def check_samples(log: InteractionLog, split: ClickSplit, window: int) -> None:
    """Histories are the user's last events; labels, items and order of a positive and its negatives."""
    for part in split.parts():
        before = None
        for row, item, label, history in shown(split, part):
            rows = [other for other in rows_of(log, log.users[row]) if other < row][-window:]
            assert history == log.items[rows].tolist()
            assert label == (item == log.items[row])
            assert (label == 1) == (row != before), "negatives follow their positive"
            before = row


def may_be_drawn(log: InteractionLog, row: int, kind: str, only_seen: bool) -> set[int]:
    """The items that may be a negative of a row's positive."""
    now, user = log.times[row], log.users[row]
    seen = {
        item for item, time in zip(log.items.tolist(), log.times, strict=True) if time < now or not only_seen
    }
    mine = {int(log.items[r]) for r in rows_of(log, user) if not only_seen or log.times[r] <= now}
    if kind == "reviews":
        return seen - {int(log.items[row])}
    if kind == "uniform":
        return seen - mine
    category = {
        item: log.item_features["genres"].codes[log.item_features["genres"].offsets[item]] for item in seen
    }
    genres = log.item_features["genres"]
    same = {i for i in seen - mine if category[i] == genres.codes[genres.offsets[log.items[row]]]}
    return same or seen - mine


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["uniform", "same_category", "reviews"])
@pytest.mark.parametrize("protocol", [last, global_time])
def test_negatives_are_allowed_distinct_and_as_many_as_there_are(protocol, kind, seed):
    log = random_log(seed)
    chosen = protocol(neg=kind)
    split = chosen(log)
    check_samples(log, split, 3)
    lacking = 0
    for part in split.parts():
        drawn: dict[int, list[int]] = {row: [] for row in positives(split, part)}
        for row, item, label, _ in shown(split, part):
            if not label:
                drawn[row].append(item)
        for row, items in drawn.items():
            assert len(set(items)) == len(items)
            allowed = may_be_drawn(log, row, kind, chosen.only_seen)
            if kind == "same_category":  # what the category lacks, all items give
                everything = may_be_drawn(log, row, "uniform", chosen.only_seen)
                assert set(items) <= everything
                assert set(items) <= allowed or allowed < set(items) or allowed == everything
                allowed = everything
            assert set(items) <= allowed
            assert len(items) == min(2, len(allowed))
            lacking += 2 - len(items)
    assert split.notes["negatives_lacking"] == lacking


@pytest.mark.parametrize(("kind", "few"), [("uniform", False), ("reviews", False), ("uniform", True)])
def test_negatives_are_drawn_evenly(kind, few):
    """Uniformly over the items that are free, or over the events; also where nearly nothing is free."""
    items = [0, 1, 2, 3, 4] if not few else [*range(60), 0, 1]
    log = InteractionLog.build(
        name="toy",
        users=[1] * len(items) + [2] * 60 + [3, 3],
        items=[*items, *(list(range(60)) if few else [5, 6, 7] * 20), 60, 61],
        times=np.arange(len(items) + 62),
    )
    counts: Counter = Counter()
    draws = 50 if few else 150
    for seed in range(draws):
        split = last(neg=kind, neg_ratio=1, seed=seed)(log)
        counts.update(
            item for row, item, label, _ in shown(split, "test") if not label and row == len(items) - 1
        )
    weight = Counter(log.items.tolist()) if kind == "reviews" else Counter(set(log.items.tolist()))
    taken = set(log.items[: len(items)].tolist()) if kind == "uniform" else {int(log.items[len(items) - 1])}
    expected = {item: weight[item] for item in weight if item not in taken}
    assert set(counts) == set(expected)
    total = sum(expected.values())
    for item, share in expected.items():
        mean = draws * share / total
        assert abs(counts[item] - mean) < 5 * np.sqrt(mean)


def test_a_negative_depends_on_its_row_alone():
    log = random_log(3, users=40)
    whole = {row: item for row, item, label, _ in shown(last(neg_ratio=1)(log), "train") if not label}
    other = {row: item for row, item, label, _ in shown(global_time(neg_ratio=1)(log), "train") if not label}
    assert whole and other  # another rule, other items
    again = {
        row: item for row, item, label, _ in shown(last(neg_ratio=1, window=5)(log), "train") if not label
    }
    more = [(row, item) for row, item, label, _ in shown(last(neg_ratio=3)(log), "train") if not label]
    assert again == whole
    assert {row: item for row, item in reversed(more)} == whole  # the first of three
    assert {r: i for r, i, y, _ in shown(last(neg_ratio=1, seed=8)(log), "train") if not y} != whole


@pytest.mark.parametrize("seed", range(4))
def test_the_last_event_is_tested(seed):
    log = random_log(seed)
    split = last()(log)
    parts: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for user in range(1, log.n_users + 1):
        rows = rows_of(log, user)
        if len(rows) >= 2:
            parts["test"].append(rows[-1])
        if len(rows) >= 3:
            parts["valid"].append(rows[-2])
        parts["train"] += rows[1:-2]
    assert {part: positives(split, part) for part in parts} == parts
    assert split.notes["users_too_short"] == sum(len(rows_of(log, user)) == 1 for user in range(1, 13))


def test_users_are_divided():
    log = random_log(0, users=50)
    split = user_split()(log)
    check_samples(log, split, 3)
    rows = {part: positives(split, part) for part in split.parts()}
    everyone = [rows_of(log, user)[-1] for user in range(1, 51) if len(rows_of(log, user)) > 1]
    assert sorted(chain(*rows.values())) == everyone
    assert len(rows["test"]) == len(everyone) // 5
    assert len(rows["valid"]) == (len(everyone) - len(rows["test"])) // 5
    assert positives(user_split(split_seed=2)(log), "test") != rows["test"]
    assert positives(user_split(seed=2)(log), "test") == rows["test"]


@pytest.mark.parametrize("seed", range(4))
def test_time_cuts_all_users(seed):
    log = random_log(seed)
    split = global_time()(log)
    n = len(log)
    cuts = [np.sort(log.times)[n - n * late // 10] for late in (2, 1)]
    for number, part in enumerate(split.parts()):
        expected = [
            row
            for row in range(n)
            if row != log.offsets[log.users[row]] and sum(log.times[row] >= cut for cut in cuts) == number
        ]
        assert positives(split, part) == expected


def test_nothing_later_changes_a_sample_of_global_time():
    log = random_log(5, users=30)
    split = global_time()(log)
    cut = log.times[split.test.row].min()
    early = log.times < cut
    short = InteractionLog.build(
        name="toy",
        users=log.user_ids[log.users[early]],
        items=log.item_ids[log.items[early]],
        times=log.times[early],
    )

    def raw(log: InteractionLog, split: ClickSplit, parts: tuple[str, ...]) -> set[tuple]:
        return {
            (log.user_ids[log.users[row]], int(log.times[row]), log.item_ids[item], label)
            for part in parts
            for row, item, label, _ in shown(split, part)
            if log.times[row] < cut and label
        }

    assert raw(log, split, ("train", "valid")) == raw(short, global_time()(short), ("train", "valid", "test"))
    drawn = [(row, item) for part in ("train", "valid") for row, item, y, _ in shown(split, part) if not y]
    assert all(any(log.items[:][log.times < log.times[row]] == item) for row, item in drawn)


@pytest.mark.parametrize("cut", ["time", "user"])
def test_ratings_are_labels(cut):
    log = random_log(1, users=30)
    split = rating(cut=cut)(log)
    everything = sorted(chain(*(shown(split, part) for part in split.parts())))
    assert [row for row, *_ in everything] == list(range(len(log)))
    for row, item, label, history in everything:
        liked = [r for r in rows_of(log, log.users[row]) if r < row and log.values[r] >= 4]
        assert (item, label) == (log.items[row], log.values[row] >= 4)
        assert history == log.items[liked[-3:]].tolist()
    users = [set(log.users[split.parts()[part].row].tolist()) for part in split.parts()]
    times = [log.times[split.parts()[part].row] for part in split.parts()]
    if cut == "user":
        assert sum(map(len, users)) == len(set.union(*users)) == 30
    else:
        assert times[0].max() < times[1].min() and times[1].max() < times[2].min()


def test_days_predict_the_last_one():
    log = random_log(2, users=30, labels=True, step=DAY // 4)
    split = days(test=2)(log)
    newest = log.times.max() // DAY
    for number, part in enumerate(split.parts()):
        for row, item, label, history in shown(split, part):
            day = log.times[row] // DAY
            assert number == (2 if day > newest - 2 else 1 if day > newest - 3 else 0)
            before = [r for r in rows_of(log, log.users[row]) if log.times[r] // DAY < day and log.labels[r]]
            assert (item, label) == (log.items[row], log.labels[row])
            assert history == log.items[before[-3:]].tolist()
    assert sum(map(len, split.parts().values())) == len(log)
    assert split.notes == {"days": len(set((log.times // DAY).tolist()))}


def test_rows_may_bring_their_history():
    log = InteractionLog.build(
        name="toy",
        users=[1, 1, 2, 3],
        items=["a", "b", "a", "c"],
        times=[0, DAY, 2 * DAY, 0],
        labels=[0, 1, 1, 0],
        past=(["x", "b", "a", "c", "x"], [0, 4, 1, 0]),
    )
    split = days().split(log)
    everything = sorted(chain(*(shown(split, part) for part in split.parts())))
    named = [[log.item_ids[item] for item in history] for *_, history in everything]
    assert named == [[], ["b", "a", "c"], ["x"], []]


BAD = [
    (last(), {"labels": True}, "protocol=click_last: the rows of toy have labels"),
    (rating(), {"labels": True}, "protocol.threshold=4.0: the rows of toy have labels; set it to null"),
    (rating(threshold=None), {}, "protocol.threshold=null: the rows of toy have no labels"),
    (days(test=30), {"labels": True}, "protocol=click_days leaves no sample in train"),
    (user_split(valid=0.01), {}, "protocol=click_user_split leaves no sample in valid"),
]


@pytest.mark.parametrize(("protocol", "log", "message"), BAD)
def test_logs_that_do_not_fit_are_refused(protocol, log, message):
    with pytest.raises(InputError) as caught:
        protocol(random_log(0, **log))
    assert str(caught.value).startswith(message)


def test_a_part_of_one_label_is_refused_before_anything_is_trained():
    log = InteractionLog.build(
        name="toy", users=[1, 1, 2, 3], items=[1, 2, 1, 3], times=[0, DAY, 2 * DAY, 0], labels=[0, 1, 1, 0]
    )
    with pytest.raises(InputError, match="the labels of all 1 samples of valid are 1, and AUC compares both"):
        days()(log)


def test_what_needs_times_or_values_or_categories_says_so():
    order = InteractionLog.build(name="order", users=[1, 1, 1, 1, 2, 2, 2], items=[1, 2, 3, 5, 3, 2, 4])
    for protocol in (global_time(), rating(), days()):
        with pytest.raises(InputError, match=r"no (times|labels|value)"):
            protocol(order)
    with pytest.raises(InputError, match="a cut in time: order has no times, only each user's order"):
        global_time()(order)
    with pytest.raises(InputError, match="7 rows of order have no value"):
        rating(cut="user")(order)
    with pytest.raises(InputError, match="items of order have no feature category or categories or genres"):
        last(neg="same_category")(order)
    assert len(last()(order).test) > 0


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: last(window=0), "protocol.window=0"),
        (lambda: last(neg_ratio=0), "protocol.neg_ratio=0"),
        (lambda: last(neg="any"), "protocol.neg=any"),
        (lambda: last(seed=-1), "protocol.seed=-1"),
        (lambda: last(shuffle_ties=-1), "protocol.shuffle_ties=-1"),
        (lambda: user_split(test=1.0), "protocol.test=1.0"),
        (lambda: global_time(valid=0.5, test=0.5), "protocol.valid=0.5 and protocol.test=0.5 leave nothing"),
        (lambda: rating(cut="day"), "protocol.cut=day"),
        (lambda: days(test=0), "protocol.test=0"),
    ],
)
def test_bad_options_name_their_key(make, key):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(key)


def test_every_option_is_part_of_the_identity():
    made = [
        last(),
        last(window=4),
        last(neg_ratio=1),
        last(neg="reviews"),
        last(seed=8),
        last(shuffle_ties=1),
    ]
    made += [
        last(metrics=ClickMetrics(gauc="uniform", bins=20)),
        last(metrics=ClickMetrics(gauc="rows", bins=5)),
    ]
    made += [user_split(), user_split(split_seed=2), user_split(valid=0.3), user_split(test=0.3)]
    made += [global_time(), global_time(valid=0.2), global_time(test=0.2), rating(), rating(threshold=3.0)]
    made += [rating(valid=0.2), rating(cut="user"), rating(cut="user", split_seed=2), days(), days(valid=2)]
    made += [days(test=2), days(threshold=1.0)]
    assert len({str(each.identity()) for each in made}) == len(made)
    assert rating(split_seed=2).identity() == rating().identity()  # not read


def test_configurations_make_their_protocols():
    paths = sorted((Path(__file__).parents[2] / "conf" / "protocol").glob("click_*.yaml"))
    made = [instantiate(OmegaConf.load(path), _convert_="all") for path in paths]
    assert [each.name for each in made] == [path.stem for path in paths]
    assert {each.window for each in made} == {30}


def test_ties_may_be_shuffled():
    log = random_log(4, users=30)
    split = last(shuffle_ties=1)(log)
    check_samples(split.log, split, 3)
    assert split.log.times.tolist() == log.times.tolist()
    assert split.log.items.tolist() != log.items.tolist()


DATA = os.environ.get("HYDREC_DATA")


@pytest.mark.skipif(not DATA, reason="needs the public data")
def test_real_instruments():
    from hydrec.data.amazon import Amazon

    reader = Amazon(
        name="i",
        folder="amazon_2014_5core",
        root="data",
        edition=2014,
        category="Musical_Instruments",
        k_core=0,
        duplicates="keep",
    )
    log = reader()
    split = last(neg_ratio=1, window=30)(log)
    # 10,261 reviews of 1,429 users: DIN trains on 2 (reviews - 2 users) rows, of which some validate here
    assert len(split.train) + len(split.valid) == 2 * (10261 - 2 * 1429)
    assert len(split.test) == 2 * 1429
