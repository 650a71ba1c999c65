"""Tables that a user gives: histories, showings to score, lists of items; by raw ids, as files or frames.

Shapes: N events, n users.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from hydrec.data.log import LATE
from hydrec.errors import InputError

Given = str | Path | pl.DataFrame
SHOWN = 5  # ids that a message names

logger = logging.getLogger("hydrec")


class Histories(NamedTuple):
    """Events of users, each user's together, oldest first.

    Attributes:
        users: (n,) raw ids, in the order in which they first appear.
        offsets: (n + 1,) int64; user i has the events ``offsets[i]:offsets[i + 1]``, at least one.
        items: (N,) int64, numbers of items.
        times: (N,) int64 seconds; of a log without times, positions in the user's history from 0.
        values: (N,) float32, NaN where absent.
        events: what was read, in this order, for further columns.
    """

    users: pl.Series
    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray
    events: pl.DataFrame


def table(given: Given, key: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """A table with some columns; of a csv or tsv file all columns are text.

    Args:
        given: a polars frame, or the path of a csv, tsv or parquet file.
        key: what messages call it.
        columns: those it must have, without gaps.

    Raises:
        InputError: it cannot be read, or a column or a value is missing.
    """
    if isinstance(given, pl.DataFrame):
        frame, name = given, key
    else:
        path, name = Path(given), f"{key}={given}"
        try:
            if path.suffix == ".parquet":
                frame = pl.read_parquet(path)
            elif path.suffix in (".csv", ".tsv"):
                separator = "," if path.suffix == ".csv" else "\t"
                frame = pl.read_csv(path, separator=separator, infer_schema=False)
            else:
                raise InputError(f"{name}: must be a .csv, .tsv or .parquet file")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{name} cannot be read: {str(error).splitlines()[0]}") from error
    for column in columns:
        if column not in frame.columns:
            raise InputError(
                f"{name} has no column {column}, it has {', '.join(frame.columns)}; it needs"
                f" {', '.join(columns)}"
            )
        _refuse(texts(frame[column]).fill_null("") == "", name, column, "is empty")
    return frame


def texts(column: pl.Series) -> pl.Series:
    """Raw ids as runs have them."""
    return column.cast(pl.String)


def seconds(column: pl.Series, key: str) -> np.ndarray:
    """Times as int64 seconds since 1970.

    Raises:
        InputError: a time is none, or in another unit.
    """
    if column.dtype.is_temporal():
        column = column.cast(pl.Datetime("us")).dt.epoch("s")
    number = column.cast(pl.Float64, strict=False).cast(pl.Int64, strict=False)
    wrong = number.is_null() | (number < 0) | (number >= LATE)
    _refuse(wrong, key, "time", "is not from 1970 to 2099 in seconds", column)
    return number.to_numpy()


def numbers(column: pl.Series, key: str) -> np.ndarray:
    """Values as float32, NaN where there is none.

    Raises:
        InputError: one is no number.
    """
    number = column.cast(pl.Float32, strict=False)
    _refuse(number.is_null() & column.is_not_null(), key, column.name, "is no number", column)
    return number.fill_null(np.nan).to_numpy()


def known(column: pl.Series, ids: pl.Series, key: str, what: str) -> np.ndarray:
    """(N,) int64 place of each raw id among those of the run, from 1; 0 for unknown ones, which are told.

    Args:
        column: raw ids.
        ids: those of the run.
        key: what the message calls the table.
        what: what becomes of rows with unknown ones; "" to be silent.
    """
    found = place(texts(column), ids)
    if what and not found.all():
        unknown = texts(column).filter(pl.Series(found == 0))
        logger.warning(
            "%s: %d of %d rows have an item that the run does not know (%s): %s",
            *(key, len(unknown), len(found), first(unknown.unique(maintain_order=True)), what),
        )
    return found


def place(column: pl.Series, ids: pl.Series) -> np.ndarray:
    """(N,) int64 place of each id among distinct ones, from 1; 0 where it is not there."""
    places = pl.Series(np.arange(1, len(ids) + 1))
    return column.replace_strict(ids, places, default=0, return_dtype=pl.Int64).to_numpy(writable=True)


def first(ids: pl.Series) -> str:
    """The first few ids, for a message."""
    return ", ".join(ids.head(SHOWN)) + (", ..." if len(ids) > SHOWN else "")


def histories(given: Given, key: str, ids: pl.Series, *, dated: bool) -> Histories:
    """Reads events: columns ``user``, ``item``, ``time`` and, if there is one, ``value``.

    Events of one time stay in the order of their rows. Those of unknown items are left out, and said.

    Args:
        given: as `table` has it.
        key: what messages call it.
        ids: raw ids of the run's items.
        dated: whether the run knows times; else ``time`` is not needed, and says no more than the order.

    Raises:
        InputError: as `table`, `seconds` and `numbers` have it, or no event is left.
    """
    frame = table(given, key, ("user", "item", "time") if dated else ("user", "item"))
    user = texts(frame["user"])
    everyone = user.unique(maintain_order=True)
    owner = place(user, everyone) - 1
    time = seconds(frame["time"], key) if "time" in frame.columns else np.arange(len(frame))
    item = known(frame["item"], ids, key, "left out")
    order = pl.DataFrame({"owner": owner, "time": time}).select(
        pl.arg_sort_by("owner", "time", maintain_order=True)
    )
    rows = order.to_series().to_numpy()
    rows = rows[item[rows] > 0]
    counts = np.bincount(owner[rows], minlength=len(everyone))
    if not len(rows):
        raise InputError(f"{key}: no event has an item of the run; ids are those of its raw files")
    lost = everyone.filter(pl.Series(counts == 0))
    if len(lost):
        logger.warning(
            "%s: %d of %d users have no known item (%s): left out", key, len(lost), len(everyone), first(lost)
        )
    offsets = np.concatenate([[0], counts[counts > 0].cumsum()])
    values = (
        numbers(frame["value"], key) if "value" in frame.columns else np.full(len(frame), np.nan, np.float32)
    )
    return Histories(
        users=everyone.filter(pl.Series(counts > 0)),
        offsets=offsets,
        items=item[rows],
        times=time[rows] if dated else np.arange(len(rows)) - np.repeat(offsets[:-1], np.diff(offsets)),
        values=values[rows],
        events=frame[rows],
    )


def moment(now: str | int) -> int | None:
    """Seconds since 1970 of a number or an ISO date, which is UTC unless it says otherwise; else ``None``."""
    if str(now).isdecimal():
        return int(now)
    try:
        date = datetime.fromisoformat(str(now))
    except ValueError:
        return None
    return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())


def _refuse(wrong: pl.Series, key: str, column: str, what: str, values: pl.Series | None = None) -> None:
    if wrong.any():
        row = int(wrong.arg_true()[0])
        value = "" if values is None else f" {values[row]}"
        raise InputError(f"{key}: {column}{value} {what} in row {row + 1}, not counting the header; mend it")
