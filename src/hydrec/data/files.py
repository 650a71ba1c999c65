"""Files of any origin: tables with a column mapping, RecBole's atomic files, and sequences without times.

Where no column has the times, the order of the file stands for them: it is kept, and intervals mean nothing.
"""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import polars as pl
import polars.selectors as cs

from hydrec.data import log, raw
from hydrec.data.log import InteractionLog
from hydrec.data.options import typed
from hydrec.data.raw import JOINED
from hydrec.data.rows import KEY, MEND, Parquet, Text
from hydrec.errors import InputError, MissingData, one_of

VERSION = 3  # to be raised when the same files and options give another log

EVENT = ("user", "item", "time", "value", "label")
ROLES = (*EVENT, "title")
OPTIONAL = ("columns.time", "columns.value", "columns.label", "columns.title")
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
ATOMIC = ("inter", "item", "user")  # what RecBole's files end on
KINDS = ("token", "token_seq", "float", "float_seq")  # of their columns
BETWEEN = {"token": JOINED, "float": JOINED, "token_seq": " "}  # the values of those that are features
LINE = r"^[ \t]*[0-9]{1,18}([ \t]+[0-9]{1,18})+[ \t]*$"  # of sequences

SECOND = 10**6  # microseconds, which times are in until events are in order
UNITS = {"s": SECOND, "ms": 1000, "us": 1, "ns": 0.001}  # microseconds
EARLY = datetime(1990, 1, 1, tzinfo=UTC).timestamp() * SECOND  # a log that ends before is worth a question
LATE = log.LATE * SECOND
DATES = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%dT%H:%M")

logger = logging.getLogger("hydrec")

Name = str | int  # of a column


class Columns(TypedDict, total=False):
    """Which column has what."""

    user: Name | None
    item: Name | None
    time: Name | None
    value: Name | None
    label: Name | None
    title: Name | None


class History(TypedDict, total=False):
    """Which columns have each row's history, and how."""

    columns: list[Name]
    separator: str | None
    padding: Name | None


class Further(TypedDict, total=False):
    """A file of users, or of items."""

    path: str | None
    id: Name | None


