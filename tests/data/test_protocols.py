"""Parts are what a slow loop makes them, disjoint, and free of each other's targets; counts on real data."""

import functools
import gzip
import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hydrec.data.log import InteractionLog
from hydrec.data.protocols import (
    GlobalTime,
    Latest,
    LeaveOneOut,
    ReleasedWindows,
    Samples,
    SlidingWindow,
    Split,
    joined,
    ragged,
)
from hydrec.data.protocols import touched as touched_rows
from hydrec.errors import InputError
from hydrec.metrics import RankMetrics

SAMPLED = {"count": 5, "exponent": 0.0, "exclude": "user", "replace": False, "seed": 63}
SHARED = {
    "candidates": "full",
    "mask_history": False,
    "cold": "keep",
    "shuffle_ties": None,
    "sampled": SAMPLED,
    "metrics": RankMetrics(at=[5, 10], ties="expected"),
}


def sliding(**changes) -> SlidingWindow:
    given = {"window": 2, "stride": 3, "scope": "global", "valid": 0.1, "test": 0.1}
    return SlidingWindow(**(SHARED | given | changes))


def released(**changes) -> ReleasedWindows:
    given = {
        "window": 2,
        "seed": 63,
        "valid": 0.1,
        "test": 0.1,
        "order": "numeric",
        "validation_in_train": False,
    }
    return ReleasedWindows(**(SHARED | given | changes))


def leave_one_out(**changes) -> LeaveOneOut:
    return LeaveOneOut(**(SHARED | {"window": 2} | changes))


def global_time(**changes) -> GlobalTime:
    return GlobalTime(**(SHARED | {"window": 2, "valid": 0.1, "test": 0.1, "targets": "first"} | changes))


def random_log(seed: int, *, ties: bool, users: int = 9, most: int = 40) -> InteractionLog:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, most, users)
    user = draw.permutation(np.repeat(np.arange(100, 100 + users), sizes))
    times = draw.integers(0, 60, len(user)) if ties else draw.permutation(len(user))
    return InteractionLog.build(name="toy", users=user, items=draw.integers(1, 15, len(user)), times=times)


def histories(log: InteractionLog) -> list[list[int]]:
    """The rows of each user, one user after the other."""
    rows: dict[int, list[int]] = {}
    for row, user in enumerate(log.users.tolist()):
        rows.setdefault(user, []).append(row)
    return [rows[user] for user in sorted(rows)]


def triples(samples: Samples) -> list[tuple[int, int, int]]:
    return list(zip(samples.first.tolist(), samples.last.tolist(), samples.target.tolist(), strict=True))


def parts(split: Split) -> dict[str, list[tuple[int, int, int]]]:
    return {name: triples(part) for name, part in split.parts().items()}


def touched(part: list[tuple[int, int, int]]) -> set[int]:
    return {row for first, last, target in part for row in (*range(first, last), target)}


# Sliding windows --------------------------------------------------------------------------------------------


def slow_cut(found, times, tenths):
    """Divides windows at the time of the first of the last ``tenths``; ties at the cut go late."""
    found = sorted(found, key=lambda sample: times[sample[2]])
    if not tenths:
        return found, []
    cut = times[found[-tenths][2]]
    return [s for s in found if times[s[2]] < cut], [s for s in found if times[s[2]] >= cut]


def slow_sliding(log, window, stride, scope):
    times, groups = log.times.tolist(), []
    for rows in histories(log):
        starts = range(0, len(rows) - window, stride)
        groups.append([(rows[k], rows[k] + window, rows[k + window]) for k in starts])
    if scope == "global":
        groups = [[sample for group in groups for sample in group]]
    out = {"train": [], "valid": [], "test": []}
    for group in groups:
        if scope == "user" and len(group) < 3:
            out["train"] += group
            continue
        tested = len(group) // 10 if scope == "global" else max(1, len(group) // 10)
        rest, test = slow_cut(group, times, tested)
        validated = len(rest) // 10 if scope == "global" else max(1, len(rest) // 10) * (len(rest) >= 2)
        train, valid = slow_cut(rest, times, validated)
        out["train"] += train
        out["valid"] += valid
        out["test"] += test
    return {name: sorted(part, key=lambda sample: sample[2]) for name, part in out.items()}


