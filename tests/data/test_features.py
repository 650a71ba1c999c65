import math
import os
from collections import Counter
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrec.data.amazon import Amazon
from hydrec.data.features import DERIVED, derive
from hydrec.data.log import LATE, InteractionLog
from hydrec.data.movielens import MovieLens
from hydrec.errors import InputError

DATA = os.environ.get("HYDREC_DATA", "")
DAY = 86400
START = int(datetime(2011, 12, 30, 23, 59, 50, tzinfo=UTC).timestamp())
OF_ITEM = {1: ["a", "b"], 2: ["b"], 3: [], 4: ["a"], 5: ["c"], 6: ["c", "a"]}
BALANCED = np.repeat(np.arange(0.5, 5.5, 0.5), [2, 6, 2, 4, 6, 4, 6, 2, 2, 2])  # mean 2.58, deviation 1.25
OF_CATEGORY = ("dominant_category", "past_categories")
OF_TIME = ("tenure", "since_last", "session_position", "year", "season", "month", "weekday", "hour")

# In two steps, many events of one time and gaps at the bounds of sessions and buckets; one value is so large
# that a half added to it is lost
near = st.sampled_from([0, 0, 3, 4, 60, 1799, 1800, 1801])
far = st.sampled_from([0, 0, 1800, 3600, 14399, DAY - 1, DAY, 2 * DAY, 40 * DAY, 5000 * DAY])
value = st.sampled_from([math.nan, math.inf, 2.0**60, *(half / 2 for half in range(2, 11))])
event = st.tuples(
    st.integers(1, 3), st.integers(1, 6), st.builds(lambda a, b: START + a + b, near, far), value
)
events = st.lists(event, min_size=1, max_size=40)


def build(rows, **options):
    users, items, times, values = zip(*rows, strict=True)
    genres = (list(OF_ITEM), list(OF_ITEM.values()))
    options = {"item_features": {"genres": genres}} | options
    return InteractionLog.build(name="t", users=users, items=items, times=times, values=values, **options)


def of_one_user(times, values=None):
    items = range(3) if times is None else times
    return InteractionLog.build(name="t", users=[1] * len(items), items=items, times=times, values=values)


def words(log, name):
    column = derive(log, name)
    assert (column.codes.dtype, column.codes.shape) == (np.int64, (len(log),))
    assert column.names[:2] == ("", "unknown") and column.codes.min() >= 1
    return [column.names[code] for code in column.codes]


# The same, row by row ---------------------------------------------------------------------------------------


def count_bucket(n):
    power = min(int(math.log2(1 + n)), 15)
    low, high = 2**power - 1, 2 ** (power + 1) - 2
    return f"{low}+" if power == 15 else "0" if n == 0 else f"{low}-{high}"


def day_bucket(seconds):
    low = 1
    while 2 * low * DAY <= seconds and low < 2048:
        low *= 2
    return "2048+ d" if low == 2048 else "1 d" if low == 1 else f"{low}-{2 * low - 1} d"


def tenure_bucket(seconds):
    return day_bucket(seconds) if seconds >= DAY else "under 1 d"


def gap_bucket(seconds):
    if seconds >= DAY:
        return day_bucket(seconds)
    bounds = (14400, "4-23 h"), (3600, "1-3 h"), (900, "15-59 min"), (240, "4-14 min"), (60, "1-3 min")
    names = [name for low, name in (*bounds, (16, "16-59 s"), (4, "4-15 s")) if seconds >= low]
    return names[0] if names else "under 4 s"


def half_bucket(amount):
    nearest = math.floor(2 * amount + Fraction(1, 2)) / 2
    return "10+" if nearest >= 10 else f"{nearest:g}"


def first_to_the_most(categories):
    leader, most, counts = "unknown", 0, Counter()
    for category in categories:
        counts[category] += 1
        if counts[category] > most:
            leader, most = category, counts[category]
    return leader


def events_of_session(past, time):
    n = 0
    for _, earlier, _ in reversed(past):
        if time - earlier > 1800:
            break
        n, time = n + 1, earlier
    return n


