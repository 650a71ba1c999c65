"""The interaction log: what every reader returns and every protocol points into.

Shapes: N rows (events), U users, V items. Ids are 1..U and 1..V; 0 is PAD and belongs to nobody.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from hydrec.errors import InputError

DUPLICATES = ("keep", "first", "last", "error")
LATE = 4_102_444_800  # seconds: 2100 begins; a time after is in another unit, or none
COLUMNS = (
    *("users", "items", "times", "values", "labels", "offsets", "past_items", "past_offsets"),
    *("user_ids", "item_ids", "item_titles"),
)
FEATURES = ("item_features", "user_features", "event_features")
PARTS = ("vocabulary", "codes", "offsets")

Table = tuple[Any, Any]  # (raw ids, distinct; one value or one list of values for each)


class Reader(Protocol):
    """Where a log comes from; the cache calls it when it does not know its files and options."""

    name: str

    def files(self) -> list[Path]:
        """Lists the raw files; raises MissingData when there are none."""
        ...

    def options(self) -> dict[str, Any]:
        """Lists every value that changes the log, in JSON types, with the ``version`` of the reader."""
        ...

    def __call__(self) -> "InteractionLog":
        """Reads the raw files; raises InputError, one line, at the first that cannot be used."""
        ...


@dataclass(frozen=True, eq=False)
class Feature:
    """A categorical side feature, one or several values a row, of users, items or events.

    Attributes:
        vocabulary: (n,) str, sorted. Code 0 is PAD, 1 is unknown, code c >= 2 is ``vocabulary[c - 2]``.
        codes: int32, flat; a row without a value has one code 1.
        offsets: (rows + 1,) int64; row i has ``codes[offsets[i]:offsets[i + 1]]``. Rows are the ids 0..U or
            0..V (row 0 is PAD: one code 0), or for a feature of events the rows of the log.
    """

    vocabulary: np.ndarray
    codes: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, values: Any) -> "Feature":
        """Encodes one value, or one list of values, a row; None and "" are unknown.

        Args:
            values: a sequence, array or polars Series of str, or of lists of str.
        """
        column = pl.Series(values)
        if column.dtype == pl.List:
            counts = column.list.len().fill_null(0).to_numpy()
            column = column.filter(pl.Series(counts > 0)).explode()
        else:
            counts = np.ones(len(column), np.int64)
        text = column.cast(pl.String).str.strip_chars_end("\0")  # with which numpy's text cannot end
        text = text.set(text == "", None)
        vocabulary = text.drop_nulls().unique().sort()
        known = text.cast(pl.Enum(vocabulary)).to_physical().cast(pl.Int32) + 2

        lengths = np.maximum(counts, 1)
        codes = np.ones(lengths.sum(), np.int32)
        codes[np.repeat(counts > 0, lengths)] = known.fill_null(1).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(vocabulary=vocabulary.to_numpy().astype(str), codes=codes, offsets=offsets)

    def padded(self) -> "Feature":
        """Puts the row of id 0 before the others."""
        offsets = np.concatenate([[0], self.offsets + 1])
        return replace(self, codes=np.concatenate([np.zeros(1, np.int32), self.codes]), offsets=offsets)


@dataclass(frozen=True, eq=False)
class InteractionLog:
    """Who met what, when and how strongly; rows sorted by (user, time, row of the raw file).

    Attributes:
        name: what tables call the data.
        users, items: (N,) int32, 1..U and 1..V.
        times: (N,) int64 seconds; if not ``dated``, the row's position in its user's history, from 0.
        values: (N,) float32 intensity (rating, hours), NaN where absent.
        labels: (N,) int8, whether the item shown was clicked, or None where each row is an interaction.
        offsets: (U + 2,) int64; user u has the rows ``offsets[u]:offsets[u + 1]``, user 0 has none.
        past_items, past_offsets: int32 and (N + 1,) int64; row i brings its own history, the items
            ``past_items[past_offsets[i]:past_offsets[i + 1]]``, oldest first. None where rows before are it.
        user_ids, item_ids: (U + 1,) and (V + 1,) str, the raw ids; "" at 0. Ids follow the sorted raw ids
            (as numbers if all are integers), so they do not depend on the order of the rows.
        item_titles: (V + 1,) str, "" where unknown, or None where the data has none.
        item_features, user_features: rows are ids 0..V and 0..U.
        event_features: rows are the log's.
        dated: whether times are times; else they order a user's events and say nothing of others'.
        fingerprint: sha256 of everything above but the name and ``dated``; `hydrec.data.cache.load` puts one
            in its place that has the raw files and the reader's options as well.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray
    labels: np.ndarray | None
    offsets: np.ndarray
    past_items: np.ndarray | None
    past_offsets: np.ndarray | None
    user_ids: np.ndarray
    item_ids: np.ndarray
    item_titles: np.ndarray | None
    item_features: dict[str, Feature]
    user_features: dict[str, Feature]
    event_features: dict[str, Feature]
    dated: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids) - 1

    @property
    def n_items(self) -> int:
        """V."""
        return len(self.item_ids) - 1

    @property
    def tie_share(self) -> float:
        """Share of rows with the user and the time of the row before: there, file order decides."""
        same = (self.times[1:] == self.times[:-1]) & (self.users[1:] == self.users[:-1])
        return float(same.sum() / len(self))

    @classmethod
    def build(
        cls,
        *,
        name: str,
        users: Any,
        items: Any,
        times: Any = None,
        values: Any = None,
        labels: Any = None,
        past: tuple[Any, Any] | None = None,
        k_core: int = 0,
        duplicates: str = "keep",
        item_titles: Table | None = None,
        item_features: Mapping[str, Table] | None = None,
        user_features: Mapping[str, Table] | None = None,
        event_features: Mapping[str, Any] | None = None,
        where: Callable[[int], str] = "row {}".format,
    ) -> "InteractionLog":
        """Makes a log of raw events in any order: duplicates, k-core, ids, order.

        Args:
            name: what tables call the data.
            users: raw ids, int or str, one per event.
            items: raw ids, int or str, one per event.
            times: int64 seconds, one per event, or None where the order of events stands for them.
            values: intensity, one per event, or None.
            labels: 0 or 1, one per event, or None.
            past: for events that bring their own history: raw ids of items, oldest first, those of one event
                after those of another, and how many each event has; or None.
            k_core: every user and every item left has at least this many events; 0 and 1 drop nothing.
            duplicates: of the events of one user with one item ``keep`` all, the ``first`` or the ``last``
                by (time, row); ``error`` refuses them.
            item_titles: (raw ids, titles).
            item_features: name -> (raw ids, values), where a value may be a list. Raw ids that the log does
                not have are ignored; an id of the log without a value is unknown.
            user_features: as ``item_features``.
            event_features: name -> values, one per event.
            where: says where the event of a given position came from, for messages.

        Raises:
            InputError: a bad ``k_core`` or ``duplicates``, duplicates that are refused, or no event left;
                a ``k_core`` of events with their own history; a time that is not from 1970 to 2099, or an id
                with a NUL.
        """
        if duplicates not in DUPLICATES:
            raise InputError(f"dataset.reader.duplicates={duplicates}: use one of {', '.join(DUPLICATES)}")
        if type(k_core) is not int or k_core < 0:
            raise InputError(f"dataset.reader.k_core={k_core}: use a whole number, 0 for no filter")
        if len(users) == 0:
            raise InputError(f"{name}: the raw files hold no events; get them again")

        if past is not None and k_core > 1:
            raise InputError(f"dataset.reader.k_core={k_core}: rows that bring their history need 0")

        user_ids, user = _factorise(users)
        items, past_offsets, owner = pl.Series(items), None, np.arange(len(user))
        if past is not None:  # an item may occur in histories alone
            past_offsets = np.concatenate([[0], np.cumsum(past[1], dtype=np.int64)])
            both = [items, pl.Series(past[0])]
            kind = items.dtype if both[1].dtype == items.dtype else pl.String
            items = pl.concat([each.cast(kind) for each in both])
            owner = np.concatenate([owner, np.repeat(owner, past[1])])
        item_ids, item = _factorise(items)
        for ids, codes in ((user_ids, user), (item_ids, item)):
            _refuse_nul(ids, codes, lambda place: where(int(owner[place])))
        item, past_items = item[: len(user)], item[len(user) :]
        pair = user.astype(np.int64) * (len(item_ids) + 1) + item
        if duplicates == "error":
            _refuse_repeats(pair, where)

        time = np.arange(len(user)) if times is None else np.asarray(times, np.int64)
        if times is not None:
            _refuse_times(time, where)
        value = np.full(len(user), np.nan, np.float32) if values is None else np.asarray(values, np.float32)
        by = pl.DataFrame({"user": user, "time": time})
        rows = by.select(pl.arg_sort_by("user", "time", maintain_order=True)).to_series().to_numpy()
        if duplicates == "first":
            rows = rows[pl.Series(pair[rows]).is_first_distinct().to_numpy()]
        elif duplicates == "last":
            rows = rows[pl.Series(pair[rows]).is_last_distinct().to_numpy()]
        rows = rows[_core(user[rows], item[rows], k_core)]
        if len(rows) == 0:
            raise InputError(
                f"dataset.reader.k_core={k_core}: nothing is left of {name}'s {len(user_ids)} users,"
                f" {len(item_ids)} items and {len(user)} events; use a lower k_core"
            )

        if past_offsets is not None:
            place, past_offsets = gathered(past_offsets, rows)
            past_items = past_items[place]
        user_ids, user = _compact(user_ids, user[rows])
        item_ids, item = _compact(item_ids, np.concatenate([item[rows], past_items]))
        item, past_items = item[: len(rows)], item[len(rows) :]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(user_ids) + 1))])
        log = cls(
            name=name,
            users=user,
            items=item,
            times=np.arange(len(rows)) - offsets[user] if times is None else time[rows],
            values=value[rows],
            labels=None if labels is None else np.asarray(labels, np.int8)[rows],
            past_items=None if past_offsets is None else past_items,
            past_offsets=past_offsets,
            offsets=offsets,
            user_ids=_named(user_ids),
            item_ids=_named(item_ids),
            item_titles=None if item_titles is None else _named(_lookup(item_ids, item_titles).fill_null("")),
            item_features=_features(item_ids, item_features),
            user_features=_features(user_ids, user_features),
            event_features={
                key: Feature.of(pl.Series(each)[rows]) for key, each in (event_features or {}).items()
            },
            dated=times is not None,
            fingerprint="",
        )
        return replace(log, fingerprint=_digest(log))

    def need_dates(self, key: str) -> None:
        """Stops what makes no sense without times.

        Raises:
            InputError: times are positions; names the configuration key that asks for more.
        """
        if not self.dated:
            raise InputError(
                f"{key}: {self.name} has no times, only each user's order of events; choose what needs none:"
                " protocol=leave_one_out or click_last, or click_rating with protocol.cut=user for labels"
            )

    def columns(self) -> dict[str, np.ndarray]:
        """Returns every array under a name like ``item_features/genres/codes``, in a fixed order."""
        found = {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}
        for group in FEATURES:
            for name, feature in sorted(getattr(self, group).items()):
                found |= {f"{group}/{name}/{part}": getattr(feature, part) for part in PARTS}
        return found

    @classmethod
    def from_columns(
        cls, name: str, columns: dict[str, np.ndarray], *, dated: bool, fingerprint: str
    ) -> "InteractionLog":
        """Puts together again what ``columns`` took apart."""
        arrays: dict[str, Any] = {column: columns.get(column) for column in COLUMNS}
        for group in FEATURES:
            names = [
                key[len(group) + 1 : -6]
                for key in columns
                if key.startswith(group) and key.endswith("/codes")
            ]
            arrays[group] = {
                key: Feature(**{part: columns[f"{group}/{key}/{part}"] for part in PARTS}) for key in names
            }
        return cls(name=name, dated=dated, fingerprint=fingerprint, **arrays)


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Owner and place of each element of rows of ``counts`` elements: [2, 1] -> [0, 0, 1], [0, 1, 0]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def gathered(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the elements of some rows, row i having ``offsets[i]:offsets[i + 1]``, and new offsets."""
    counts = np.diff(offsets)[rows]
    owner, place = ragged(counts)
    return offsets[rows][owner] + place, np.concatenate([[0], counts.cumsum()])


def _factorise(raw: Any) -> tuple[pl.Series, np.ndarray]:
    """Returns the distinct raw ids in order, and for every event the 1-based place of its id there."""
    column = pl.Series(raw)
    distinct = column.unique().sort()
    if distinct.dtype == pl.String:
        number = distinct.cast(pl.Int64, strict=False)
        if (number.cast(pl.String) == distinct).fill_null(False).all():  # false for "007", which is not 7
            distinct = number.sort().cast(pl.String)
    places = pl.Series(np.arange(1, len(distinct) + 1, dtype=np.int32))
    return distinct, column.replace_strict(distinct, places).to_numpy()


def _refuse_nul(ids: pl.Series, codes: np.ndarray, where: Callable[[int], str]) -> None:
    """Arrays of text lose it at the end, and two ids would be one; half a surrogate pair is read as NUL."""
    broken = ids.cast(pl.String).str.contains("\0", literal=True).arg_true()
    if len(broken):
        place = where(int((codes == broken[0] + 1).argmax()))
        raise InputError(f"{place}: the id {ids[broken[0]]!r:.60} has a NUL character; mend the file")


def _refuse_times(time: np.ndarray, where: Callable[[int], str]) -> None:
    if time.min() < 0 or time.max() >= LATE:
        wrong = int(((time < 0) | (time >= LATE)).argmax())
        raise InputError(
            f"{where(wrong)}: time {time[wrong]} is not from 1970 to 2099 in seconds; mend the file, or if it"
            " has milliseconds, read it with dataset=table and dataset.reader.time_unit=ms"
        )


def _refuse_repeats(pair: np.ndarray, where: Callable[[int], str]) -> None:
    repeated = ~pl.Series(pair).is_first_distinct().to_numpy()
    if repeated.any():
        again = int(repeated.argmax())
        before = int((pair == pair[again]).argmax())
        raise InputError(
            f"{where(again)}: repeats the user and item of {where(before)};"
            " set dataset.reader.duplicates to keep, first or last"
        )


def _core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Returns the positions of the most events among which each user and each item has ``k`` or more."""
    kept, before = np.arange(len(users)), -1
    while k > 1 and len(kept) != before:
        before = len(kept)
        for column in (users, items):
            ids = column[kept]
            kept = kept[np.bincount(ids)[ids] >= k]
    return kept


def _compact(ids: pl.Series, codes: np.ndarray) -> tuple[pl.Series, np.ndarray]:
    """Drops the ids that no event uses any more; the order of the others stays."""
    used = np.bincount(codes, minlength=len(ids) + 1)[1:] > 0
    return ids.filter(pl.Series(used)), np.cumsum(used, dtype=np.int32)[codes - 1]


def _named(values: pl.Series) -> np.ndarray:
    """Returns the values as an array of str with "" before them, for id 0."""
    return np.concatenate([[""], values.cast(pl.String).to_numpy()]).astype(str)


def _lookup(ids: pl.Series, table: Table) -> pl.Series:
    """Returns the table's value for each id, null where it has none."""
    known = pl.DataFrame({"id": pl.Series(table[0]).cast(pl.String), "value": pl.Series(table[1])})
    wanted = pl.DataFrame({"id": ids.cast(pl.String)})
    return wanted.join(known, on="id", how="left", maintain_order="left", validate="m:1")["value"]


def _features(ids: pl.Series, tables: Mapping[str, Table] | None) -> dict[str, Feature]:
    return {name: Feature.of(_lookup(ids, table)).padded() for name, table in (tables or {}).items()}


def _digest(log: InteractionLog) -> str:
    total = hashlib.sha256()
    for name, column in log.columns().items():
        total.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
        total.update(column.view(np.uint8).data)
    return total.hexdigest()