@pytest.mark.parametrize(
    ("stride", "scope", "ties"), list(product([1, 3, 4], ["global", "user"], [False, True]))
)
@pytest.mark.parametrize("seed", range(4))
def test_sliding_windows_equal_a_slow_loop(seed, stride, scope, ties):
    log = random_log(seed, ties=ties)
    split = sliding(stride=stride, scope=scope)(log)
    assert parts(split) == slow_sliding(log, 2, stride, scope)
    assert split.windows == sum(map(len, split.parts().values()))
    assert split.notes == {"users_too_short": sum(len(rows) < 3 for rows in histories(log))}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from(["global", "user"]), st.booleans())
def test_sliding_parts_are_disjoint_and_ordered_in_time(seed, stride, scope, ties):
    log = random_log(seed, ties=ties)
    split = sliding(stride=stride, scope=scope)(log)
    found = parts(split)
    targets = {name: {sample[2] for sample in part} for name, part in found.items()}
    assert not (targets["train"] & targets["valid"] | (targets["train"] | targets["valid"]) & targets["test"])
    assert not touched(found["train"]) & (targets["valid"] | targets["test"])
    assert not touched(found["valid"]) & targets["test"]
    for early, late in (("train", "valid"), ("valid", "test"), ("train", "test")):
        for user in {0} if scope == "global" else set(log.users.tolist()):
            rows = [{r for r in targets[name] if user in (0, log.users[r])} for name in (early, late)]
            if all(rows):
                assert max(log.times[list(rows[0])]) < min(log.times[list(rows[1])])
    if stride == 3:
        every = [touched([sample]) for part in found.values() for sample in part]
        assert sum(map(len, every)) == len(set.union(*every))


@pytest.mark.parametrize("protocol", [sliding(), sliding(scope="user"), sliding(stride=1), leave_one_out()])
def test_order_of_the_raw_rows_changes_nothing(protocol):
    draw = np.random.default_rng(0)
    users, items, times = draw.integers(1, 9, 300), draw.integers(1, 20, 300), draw.permutation(300)

    def split(order):
        log = InteractionLog.build(name="toy", users=users[order], items=items[order], times=times[order])
        return log, parts(protocol(log))

    (log, found), (other, again) = split(np.arange(300)), split(draw.permutation(300))
    assert (
        found == again and np.array_equal(log.times, other.times) and np.array_equal(log.items, other.items)
    )


# Leave-one-out ----------------------------------------------------------------------------------------------


def slow_leave_one_out(log, window):
    out = {"train": [], "valid": [], "test": []}
    for rows in histories(log):
        for k in range(1, len(rows)):
            sample = (rows[max(0, k - window)], rows[k], rows[k])
            left = len(rows) - 1 - k
            part = "train" if len(rows) < 3 or left > 1 else ("test", "valid")[left]
            out[part].append(sample)
    return out


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_leave_one_out_equals_a_slow_loop(seed, window):
    log = random_log(seed, ties=True, users=20, most=8)
    split = leave_one_out(window=window)(log)
    found = parts(split)
    assert found == slow_leave_one_out(log, window)
    assert not touched(found["train"]) & {sample[2] for sample in found["valid"] + found["test"]}
    lengths = [len(rows) for rows in histories(log)]
    assert split.notes == {"users_too_short": lengths.count(1), "users_only_training": lengths.count(2)}


# Global time ------------------------------------------------------------------------------------------------