def expected(past, time):
    """The words of a row of that time, given (category, time, value) of its user's earlier events."""
    values = [Fraction(value) for _, _, value in past if math.isfinite(value)]
    categories = [category for category, _, _ in past if category]
    when = datetime.fromtimestamp(time, UTC)
    seasons = {12: "winter", 3: "spring", 6: "summer", 9: "autumn"}
    return {
        "activity": count_bucket(len(past)),
        "mean_value": half_bucket(mean(values)) if values else "unknown",
        "value_spread": half_bucket(Fraction(pstdev(values))) if len(values) > 1 else "unknown",
        "tenure": tenure_bucket(time - past[0][1]) if past else "unknown",
        "dominant_category": first_to_the_most(categories),
        "past_categories": count_bucket(len(set(categories))),
        "since_last": gap_bucket(time - past[-1][1]) if past else "unknown",
        "session_position": count_bucket(events_of_session(past, time)),
        "year": str(when.year) if 1995 <= when.year <= 2035 else "unknown",
        "season": seasons[when.month // 3 * 3 or 12],
        "month": when.strftime("%b"),
        "weekday": when.strftime("%a"),
        "hour": f"{when.hour} h",
    }


def category(log, row):
    """The first category of a row's item, None where it is unknown."""
    feature = log.item_features.get("genres")
    code = feature.codes[feature.offsets[log.items[row]]] if feature else 1
    return None if code == 1 else str(feature.vocabulary[code - 2])


def assert_as_expected(log, rows, names):
    found = {name: words(log, name) for name in names}
    for row in rows:
        of_user = range(log.offsets[log.users[row]], log.offsets[log.users[row] + 1])
        past = [
            (category(log, each), int(log.times[each]), float(log.values[each]))
            for each in of_user
            if log.times[each] < log.times[row]
        ]
        truth = expected(past, int(log.times[row]))
        assert {name: found[name][row] for name in names} == {name: truth[name] for name in names}


@given(events)
@settings(deadline=None)
def test_columns_are_what_a_walk_through_each_row_gives(rows):
    log = build(rows)
    assert_as_expected(log, range(len(log)), DERIVED)


@given(events, st.data())
@settings(deadline=None)
def test_nothing_but_strictly_earlier_events_and_the_own_time_matter(rows, data):
    """Deletes everything at or after a row's time, and changes its item and value."""
    log = build(rows)
    row = data.draw(st.integers(0, len(log) - 1))
    user, time = int(log.user_ids[log.users[row]]), int(log.times[row])
    left = [each for each in rows if each[2] < time]
    cut = build([(user, data.draw(st.integers(1, 6)), time, data.draw(value)), *left])
    own = cut.offsets[cut.user_ids.tolist().index(str(user)) + 1] - 1
    for name in DERIVED:
        assert words(cut, name)[own] == words(log, name)[row]
        if name != "dominant_category":  # whose codes are those of the catalogue
            assert derive(cut, name).codes[own] == derive(log, name).codes[row]


@given(st.lists(st.integers(0, LATE - 1), min_size=1))
@settings(deadline=None)
def test_calendar_is_that_of_utc(times):
    names = ("year", "season", "month", "weekday", "hour")
    assert_as_expected(of_one_user([*times, 1]), range(len(times) + 1), names)


# By hand ----------------------------------------------------------------------------------------------------


def test_equal_times_do_not_count():
    log = of_one_user([5, 5, 5, 9, 9, 3000], [1, 2, 3, 4, 5, 0])
    assert words(log, "activity") == ["0", "0", "0", "3-6", "3-6", "3-6"]
    assert words(log, "mean_value") == ["unknown"] * 3 + ["2", "2", "3"]
    assert words(log, "value_spread") == ["unknown"] * 3 + ["1", "1", "1.5"]  # 0.82 and 1.41
    assert words(log, "since_last") == ["unknown"] * 3 + ["4-15 s"] * 2 + ["15-59 min"]
    assert words(log, "session_position") == ["0", "0", "0", "3-6", "3-6", "0"]
    assert words(log, "tenure") == ["unknown"] * 3 + ["under 1 d"] * 3


def test_counts_are_in_powers_of_two():
    found = words(of_one_user(range(40_000)), "activity")
    assert [found[n] for n in (0, 1, 2, 3, 6, 7)] == ["0", "1-2", "1-2", "3-6", "3-6", "7-14"]
    assert [found[n] for n in (32_766, 32_767, 39_999)] == ["16383-32766", "32767+", "32767+"]


@pytest.mark.parametrize(
    ("gap", "since", "tenure"),
    [
        (1, "under 4 s", "under 1 d"),
        (4, "4-15 s", "under 1 d"),
        (15, "4-15 s", "under 1 d"),
        (59, "16-59 s", "under 1 d"),
        (60, "1-3 min", "under 1 d"),
        (239, "1-3 min", "under 1 d"),
        (240, "4-14 min", "under 1 d"),
        (899, "4-14 min", "under 1 d"),
        (900, "15-59 min", "under 1 d"),
        (3599, "15-59 min", "under 1 d"),
        (3600, "1-3 h", "under 1 d"),
        (4 * 3600 - 1, "1-3 h", "under 1 d"),
        (4 * 3600, "4-23 h", "under 1 d"),
        (DAY - 1, "4-23 h", "under 1 d"),
        (DAY, "1 d", "1 d"),
        (4 * DAY - 1, "2-3 d", "2-3 d"),
        (4 * DAY, "4-7 d", "4-7 d"),
        (9999 * DAY, "2048+ d", "2048+ d"),
    ],
)
def test_gaps_are_in_seconds_minutes_hours_and_days(gap, since, tenure):
    log = of_one_user([START, START + gap])
    assert (words(log, "since_last")[1], words(log, "tenure")[1]) == (since, tenure)


@pytest.mark.parametrize(
    ("values", "mean", "spread"),
    [
        ([4], "4", "unknown"),
        ([4, 5], "4.5", "0.5"),
        ([3, 3, 3, 4], "3.5", "0.5"),  # 3.25 and 0.43
        ([0.1, 0.1, 0.1], "0", "0"),
        ([1, 5], "3", "2"),
        ([9, 10, 10], "9.5", "0.5"),
        ([0, 500], "10+", "10+"),
        (BALANCED, "2.5", "1.5"),
        ([math.nan, 3, math.nan], "3", "unknown"),
    ],
)
def test_values_are_summed_up_to_the_nearest_half(values, mean, spread):
    log = of_one_user(range(len(values) + 1), [*values, 77])
    assert (words(log, "mean_value")[-1], words(log, "value_spread")[-1]) == (mean, spread)


def test_among_equally_frequent_categories_the_first_to_get_there_dominates():
    items = [3, 2, 5, 5, 2, 2, 1]  # unknown, b, c, c, b, b, a and b
    log = build([(1, item, time, 1.0) for time, item in enumerate(items)])
    assert words(log, "dominant_category") == ["unknown", "unknown", "b", "b", "c", "c", "b"]
    assert words(log, "past_categories") == ["0", "0", "1-2", "1-2", "1-2", "1-2", "1-2"]


def test_category_comes_before_genres():
    tables = {"genres": ([1, 2], ["g", "g"]), "category": ([1, 2], ["x", "y"])}
    log = build([(1, 1, 0, 1.0), (1, 2, 5, 1.0)], item_features=tables)
    assert words(log, "dominant_category") == ["unknown", "x"]


@pytest.mark.parametrize(
    ("when", "found"),
    [((1994, 12), "unknown"), ((1995, 1), "1995"), ((2035, 12), "2035"), ((2036, 1), "unknown")],
)
def test_years_are_of_a_fixed_range(when, found):
    time = int(datetime(*when, 31, 23, tzinfo=UTC).timestamp())
    assert words(of_one_user([time]), "year") == [found]


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_CATEGORY)
def test_items_without_categories_are_refused(name):
    with pytest.raises(InputError) as caught:
        derive(of_one_user([5, 6]), name)
    assert str(caught.value) == (
        "field=dominant_category or past_categories: the items of t have no feature category or genres;"
        " get their metadata, or drop these fields"
    )


