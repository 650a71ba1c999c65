from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrec.data.log import Feature, InteractionLog
from hydrec.errors import InputError

events = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(0, 5)), min_size=1, max_size=60)


def build(rows, **options):
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    values = np.arange(len(rows), dtype=np.float32)  # the value says which raw row it was
    return InteractionLog.build(name="t", users=users, items=items, times=times, values=values, **options)


def raw(log):
    """The events of a log in raw ids."""
    return [
        (int(log.user_ids[u]), int(log.item_ids[i]), int(t), int(v))
        for u, i, t, v in zip(log.users, log.items, log.times, log.values, strict=True)
    ]


def slow_core(rows, k):
    while True:
        users, items = [r[0] for r in rows], [r[1] for r in rows]
        kept = [r for r in rows if users.count(r[0]) >= k and items.count(r[1]) >= k]
        if kept == rows:
            return rows
        rows = kept


def test_columns_of_a_log_made_by_hand():
    log = InteractionLog.build(name="t", users=[30, 4, 30, 4], items=["b", "a", "a", "c"], times=[9, 5, 5, 5])
    assert log.user_ids.tolist() == ["", "4", "30"]  # as numbers, 4 before 30
    assert log.item_ids.tolist() == ["", "a", "b", "c"]
    assert log.users.tolist() == [1, 1, 2, 2]
    assert log.items.tolist() == [1, 3, 1, 2]
    assert log.times.tolist() == [5, 5, 5, 9]
    assert log.offsets.tolist() == [0, 0, 2, 4]
    assert np.isnan(log.values).all()
    assert (log.users.dtype, log.items.dtype, log.times.dtype) == (np.int32, np.int32, np.int64)
    assert (log.values.dtype, log.offsets.dtype) == (np.float32, np.int64)
    assert (len(log), log.n_users, log.n_items, log.item_titles) == (4, 2, 3, None)
    assert log.tie_share == 1 / 4  # the third row has the time of the second, but another user


@given(events)
@settings(deadline=None)
def test_order_is_by_user_time_and_raw_row(rows):
    expected = sorted((u, t, row, i) for row, (u, i, t) in enumerate(rows))
    log = build(rows)
    assert raw(log) == [(u, i, t, row) for u, t, row, i in expected]
    for user in range(1, log.n_users + 1):
        assert set(log.users[log.offsets[user] : log.offsets[user + 1]]) == {user}
    assert log.offsets[-1] == len(log)


def test_ties_of_many_rows_stay_in_file_order():
    users, times = np.random.default_rng(0).integers(0, 3, (2, 50_000))
    log = InteractionLog.build(name="t", users=users, items=users, times=times, values=np.arange(50_000))
    assert np.array_equal(log.values, np.lexsort((times, users)))


@given(events, st.integers(0, 5))
@settings(deadline=None)
def test_k_core_is_the_fixed_point_of_dropping_rare_users_and_items(rows, k):
    left = slow_core([(*row, n) for n, row in enumerate(rows)], k)
    if not left:
        with pytest.raises(InputError, match=rf"dataset\.reader\.k_core={k}: nothing is left of t's .*lower"):
            build(rows, k_core=k)
        return
    log = build(rows, k_core=k)
    assert sorted(raw(log)) == sorted(left)
    assert (
        min(np.bincount(log.users)[1:].min(), np.bincount(log.items)[1:].min()) >= k
    )  # and ids have no gaps


@given(events, st.randoms())
@settings(deadline=None)
def test_ids_do_not_depend_on_the_order_of_the_rows(rows, random):
    log, other = build(rows), build(random.sample(rows, len(rows)))
    assert log.user_ids.tolist() == other.user_ids.tolist()
    assert log.item_ids.tolist() == other.item_ids.tolist()
    assert log.users.tolist() == other.users.tolist()
    assert sorted(log.items.tolist()) == sorted(other.items.tolist())


@given(events, st.randoms(), st.sampled_from(["keep", "first", "last"]), st.integers(0, 2))
@settings(deadline=None)
def test_shuffled_rows_give_the_same_log_where_times_are_distinct(rows, random, duplicates, k_core):
    distinct = [(u, i, n) for n, (u, i, _) in enumerate(rows)]

    def log(rows):
        try:
            columns = dict(zip(("users", "items", "times"), zip(*rows, strict=True), strict=True))
            return InteractionLog.build(name="t", **columns, duplicates=duplicates, k_core=k_core).fingerprint
        except InputError as error:
            return str(error)

    assert log(distinct) == log(random.sample(distinct, len(distinct)))


def test_ids_that_only_look_like_numbers_stay_text():
    log = InteractionLog.build(name="t", users=["7", "007", "10"], items=["2", "10", "-1"], times=[0, 0, 0])
    assert log.user_ids.tolist() == ["", "007", "10", "7"]
    assert log.item_ids.tolist() == ["", "-1", "2", "10"]


@pytest.mark.parametrize(("mode", "rows"), [("keep", [3, 0, 1, 2]), ("first", [3, 1]), ("last", [0, 2])])
def test_duplicates_are_judged_by_time_then_row(mode, rows):
    log = build([(1, 1, 8), (1, 2, 8), (1, 2, 8), (1, 1, 3)], duplicates=mode)
    assert log.values.tolist() == rows