def slow_global_time(log, window, targets, valid, test):
    """Counts in tenths: the last ``test`` of ten events are tested, ties at the cut go late."""
    ordered = sorted(log.times.tolist())
    cuts = [
        ordered[n - n * late // 10] if n * late // 10 else 10**18
        for late in (valid + test, test)
        for n in [len(log)]
    ]
    out, without = {"train": [], "valid": [], "test": []}, 0
    for rows in histories(log):
        parts_of = [sum(log.times[row] >= cut for cut in cuts) for row in rows]
        for k, (row, part) in enumerate(zip(rows, parts_of, strict=True)):
            peers = [j for j, other in enumerate(parts_of) if other == part]
            if part and targets != "all" and k != {"first": peers[0], "last": peers[-1]}[targets]:
                continue
            if k == 0:
                without += 1
            else:
                out[("train", "valid", "test")[part]].append((rows[max(0, k - window)], row, row))
    return out, without


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(1, 6),
    st.sampled_from(["first", "all", "last"]),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_global_time_equals_a_slow_loop(seed, window, targets, ties, valid, test):
    log = random_log(seed, ties=ties, users=20, most=8)
    split = global_time(window=window, targets=targets, valid=valid / 10, test=test / 10).split(log)
    expected, without = slow_global_time(log, window, targets, valid, test)
    assert parts(split) == expected
    assert split.notes == {"targets_without_history": without}
    latest = [max((log.times[t] for _, _, t in part), default=-1) for part in expected.values()]
    earliest = [min((log.times[t] for _, _, t in part), default=10**18) for part in expected.values()]
    assert latest[0] < earliest[1] and latest[1] < earliest[2]


# Rules of all protocols -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sliding, global_time, leave_one_out])
def test_dropping_cold_targets_leaves_those_whose_item_trains(make):
    log = random_log(3, ties=True, users=30, most=12)
    # items of few users: some are cold
    log = InteractionLog.build(
        name="toy", users=log.users, items=log.items * 7 % 60 + log.users, times=log.times
    )
    kept, dropped = make().split(log), make(cold="drop")(log)
    warm = {int(log.items[row]) for row in touched(parts(kept)["train"])}
    for name in ("valid", "test"):
        expected = [sample for sample in parts(kept)[name] if int(log.items[sample[2]]) in warm]
        assert parts(dropped)[name] == expected
        gone = len(parts(kept)[name]) - len(expected)
        assert dropped.notes[f"{name}_cold"] == gone
    assert dropped.notes["valid_cold"] + dropped.notes["test_cold"] > 0
    assert parts(dropped)["train"] == parts(kept)["train"]


@pytest.mark.parametrize("make", [sliding, global_time, leave_one_out, released])
def test_shuffled_ties_change_the_order_of_equal_times_only(make):
    log = random_log(5, ties=True, users=20, most=40)
    shuffled, again, other = (make(shuffle_ties=seed)(log).log for seed in (1, 1, 2))
    kept = make()(log).log
    events = [list(zip(x.users, x.times, x.items, strict=True)) for x in (shuffled, kept)]
    if make is not released:  # which takes a user's first events
        assert sorted(events[0]) == sorted(events[1])
    assert (shuffled.times == kept.times).all() and (shuffled.users == kept.users).all()
    assert (shuffled.items == again.items).all()
    assert len({x.items.tobytes() for x in (kept, shuffled, other)}) == 3
    distinct = np.arange(len(log), dtype=np.int64)
    untied = InteractionLog.build(name="toy", users=log.users, items=log.items, times=distinct)
    assert (make(shuffle_ties=1)(untied).log.items == make()(untied).log.items).all()


# Released windows -------------------------------------------------------------------------------------------


def slow_released(log, order, in_train):
    """Windows and split as the released script makes them, on (user, time) events."""
    windows = []
    for rows in histories(log):
        events = [(int(log.times[row]), row) for row in rows]
        events.sort(key=lambda event: str(event[0]) if order == "string" else event[0])
        windows += [events[start : start + 3] for start in range(len(events) // 3)]
    np.random.seed(63)
    windows = [windows[k] for k in np.random.permutation(len(windows))]
    tested = len(windows) // 10
    validated = (len(windows) - tested) // 10
    test, valid, train = windows[:tested], windows[tested : tested + validated], windows[tested + validated :]
    return {"train": train + valid * in_train, "valid": valid, "test": test}


def long_log(seed: int) -> InteractionLog:
    """Users with and without a window, times of nine digits and ten, an item of its own for most events."""
    draw = np.random.default_rng(seed)
    users = np.concatenate([draw.integers(1, 9, 400), [20, 21, 21]])
    times = 999_999_900 + draw.integers(0, 200, 403)
    items = draw.integers(1, 300, 403)
    return InteractionLog.build(
        name="toy",
        users=users,
        items=items,
        times=times,
        item_titles=(np.arange(1, 300), [f"title {k}" for k in range(1, 300)]),
        item_features={"tags": (np.arange(1, 300), [[f"t{k}", f"u{k}"][: k % 3] for k in range(1, 300)])},
        event_features={"tag": times.astype(str)},
    )


def words(feature, row: int) -> list[str]:
    codes = feature.codes[feature.offsets[row] : feature.offsets[row + 1]]
    return [["PAD", "unknown", *feature.vocabulary][code] for code in codes]


@pytest.mark.parametrize(("order", "in_train"), [("numeric", False), ("string", False), ("numeric", True)])
@pytest.mark.parametrize("seed", range(3))
def test_released_windows_equal_the_released_script(seed, order, in_train):
    log = long_log(seed)
    split = released(order=order, validation_in_train=in_train)(log)
    assert split.notes == {"users_too_short": 2}

    def window(of, rows):
        return of.user_ids[of.users[rows[0]]], [
            (int(of.times[row]), of.item_ids[of.items[row]]) for row in rows
        ]

    for name, windows in slow_released(log, order, in_train).items():
        found = [window(split.log, range(first, target + 1)) for first, _, target in parts(split)[name]]
        assert sorted(found) == sorted(window(log, [row for _, row in events]) for events in windows)
        assert all(last == target for _, last, target in parts(split)[name])


@pytest.mark.parametrize("order", ["numeric", "string"])
def test_released_windows_have_a_catalogue_of_their_own(order):
    log = long_log(0)
    split = released(order=order)(log)
    mine = split.log
    assert sorted(set.union(*(touched(part) for part in parts(split).values()))) == list(range(len(mine)))
    assert sorted(set(mine.items.tolist())) == list(range(1, mine.n_items + 1)) and mine.n_items < log.n_items
    assert mine.n_users == log.n_users and np.array_equal(mine.user_ids, log.user_ids)
    for user in range(1, mine.n_users + 1):
        assert set(mine.users[mine.offsets[user] : mine.offsets[user + 1]].tolist()) <= {user}
    old = {raw: item for item, raw in enumerate(log.item_ids)}
    for item, raw in enumerate(mine.item_ids):
        assert mine.item_titles[item] == log.item_titles[old[raw]]
        assert words(mine.item_features["tags"], item) == words(log.item_features["tags"], old[raw])
    for row, time in enumerate(mine.times):
        assert words(mine.event_features["tag"], row) == [str(time)]


def test_released_windows_are_labelled():
    assert (released().label, sliding().label, leave_one_out().label) == ("leaky", "", "")


# Settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (sliding, {"scope": "globl"}, r"protocol\.scope=globl .*did you mean global"),
        (sliding, {"candidates": "smapled"}, r"protocol\.candidates=smapled .*did you mean sampled"),
        (sliding, {"window": 0}, r"protocol\.window=0"),
        (sliding, {"window": "12"}, r"protocol\.window=12"),
        (sliding, {"stride": 1.5}, r"protocol\.stride=1\.5"),
        (sliding, {"valid": 0}, r"protocol\.valid=0"),
        (sliding, {"test": 1.0}, r"protocol\.test=1\.0"),
        (sliding, {"test": "a tenth"}, r"protocol\.test=a tenth"),
        (sliding, {"mask_history": "yes"}, r"protocol\.mask_history=yes"),
        (released, {"order": "lexical"}, r"protocol\.order=lexical .*numeric, string"),
        (released, {"seed": -1}, r"protocol\.seed=-1"),
        (released, {"validation_in_train": 1}, r"protocol\.validation_in_train=1"),
        (global_time, {"targets": "frist"}, r"protocol\.targets=frist .*did you mean first"),
        (global_time, {"valid": 0.5, "test": 0.5}, r"protocol\.valid=0\.5 .*nothing to train on"),
        (global_time, {"cold": "dorp"}, r"protocol\.cold=dorp .*did you mean drop"),
        (sliding, {"shuffle_ties": -1}, r"protocol\.shuffle_ties=-1"),
        (leave_one_out, {"candidates": "all"}, r"protocol\.candidates=all .*full, sampled"),
    ],
)
def test_wrong_values_name_the_key(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclude": "usr"}, r"protocol\.sampled\.exclude=usr .*did you mean user"),
        ({"count": 0}, r"protocol\.sampled\.count=0"),
        ({"replace": "no"}, r"protocol\.sampled\.replace=no"),
        ({"seed": None}, r"protocol\.sampled\.seed=None"),
        ({"cuont": 3}, r"protocol\.sampled=cuont .*did you mean count"),
    ],
)
def test_wrong_list_rules_name_the_key_and_matter_only_where_they_are_read(changes, message):
    with pytest.raises(InputError, match=message):
        sliding(candidates="sampled", sampled=SAMPLED | changes)
    assert sliding(candidates="full", sampled=SAMPLED | changes).lists is None


