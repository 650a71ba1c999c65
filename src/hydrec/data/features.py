"""Columns derived from a log for click models, each row's from its user's strictly earlier events alone.

Beyond those events a row's code depends on nothing but its own time: not on its item or value, nor on events
of the same time or later ones. Bounds of buckets are fixed, never quantiles of the data. Columns of time are
refused where the log has none.

There is no column for the length of the history: it is ``activity``, cut at the protocol's window.

Shapes: N rows of the log.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl

from hydrec.data.log import InteractionLog
from hydrec.errors import InputError, one_of

MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds
SESSION = 30 * MINUTE  # a longer gap begins a session
YEARS = range(1995, 2036)
SEASONS = ("winter", "spring", "summer", "autumn")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
CATEGORIES = ("category", "genres")  # features of items that are categories; the first that is there counts

Buckets = dict[float, str]  # the lowest amount of each, and its name


class Column(NamedTuple):
    """A categorical column of the rows of a log.

    Attributes:
        codes: (N,) int64; 0 is never used (PAD), 1 is unknown, 2 and above are values.
        names: of the codes, as many as an embedding table needs rows.
    """

    codes: np.ndarray
    names: tuple[str, ...]


def derive(log: InteractionLog, name: str) -> Column:
    """Returns a derived column by its name.

    Raises:
        InputError: there is no such column, or the log lacks what it is made of.
    """
    return DERIVED[one_of("field", name, DERIVED)](log)


def _ranges(lowest: Sequence[int], unit: str = "", size: int = 1) -> Buckets:
    """Buckets of whole numbers of a unit."""
    spans = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(lowest)]
    return {low * size: span + unit for low, span in zip(lowest, [*spans, f"{lowest[-1]}+"], strict=True)}


def _timed(column: Callable[[InteractionLog], Column]) -> Callable[[InteractionLog], Column]:
    """Makes a column refuse logs without times, whose positions would pass for seconds of 1970."""

    @wraps(column)
    def checked(log: InteractionLog) -> Column:
        if not log.dated:
            raise InputError(
                f"field={column.__name__}: {log.name} has no times, only each user's order of events; drop"
                " this field, or use data with times (of a table: dataset.reader.columns.time)"
            )
        return column(log)

    return checked


COUNTS = _ranges([2**power - 1 for power in range(16)])
DAYS = _ranges([2**power for power in range(12)], " d", DAY)
TENURES: Buckets = {0: "under 1 d"} | DAYS
GAPS: Buckets = {
    0: "under 4 s",
    4: "4-15 s",
    16: "16-59 s",
    MINUTE: "1-3 min",
    4 * MINUTE: "4-14 min",
    15 * MINUTE: "15-59 min",
    HOUR: "1-3 h",
    4 * HOUR: "4-23 h",
} | DAYS
HALVES: Buckets = {half / 2 - 0.25: f"{half / 2:g}" for half in range(20)} | {9.75: "10+"}


# The user's past --------------------------------------------------------------------------------------------


def activity(log: InteractionLog) -> Column:
    """Number n of the user's past events, in buckets floor(log2(1 + n))."""
    first, last = _past(log)
    return _bucketed(last - first, COUNTS)


def mean_value(log: InteractionLog) -> Column:
    """Mean of the user's past values to the nearest half, quarters up; unknown where there is none."""
    values, count = _past_values(log)
    return _bucketed(_divided(_sum_of_past(log, values), count, 1), HALVES)


def value_spread(log: InteractionLog) -> Column:
    """Standard deviation of the user's past values to the nearest half; unknown below two of them.

    The squares are divided by the number of values, not by one less.
    """
    values, count = _past_values(log)
    square = count * _sum_of_past(log, values**2) - _sum_of_past(log, values) ** 2  # exact for stars
    return _bucketed(_divided(np.sqrt(np.maximum(square, 0)), count, 2), HALVES)


@_timed
def tenure(log: InteractionLog) -> Column:
    """Time since the user's first event, in powers of two of days; unknown for a first event."""
    first, last = _past(log)
    return _bucketed(np.where(last > first, log.times - log.times[first], -1), TENURES)


def dominant_category(log: InteractionLog) -> Column:
    """The category that most of the user's past events have; of several, the one that was first to.

    Unknown where no past event has a known category. Of an item's categories the first counts.

    Raises:
        InputError: items have no categories.
    """
    codes, vocabulary = _categories(log)
    count = _count_of_category(log, codes)
    first, last = _past(log)
    # rises from user to user, so that the running maximum begins anew with each
    most = np.maximum.accumulate(log.users * np.int64(len(log) + 1) + count)
    leader = _latest((count > 0) & (np.diff(most, prepend=-1) > 0))[last - 1]
    known = (last > first) & (leader >= first)
    return _column(np.where(known, codes[leader] - 2, -1), vocabulary)


def past_categories(log: InteractionLog) -> Column:
    """Number n of distinct known categories of the user's past events, in buckets floor(log2(1 + n)).

    Of an item's categories the first counts.

    Raises:
        InputError: items have no categories.
    """
    count = _count_of_category(log, _categories(log)[0])
    return _bucketed(_sum_of_past(log, count == 1), COUNTS)


@_timed
def since_last(log: InteractionLog) -> Column:
    """Time since the user's previous event, from seconds to years; unknown for a first event."""
    first, last = _past(log)
    return _bucketed(np.where(last > first, log.times - log.times[last - 1], -1), GAPS)