@pytest.mark.parametrize("name", OF_TIME)
def test_a_log_without_times_has_no_columns_of_time(name):
    with pytest.raises(InputError) as caught:
        derive(of_one_user(None), name)
    assert str(caught.value) == (
        f"field={name}: t has no times, only each user's order of events; drop this field, or use data with"
        " times (of a table: dataset.reader.columns.time)"
    )


def test_a_log_without_times_has_all_other_columns():
    undated = of_one_user(None, [4.0, 2.0, 3.0])
    dated = of_one_user([100, 200, 300], [4.0, 2.0, 3.0])
    names = [name for name in DERIVED if name not in (*OF_TIME, *OF_CATEGORY)]
    assert names == ["activity", "mean_value", "value_spread"]
    assert [words(undated, name) for name in names] == [words(dated, name) for name in names]


def test_times_of_whole_days_have_no_hour():
    with pytest.raises(InputError) as caught:
        derive(of_one_user([0, DAY, 9 * DAY]), "hour")
    assert str(caught.value) == "field=hour: the times of t have the resolution of a day; drop this field"
    assert words(of_one_user([0, DAY, 9 * DAY + 1]), "hour") == ["0 h"] * 3


def test_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match=r"^field=week_day is none of activity, .*; did you mean weekday\?$"):
        derive(of_one_user([5, 6]), "week_day")


# Real data --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path(DATA, "ml-1m").is_dir(), reason="HYDREC_DATA has no ml-1m")
def test_movielens_1m():
    log = MovieLens(name="ml-1m", folder="ml-1m", root=DATA, k_core=0, duplicates="error")()
    assert_as_expected(log, np.random.default_rng(0).integers(0, len(log), 200), DERIVED)


@pytest.mark.skipif(
    not Path(DATA, "amazon_2014_5core/reviews_Musical_Instruments_5.json.gz").is_file(),
    reason="HYDREC_DATA has no Musical Instruments",
)
def test_musical_instruments():
    log = Amazon(
        name="amazon_instruments",
        folder="amazon_2014_5core",
        root=DATA,
        edition=2014,
        category="Musical_Instruments",
        k_core=0,
        duplicates="keep",
    )()
    with pytest.raises(InputError, match=r"^field=hour: the times of amazon_instruments "):
        derive(log, "hour")
    names = [name for name in DERIVED if name not in ("hour", *OF_CATEGORY)]
    assert_as_expected(log, range(0, len(log), 20), names)