def test_a_missing_list_setting_is_named():
    with pytest.raises(InputError, match=r"protocol\.sampled\.seed"):
        sliding(candidates="sampled", sampled={k: v for k, v in SAMPLED.items() if k != "seed"})


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (sliding(window=50), r"2 users give 0 samples .*protocol\.window below 50"),
        (released(window=50), r"2 users give 0 samples .*protocol\.window below 50"),
        (leave_one_out(), r"no sample in valid and test: 2 users give 2 samples .*protocol=leave_one_out"),
    ],
)
def test_an_empty_part_says_what_there_was(protocol, message):
    users = [1, 1, 2, 2]
    log = InteractionLog.build(name="toy", users=users, items=[1, 2, 3, 4], times=[1, 2, 3, 4])
    with pytest.raises(InputError, match=message):
        protocol(log)


def test_identity_is_plain_and_tells_every_setting_apart():
    protocols = [
        sliding(),
        sliding(window=3),
        sliding(stride=1),
        sliding(scope="user"),
        sliding(valid=0.2),
        sliding(test=0.2),
        sliding(mask_history=True),
        sliding(metrics=RankMetrics(at=[5], ties="expected")),
        sliding(metrics=RankMetrics(at=[5, 10], ties="optimistic")),
        sliding(candidates="sampled"),
        *(
            sliding(candidates="sampled", sampled=SAMPLED | change)
            for change in (
                {"count": 6},
                {"exponent": 1.0},
                {"exclude": "train"},
                {"replace": True},
                {"seed": 1},
            )
        ),
        released(),
        released(seed=1),
        released(order="string"),
        released(validation_in_train=True),
        released(valid=0.2),
        released(test=0.2),
        leave_one_out(),
        leave_one_out(window=5),
        leave_one_out(cold="drop"),
        leave_one_out(shuffle_ties=0),
        leave_one_out(shuffle_ties=1),
        global_time(),
        global_time(valid=0.2),
        global_time(test=0.2),
        global_time(targets="all"),
        global_time(targets="last"),
    ]
    identities = [json.dumps(protocol.identity(), sort_keys=True) for protocol in protocols]
    assert len(set(identities)) == len(protocols)
    assert json.dumps(sliding(sampled=SAMPLED | {"count": 9}).identity(), sort_keys=True) == identities[0]


