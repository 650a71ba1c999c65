import csv
import gzip
import io
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydrec.data import files, raw
from hydrec.data.files import Atomic, Sequences, Table
from hydrec.data.movielens import MovieLens
from hydrec.data.rows import Text
from hydrec.errors import InputError, MissingData
from hydrec.overrides import check

CONF = Path(__file__).parents[2] / "conf"
DATA = os.environ.get("HYDREC_DATA")

COLUMNS = {"user": "user", "item": "item", "time": "time", "value": None, "title": None}
OPTIONS = {
    "name": "shop",
    "columns": COLUMNS,
    "time_unit": "s",
    "header": True,
    "separator": None,
    "quote": '"',
    "where": None,
    "missing": "error",
    "user_features": [],
    "item_features": [],
    "event_features": [],
    "history": None,
    "users": {"path": None, "id": None},
    "items": {"path": None, "id": None},
    "multi": None,
    "k_core": 0,
    "duplicates": "keep",
}

HEADER = ("user", "item", "time", "value", "title", "genres", "gender", "device")
# Users out of order, times falling, an id that is no number, fields with separators, quotes and line ends.
ROWS = [
    ("12", "b", "300", "1.5", 'Bo\'s "best", b\nof all', "Drama|War", "F", "phone"),
    ("3", "a", "200", "", "Alpha; a::a", "", "M", ""),
    ("12", "a", "100", "-2", "Alpha; a::a", "", "F", "tv"),
    ("7", "007", "100", "0", "", "War", "", "phone"),
    ("3", "b", "150", "4", 'Bo\'s "best", b\nof all', "Drama|War", "", "tv"),
]
EXPECTED = [  # user, time, item, value, device
    ("3", 150, "b", 4.0, "tv"),
    ("3", 200, "a", None, None),
    ("7", 100, "007", 0.0, "phone"),
    ("12", 100, "a", -2.0, "tv"),
    ("12", 300, "b", 1.5, "phone"),
]
FULL = {
    "columns": COLUMNS | {"value": "value", "title": "title"},
    "user_features": ["gender"],
    "item_features": ["genres"],
    "event_features": ["device"],
    "multi": {"genres": "|"},
}


@pytest.fixture(autouse=True)
def no_public_data(monkeypatch):
    monkeypatch.delenv("HYDREC_DATA", raising=False)