# Columns to a log -------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """The rows of a file in which columns are, as text, what ``where`` says."""

    rows: Text | Parquet
    where: Mapping[str, str]

    def expect(self, key: str, *names: str | None) -> None:
        """Raises InputError where a column that the key names is not there; names the nearest."""
        known = self.rows.names
        for name in names:
            if name is not None and known.count(name) != 1:
                shown = [" ".join(each.split())[:30] for each in known]  # may be data that have no header
                near = difflib.get_close_matches(name, shown, n=1, cutoff=0.0)[0]
                what = "two such columns" if name in known else f"no such column; did you mean {near}?"
                some = ", ".join(shown[:9]) + ", ..." * (len(known) > 9)
                none = "; null for none" if key in OPTIONAL else ""
                raise InputError(f"{KEY}.{key}={name}: {self.rows.path} has {what} (it has {some}{none})")

    def frames(self, columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        """Yields columns, by new name -> name, and ``line``; null where there is nothing or NaN."""
        tests = {f"where {name}": name for name in self.where}
        equal = [pl.col(test).cast(pl.String) == self.where[name] for test, name in tests.items()]
        text = pl.col(pl.String)
        for frame in self.rows.frames({**columns, **tests}):
            kept = frame.filter(equal).drop(tests) if equal else frame
            yield kept.with_columns(pl.when(text != "").then(text), cs.float().fill_nan(None))


class Side(NamedTuple):
    """What a source has of users, or of items: ids, features and, of items, titles."""

    source: Source
    id: str
    features: Mapping[str, str]  # name -> what is between its values, if it has several
    title: str | None

    def read(self) -> tuple[dict[str, log.Table], log.Table | None]:
        """Reads ids and values of each feature, and of the title.

        Raises:
            InputError: a user, or an item, has two values in a column.
        """
        columns = {f"value {name}": name for name in (*self.features, self.title) if name is not None}
        if not columns:
            return {}, None
        triple, parts = ["id", "column", "value"], []
        for frame in self.source.frames({"id": self.id} | columns):
            wide = frame.select("line", _ids(frame["id"]), pl.col(*columns).cast(pl.String))
            long = wide.unpivot(index=["id", "line"], variable_name="column").drop_nulls()
            parts.append(long.unique(triple, keep="first", maintain_order=True))
        known = pl.concat(parts, how="vertical_relaxed").unique(triple, keep="first", maintain_order=True)
        again = known.filter(~pl.struct("id", "column").is_first_distinct())
        if len(again):
            both = known.join(again.head(1), on=["id", "column"], how="semi", maintain_order="left")
            (who, line, column, value), (_, other, _, instead) = both.rows()[:2]
            place, name = self.source.rows.place, columns[column]
            raise InputError(
                f"{place(other)}: {self.id} {who} has {name} {instead!r:.60}, but {value!r:.60} in"
                f" {place(line)}; {MEND}, or leave {name} out"
            )
        tables: dict[str, log.Table] = {}
        for column, name in columns.items():
            table = known.filter(pl.col("column") == column)
            tables[name] = table["id"], table["value"]
        several = {
            name: (tables[name][0], tables[name][1].str.split(between))
            for name, between in self.features.items()
        }
        return several, tables[self.title] if self.title is not None else None


@dataclass(kw_only=True)
class Plan:
    """How columns become a log, whatever file they are in; `Table` says what its arguments are.

    Raises:
        InputError: an option is none of those there are, or a column that is needed has no name.
    """

    columns: Any
    time_unit: str
    missing: str
    event_features: list[Any]
    history: Any
    k_core: int
    duplicates: str

    def __post_init__(self) -> None:
        one_of(f"{KEY}.time_unit", self.time_unit, (*UNITS, "date"))
        one_of(f"{KEY}.missing", self.missing, ("error", "drop"))
        given = {role: str(name) for role, name in self.columns.items() if name is not None}
        for role in ("user", "item"):
            if role not in given:
                raise InputError(f"{KEY}.columns.{role}=null: must be the name of a column")
        self.columns = {role: given.get(role) for role in ROLES}
        self.event_features = [str(name) for name in self.event_features]
        if self.history is not None:
            self.history = dict.fromkeys(History.__annotations__) | self.history
            if not self.history["columns"]:
                raise InputError(f"{KEY}.history.columns: name the columns, or set history to null")
            self.history["columns"] = [str(name) for name in self.history["columns"]]

    @property
    def past(self) -> list[str]:
        """The columns that have each row's own history."""
        return self.history["columns"] if self.history else []

    def log(
        self, name: str, events: Source, users: Side, items: Side, between: Mapping[str, str]
    ) -> InteractionLog:
        """Reads events, and what is known of users and items.

        Args:
            name: what tables call the data.
            events: one row each.
            users: what describes them.
            items: what describes them.
            between: feature of events, or column of histories -> what is between its values, if it has
                several.

        Raises:
            InputError: a column is not there, or a row cannot be used.
        """
        for role in EVENT:
            events.expect(f"columns.{role}", self.columns[role])
        events.expect("event_features", *self.event_features)
        events.expect("history.columns", *self.past)
        frame = self._events(name, events)
        user_features, _ = users.read()
        item_features, titles = items.read()
        return InteractionLog.build(
            name=name,
            users=frame["user"],
            items=frame["item"],
            times=frame.get_column("time", default=None),
            values=frame.get_column("value", default=None),
            labels=frame.get_column("label", default=None),
            past=self._past(frame, between),
            k_core=self.k_core,
            duplicates=self.duplicates,
            item_titles=titles,
            item_features=item_features,
            user_features=user_features,
            event_features={
                feature: frame[f"feature {feature}"].cast(pl.String).str.split(between[feature])
                for feature in self.event_features
            },
            where=lambda row: events.rows.place(frame["line"][row]),
        )

    def _past(self, frame: pl.DataFrame, between: Mapping[str, str]) -> tuple[pl.Series, pl.Series] | None:
        """The ids in all events' own histories, and how many each has."""
        if self.history is None:
            return None
        given, padding = self.history["separator"], self.history["padding"]
        split = [
            pl.col(f"history {name}").cast(pl.String).str.split(given or between[name])
            for name in self.history["columns"]
        ]
        lists = frame.select(pl.concat_list(each.fill_null([]) for each in split)).to_series()
        nothing = ["", *([] if padding is None else [str(padding)])]
        lists = lists.list.eval(pl.element().filter(~pl.element().is_in(nothing)))
        return _ids(lists.explode(empty_as_null=False)), lists.list.len()

    def _events(self, name: str, source: Source) -> pl.DataFrame:
        """Reads events whose order is also right within a second, which is as fine as a log is."""
        roles = {role: column for role in EVENT if (column := self.columns[role]) is not None}
        columns = roles | {f"feature {feature}": feature for feature in self.event_features}
        columns |= {f"history {name}": name for name in self.past}
        needed = [role for role in roles if role != "value"]
        parts, dropped = [], 0
        for frame in source.frames(columns):
            if self.missing == "drop":
                whole = frame.drop_nulls(needed)
                dropped, frame = dropped + len(frame) - len(whole), whole
            parsed = frame.with_columns(
                **{role: _parsed(role, frame[role], self.time_unit) for role in roles}
            )
            wrong = parsed.select(pl.any_horizontal(pl.col(*roles).is_null())).to_series()
            for row in wrong.arg_true().head(1):
                role = next(role for role in roles if parsed[role][row] is None)
                complaint = _complaint(role, frame[role][row], self.time_unit)
                raise InputError(f"{source.rows.place(frame['line'][row])}: {complaint}")
            parts.append(parsed)
        events = pl.concat(parts, how="vertical_relaxed")
        if dropped:
            logger.warning("%s: %s rows without %s are dropped", name, f"{dropped:,}", " or ".join(needed))
        if not len(events) and source.where:
            asked = ", ".join(f"{column}={value}" for column, value in source.where.items())
            first = next(source.rows.frames({column: column for column in source.where})).drop("line").row(0)
            raise InputError(
                f"{KEY}.where: no row of {source.rows.path} has {asked}; its first has {first!r:.60}"
            )
        if "time" not in roles:
            return events
        if len(events) and not (events["time"] >= EARLY).any():
            last = datetime.fromtimestamp(events["time"].to_numpy().max() / SECOND, UTC).date()
            logger.warning(
                "%s: the last event is of %s; if that is wrong, so is %s.time_unit=%s",
                *(name, last, KEY, self.time_unit),
            )
        if (events["time"] % SECOND != 0).any():
            events = events.sort("time", maintain_order=True)
        return events.with_columns(pl.col("time") // SECOND)


def _parsed(role: str, column: pl.Series, unit: str) -> pl.Series:
    """Ids, microseconds or numbers, null where a cell is none; a value that is missing is NaN."""
    if role == "time":
        return _microseconds(column, unit)
    if role == "value":
        number = column.cast(pl.Float32, strict=False)
        return number.set(number.is_infinite(), None).set(column.is_null(), float("nan"))
    if role == "label":
        return column.cast(pl.String).str.to_lowercase().replace_strict(LABELS, default=None)
    return _ids(column)


def _ids(column: pl.Series) -> pl.Series:
    """Ids as whole numbers where all are, which takes less memory, else as text."""
    if column.dtype.is_integer():
        return column
    if column.dtype.is_float():  # as whole numbers become where one is missing
        number = column.cast(pl.Int64, strict=False)
        return number.set(number != column, None)
    text = column.cast(pl.String)
    number = text.cast(pl.Int64, strict=False)
    return number if number.cast(pl.String).eq_missing(text).all() else text  # "007" is not 7


def _microseconds(column: pl.Series, unit: str) -> pl.Series:
    """Times from 1970 on, UTC; null where one cannot be read or is not before 2100."""
    if column.dtype.is_temporal():
        column, unit = column.dt.epoch("us"), "us"
    elif unit == "date":
        column, unit = _dates(column.cast(pl.String)), "us"
    elif unit == "ns" and not column.dtype.is_float():  # has more digits than a float
        column, unit = column.cast(pl.Int64, strict=False) // 1000, "us"
    times = column.cast(pl.Float64, strict=False) * UNITS[unit]  # whole ones up to 2**53 are exact: to 2255
    return times.set(~times.is_between(0, LATE, closed="left"), None).cast(pl.Int64)


def _dates(text: pl.Series) -> pl.Series:
    """Microseconds since 1970, UTC; null where there is no date, or time, as in ISO 8601."""
    text = text.str.replace(" ", "T", literal=True).str.replace(" ?UTC$", "Z")
    found = pl.Series([None] * len(text), dtype=pl.Int64)
    for form in DATES:
        if found.null_count() > text.null_count():
            times = text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
            found = found.zip_with(found.is_not_null(), times.dt.epoch("us"))
    return found


def _complaint(role: str, cell: Any, unit: str) -> str:
    """What is wrong with a cell, and the remedy."""
    shown = f"{str(cell)!r:.60}"
    if cell is None:
        return f"no {role}; {MEND}, or set {KEY}.missing=drop"
    if role == "value":
        return f"value {shown} is not a finite number; {MEND}"
    if role == "label":
        return f"label {shown} is neither 0 nor 1; {MEND}"
    if role != "time":
        return f"{role} {shown} is neither text nor a whole number; {MEND}"
    if unit == "date" or isinstance(cell, date):
        return (
            f"time {shown} is no date from 1970 to 2099, as 2020-12-31 or 2020-12-31T23:59:59Z; {MEND},"
            f" or set {KEY}.time_unit to one of {', '.join(UNITS)} if times are numbers"
        )
    number = pl.Series([str(cell)]).cast(pl.Float64, strict=False)[0]  # unlike Python's, none with _ in it
    if number is None:
        return f"time {shown} is not a number; {MEND}, or set {KEY}.time_unit=date if times are dates"
    fitting = [other for other, step in UNITS.items() if 0 <= number * step < LATE and other != unit]
    remedy = f"set {KEY}.time_unit={fitting[0]}" if fitting else MEND
    return f"time {shown} is not between 1970 and 2100 in {unit}; {remedy}"


# Readers ----------------------------------------------------------------------------------------------------


class Table:
    r"""Reads text with separators, such as CSV, or Parquet: one row an event.

    A file is looked for in ``$HYDREC_DATA``, then in ``root``, then in the working directory, plain or
    gzipped. If its name ends in ``.parquet`` or ``.pq`` it is Parquet, else text.

    Args:
        name: what tables call the data.
        path: the file of events.
        root: where to look second.
        columns: role -> name of its column: ``user``, ``item`` and, where there are any, ``time``, ``value``
            (intensity), ``label`` (0 or 1, whether the item shown was clicked) and ``title`` (of the item).
            Without time, the order of the file stands for it.
        time_unit: ``s``, ``ms``, ``us`` or ``ns`` since 1970 began, or ``date`` for ISO 8601, UTC unless it
            says otherwise; dates and times of Parquet need none. The log has seconds, but events within one
            are in order.
        header: whether text begins with the names of its columns; else they are the numbers from 1.
        separator: of fields of text, ``\t`` for a tab; None for a comma in ``.csv``, a tab in ``.tsv``.
        quote: one character that may be around fields of text, or None where it means nothing.
        where: column -> value; only rows that have these, as text, are read.
        missing: what to do about rows without user, item or time: ``error`` or ``drop``.
        user_features: columns that describe users; of one user, all values that there are must be the same.
        item_features: columns that describe items, likewise.
        event_features: columns that describe events.
        history: where each row brings its own history, the ``columns`` it is in, oldest first, each with one
            item or with several, between which is ``separator``; lists of Parquet need none. ``padding``
            stands for no item. None where a user's rows before are the history.
        users: ``path`` of another file that has user_features, and its column ``id``; each may be None.
        items: ``path`` of another file that has item_features and title, and its column ``id``, likewise.
        multi: feature -> what is between its values, if it has several. Lists of Parquet need none.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user meets an item again: ``keep``, ``first``, ``last`` or ``error``.

    Raises:
        InputError: an option cannot be used; names its key.
    """

    @typed
    def __init__(
        self,
        *,
        name: str,
        path: str,
        root: str,
        columns: Columns,
        time_unit: str,
        header: bool,
        separator: str | None,
        quote: str | None,
        where: dict[Name, str | int | float | bool] | None,
        missing: str,
        user_features: list[Name],
        item_features: list[Name],
        event_features: list[Name],
        history: History | None,
        users: Further | None,
        items: Further | None,
        multi: dict[Name, str] | None,
        k_core: int,
        duplicates: str,
    ) -> None:
        self.name, self.path, self.root = name, path, root
        self.plan = Plan(
            columns=columns,
            time_unit=time_unit,
            missing=missing,
            event_features=event_features,
            history=history,
            k_core=k_core,
            duplicates=duplicates,
        )
        self.features = {"user": list(map(str, user_features)), "item": list(map(str, item_features))}
        self.further: dict[str, tuple[str, str | None]] = {}  # role -> (path, name of the ids)
        for role, file in (("user", users or Further()), ("item", items or Further())):
            other, ids = file.get("path"), file.get("id")
            if other is not None:
                self.further[role] = other, None if ids is None else str(ids)
        self.separator = separator.replace("\\t", "\t") if separator else None
        self.quote, self.header = quote, header
        self.where = {str(column): str(value) for column, value in (where or {}).items()}
        self.multi = {str(feature): between for feature, between in (multi or {}).items()}
        if quote is not None and len(quote.encode()) != 1:
            raise InputError(f"{KEY}.quote={quote}: must be one character, or null")
        known = {*self.plan.event_features, *self.features["user"], *self.features["item"]}
        for feature in sorted(self.multi.keys() - known):
            raise InputError(f"{KEY}.multi.{feature}: list it in user_, item_ or event_features as well")

    def files(self) -> list[Path]:
        """Lists the files of events and, where they are given, users and items.

        Raises:
            MissingData: the file of events is not there.
            InputError: another one is not.
        """
        events = self._find("path", self.path, MissingData)
        further = [self._find(f"{role}s.path", path) for role, (path, _) in self.further.items()]
        return list(dict.fromkeys([events, *further]))

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {
            "reader": "table",
            "version": VERSION,
            **asdict(self.plan),
            "header": self.header,
            "separator": self.separator,
            "quote": self.quote,
            "where": self.where,
            "features": self.features,
            "further": {role: ids for role, (_, ids) in self.further.items()},
            "multi": self.multi,
        }

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the file of events is nowhere to be found.
            InputError: a file, a column or a row cannot be used, or ``k_core`` leaves nothing.
        """
        events = Source(self._open(self._find("path", self.path, MissingData)), self.where)
        events.expect("where", *self.where)
        users = self._side("user", events, None)
        items = self._side("item", events, self.plan.columns["title"])
        several = [*self.plan.event_features, *self.plan.past]
        return self.plan.log(self.name, events, users, items, self._between(several))

    def _find(self, key: str, path: str, error: type[InputError] = InputError) -> Path:
        tried = dict.fromkeys([*raw.places(path, self.root), Path(path)])
        for found in filter(None, map(raw.plain_or_gz, tried)):
            return found
        raise error(
            f"{KEY}.{key}={path}: there is no {' nor '.join(map(str, tried))}; give the path of a table"
        )

    def _side(self, role: str, events: Source, title: str | None) -> Side:
        ids, source = self.plan.columns[role], events
        if role in self.further:
            path, own = self.further[role]
            source = Source(self._open(self._find(f"{role}s.path", path)), {})
            ids = own or ids
            source.expect(f"{role}s.id", ids)
        source.expect(f"{role}_features", *self.features[role])
        source.expect("columns.title", title)
        return Side(source, ids, self._between(self.features[role]), title)

    def _between(self, features: Sequence[str]) -> dict[str, str]:
        return {feature: self.multi.get(feature, JOINED) for feature in features}

    def _open(self, path: Path) -> Text | Parquet:
        kind = Path(path.name.removesuffix(".gz")).suffix.lower()
        if kind in PARQUET:
            return Parquet(path)
        separator = self.separator or SEPARATORS.get(kind)
        if separator is None:
            raise InputError(f"{KEY}.separator: {path} does not tell by its name; set it, as to '|' or '\\t'")
        return Text(path, separator=separator, quote=self.quote, header=self.header)


class Atomic:
    """Reads RecBole's atomic files: NAME.inter and, where they are, NAME.item and NAME.user.

    The header gives each column a type, as in ``user_id:token``. Of items and users, ``token``, ``float`` and
    ``token_seq`` (several, blanks in between) become features; ``float_seq`` are left out, since they are
    vectors. A number is a category of its own unless ``dataset.fields.form`` makes it a bucket or a number.

    Args:
        name: what tables call the data.
        folder: where they are, called NAME; looked for in ``$HYDREC_DATA``, then in ``root``.
        root: where to look second.
        columns: role -> name, without type, of its column: ``user``, ``item`` and, where there are any,
            ``time``, ``value`` (intensity), ``label`` (0 or 1) and ``title`` (in NAME.item). Without
            time, the order of the file stands for it.
        time_unit: as in `Table`; RecBole has ``s``.
        missing: what to do about rows without user, item or time: ``error`` or ``drop``.
        event_features: columns of NAME.inter, of any type.
        history: as in `Table`, of columns of NAME.inter, such as ``item_id_list:token_seq``.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user meets an item again: ``keep``, ``first``, ``last`` or ``error``.

    Raises:
        InputError: an option cannot be used; names its key.
    """

    @typed
    def __init__(
        self,
        *,
        name: str,
        folder: str,
        root: str,
        columns: Columns,
        time_unit: str,
        missing: str,
        event_features: list[str],
        history: History | None,
        k_core: int,
        duplicates: str,
    ) -> None:
        self.name, self.folder, self.root = name, folder, root
        self.plan = Plan(
            columns=columns,
            time_unit=time_unit,
            missing=missing,
            event_features=event_features,
            history=history,
            k_core=k_core,
            duplicates=duplicates,
        )

    def files(self) -> list[Path]:
        """Lists the files of events and, where there are any, items and users.

        Raises:
            MissingData: no place has a file of events.
        """
        places = [place / place.name for place in raw.places(self.folder, self.root)]
        for place in places:
            events, *sides = (raw.plain_or_gz(place.with_name(f"{place.name}.{kind}")) for kind in ATOMIC)
            if events is not None:
                return [events, *(path for path in sides if path is not None)]
        raise MissingData(
            f"{self.folder}: there is no {' and no '.join(f'{place}.inter' for place in places)};"
            f" put the atomic files there, or set {KEY}.folder to a folder that is called as they are"
        )

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {"reader": "atomic", "version": VERSION, **asdict(self.plan)}

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the files are nowhere to be found.
            InputError: a column or a line cannot be used, or ``k_core`` leaves nothing.
        """
        opened = {path.name.removesuffix(".gz").rpartition(".")[2]: _atomic(path) for path in self.files()}
        events, kinds = opened["inter"]
        users = self._side("user", opened, None)
        items = self._side("item", opened, self.plan.columns["title"])
        several = [*self.plan.event_features, *self.plan.past]
        between = {name: BETWEEN.get(kinds.get(name, ""), JOINED) for name in several}
        return self.plan.log(self.name, events, users, items, between)

    def _side(self, role: str, opened: Mapping[str, tuple[Source, dict]], title: str | None) -> Side:
        ids = self.plan.columns[role]
        if role not in opened:
            events, _ = opened["inter"]
            if title is not None:
                raise InputError(
                    f"{KEY}.columns.title={title}: no .item is beside {events.rows.path}; set it to null"
                )
            return Side(events, ids, {}, None)
        source, kinds = opened[role]
        source.expect(f"columns.{role}", ids)
        source.expect("columns.title", title)
        features = {name: kind for name, kind in kinds.items() if name not in (ids, title)}
        between = {name: BETWEEN[kind] for name, kind in features.items() if kind in BETWEEN}
        return Side(source, ids, between, title)


def _atomic(path: Path) -> tuple[Source, dict[str, str]]:
    """Opens an atomic file; returns its rows and the type of each column."""
    rows = Text(path, separator="\t", quote=None, header=True)
    typed = [cell.rpartition(":") for cell in rows.names]
    for name, colon, kind in typed:
        if not name or kind not in KINDS:
            raise InputError(
                f"{path}:1: the header has {name + colon + kind!r:.60}, not a NAME:TYPE with one of the types"
                f" {', '.join(KINDS)}; {MEND}"
            )
    rows.names = [name for name, _, _ in typed]
    return Source(rows, {}), {name: kind for name, _, kind in typed}


class Sequences:
    """Reads sequences without times: lines of a user and items, in whole numbers, in the order they met.

    Lines have one item each (``user item`` of SASRec and BERT4Rec) or all of a user's (``user item item ...``
    of S3-Rec, STOSA and GraphDA). Nobody has to say which, for a line means the same in both. A table of
    numbers is neither: where a line has several items, a user with another line is refused.

    The time of an event is its position in the user's history, 0, 1, 2, ...: it orders the events of a user
    and says nothing of intervals, nor of two users. Protocols that cut by time mean nothing here.

    Args:
        name: what tables call the data.
        folder: the folder of the file; looked for in ``$HYDREC_DATA``, then in ``root``.
        file: the file, plain or gzipped.
        root: where to look second.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user meets an item again: ``keep``, ``first``, ``last`` or ``error``.
    """

    @typed
    def __init__(self, *, name: str, folder: str, file: str, root: str, k_core: int, duplicates: str) -> None:
        self.name, self.folder, self.file, self.root = name, folder, file, root
        self.k_core, self.duplicates = k_core, duplicates

    def files(self) -> list[Path]:
        """Lists the one file.

        Raises:
            MissingData: no place has it.
        """
        places = [place / self.file for place in raw.places(self.folder, self.root)]
        for path in filter(None, map(raw.plain_or_gz, places)):
            return [path]
        raise MissingData(
            f"{self.folder}: there is no {' and no '.join(map(str, places))};"
            f" put it there, or set {KEY}.folder and {KEY}.file"
        )

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the file."""
        return {
            "reader": "sequences",
            "version": VERSION,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
        }

    def __call__(self) -> InteractionLog:
        """Reads the file.

        Raises:
            MissingData: the file is nowhere to be found.
            InputError: a line cannot be used, or ``k_core`` leaves nothing.
        """
        path, parts = self.files()[0], []
        for block in raw.blocks(path, MEND):
            lines = pl.DataFrame({"text": block.lines()}).with_row_index("line", block.line)
            wrong = lines.filter(~pl.col("text").str.contains(LINE))
            for line, text in wrong.rows()[:1]:
                raise InputError(
                    f"{path}:{line}: '{text[:60]}' is no user with items, all whole numbers; {MEND}"
                )
            ids = pl.col("text").str.extract_all("[0-9]+").cast(pl.List(pl.Int64))
            parts.append(lines.select("line", user=ids.list.first(), items=ids.list.slice(1)))
        lines = pl.concat(parts)
        again = lines.filter(~pl.col("user").is_first_distinct())
        if len(again) and (lines["items"].list.len() > 1).any():
            line, user, _ = again.row(0)
            raise InputError(
                f"{path}:{line}: user {user} has an earlier line, which is for lines of one item; {MEND},"
                " or use dataset=table if these are columns"
            )
        events = lines.explode("items")
        return InteractionLog.build(
            name=self.name,
            users=events["user"],
            items=events["items"],
            k_core=self.k_core,
            duplicates=self.duplicates,
            where=lambda row: f"{path}:{events['line'][row]}",
        )