def test_refused_duplicates_name_both_rows():
    with pytest.raises(InputError) as caught:
        build(
            [(1, 1, 8), (2, 1, 8), (1, 2, 8), (2, 1, 3), (1, 1, 3)], duplicates="error", where="f:{}".format
        )
    message = "f:3: repeats the user and item of f:1; set dataset.reader.duplicates to keep, first or last"
    assert str(caught.value) == message
    build([(1, 1, 8), (2, 1, 8), (1, 2, 8), (2, 2, 3)], duplicates="error")  # none refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_core": -1}, "dataset.reader.k_core=-1: use a whole number, 0 for no filter"),
        ({"k_core": 2.5}, "dataset.reader.k_core=2.5: use a whole number, 0 for no filter"),
        ({"duplicates": "drop"}, "dataset.reader.duplicates=drop: use one of keep, first, last, error"),
    ],
)
def test_wrong_options_name_their_key(options, message):
    with pytest.raises(InputError) as caught:
        build([(1, 1, 1)], **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("time", [-1, 4_102_444_800, 10**18])
def test_time_that_is_none_names_its_row(time):
    with pytest.raises(InputError, match=rf"^f:1: time {time} is not from 1970 to 2099 in seconds; mend"):
        build([(1, 1, 4_102_444_799), (1, 2, time), (1, 3, time)], where="f:{}".format)


NUL = {"users": ["1", "1"], "items": ["2", "3"], "past": (["4", "5", "6"], [1, 2])}


@pytest.mark.parametrize("column", ["users", "items"])
def test_id_with_nul_names_its_row(column):
    with pytest.raises(InputError, match=r"^f:1: the id '7\\x00' has a NUL character; mend the file"):
        InteractionLog.build(name="t", **NUL | {column: ["7", "7\0"]}, where="f:{}".format)


def test_id_with_nul_in_a_history_names_its_row():
    with pytest.raises(InputError, match=r"^f:1: the id '5\\x00' has a NUL character; mend the file"):
        InteractionLog.build(name="t", **NUL | {"past": (["4", "5\0", "6"], [1, 2])}, where="f:{}".format)


def test_words_that_differ_by_a_nul_at_the_end_are_one():
    feature = Feature.of(["x", "x\0", "\0", "y"])
    assert words(feature) == [["x"], ["x"], ["?"], ["y"]]
    assert feature.vocabulary.tolist() == ["x", "y"]


def test_no_events_at_all_is_an_input_error():
    with pytest.raises(InputError, match=r"^t: the raw files hold no events"):
        InteractionLog.build(name="t", users=[], items=[], times=[])


def words(feature):
    """The words of each row, "?" for unknown, "PAD" for padding."""
    names = np.array(["PAD", "?", *feature.vocabulary])
    return [
        list(names[feature.codes[a:b]]) for a, b in zip(feature.offsets, feature.offsets[1:], strict=False)
    ]


def test_features_follow_ids_and_miss_nothing():
    log = build(
        [(5, 20, 1), (3, 30, 1), (5, 10, 0)],
        item_titles=([30, 10, 99], ["thirty", "ten", "absent"]),
        item_features={"genres": ([20, 30, 99], [["x", "y"], [], ["never"]])},
        user_features={"age": (np.array([5, 3]), np.array(["", "old"]))},
        event_features={"device": ["tv", None, "pc"]},
    )
    assert log.item_titles.tolist() == ["", "ten", "", "thirty"]
    assert words(log.item_features["genres"]) == [["PAD"], ["?"], ["x", "y"], ["?"]]
    assert log.item_features["genres"].vocabulary.tolist() == ["x", "y"]  # of items of the log only
    assert words(log.user_features["age"]) == [["PAD"], ["old"], ["?"]]
    assert words(log.event_features["device"]) == [["?"], ["pc"], ["tv"]]  # in the order of the log's rows
    assert log.item_features["genres"].codes.dtype == np.int32


@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=3)), min_size=1))
@settings(deadline=None)
def test_lists_of_categories_survive(lists):
    expected = [[word or "?" for word in each or [""]] for each in lists]
    assert words(Feature.of([None, [], ["z"], *lists])) == [["?"], ["?"], ["z"], *expected]


def test_columns_taken_apart_and_put_together():
    log = build([(1, 1, 1), (2, 2, 2)], item_features={"a/b": ([1], ["x"]), "c": ([1], ["y"])})
    again = InteractionLog.from_columns(log.name, log.columns(), dated=log.dated, fingerprint=log.fingerprint)
    assert list(again.item_features) == ["a/b", "c"]
    assert all(again.columns()[key] is column for key, column in log.columns().items())
    assert again.item_titles is None


def test_fingerprint_sees_every_column_and_no_name():
    options = {
        "item_titles": ([1], ["one"]),
        "item_features": {"genres": ([1], ["x"])},
        "user_features": {"age": ([1], ["old"])},
        "event_features": {"device": ["tv", "pc"]},
    }
    rows = [(1, 1, 1), (2, 2, 2)]
    log = build(rows, **options)
    assert replace(log, name="other").fingerprint == build(rows, **options).fingerprint
    changed = [
        build([(1, 1, 1), (2, 2, 3)], **options),
        build([(1, 1, 1), (2, 1, 2)], **options),
        build([(1, 1, 1), (3, 2, 2)], **options),
        build(rows, **options | {"item_titles": ([1], ["One"])}),
        build(rows, **options | {"item_features": {"genres": ([1], ["y"])}}),
        build(rows, **options | {"item_features": {"kinds": ([1], ["x"])}}),
        build(rows, **options | {"user_features": {"age": ([2], ["old"])}}),
        build(rows, **options | {"event_features": {"device": ["pc", "tv"]}}),
        InteractionLog.build(name="t", users=[1, 2], items=[1, 2], times=[1, 2], **options),  # without values
    ]
    assert len({log.fingerprint, *(each.fingerprint for each in changed)}) == len(changed) + 1