@_timed
def session_position(log: InteractionLog) -> Column:
    """Number n of past events since the user's last gap of over 30 minutes, in buckets floor(log2(1 + n)).

    Where times are whole days every n is 0.
    """
    _, last = _past(log)
    begin = _latest(_changes(log.users) | (np.diff(log.times, prepend=0) > SESSION))
    return _bucketed(last - begin, COUNTS)


# The row's time, in UTC -------------------------------------------------------------------------------------


@_timed
def year(log: InteractionLog) -> Column:
    """Year, unknown before 1995 and after 2035."""
    return _column(_months(log) // 12 + 1970 - YEARS[0], [str(year) for year in YEARS])


@_timed
def season(log: InteractionLog) -> Column:
    """Meteorological season of the northern hemisphere: winter is December to February."""
    return _column((_months(log) + 1) % 12 // 3, SEASONS)


@_timed
def month(log: InteractionLog) -> Column:
    """Month of the year, in UTC."""
    return _column(_months(log) % 12, MONTHS)


@_timed
def weekday(log: InteractionLog) -> Column:
    """Day of the week, in UTC."""
    return _column((log.times // DAY + 3) % 7, WEEKDAYS)  # 1 January 1970 was a Thursday


@_timed
def hour(log: InteractionLog) -> Column:
    """Hour of the day, in UTC.

    Raises:
        InputError: all times are whole days.
    """
    if not (log.times % DAY).any():
        raise InputError(f"field=hour: the times of {log.name} have the resolution of a day; drop this field")
    return _column(log.times // HOUR % 24, [f"{hour} h" for hour in range(24)])


_COLUMNS = (
    *(activity, mean_value, value_spread, tenure, dominant_category, past_categories),
    *(since_last, session_position, year, season, month, weekday, hour),
)
DERIVED: dict[str, Callable[[InteractionLog], Column]] = {column.__name__: column for column in _COLUMNS}


# What they share --------------------------------------------------------------------------------------------


def _column(places: np.ndarray, names: Sequence[str]) -> Column:
    """The column with ``names[place]`` in each row; unknown where ``names`` has no such place."""
    known = (places >= 0) & (places < len(names))
    return Column(np.where(known, places + np.int64(2), 1), ("", "unknown", *names))


def _bucketed(amounts: np.ndarray, buckets: Buckets) -> Column:
    """The column with each amount's bucket; unknown below the lowest."""
    return _column(np.searchsorted(list(buckets), amounts, "right") - 1, list(buckets.values()))


def _latest(holds: np.ndarray) -> np.ndarray:
    """(N,) the last row, up to each and with it, where a condition holds; 0 before the first."""
    return np.maximum.accumulate(np.where(holds, np.arange(len(holds)), 0))


def _changes(*columns: np.ndarray) -> np.ndarray:
    """(N,) whether a row differs from the one before; the first does."""
    return np.append(True, np.any([column[1:] != column[:-1] for column in columns], axis=0))


def _past(log: InteractionLog) -> tuple[np.ndarray, np.ndarray]:
    """(N,) first and last: the user's events strictly before a row are the rows ``first:last``."""
    return log.offsets[log.users], _latest(_changes(log.users, log.times))


def _sum_of_past(log: InteractionLog, amounts: np.ndarray) -> np.ndarray:
    """(N,) sum of the amounts of the user's events strictly before each row.

    Each user is summed up alone: differences of sums over all users would be rounded by what others did.
    """
    user = pl.Series("user", log.users).set_sorted()
    by_user = pl.DataFrame({"user": user, "amount": amounts}).select(pl.col("amount").cum_sum().over("user"))
    first, last = _past(log)
    return np.where(last > first, by_user.to_series().to_numpy()[last - 1], 0)


def _past_values(log: InteractionLog) -> tuple[np.ndarray, np.ndarray]:
    """(N,) float64 values, 0 where absent, and how many values the user's past events have."""
    known = np.isfinite(log.values)
    return np.where(known, log.values, 0).astype(np.float64), _sum_of_past(log, known.astype(np.float64))


def _divided(total: np.ndarray, count: np.ndarray, least: int) -> np.ndarray:
    """(N,) the quotient, -1 where the count is too small."""
    return np.divide(total, count, out=np.full(len(total), -1.0), where=count >= least)


def _months(log: InteractionLog) -> np.ndarray:
    """(N,) months since January 1970."""
    return log.times.astype("M8[s]").astype("M8[M]").astype(np.int64)


def _categories(log: InteractionLog) -> tuple[np.ndarray, list[str]]:
    """(N,) code of the first category of each row's item, and the names of the codes from 2 on."""
    for name in CATEGORIES:
        if feature := log.item_features.get(name):
            return feature.codes[feature.offsets[:-1]][log.items], feature.vocabulary.tolist()
    raise InputError(
        f"field=dominant_category or past_categories: the items of {log.name} have no feature"
        f" {' or '.join(CATEGORIES)}; get their metadata, or drop these fields"
    )


def _count_of_category(log: InteractionLog, codes: np.ndarray) -> np.ndarray:
    """(N,) how many of the user's events up to a row, and with it, have its category; 0 if it is unknown."""
    narrow = codes.astype(np.min_scalar_type(codes.max()))  # sorted five times faster, by radix
    order = np.argsort(narrow, kind="stable")  # by category, user, row
    begin = _latest(_changes(codes[order], log.users[order]))
    count = np.empty(len(log), np.int64)
    count[order] = np.arange(len(log)) - begin + 1
    return np.where(codes > 1, count, 0)