def text(rows, separator=",", **options):
    """Rows as the csv module writes them."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, **{"lineterminator": "\n"} | options).writerows(rows)
    return out.getvalue()


def table(path, **options):
    return Table(path=path.name, root=str(path.parent), **OPTIONS | options)


def small(folder, content, **options):
    """A table of the columns user, item and time."""
    path = folder / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return table(path, **options)


def complaint(reader):
    """The one line that the reader says of bad input."""
    with pytest.raises(InputError) as caught:
        reader()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(feature):
    names = np.array([None, None, *feature.vocabulary])
    return [
        list(names[feature.codes[a:b]]) for a, b in zip(feature.offsets, feature.offsets[1:], strict=False)
    ]


def events(log):
    """(user, time, item, value) of every row, in raw ids."""
    values = [None if np.isnan(value) else value for value in log.values.tolist()]
    users, items = log.user_ids[log.users].tolist(), log.item_ids[log.items].tolist()
    return list(zip(users, log.times.tolist(), items, values, strict=True))


def check_shop(log):
    assert events(log) == [row[:4] for row in EXPECTED]
    assert [each[0] for each in words(log.event_features["device"])] == [row[4] for row in EXPECTED]
    assert log.item_ids.tolist() == ["", "007", "a", "b"]
    assert log.item_titles.tolist() == ["", "", "Alpha; a::a", 'Bo\'s "best", b\nof all']
    assert words(log.item_features["genres"])[1:] == [["War"], [None], ["Drama", "War"]]
    assert words(log.user_features["gender"])[1:] == [["M"], [None], ["F"]]


# Tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", text([HEADER, *ROWS]), {}),
        ("a.CSV", text([HEADER, *ROWS]), {}),
        ("a.csv", text([HEADER, *ROWS], quoting=csv.QUOTE_ALL), {}),
        ("a.csv", text([HEADER, *ROWS], lineterminator="\r\n"), {}),
        ("a.csv", "\ufeff" + text([HEADER, *ROWS]) + "\n\n", {}),
        ("a.csv", text([HEADER, *ROWS])[:-1], {}),  # the last line has no end
        ("a.csv", text([HEADER, *ROWS], quotechar="'"), {"quote": "'"}),
        ("a.tsv", text([HEADER, *ROWS], "\t"), {}),
        ("a.csv", text([HEADER, *ROWS], ";"), {"separator": ";"}),
        ("a.txt", text([HEADER, *ROWS], "\t"), {"separator": "\\t"}),
        (
            "a.dat",
            text([HEADER, *ROWS], "\x1f", quoting=csv.QUOTE_ALL).replace("\x1f", "::"),
            {"separator": "::"},
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("block", [80, 2**24])
def test_text_is_read_however_it_was_written(tmp_path, monkeypatch, name, content, options, packed, block):
    monkeypatch.setattr("hydrec.data.rows.BLOCK", block)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    check_shop(table(tmp_path / name, **FULL, **options)())


def test_columns_without_a_header_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text(text(ROWS))
    numbers = {"user": 1, "item": 2, "time": 3, "value": 4, "title": 5}
    log = table(tmp_path / "a.csv", header=False, columns=numbers, item_features=[6], multi={6: "|"})()
    assert events(log) == [row[:4] for row in EXPECTED]
    assert words(log.item_features["6"])[1:] == [["War"], [None], ["Drama", "War"]]


def test_names_of_columns_may_be_quoted(tmp_path):
    columns = COLUMNS | {"user": 'the "user",\nor buyer'}
    content = text([(columns["user"], "item", "time"), (1, 2, 3), (4, 5)])
    assert complaint(small(tmp_path, content, columns=columns)).startswith(
        f"{tmp_path}/table.csv:4: 2 instead of 3 fields; "
    )


@pytest.mark.parametrize("slice_", [2, 2**22])
@pytest.mark.parametrize("kind", ["text", "numbers", "pandas"])
def test_parquet_is_read_like_text(tmp_path, monkeypatch, slice_, kind):
    monkeypatch.setattr("hydrec.data.rows.SLICE", slice_)
    frame = pl.DataFrame(dict(zip(HEADER, zip(*ROWS, strict=True), strict=True)))
    options = FULL
    if kind != "text":
        frame = frame.with_columns(
            pl.col("user").cast(pl.Int32 if kind == "numbers" else pl.Float64),
            pl.col("time").cast(pl.Int64) * 1000,
            pl.col("value").cast(pl.Float64, strict=False),
            pl.col("genres").str.split("|"),
            pl.col("item", "device").cast(pl.Categorical),
        )
        frame = frame.with_columns(pl.col("time").cast(pl.Datetime("ms")))
        options = FULL | {"multi": None}
    frame.write_parquet(tmp_path / "a.parquet")
    check_shop(table(tmp_path / "a.parquet", **options)())


def test_features_and_titles_may_come_from_other_files(tmp_path):
    (tmp_path / "a.csv").write_text(text([HEADER[:4], *(row[:4] for row in ROWS)]))
    (tmp_path / "users.csv").write_text("who,gender\n12,F\n5,F\n3,M\n3,M\n")
    things = pl.DataFrame(
        {"item": ["b", "a", "007"], "name": ["B", "A", None], "genres": [["x"], ["y", "x"], []]}
    )
    things.write_parquet(tmp_path / "items.parquet")
    log = table(
        tmp_path / "a.csv",
        columns=COLUMNS | {"value": "value", "title": "name"},
        user_features=["gender"],
        item_features=["genres"],
        users={"path": "users.csv", "id": "who"},
        items={"path": str(tmp_path / "items.parquet"), "id": None},  # the column is called as in the events
    )()
    assert events(log) == [row[:4] for row in EXPECTED]
    assert log.item_titles.tolist() == ["", "", "A", "B"]
    assert words(log.item_features["genres"])[1:] == [[None], ["y", "x"], ["x"]]
    assert words(log.user_features["gender"])[1:] == [["M"], [None], ["F"]]


FIELDS = st.text(st.sampled_from('ab ,;"\né'), max_size=9)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(FIELDS, min_size=3, max_size=3), min_size=1, max_size=12),
    block=st.integers(80, 160),
)
def test_quoted_text_is_read_as_the_csv_module_does(tmp_path, monkeypatch, rows, block):
    monkeypatch.setattr("hydrec.data.rows.BLOCK", block)
    rows = [["1", *row, "x"] for row in rows]
    (tmp_path / "a.csv").write_text(text(rows, quoting=csv.QUOTE_ALL), newline="")
    source = Text(tmp_path / "a.csv", separator=",", quote='"', header=False)
    frame = pl.concat(source.frames({number: number for number in source.names}))
    assert [list(row[1:]) for row in frame.rows()] == rows
    before = [0, *np.cumsum([1 + "".join(row).count("\n") for row in rows])]
    assert frame["line"].to_list() == [1 + line for line in before[:-1]]


def test_integers_and_text_among_ids_give_one_log_whatever_the_blocks(tmp_path, monkeypatch):
    rows = [(user, item, 5) for item in ("1", "01", "x") for user in range(40)]
    whole = small(tmp_path, text([HEADER[:3], *rows]))()
    monkeypatch.setattr("hydrec.data.rows.BLOCK", 100)
    assert small(tmp_path, text([HEADER[:3], *rows]))().fingerprint == whole.fingerprint
    assert whole.item_ids.tolist() == ["", "01", "1", "x"]


def test_the_order_of_rows_does_not_matter_where_times_differ(tmp_path):
    rows = [(user, item, 900 - 100 * item - user) for user in range(5) for item in range(7)]
    logs = [small(tmp_path, text([HEADER[:3], *some]))() for some in (rows, rows[::-1])]
    assert logs[0].fingerprint == logs[1].fingerprint


# Times ------------------------------------------------------------------------------------------------------

NOON = int(datetime(2021, 3, 4, 12, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("unit", "cell", "seconds"),
    [
        ("s", "881250949", 881_250_949),
        ("s", "1135728000.0", 1_135_728_000),
        ("s", "1.135728e9", 1_135_728_000),
        ("s", "0", 0),
        ("ms", "1135728000999", 1_135_728_000),
        ("us", "1135728000999999", 1_135_728_000),
        ("ns", "1135728000999999999", 1_135_728_000),
        ("date", "2021-03-04", NOON - 12 * 3600),
        ("date", "2021-03-04 12:00:00", NOON),
        ("date", "2021-03-04T12:00", NOON),
        ("date", "2021-03-04T12:00:00.750", NOON),
        ("date", "2021-03-04T12:00:00Z", NOON),
        ("date", "2021-03-04 12:00:00 UTC", NOON),
        ("date", "2021-03-04 14:00:00.5+02:00", NOON),
        ("date", "2021-03-04T07:00:00-0500", NOON),
    ],
)
def test_time_is_read_in_its_unit(tmp_path, unit, cell, seconds):
    log = small(tmp_path, f"user,item,time\n1,2,{cell}\n", time_unit=unit)()
    assert log.times.tolist() == [seconds]


def test_forms_of_dates_may_be_mixed(tmp_path):
    cells = ["2021-03-04", "", "2021-03-04T12:00:00+00:00", "2021-03-04 12:00"]
    content = text([HEADER[:3], *((1, item, cell) for item, cell in enumerate(cells))])
    assert small(tmp_path, content, time_unit="date", missing="drop")().times.tolist() == [
        NOON - 43_200,
        NOON,
        NOON,
    ]


@pytest.mark.parametrize("kind", [pl.Date, pl.Datetime("ns"), pl.Datetime("ms", "Asia/Tokyo")])
def test_times_of_parquet_need_no_unit(tmp_path, kind):
    time = pl.Series([datetime(2021, 3, 4)]).cast(pl.Datetime("us", "UTC")).cast(kind)
    pl.DataFrame({"user": [1], "item": [2], "time": time}).write_parquet(tmp_path / "a.parquet")
    assert table(tmp_path / "a.parquet")().times.tolist() == [NOON - 12 * 3600]


@pytest.mark.parametrize(("unit", "step"), [("ms", 1), ("us", 1000), ("ns", 10**6), ("s", 0.001)])
def test_events_within_a_second_are_in_order(tmp_path, unit, step):
    start, late = 1_600_000_000_000, [900, 100, 500, 1500, 100]
    rows = [(1, item, (start + ms) * step) for item, ms in enumerate(late)]
    log = small(tmp_path, text([HEADER[:3], *rows]), time_unit=unit, duplicates="error")()
    assert log.item_ids[log.items].tolist() == ["1", "4", "2", "0", "3"]
    assert log.times.tolist() == [1_600_000_000] * 4 + [1_600_000_001]


def test_the_order_of_the_file_stands_for_a_time_that_is_not_there(tmp_path):
    rows = [("2", "a"), ("1", "c"), ("2", "c"), ("1", "b")]
    log = small(tmp_path, text([HEADER[:2], *rows]), columns=COLUMNS | {"time": None})()
    assert [row[:3] for row in events(log)] == [("1", 0, "c"), ("1", 1, "b"), ("2", 0, "a"), ("2", 1, "c")]
    assert not log.dated
    assert small(tmp_path, text([HEADER[:3], ("2", "a", "7")]))().dated


CLICKS = [
    ("user", "item", "time", "click", "past", "h1", "h2"),
    ("2", "a", "30", "1", "b|c|b", "b", "0"),
    ("1", "c", "20", "0", "", "0", "0"),
    ("2", "b", "10", "1.0", "0|d", "d", "a"),
]
LABELLED = COLUMNS | {"label": "click"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(["past"], [[], ["d"], ["b", "c", "b"]]), (["h1", "h2"], [[], ["d", "a"], ["b"]])],
)
def test_labels_and_rows_that_bring_their_history(tmp_path, columns, expected):
    history = {"columns": columns, "separator": "|", "padding": 0}
    log = small(tmp_path, text(CLICKS), columns=LABELLED, history=history)()
    assert [row[:3] for row in events(log)] == [("1", 20, "c"), ("2", 10, "b"), ("2", 30, "a")]
    assert log.labels.tolist() == [0, 1, 1]
    past = np.split(log.item_ids[log.past_items], log.past_offsets[1:-1])
    assert [each.tolist() for each in past] == expected


def test_history_of_whole_numbers_and_of_text_are_the_same_items(tmp_path):
    rows = [("user", "item", "time", "past"), ("1", "7", "1", "07|x"), ("1", "8", "2", "7|8")]
    history = {"columns": ["past"], "separator": "|"}
    log = small(tmp_path, text(rows), history=history)()
    assert log.item_ids.tolist() == ["", "07", "7", "8", "x"]
    assert log.item_ids[log.past_items].tolist() == ["07", "x", "7", "8"]
    whole = [("user", "item", "time", "past"), ("1", "7", "1", "10|7"), ("1", "8", "2", "")]
    log = small(tmp_path, text(whole), history=history)()
    assert log.item_ids.tolist() == ["", "7", "8", "10"]  # as numbers
    with pytest.raises(InputError, match="k_core=2: rows that bring their history need 0"):
        small(tmp_path, text(whole), history=history, k_core=2)()


@pytest.mark.parametrize("kind", [pl.List(pl.Int64), pl.Array(pl.Int32, 2), pl.Array(pl.String, 2)])
def test_lists_of_parquet_are_histories(tmp_path, kind):
    frame = pl.DataFrame({"user": [1, 2], "item": [5, 6], "time": [9, 8], "past": [[6, 7], None]})
    frame = frame.with_columns(pl.col("past").cast(pl.List(kind.inner)).cast(kind))
    frame.write_parquet(tmp_path / "a.parquet")
    log = table(tmp_path / "a.parquet", history={"columns": ["past"]})()
    assert log.item_ids[log.past_items].tolist() == ["6", "7"]
    assert log.past_offsets.tolist() == [0, 2, 2]


def test_an_item_called_none_is_an_item(tmp_path):
    rows = [("user", "item", "time", "past"), ("1", "7", "1", "None|7")]
    history = {"columns": ["past"], "separator": "|"}
    assert small(tmp_path, text(rows), history=history)().item_ids.tolist() == ["", "7", "None"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"history": {"columns": ["pasd"]}},
            "columns=pasd: PATH has no such column; did you mean past",
        ),
        ({"history": {"column": ["past"]}}, "dataset.reader.history=column is none of columns, "),
        ({"history": {"columns": []}}, "dataset.reader.history.columns: name the columns, or set history to"),
        ({"columns": COLUMNS | {"label": "time"}}, "PATH:2: label '30' is neither 0 nor 1; mend the file"),
        ({"columns": COLUMNS | {"label": "past"}}, "PATH:2: label 'b|c|b' is neither 0 nor 1; mend the file"),
    ],
)
def test_bad_labels_and_histories_are_refused(tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        small(tmp_path, text(CLICKS), **options)()
    assert message in str(caught.value).replace(str(tmp_path / "table.csv"), "PATH")


def test_a_log_of_the_seventies_is_worth_a_warning(tmp_path, caplog):
    small(tmp_path, "user,item,time\n1,2,1600000000\n", time_unit="ms")()
    assert caplog.messages == [
        "shop: the last event is of 1970-01-19; if that is wrong, so is dataset.reader.time_unit=ms"
    ]
    caplog.clear()
    small(tmp_path, "user,item,time\n1,2,1600000000\n1,2,5\n")()
    assert caplog.messages == []


# Which rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["play", 1, 1.5, True])
def test_where_keeps_rows_that_are_equal(tmp_path, value):
    rows = [(1, 2, 10, value, "x"), (1, 3, "soon", "no", "x"), (1, 4, 30, value, "y")]
    content = text([(*HEADER[:3], "kind", "of"), *rows])
    assert small(tmp_path, content, where={"kind": value, "of": "x"})().item_ids.tolist() == ["", "2"]
    assert len(small(tmp_path, content, where={"kind": value})()) == 2
    assert complaint(small(tmp_path, content, where={"kind": "buy"})) == (
        f"dataset.reader.where: no row of {tmp_path}/table.csv has kind=buy; its first has ('{value}',)"
    )


def test_rows_that_lack_something_are_dropped_and_counted(tmp_path, caplog):
    rows = [("1", "2", "5"), ("", "2", "5"), ("1", "", "5"), ("1", "2", ""), ("4", "4", "2000000000")]
    log = small(tmp_path, text([HEADER[:3], *rows]), missing="drop")()
    assert events(log) == [("1", 5, "2", None), ("4", 2_000_000_000, "4", None)]
    assert caplog.messages == ["shop: 3 rows without user or item or time are dropped"]


def test_a_repeated_event_names_both_rows(tmp_path):
    content = 'user,item,time\n1,"a\nb",500\n1,c,400\n1,"a\nb",300\n'
    assert complaint(small(tmp_path, content, duplicates="error")) == (
        f"{tmp_path}/table.csv:5: repeats the user and item of {tmp_path}/table.csv:2;"
        " set dataset.reader.duplicates to keep, first or last"
    )
    assert small(tmp_path, content, duplicates="first")().times.tolist() == [300, 400]


# What is wrong ----------------------------------------------------------------------------------------------

TIMES = "set dataset.reader.time_unit"

WRONG = {  # content after the header, options, how the message goes on after the path
    "too few fields": ("1,2,3\n1,2\n", {}, ":3: 2 instead of 3 fields; mend the file"),
    "too many fields": ("1,2,3\n1,2,3,4\n", {}, ":3: 4 instead of 3 fields; "),
    "a blank line": ("1,2,3\n\n1,2,3\n", {}, ":3: 1 instead of 3 fields; "),
    "another separator": ("1;2;3\n", {}, ":2: 1 instead of 3 fields; "),
    "a field goes on": ('"a\n\nb",2,3\n1,2\n', {}, ":5: 2 instead of 3 fields; "),
    "a quote in a field": ('1,2,3\n1,5" disk,3\n', {}, ":3: a quote in the middle of a field; "),
    "a field after a quote": ('1,"a" b,3\n', {}, ":2: a quote in the middle of a field; "),
    "a backslash before a quote": ('1,"a \\" b",3\n', {}, ":2: a quote in the middle of a field; "),
    "a quote never closed": ('1,2,3\n1,"a,3\n1,b,3\n', {}, ":3: a quote that is never closed; "),
    "no user": ("1,2,3\n,2,3\n,2,3\n", {}, ":3: no user; mend the file, or set dataset.reader.missing=drop"),
    "no item": ('1,2,3\n1,"",3\n', {}, ":3: no item; "),
    "no time": ("1,2,3\n1,2,\n", {}, ":3: no time; "),
    "time that is text": (
        "1,2,soon\n",
        {},
        ":2: time 'soon' is not a number; mend the file, or " + TIMES + "=date",
    ),
    "a date as a number": ("1,2,2021-03-04\n", {}, ":2: time '2021-03-04' is not a number; "),
    "time that is NaN": ("1,2,nan\n", {}, ":2: time 'nan' is not between 1970 and 2100 in s; mend the file"),
    "negative time": ("1,2,-1\n", {}, ":2: time '-1' is not between 1970 and 2100 in s; mend the file"),
    "ms as s": (
        "1,2,3\n1,2,1600000000000\n",
        {},
        f":3: time '1600000000000' is not between 1970 and 2100 in s; {TIMES}=ms",
    ),
    "us as s": (
        "1,2,1600000000000000\n",
        {},
        f":2: time '1600000000000000' is not between 1970 and 2100 in s; {TIMES}=us",
    ),
    "ns as ms": (
        "1,2,1600000000000000000\n",
        {"time_unit": "ms"},
        f":2: time '1600000000000000000' is not between 1970 and 2100 in ms; {TIMES}=ns",
    ),
    "a number as Python has it": (
        "1,2,1_500_000_000\n",
        {},
        f":2: time '1_500_000_000' is not a number; mend the file, or {TIMES}=date",
    ),
    "too long for 64 bits": ("1,2," + "9" * 30 + "\n", {"time_unit": "ns"}, ":2: time '99999999"),
    "a number as a date": (
        "1,2,1600000000\n",
        {"time_unit": "date"},
        ":2: time '1600000000' is no date from 1970 to 2099",
    ),
    "no such day": ("1,2,2021-02-30\n", {"time_unit": "date"}, ":2: time '2021-02-30' is no date"),
    "a date of another form": ("1,2,03/04/2021\n", {"time_unit": "date"}, ":2: time '03/04/2021' is no date"),
    "a date too early": (
        "1,2,1500-01-01\n",
        {"time_unit": "date"},
        ":2: time '1500-01-01' is no date from 1970",
    ),
    "a date too late": (
        "1,2,2100-01-01\n",
        {"time_unit": "date"},
        ":2: time '2100-01-01' is no date from 1970",
    ),
    "value that is text": (
        "1,2,good\n",
        {"columns": COLUMNS | {"time": None, "value": "time"}},
        ":2: value 'good' is not a finite number; ",
    ),
    "infinite value": (
        "1,2,-inf\n",
        {"columns": COLUMNS | {"time": None, "value": "time"}},
        ":2: value '-inf' is not a finite number; ",
    ),
    "UTF-16": ("1,2,3\n".encode("utf-16-le"), {}, ":2: a NUL byte, as in UTF-16 text; "),
    "Latin-1": ("1,2,3\n1,é,3\n".encode("latin-1"), {}, ":3: not UTF-8; save the file as UTF-8"),
    "files that were joined": (
        "1,2,3\n\ufeff1,2,3\n",
        {},
        ":3: a byte order mark, as where two files were j",
    ),
    "a carriage return": ("1,2,3\n1\r,2,3\n", {}, ":3: a carriage return in the middle of a line; mend the"),
    "what is between values": ("1,2,3\n1,a\x1fb,3\n", {}, ":3: a byte 0x1f, which is no text; "),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("far", [0, 5000])
def test_first_wrong_row_is_named(tmp_path, monkeypatch, fault, far):
    monkeypatch.setattr("hydrec.data.rows.BLOCK", 1000)
    monkeypatch.setattr(raw, "BLOCK", 3000)
    content, options, said = WRONG[fault]
    content = content if isinstance(content, bytes) else content.encode()
    right = b"1,2,2021-03-04\n" if options.get("time_unit") == "date" else b"1,2,3\n"
    reader = small(tmp_path, b"user,item,time\n" + right * far + content, **options)
    number, colon, rest = said.removeprefix(":").partition(":")
    if colon and number.isdigit():
        said = f":{int(number) + far}:{rest}"
    assert complaint(reader).startswith(f"{tmp_path}/table.csv{said}")


def test_latin_1_in_a_column_that_is_not_read_is_refused_as_well(tmp_path):
    content = "user,item,time,note\n1,2,3,\n1,2,3,é\n".encode("latin-1")
    assert complaint(small(tmp_path, content)).startswith(f"{tmp_path}/table.csv:3: not UTF-8; ")


@pytest.mark.parametrize("content", ["", "\n", "user,item,time\n"])
def test_text_without_rows_is_refused(tmp_path, content):
    assert complaint(small(tmp_path, content)).startswith(f"{tmp_path}/table.csv: empty; ")


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("hydrec.data.rows.BLOCK", 1000)
    monkeypatch.setattr(raw, "BLOCK", 3000)
    rows = "1,2,3\n" * 300_000
    reader = small(tmp_path, f'user,item,time\n1,"a,3\n{rows}\0')  # who gets there complains of the NUL
    assert ":2: a quote that is never closed; " in complaint(reader)


def test_quotes_may_mean_nothing(tmp_path):
    log = small(tmp_path, 'user,item,time\n1,5" disk,3\n1,"x,4\n', quote=None)()
    assert log.item_ids.tolist() == ["", '"x', '5" disk']


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"columns": COLUMNS | {"user": "usr"}},
            "columns.user=usr: PATH has no such column; did you mean user? (it has user, item, time)",
        ),
        (
            {"columns": COLUMNS | {"value": "tim"}},
            "columns.value=tim: PATH has no such column; did you mean time?"
            " (it has user, item, time; null for none)",
        ),
        (
            {"columns": COLUMNS | {"title": "titel"}},
            "columns.title=titel: PATH has no such column; did you mean time?",
        ),
        ({"where": {"tme": 1}}, "where=tme: PATH has no such column; did you mean time?"),
        ({"user_features": ["users"]}, "user_features=users: PATH has no such column; did you mean user?"),
        ({"item_features": ["items"]}, "item_features=items: PATH has no such column; did you mean item?"),
        ({"event_features": ["timer"]}, "event_features=timer: PATH has no such column; did you mean time?"),
        ({"users": {"path": "table.csv", "id": "id"}}, "users.id=id: PATH has no such column; did you mean "),
        (
            {"items": {"path": "no.csv", "id": None}},
            "items.path=no.csv: there is no FOLDER/no.csv nor no.csv; give the path of a table",
        ),
        ({"header": False}, "columns.user=user: PATH has no such column; did you mean 3? (it has 1, 2, 3)"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path, options, said):
    said = said.replace("PATH", f"{tmp_path}/table.csv").replace("FOLDER", str(tmp_path))
    assert complaint(small(tmp_path, "user,item,time\n1,2,3\n", **options)).startswith(
        f"dataset.reader.{said}"
    )


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    assert complaint(small(tmp_path, "user,item,user,time\n1,2,3,4\n")) == (
        f"dataset.reader.columns.user=user: {tmp_path}/table.csv has two such columns"
        " (it has user, item, user, time)"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"columns": COLUMNS | {"usr": "x"}}, "dataset.reader.columns=usr is none of user, item, "),
        (
            {"columns": COLUMNS | {"user": None}},
            "dataset.reader.columns.user=null: must be the name of a column",
        ),
        ({"time_unit": "sec"}, "dataset.reader.time_unit=sec is none of s, ms, us, ns, date"),
        ({"missing": "keep"}, "dataset.reader.missing=keep is none of error, drop"),
        ({"quote": "''"}, "dataset.reader.quote='': must be one character, or null"),
        ({"users": {"file": "x"}}, "dataset.reader.users=file is none of path, id"),
        (
            {"multi": {"genre": "|"}},
            "dataset.reader.multi.genre: list it in user_, item_ or event_features as well",
        ),
        ({"where": "kind=play"}, "dataset.reader.where=kind=play: must be a mapping of keys or null"),
        ({"where": {"kind": ["a"]}}, "dataset.reader.where.kind=['a']: must be text ("),
        ({"columns": None}, "dataset.reader.columns=null: must be a mapping of keys"),
        ({"columns": ["user"]}, "dataset.reader.columns=['user']: must be a mapping of keys"),
        ({"columns": COLUMNS | {"user": ["a"]}}, "dataset.reader.columns.user=['a']: must be text ("),
        ({"event_features": None}, "dataset.reader.event_features=null: must be a list"),
        ({"item_features": "tags"}, "dataset.reader.item_features=tags: must be a list"),
        ({"user_features": [None]}, "dataset.reader.user_features[0]=null: must be text ("),
        ({"multi": {"tags": 3}}, "dataset.reader.multi.tags=3: must be text (in quotes if it "),
        ({"multi": {"tags": None}}, "dataset.reader.multi.tags=null: must be text ("),
        ({"multi": {"tags": ""}}, "dataset.reader.multi.tags=: must be text ("),
        ({"multi": {None: "|"}}, "dataset.reader.multi=null: must be text ("),
        ({"history": "past"}, "dataset.reader.history=past: must be a mapping of keys or null"),
        ({"history": {"columns": "past"}}, "dataset.reader.history.columns=past: must be a list"),
        ({"history": {"columns": [["past"]]}}, "dataset.reader.history.columns[0]=['past']: must be text ("),
        (
            {"history": {"columns": ["a"], "separator": 3}},
            "dataset.reader.history.separator=3: must be text (",
        ),
        (
            {"history": {"columns": ["a"], "padding": 0.5}},
            "dataset.reader.history.padding=0.5: must be text (",
        ),
        ({"separator": 3}, "dataset.reader.separator=3: must be text ("),
        ({"quote": 3}, "dataset.reader.quote=3: must be text ("),
        ({"header": "maybe"}, "dataset.reader.header=maybe: must be true or false"),
        ({"users": {"path": 3}}, "dataset.reader.users.path=3: must be text ("),
        ({"items": "x.csv"}, "dataset.reader.items=x.csv: must be a mapping of keys or null"),
        ({"k_core": True}, "dataset.reader.k_core=True: must be a whole number"),
        ({"name": ""}, "dataset.reader.name=: must be text ("),
    ],
)
def test_bad_options_are_refused(tmp_path, options, said):
    assert complaint(lambda: table(tmp_path, **options)).startswith(said)


@pytest.mark.parametrize(("key", "value"), [("path", 3), ("path", ""), ("root", 3), ("root", None)])
def test_bad_places_are_refused(key, value):
    shown = "null" if value is None else value
    given = OPTIONS | {"path": "a.csv", "root": "b", key: value}
    assert complaint(lambda: Table(**given)).startswith(f"dataset.reader.{key}={shown}: must be text (")


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_folder_is_no_table(tmp_path, path):
    with pytest.raises(MissingData, match=rf"^dataset.reader.path={re.escape(path)}: there is no "):
        Table(path=path, root=str(tmp_path), **OPTIONS).files()


def test_a_separator_that_cannot_be_told_is_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("user|item|time\n1|2|3\n")
    assert complaint(table(tmp_path / "a.txt")).startswith(
        f"dataset.reader.separator: {tmp_path}/a.txt does not tell"
    )
    assert len(table(tmp_path / "a.txt", separator="|")()) == 1


@pytest.mark.parametrize("options", [{"user_features": ["b"]}, {"columns": COLUMNS | {"title": "b"}}])
def test_two_values_of_one_id_are_named(tmp_path, monkeypatch, options):
    monkeypatch.setattr("hydrec.data.rows.BLOCK", 100)
    rows = [("7", "1", n, "", "") for n in range(50)]
    rows[3], rows[9], rows[40] = ("7", "1", 3, "", "F"), ("8", "2", 9, "", "M"), ("7", "1", 40, "", "M")
    reader = small(tmp_path, text([("user", "item", "time", "a", "b"), *rows]), **options)
    owner, path = ("user 7", "item 1")["columns" in options], f"{tmp_path}/table.csv"
    assert complaint(reader) == (
        f"{path}:42: {owner} has b 'M', but 'F' in {path}:5; mend the file, or leave b out"
    )


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (
            {"user": [1, 2], "item": [1.0, 1.5], "time": [1, 2]},
            ": row 2: item '1.5' is neither text nor a whole number; ",
        ),
        ({"user": [1, None], "item": [1, 1], "time": [1, 2]}, ": row 2: no user; "),
        ({"user": [1, 1], "item": [1, 1], "time": [1.0, float("nan")]}, ": row 2: no time; "),
        (
            {"user": [1, 1], "item": [1, 1], "time": [datetime(2021, 1, 1), datetime(1960, 1, 1)]},
            ": row 2: time '1960-01-01 00:00:00' is no date",
        ),
        ({"user": [], "item": [], "time": []}, ": empty; "),
    ],
)
def test_first_wrong_row_of_parquet_is_named(tmp_path, monkeypatch, frame, said):
    monkeypatch.setattr("hydrec.data.rows.SLICE", 1)
    path = tmp_path / "a.parquet"
    pl.DataFrame(frame, strict=False).write_parquet(path)
    assert complaint(table(path)).startswith(f"{path}{said}")


@pytest.mark.parametrize("size", [0, 0.3, 0.9])
def test_damaged_parquet_is_refused(tmp_path, size):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": [1], "item": [1], "time": [1]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])
    assert complaint(table(path)).startswith(f"{path}: cannot be read (")


def test_cut_gzip_is_refused(tmp_path):
    packed = gzip.compress(text([HEADER, *ROWS]).encode())
    (tmp_path / "a.csv.gz").write_bytes(packed[: len(packed) // 2])
    assert complaint(table(tmp_path / "a.csv")).startswith(f"{tmp_path}/a.csv.gz: cannot be read (")


def test_files_are_looked_for_in_three_places(tmp_path, monkeypatch):
    for name in ("public", "root", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text("user,item,time\n1,2,3\n")
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "public"))
    monkeypatch.chdir(tmp_path / "here")
    reader = table(tmp_path / "root" / "a.csv")
    for name in ("public", "root"):
        assert reader.files() == [tmp_path / name / "a.csv"]
        (tmp_path / name / "a.csv").unlink()
    assert reader.files() == [Path("a.csv")]
    Path("a.csv").unlink()
    with pytest.raises(MissingData) as caught:
        reader.files()
    assert str(caught.value) == (
        f"dataset.reader.path=a.csv: there is no {tmp_path}/public/a.csv nor {tmp_path}/root/a.csv nor a.csv;"
        " give the path of a table"
    )


def test_files_are_listed_once(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("user,item,time\n1,2,3\n")
    same = table(tmp_path / "a.csv", users={"path": "b.csv"}, items={"path": "b.csv"})
    assert same.files() == [tmp_path / "a.csv", tmp_path / "b.csv"]


OTHER = {
    "columns": COLUMNS | {"value": "value"},
    "time_unit": "ms",
    "header": False,
    "separator": ";",
    "quote": None,
    "where": {"kind": "play"},
    "missing": "drop",
    "user_features": ["a"],
    "item_features": ["a"],
    "event_features": ["a"],
    "history": {"columns": ["a"]},
    "users": {"path": "users.csv", "id": "id"},
    "items": {"path": "items.csv", "id": None},
    "k_core": 5,
    "duplicates": "last",
}


def test_options_are_what_changes_the_log(tmp_path):
    every = [table(tmp_path, **{key: value}).options() for key, value in OTHER.items()]
    every += [table(tmp_path).options(), table(tmp_path, event_features=["a"], multi={"a": "|"}).options()]
    assert len({json.dumps(options, sort_keys=True) for options in every}) == len(OTHER) + 2
    assert set(OPTIONS) == {*OTHER, "multi", "name"}


def test_the_command_line_configures_a_table(tmp_path):
    (tmp_path / "my.csv").write_text("uid,sku,ts\n7,a,1600000000\n")
    given = [
        "dataset=table",
        f"dataset.reader.path={tmp_path}/my.csv",
        "dataset.reader.columns.user=uid",
        "dataset.reader.columns.item=sku",
        "dataset.reader.columns.time=ts",
    ]
    check(["train.py", *given][1:], CONF)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        reader = instantiate(compose("train", given).dataset.reader, _convert_="all")
    assert events(reader()) == [("7", 1_600_000_000, "a", None)]


# Atomic files -----------------------------------------------------------------------------------------------

INTER = """user_id:token	item_id:token	rating:float	timestamp:float	tags:token_seq	price:float
u2	i1	3	881250949	x y	1.5
u1	i1	1.5	1135728000.0		2
u1	i2	5	881250950	y	1.5
"""
ITEM = """item_id:token	movie_title:token_seq	class:token_seq	year:token	price:float	vector:float_seq
i2	The "Second	Drama War	1995	2.5	1 2
i1	First		1994	2.5	1 2
"""
USER = """user_id:token	age:float	gender:token
u1	30	F
u9	30	M
"""
NAMES = {"user": "user_id", "item": "item_id", "time": "timestamp", "value": "rating", "title": "movie_title"}


def atomic(parent, contents=(INTER, ITEM, USER), **options):
    (parent / "shop").mkdir(exist_ok=True)
    for kind, content in zip(files.ATOMIC, contents, strict=False):
        (parent / "shop" / f"shop.{kind}").write_text(content, newline="")
    fixed = {"name": "shop", "columns": NAMES, "time_unit": "s", "missing": "error", "event_features": []}
    fixed |= {"history": None, "folder": "shop", "root": str(parent), "k_core": 0, "duplicates": "keep"}
    return Atomic(**fixed | options)


@pytest.mark.parametrize("saved", ["\n", "\r\n", "gz"])
def test_atomic_files_are_read(tmp_path, saved):
    contents = [each.replace("\n", "\r\n" if saved == "\r\n" else "\n") for each in (INTER, ITEM, USER)]
    reader = atomic(tmp_path, contents, event_features=["tags", "price"])
    if saved == "gz":
        for path in (tmp_path / "shop").iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    log = reader()
    assert len(reader.files()) == 3
    assert events(log) == [
        ("u1", 881_250_950, "i2", 5.0),
        ("u1", 1_135_728_000, "i1", 1.5),
        ("u2", 881_250_949, "i1", 3.0),
    ]
    assert log.item_titles.tolist() == ["", "First", 'The "Second']
    assert {name: words(feature)[1:] for name, feature in log.item_features.items()} == {
        "class": [[None], ["Drama", "War"]],
        "year": [["1994"], ["1995"]],
        "price": [["2.5"], ["2.5"]],
    }
    assert {name: words(feature)[1:] for name, feature in log.user_features.items()} == {
        "gender": [["F"], [None]],
        "age": [["30"], [None]],
    }
    assert words(log.event_features["tags"]) == [["y"], [None], ["x", "y"]]
    assert words(log.event_features["price"]) == [["1.5"], ["2"], ["1.5"]]


AUGMENTED = """user_id:token	item_id:token	item_id_list:token_seq	first:token	y:float	timestamp:float
u1	i3	i1 i2 i1	i 9	1.0	881250950
u1	i1			0	881250949
"""


def test_atomic_events_may_have_labels_and_their_own_history(tmp_path):
    columns = NAMES | {"value": None, "title": None, "label": "y"}
    history = {"columns": ["item_id_list", "first"]}
    log = atomic(tmp_path, [AUGMENTED], columns=columns, history=history)()
    assert log.labels.tolist() == [0, 1]
    past = np.split(log.item_ids[log.past_items], log.past_offsets[1:-1])
    assert [each.tolist() for each in past] == [[], ["i1", "i2", "i1", "i 9"]]
    padded = history | {"padding": "i1", "separator": " "}
    log = atomic(tmp_path, [AUGMENTED], columns=columns, history=padded)()
    assert log.item_ids[log.past_items].tolist() == ["i2", "i", "9"]


def test_the_command_line_configures_atomic_files(tmp_path):
    atomic(tmp_path, [AUGMENTED])
    given = [f"dataset.reader.{key}" for key in ("folder=shop", "columns.value=null", "columns.title=null")]
    given += ["dataset=atomic", f"paths.data={tmp_path}", "dataset.reader.columns.label=y"]
    given += ["+dataset.reader.history.columns=[item_id_list]"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        reader = instantiate(compose("train", given).dataset.reader, _convert_="all")
    assert reader().item_ids[reader().past_items].tolist() == ["i1", "i2", "i1"]


def test_atomic_events_suffice(tmp_path):
    log = atomic(tmp_path, [INTER], columns=NAMES | {"time": None, "value": None, "title": None})()
    assert events(log) == [("u1", 0, "i1", None), ("u1", 1, "i2", None), ("u2", 0, "i1", None)]
    assert (log.item_titles, log.item_features, log.user_features) == (None, {}, {})


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (
            ("rating:float", "rating"),
            {},
            "FOLDER/shop.inter:1: the header has 'rating', not a NAME:TYPE with one of",
        ),
        (
            ("rating:float", "rating:int"),
            {},
            "FOLDER/shop.inter:1: the header has 'rating:int', not a NAME:TYPE",
        ),
        (("rating:float", ":float"), {}, "FOLDER/shop.inter:1: the header has ':float', not a NAME:TYPE"),
        (
            ("timestamp", "time"),
            {},
            "dataset.reader.columns.time=timestamp: FOLDER/shop.inter has no such column; did you mean time?",
        ),
        (("881250950", "soon"), {}, "FOLDER/shop.inter:4: time 'soon' is not a number; "),
        (
            ("user_id", "user"),
            {},
            "dataset.reader.columns.user=user_id: FOLDER/shop.inter has no such column;",
        ),
        (
            ("", ""),
            {"history": {"columns": ["tag"]}},
            "dataset.reader.history.columns=tag: FOLDER/shop.inter has no such column; did you mean tags?",
        ),
        (("881250950\ty", "881250950"), {}, "FOLDER/shop.inter:4: 5 instead of 6 fields; "),
        (
            ("", ""),
            {"event_features": ["tag"]},
            "dataset.reader.event_features=tag: FOLDER/shop.inter has no such column; did you mean tags?",
        ),
        (
            ("", ""),
            {"columns": NAMES | {"title": "title"}},
            "dataset.reader.columns.title=title: FOLDER/shop.item has no such column; did you mean movie_",
        ),
    ],
)
def test_what_is_wrong_with_atomic_files_is_named(tmp_path, change, options, said):
    reader = atomic(tmp_path, [INTER.replace(*change) if change[0] else INTER, ITEM], **options)
    assert complaint(reader).startswith(said.replace("FOLDER", f"{tmp_path}/shop"))


def test_titles_need_atomic_items(tmp_path):
    assert complaint(atomic(tmp_path, [INTER])) == (
        "dataset.reader.columns.title=movie_title: no .item is beside"
        f" {tmp_path}/shop/shop.inter; set it to null"
    )


def test_missing_atomic_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "public"))
    with pytest.raises(MissingData) as caught:
        atomic(tmp_path, []).files()
    assert f"there is no {tmp_path}/public/shop/shop.inter and no {tmp_path}/shop/shop.inter;" in str(
        caught.value
    )


def test_options_of_atomic_files_are_what_changes_the_log(tmp_path):
    assert atomic(tmp_path).options() == {
        "reader": "atomic",
        "version": 3,
        "columns": NAMES | {"label": None},
        "time_unit": "s",
        "missing": "error",
        "event_features": [],
        "history": None,
        "k_core": 0,
        "duplicates": "keep",
    }


# Sequences --------------------------------------------------------------------------------------------------


def sequences(folder, content, **options):
    (folder / "s.txt").write_bytes(content.encode())
    fixed = {"name": "shop", "folder": folder.name, "file": "s.txt", "root": str(folder.parent)}
    return Sequences(**fixed | {"k_core": 0, "duplicates": "keep"} | options)


PAIRS = "12 5\n3 7\n12 2\n12 5\n3 1\n"
LISTS = "12 5 2 5\n3 7 1\n"


@pytest.mark.parametrize(
    "content",
    [
        PAIRS,
        LISTS,
        LISTS.replace("\n", " \r\n"),
        LISTS.replace(" ", "\t"),
        LISTS + "\n\n",
        "3 7 1\n12 5 2 5\n",
    ],
)
@pytest.mark.parametrize("block", [8, 2**26])
def test_sequences_in_pairs_and_in_lists_are_the_same(tmp_path, monkeypatch, content, block):
    monkeypatch.setattr(raw.blocks, "__kwdefaults__", raw.blocks.__kwdefaults__ | {"size": block})
    log = sequences(tmp_path, content)()
    assert [row[:3] for row in events(log)] == [
        ("3", 0, "7"),
        ("3", 1, "1"),
        ("12", 0, "5"),
        ("12", 1, "2"),
        ("12", 2, "5"),
    ]
    assert np.isnan(log.values).all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("user item\n1 2\n", ":1: 'user item' is no user with items, all whole numbers; mend the file"),
        ("1 2\n1\n", ":2: '1' is no user with items"),
        ("1 2\n" * 99 + "1\n1\n", ":100: '1' is no user with items"),
        ("1 2\n\n1 3\n", ":2: '' is no user with items"),
        ("1 2\n1 -3\n", ":2: '1 -3' is no user with items"),
        ("1 2\n1 3.5\n", ":2: '1 3.5' is no user with items"),
        ("1 2\n1,3\n", ":2: '1,3' is no user with items"),
        ("1 2\n1 ٣\n", ":2: '1 ٣' is no user with items"),
        ("1 2\n1\u00a03\n", ":2: '1\u00a03' is no user with items"),
        ("1 2\n1\v3\n", ":2: '1\v3' is no user with items"),
        ("1 2\n1 3", ":2: the last line has no end, so it may be cut off; "),
        ("1 2 3\n2 3\n1 4\n", ":3: user 1 has an earlier line, which is for lines of one item; "),
        ("1 2\n2 3\n1 4\n2 3 4\n", ":3: user 1 has an earlier line, which is for lines of one item; "),
        ("1\t1193\t5\t978300760\n1\t661\t3\t978302109\n", ":2: user 1 has an earlier line, "),
        ("", ": empty; "),
    ],
)
@pytest.mark.parametrize("block", [32, 2**26])
def test_first_wrong_line_of_sequences_is_named(tmp_path, monkeypatch, content, said, block):
    monkeypatch.setattr(raw.blocks, "__kwdefaults__", raw.blocks.__kwdefaults__ | {"size": block})
    assert complaint(sequences(tmp_path, content)).startswith(f"{tmp_path}/s.txt{said}")


@pytest.mark.parametrize("blank", ["\n", "\r\n", " \n"])
@pytest.mark.parametrize("last", ["", "1 3\n", "\0"])
def test_blank_lines_are_not_kept_for_ever(tmp_path, monkeypatch, blank, last):
    monkeypatch.setattr(raw.blocks, "__kwdefaults__", raw.blocks.__kwdefaults__ | {"size": 32})
    reader = sequences(tmp_path, "1 2\n" + blank * 999 + last)  # who gets there complains of the NUL
    assert complaint(reader).startswith(f"{tmp_path}/s.txt:2: blank lines of more than 32 bytes; ")


def test_repeated_items_of_sequences_name_both_lines(tmp_path):
    assert complaint(sequences(tmp_path, PAIRS, duplicates="error")).startswith(
        f"{tmp_path}/s.txt:4: repeats the user and item of {tmp_path}/s.txt:1;"
    )
    assert len(sequences(tmp_path, LISTS, duplicates="first")()) == 4


def test_missing_sequences_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "public"))
    reader = sequences(tmp_path, PAIRS)
    assert reader.files() == [tmp_path / "s.txt"]
    (tmp_path / "s.txt").unlink()
    with pytest.raises(MissingData) as caught:
        reader.files()
    assert f"no {tmp_path}/public/{tmp_path.name}/s.txt and no {tmp_path}/s.txt;" in str(caught.value)
    assert reader.options() == {"reader": "sequences", "version": 3, "k_core": 0, "duplicates": "keep"}


# The published files ----------------------------------------------------------------------------------------


def published(path):
    """A folder or file of $HYDREC_DATA."""
    if not (DATA and (raw.plain_or_gz(Path(DATA, path)) or Path(DATA, path).is_dir())):
        pytest.skip(f"needs {path} in $HYDREC_DATA")
    return Path(DATA, path)


def movielens(folder):
    published(folder)
    return MovieLens(name=folder, folder=folder, root=DATA, k_core=0, duplicates="error")()


def reference(folder, name):
    published(f"reference_sequences/{folder}/{name}")
    fixed = {"folder": f"reference_sequences/{folder}", "file": name, "root": DATA, "k_core": 0}
    return Sequences(name=name, duplicates="keep", **fixed)()


def sizes(log):
    return len(log), log.n_users, log.n_items


def same_events(log, other):
    """Whether rows and raw ids are the same."""
    arrays = ("user_ids", "item_ids", "users", "items", "times", "values")
    return all(np.array_equal(getattr(log, name), getattr(other, name)) for name in arrays)


def test_recbole_has_the_events_of_movielens(tmp_path):
    published("recbole_atomic/ml-100k")
    log = atomic(tmp_path, [], folder="recbole_atomic/ml-100k", root=DATA)()
    assert sizes(log) == (100_000, 943, 1_682)
    assert same_events(log, movielens("ml-100k"))
    assert log.item_titles[1:3].tolist() == ["Toy Story", "GoldenEye"]
    assert set(log.item_features) == {"release_year", "class"}
    assert words(log.item_features["class"])[1] == ["Animation", "Children's", "Comedy"]
    assert set(log.user_features) == {"age", "gender", "occupation", "zip_code"}


@pytest.mark.parametrize(
    ("folder", "name", "expected"),
    [
        ("SASRec", "ml-1m.txt", (999_611, 6_040, 3_416)),
        ("BERT4Rec", "beauty.txt", (353_962, 40_226, 54_542)),
        ("GraphDA", "Beauty.txt", (198_502, 22_363, 12_101)),
        ("GraphDA", "Office_Products.txt", (53_258, 4_905, 2_420)),
        ("GraphDA", "Tools_and_Home_Improvement.txt", (134_476, 16_638, 10_217)),
    ],
)
def test_published_sequences(folder, name, expected):
    assert sizes(reference(folder, name)) == expected


def test_sequences_of_sasrec_are_those_of_movielens():
    log, other = reference("SASRec", "ml-1m.txt"), movielens("ml-1m")
    folder = published("reference_sequences/ml1m-sas-mapping")
    names = {}
    for kind, ids in (("users", log.user_ids), ("items", log.item_ids)):
        pairs = np.loadtxt(folder / f"sas_to_original_{kind}.txt", dtype=str)
        known = dict(pairs)
        names[kind] = np.array([known.get(each, "") for each in ids])
    often = np.bincount(other.items)[other.items] >= 5  # not the 5-core: items are counted once
    assert np.array_equal(np.sort(names["users"][1:].astype(int)), np.sort(other.user_ids[1:].astype(int)))
    theirs = names["users"][log.users].astype(int)
    order = np.argsort(theirs, kind="stable")  # within users nothing moves
    assert np.array_equal(theirs[order], other.user_ids[other.users[often]].astype(int))
    assert np.array_equal(names["items"][log.items][order], other.item_ids[other.items[often]])


def test_sequences_of_graphda_are_as_long_as_those_of_amazon():
    log = reference("GraphDA", "Office_Products.txt")
    path = published("amazon_2014_5core/Office_Products_5.inter")
    columns = {"user": "user_id:token", "item": "item_id:token", "time": "timestamp:float"}
    columns |= {"value": "rating:token", "title": None}
    other = table(path, columns=columns, separator="\t")()
    assert sizes(other) == sizes(log)
    assert (other.times.min(), other.times.max()) == (970_185_600, 1_406_073_600)
    lengths = [np.sort(np.diff(each.offsets)) for each in (log, other)]
    assert np.array_equal(*lengths)


def test_tisasrec_has_the_events_of_movielens():
    path = published("reference_sequences/TiSASRec/ml-1m.txt")
    columns = {"user": 1, "item": 2, "value": 3, "time": 4, "title": None}
    log = table(path, columns=columns, header=False, separator="\t", quote=None)()
    assert sizes(log) == (1_000_209, 6_040, 3_706)
    assert same_events(log, movielens("ml-1m"))


def test_small_movielens_with_its_movies():
    path = published("ml-latest-small") / "ratings.csv"
    columns = {"user": "userId", "item": "movieId", "value": "rating", "time": "timestamp", "title": "title"}
    movies = {"items": {"path": "movies.csv", "id": "movieId"}, "item_features": ["genres"]}
    log, other = table(path, columns=columns, multi={"genres": "|"}, **movies)(), movielens("ml-latest-small")
    assert same_events(log, other)
    assert log.item_titles.tolist() == other.item_titles.tolist()
    genres = [
        [genre for genre in each if genre != "(no genres listed)"]
        for each in words(log.item_features["genres"])
    ]
    assert [each or [None] for each in genres] == words(other.item_features["genres"])


def test_steam_plays():
    path = published("steam_kaggle_200k/steam-200k.csv")
    columns = {"user": 1, "item": 2, "time": None, "value": 4, "title": 2}
    log = table(path, columns=columns, header=False, where={3: "play"})()
    assert sizes(log) == (70_489, 11_350, 3_600)
    assert (log.values.min(), log.values.max()) == (np.float32(0.1), 11_754)
    assert log.item_titles.tolist() == log.item_ids.tolist()
    assert len(table(path, columns=columns, header=False)()) == 200_000


def test_steam_recommendations():
    path = published("steam_kaggle_recommendations_sample/recommendations.csv")
    columns = {"user": "user_id", "item": "app_id", "time": "date", "value": "hours", "title": None}
    log = table(path, columns=columns, time_unit="date", event_features=["is_recommended"])()
    assert sizes(log) == (5_000, 4_994, 1_966)
    days = [datetime.fromtimestamp(time, UTC).isoformat() for time in (log.times.min(), log.times.max())]
    assert days == ["2010-12-13T00:00:00+00:00", "2022-12-31T00:00:00+00:00"]
    assert (log.values.min(), log.values.max()) == (0, np.float32(998.6))
    assert log.event_features["is_recommended"].vocabulary.tolist() == ["False", "True"]


def test_steam_reviews_without_a_date_are_dropped(caplog):
    path = published("steam_ucsd/derived_review_playtime.csv")
    columns = {"user": "user_id", "item": "item_id", "time": "date", "value": "hours", "title": None}
    assert ":6: no time; " in complaint(table(path, columns=columns, time_unit="date"))
    assert len(table(path, columns=columns, time_unit="date", missing="drop")()) == 32_893
    assert caplog.messages == ["shop: 7,212 rows without user or item or time are dropped"]