def test_configurations_make_their_protocols():
    folder = Path(__file__).parents[2] / "conf" / "protocol"
    for path in sorted(folder.glob("*.yaml")):
        if path.stem.startswith("click_"):
            continue
        protocol = instantiate(OmegaConf.load(path), _convert_="all")
        assert protocol.name == path.stem and protocol.window == 12 and protocol.metrics.at == (5, 10, 20)
        OmegaConf.update(config := OmegaConf.load(path), "candidates", "sampled")
        assert instantiate(config, _convert_="all").lists.seed == 63
        assert path.read_text().startswith("# ")


def test_ragged_counts_rows():
    owner, place = ragged(np.array([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2] and place.tolist() == [0, 1, 0, 1, 2]


# Real data --------------------------------------------------------------------------------------------------


@functools.cache
def movielens(folder: str) -> InteractionLog:
    path = Path(os.environ.get("HYDREC_DATA", "nowhere")) / folder
    names = {"ml-100k": "u.data", "ml-1m": "ratings.dat"}
    file = next((f for f in (path / names[folder], path / f"{names[folder]}.gz") if f.exists()), None)
    if file is None:
        pytest.skip(f"no {folder} in HYDREC_DATA")
    text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode()
    columns = np.array(text.replace("::", " ").split(), np.int64).reshape(-1, 4).T
    return InteractionLog.build(name=folder, users=columns[0], items=columns[1], times=columns[3])


def rows_of(samples: Samples) -> np.ndarray:
    return np.unique(samples.first[:, None] + np.arange(13))


def distinct_items(split: Split) -> int:
    rows = np.concatenate([rows_of(part) for part in split.parts().values()])
    return len(np.unique(split.log.items[rows]))


@pytest.mark.parametrize(
    ("folder", "protocol", "windows", "items"),
    [
        ("ml-100k", released(window=12), 7_234, 1_029),
        ("ml-100k", sliding(window=12, stride=13), 7_234, 1_669),
        ("ml-100k", sliding(window=12, stride=1), 88_684, 1_682),
        ("ml-1m", released(window=12), 74_079, 3_388),
        ("ml-1m", released(window=12, order="string"), 74_079, 3_445),
        ("ml-1m", sliding(window=12, stride=13), 74_079, 3_702),
    ],
)
def test_published_counts_of_windows(folder, protocol, windows, items):
    split = protocol(movielens(folder))
    assert (split.windows, distinct_items(split)) == (windows, items)
    assert sum(map(len, split.parts().values())) == windows


@pytest.mark.parametrize(("folder", "unseen", "tested"), [("ml-100k", 612, 723), ("ml-1m", 1_628, 7_407)])
def test_test_rows_of_users_absent_from_training(folder, unseen, tested):
    log = movielens(folder)
    split = sliding(window=12, stride=13)(log)
    absent = ~np.isin(log.users[split.test.target], log.users[split.train.target])
    assert (int(absent.sum()), len(split.test)) == (unseen, tested)
    split = sliding(window=12, stride=13, scope="user")(log)
    assert np.isin(log.users[split.test.target], log.users[split.train.target]).all()


@pytest.mark.parametrize(("folder", "cold", "tested"), [("ml-100k", 3, 943), ("ml-1m", 2, 6_040)])
def test_cold_targets_of_leave_one_out(folder, cold, tested):
    log = movielens(folder)
    split = leave_one_out(window=12)(log)
    assert len(split.test) == len(split.valid) == tested
    train = np.setdiff1d(np.arange(len(log)), np.concatenate([split.test.target, split.valid.target]))
    assert int((~np.isin(log.items[split.test.target], log.items[train])).sum()) == cold


def test_global_time_on_one_million():
    log = movielens("ml-1m")
    split = global_time(window=12, targets="all")(log)
    late = [
        int((log.times >= log.times[split.parts()[name].target].min()).sum()) for name in ("valid", "test")
    ]
    assert late == pytest.approx([200_041, 100_020], abs=30)  # ties at a cut go late
    assert log.times[split.train.target].max() < log.times[split.valid.target].min()
    assert log.times[split.valid.target].max() < log.times[split.test.target].min()
    first = global_time(window=12, targets="first")(log)
    users = log.users[first.test.target]
    assert len(np.unique(users)) == len(users) < len(np.unique(log.users[split.test.target]))


@pytest.mark.parametrize(
    ("folder", "in_training", "shifted"), [("ml-100k", (0.835, 0.85), (0.91, 0.92)), ("ml-1m", 0.905, 0.935)]
)
def test_released_split_leaks_and_sliding_windows_do_not(folder, in_training, shifted):
    def leaks(split):
        """Shares of test targets that are rows of a training window, and of test windows next to one."""
        target = np.isin(split.test.target, rows_of(split.train)).mean()
        user = split.log.users
        near = [
            np.isin(split.test.first + by, split.train.first)
            & (user[(split.test.first + by).clip(max=len(user) - 1)] == user[split.test.target])
            for by in (-1, 1)
        ]
        return float(target), float((near[0] | near[1]).mean())

    log = movielens(folder)
    for found, expected in zip(leaks(released(window=12)(log)), (in_training, shifted), strict=True):
        low, high = expected if isinstance(expected, tuple) else (expected - 0.0005, expected + 0.0005)
        assert low <= found <= high
    assert leaks(sliding(window=12, stride=13)(log)) == (0, 0)
    assert leaks(sliding(window=12, stride=1)(log))[0] == 0


@given(st.integers(0, 1000), st.integers(1, 6), st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_samples_of_targets_alone_are_those_with_all_pointers(seed, window, share):
    log = random_log(seed, ties=True)
    draw = np.random.default_rng(seed)
    later = np.flatnonzero(log.users[1:] == log.users[:-1]) + 1
    target = later[draw.random(len(later)) <= share]
    some = Latest(log, target, window)
    begins = {user: int((log.users < user).sum()) for user in set(log.users.tolist())}
    first = np.array([max(row - window, begins[log.users[row]]) for row in target], np.int64)
    slow = Samples(first, target, target)
    assert some.first.tolist() == first.tolist() and some.last is some.target
    rows = draw.integers(0, max(1, len(target)), 5)[: len(target)]
    assert some[rows].first.tolist() == first[rows].tolist()
    within = [set(range(a, b)) for a, b in zip(first, target, strict=True)]
    pairs = set().union(*within)
    for each in (some, slow):
        assert set(np.flatnonzero(joined(each, len(log))).tolist()) == pairs
        assert set(np.flatnonzero(touched_rows(each, len(log))).tolist()) == pairs | set(target.tolist())
