"""Whatever bytes a raw file has, a log is what a slow reader makes of them, or one line says what is wrong.

The slow readers below take a line at a time, with json, ast and float of Python. They may take more than the
fast ones do; what a fast one takes, they must take, and have the same events in the same order.
"""

import ast
import gzip
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydrec.data.amazon import Amazon
from hydrec.data.cache import load
from hydrec.data.files import Atomic, Sequences, Table
from hydrec.data.log import LATE, InteractionLog
from hydrec.data.movielens import MovieLens
from hydrec.data.steam import Steam, SteamAustralia
from hydrec.errors import InputError

Files = dict[str, bytes]
Event = tuple  # user, item, time in microseconds, value or None, and what else an event has
PAIRS = [(user, item) for user in (1, 2, 3) for item in (10, 20, 30)]
FIRST = datetime(1970, 1, 1)
SECOND = 10**6


# Files ------------------------------------------------------------------------------------------------------


def place(user: int, item: int) -> int:
    """Of an event in time, from 1: of one user some are earlier than those before them in the file."""
    return 37 * user * item % 11 + 1


def lines(form: str, *, head: str = "") -> bytes:
    rows = [form.format(u=u, i=i, t=10**9 + 60 * place(u, i), d=place(u, i)) for u, i in PAIRS]
    return (head + "\n".join(rows) + "\n").encode()


def printed(*rows: object) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def decoded(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


REVIEWS = [
    {"reviewerID": f"A{u}", "asin": f"B{i}", "overall": 4.0, "unixReviewTime": 86400 * place(u, i)}
    for u, i in PAIRS
]
PRODUCTS = [{"asin": f"B{i}", "title": 'It\'s "x"', "categories": [["Music", "Pop"]]} for i in (10, 20, 30)]
PLAYED = [
    {
        "username": f"é{u}",
        "product_id": f"{i}",
        "date": f"2015-01-{place(u, i):02}",
        "hours": 1.5,
        "text": "it's",
    }
    for u, i in PAIRS
]
GAMES = [{"id": "10", "genres": ["Action"], "app_name": "A", "url": "http://x/app/10/"}]
POSTED = [
    {"user_id": "u1", "reviews": [{"item_id": "10", "posted": "Posted May 3, 2014.", "recommend": True}]},
    {"user_id": "u2", "reviews": [{"item_id": "20", "posted": "Posted May 4, 2014.", "recommend": False}]},
    {"user_id": "u2", "reviews": [{"item_id": "30", "posted": "Posted May 4."}]},
]
OWNED = [{"user_id": "u1", "items": [{"item_id": "10", "playtime_forever": 90}]}]
DERIVED = "user_id,item_id,date,playtime_minutes,hours,recommend,posted\n"
ATOMIC = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


# What is in them --------------------------------------------------------------------------------------------


def text_of(content: bytes, *, cut: bool) -> str:
    """Text without blank lines at the end; ``cut``: whether the last may lack its end."""
    found = content.decode("utf-8-sig")
    assert "\0" not in found
    whole, end, last = found.rpartition("\n")
    assert cut or not last.strip(" \r")
    if last.strip(" \r"):
        return whole + end + last.rstrip(" \r") + "\n"
    blank = whole[len(whole.rstrip(" \r\n")) :]
    return whole[: len(whole) - len(blank)] + blank.partition("\n")[0] + "\n"


def rows_of(content: bytes, *, cut: bool = False) -> list[str]:
    return [line.removesuffix("\r") for line in text_of(content, cut=cut).removesuffix("\n").split("\n")]


def between(number: float, least: float, most: float) -> float:
    assert least <= number <= most
    return number


def seconds(number: float) -> int:
    assert number == int(number) and 0 <= number < LATE
    return int(number) * SECOND


def small(number: float) -> float | None:
    """As float32; None for NaN."""
    with np.errstate(over="ignore"):
        value = float(np.float32(number))
    assert not np.isinf(value)
    return None if np.isnan(value) else value


def movielens(ratings: str, separator: str, header: str | None) -> Callable[[Files], list[Event]]:
    def oracle(files: Files) -> list[Event]:
        found = rows_of(files[ratings])
        if header is not None:
            assert found.pop(0).strip() == header
        events = []
        for line in found:
            user, movie, rating, time = line.split(separator)
            stars = small(between(float(rating), 0.5, 5))
            events.append((str(int(user)), str(int(movie)), seconds(int(time)), stars))
        return events

    return oracle


def once(pairs: list[tuple[str, Any]]) -> dict:
    """A dictionary in which no key that comes twice has a value to be used."""
    keys = [key for key, _ in pairs]
    return {key: value if keys.count(key) == 1 else ... for key, value in pairs}


def literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return once(list(zip(keys, map(literal, node.values), strict=True)))
    if isinstance(node, ast.List):
        return [literal(each) for each in node.elts]
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}[node.id]
    return ast.literal_eval(node)


def records(content: bytes) -> Iterator[dict]:
    """Dictionaries of JSON or as Python prints them, whose words are those of either."""
    for line in rows_of(content, cut=True):
        try:
            record = json.loads(line, object_pairs_hook=once)
        except ValueError:
            record = literal(ast.parse(line.strip(" "), mode="eval").body)
        assert isinstance(record, dict)
        yield record


def text(value: Any) -> str:
    assert type(value) in (str, int) and value != "" and "\0" not in str(value)
    return str(value)


def number(value: Any) -> float:
    assert type(value) in (int, float, str)
    return float(value)


def amazon(files: Files) -> list[Event]:
    return [
        (
            text(each["reviewerID"]),
            text(each["asin"]),
            seconds(number(each["unixReviewTime"])),
            small(between(number(each["overall"]), 0, 5)),
        )
        for each in records(files["reviews_X_5.json"])
    ]


def amazon_ratings(files: Files) -> list[Event]:
    cells = [line.split(",") for line in rows_of(files["X.csv"])]
    return [
        (text(user), text(item), seconds(float(time)), small(between(float(stars), 0, 5)))
        for item, user, stars, time in cells
    ]


def day(date: str, form: str) -> int:
    date, form = ("".join(each.split()) for each in (date, form))  # blanks say nothing
    return seconds((datetime.strptime(date, form) - FIRST).total_seconds())


def hours(value: Any, an_hour: int = 1) -> float | None:
    return None if value is None else small(max(between(number(value), -1e38, 1e38) / an_hour, 0))


def steam(files: Files) -> list[Event]:
    events = []
    for each in records(files["steam_reviews.json"]):
        known = [each.get(key) for key in ("username", "product_id", "date")]
        if None not in known and "" not in known:
            user, item, date = map(text, known)
            events.append((user, item, day(date, "%Y-%m-%d"), hours(each.get("hours"))))
    return events


def steam_australia(files: Files) -> list[Event]:
    played: dict[tuple, float] = {}
    for each in records(files["australian_users_items.json"]):
        for game in each.get("items") or []:
            pair, spent = (each.get("user_id"), game.get("item_id")), hours(game.get("playtime_forever"), 60)
            if spent is not None:
                played[pair] = max(spent, played.get(pair, 0))
    events = []
    for each in records(files["australian_user_reviews.json"]):
        for review in each.get("reviews") or []:
            known = [each.get("user_id"), review.get("item_id"), review.get("posted")]
            if None in known or "" in known or re.fullmatch(r"Posted \w+ \d+\.", known[2]):
                continue
            event = (
                text(known[0]),
                text(known[1]),
                day(known[2], "Posted %B %d, %Y."),
                played.get((*known[:2],)),
            )
            if event not in events:
                events.append(event)
    return events


def steam_derived(files: Files) -> list[Event]:
    head, *rows = rows_of(files["derived_review_playtime.csv"])
    assert head.strip() == DERIVED.strip()
    events = []
    for user, item, date, minutes, *rest in (line.split(",") for line in rows):
        assert user and item and len(rest) >= 3
        if date:
            events.append((user, item, day(date, "%Y-%m-%d"), hours(str(int(minutes)), 60)))
    return events


def microseconds(cell: str) -> int:
    return int(between(float(cell), 0, LATE - 1e-6) * SECOND)


def atomic(files: Files) -> list[Event]:
    head, *rows = rows_of(files["data.inter"], cut=True)
    names = [cell.rpartition(":")[0] for cell in head.split("\t")]
    assert all(
        cell.rpartition(":")[2] in ("token", "token_seq", "float", "float_seq") for cell in head.split("\t")
    )
    events = []
    for line in rows:
        cells = line.split("\t")
        assert len(cells) == len(names)
        user, item, rating, time = (
            cells[names.index(name)] for name in ("user_id", "item_id", "rating", "timestamp")
        )
        events.append((text(user), text(item), microseconds(time), small(float(rating or "nan"))))
    return events


def sequences(files: Files) -> list[Event]:
    found = [re.fullmatch("[0-9 \t]+", line)[0].split() for line in rows_of(files["x.txt"])]  # type: ignore[index]
    users = [int(user) for user, *_ in found]
    assert all(len(each) == 2 for each in found) or len(set(users)) == len(users)
    events: list[Event] = []
    for user, (_, *items) in zip(users, found, strict=True):
        assert items
        for item in items:
            place = sum(str(user) == before for before, *_ in events)
            events.append((str(user), str(int(item)), place * SECOND, None))
    return events


CELL = re.compile('(?:"((?:[^"]|"")*)"|([^",\n]*?))(,|\r?\n)')


def table(files: Files) -> list[Event]:
    content, at, cells, rows = text_of(files["x.csv"], cut=True), 0, [], []
    while at < len(content):
        cell = CELL.match(content, at)
        assert cell is not None
        quoted, plain, after = cell.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        if after != ",":
            rows.append(cells)
            cells = []
        at = cell.end()
    head, *rows = rows
    events = []
    for row in rows:
        assert len(row) == len(head)
        user, item, time, value, label, _, past = (row[head.index(name)] for name in "uitvlgh")
        clicked = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}[label.lower()]
        met = tuple(each for each in past.split("|") if each not in ("", "0"))
        events.append(
            (text(user), text(item), microseconds(time), small(float(value or "nan")), clicked, met)
        )
    return events


CASES: dict[str, tuple[Callable[..., Any], dict, Callable[[Files], list[Event]], Files]] = {
    "ml-1m": (
        MovieLens,
        {},
        movielens("ratings.dat", "::", None),
        {
            "ratings.dat": lines("{u}::{i}::4::{t}"),
            "movies.dat": printed("10::A::Drama", "20::B::Drama|War", "30::C::War"),
            "users.dat": printed("1::F::1::10::48067", "2::M::56::16::70072", "3::M::25::15::55117"),
        },
    ),
    "ml-csv": (
        MovieLens,
        {},
        movielens("ratings.csv", ",", "userId,movieId,rating,timestamp"),
        {
            "ratings.csv": lines("{u},{i},4.5,{t}", head="userId,movieId,rating,timestamp\n"),
            "movies.csv": printed("movieId,title,genres", '10,"A, the",Drama', "20,B,War", "30,C,War"),
        },
    ),
    "amazon": (
        Amazon,
        {"edition": "2014", "category": "X"},
        amazon,
        {"reviews_X_5.json": decoded(*REVIEWS), "meta_X.json": printed(*PRODUCTS)},
    ),
    "amazon ratings": (
        Amazon,
        {"edition": "2018", "category": "X", "k_core": 1},
        amazon_ratings,
        {"X.csv": lines("B{i},é{u},4.0,{t}")},
    ),
    "steam": (
        Steam,
        {"users": None, "draw_seed": 0},
        steam,
        {"steam_reviews.json": printed(*PLAYED), "steam_games.json": printed(*GAMES)},
    ),
    "steam australia": (
        SteamAustralia,
        {"events": "reviews"},
        steam_australia,
        {
            "australian_user_reviews.json": printed(*POSTED),
            "australian_users_items.json": printed(*OWNED),
        },
    ),
    "steam derived": (
        SteamAustralia,
        {"events": "derived"},
        steam_derived,
        {"derived_review_playtime.csv": lines("u{u},{i},2014-05-{d},90,1.5,True,Posted", head=DERIVED)},
    ),
    "atomic": (
        Atomic,
        {
            "columns": {"user": "user_id", "item": "item_id", "time": "timestamp", "value": "rating"},
            "time_unit": "s",
            "missing": "error",
            "event_features": [],
            "history": None,
        },
        atomic,
        {
            "data.inter": lines("{u}\té{i}\t4\t{t}", head=ATOMIC),
            "data.item": printed("item_id:token\tgenre:token_seq", "10\tDrama War", "20\tWar"),
        },
    ),
    "sequences": (Sequences, {"file": "x.txt"}, sequences, {"x.txt": lines("{u} {i}")}),
    "table": (
        Table,
        {
            "path": "x.csv",
            "columns": {"user": "u", "item": "i", "time": "t", "value": "v", "label": "l"},
            "time_unit": "s",
            "header": True,
            "separator": None,
            "quote": '"',
            "where": None,
            "missing": "error",
            "user_features": [],
            "item_features": ["g"],
            "event_features": [],
            "history": {"columns": ["h"], "separator": "|", "padding": "0"},
            "users": {"path": None, "id": None},
            "items": {"path": None, "id": None},
            "multi": None,
        },
        table,
        {"x.csv": lines('{u},"a ""{i}""",{t},1.5,g{i},1,0|{i}|9', head="u,i,t,v,g,l,h\n")},
    ),
}


# What readers make of them ----------------------------------------------------------------------------------


def events_of(log: InteractionLog) -> list[Event]:
    """Events in raw ids, by user as text."""
    events = []
    for row in range(len(log)):
        event: Event = (
            str(log.user_ids[log.users[row]]),
            str(log.item_ids[log.items[row]]),
            int(log.times[row]),
            small(log.values[row]),
        )
        if log.labels is not None and log.past_items is not None and log.past_offsets is not None:
            met = log.past_items[log.past_offsets[row] : log.past_offsets[row + 1]]
            event += int(log.labels[row]), tuple(map(str, log.item_ids[met]))
        events.append(event)
    return sorted(events, key=lambda event: event[0])


def compare(case: str, files: Files, *, cached: bool = True) -> None:
    """Reads files, perhaps through a new cache; what comes out is what the slow reader has, or one line."""
    make, options, oracle, _ = CASES[case]
    home = Path(tempfile.mkdtemp())
    try:
        folder = home / "data"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        os.environ["HYDREC_DATA"] = str(folder if make is Table else home)
        place = {"root": str(home)} | ({} if make is Table else {"folder": "data"})
        reader = make(**{"name": "fuzzed", "k_core": 0, "duplicates": "keep"} | place | options)
        try:
            log = load(reader, home / "cache") if cached else reader()
        except InputError as error:
            assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 1000
            assert {path.name for path in home.glob("cache/*")} <= {"sources.json"}
            return
        plain = {
            name.removesuffix(".gz"): gzip.decompress(content) if name.endswith(".gz") else content
            for name, content in files.items()
        }
        expected = sorted(oracle(plain), key=lambda event: (event[0], event[2]))
        assert events_of(log) == [(user, item, time // SECOND, *rest) for user, item, time, *rest in expected]
        assert sound(log)
        assert len(list(home.glob("cache/*"))) == 2 * cached  # the entry, and sources.json
    finally:
        shutil.rmtree(home)


def sound(log: InteractionLog) -> bool:
    """Whether the columns of a log hold what `InteractionLog` promises."""
    order = np.lexsort((log.times, log.users))
    met = log.items if log.past_items is None else np.concatenate([log.items, log.past_items])
    return bool(
        len(log) > 0
        and (order == np.arange(len(log))).all()
        and log.times.min() >= 0
        and log.times.max() < LATE
        and log.users.min() >= 1
        and log.items.min() >= 1
        and np.bincount(log.users)[1:].min() > 0
        and np.bincount(met)[1:].min() > 0
        and (log.labels is None or set(log.labels.tolist()) <= {0, 1})
        and (log.user_ids[1:] != "").all()
        and (log.item_ids[1:] != "").all()
        and not np.isinf(log.values).any()
    )


ENDS = [b"\r", b" ", b"\x02", b"\x1f", b"\xe9", b"\\u0000", b"\\x00"]  # of words
TOKENS = [
    b"\n",
    b"\r\n",
    b",",
    b"\t",
    b"::",
    b'"',
    b"'",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b".",
    b"",
    b"\0",
    b"\x01",
]
TOKENS += [b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", *ENDS]
WORDS = [
    b"None",
    b"null",
    b"true",
    b"True",
    b"NaN",
    b"0",
    b"007",
    b"-1",
    b"0.4",
    b"1_0",
    b"1e2",
    b"1e39",
    b"1e400",
]
WORDS += [
    b"400",
    b"1252800000000",
    b"9223372036854775807",
    b"99999999999999999999",
    b"1000000000.7",
    b"9999-12-01",
]
WORD = re.compile(rb"[\w.\x80-\xff-]+")
PLACE = st.floats(0, 1)
CHANGE = st.one_of(
    st.tuples(PLACE, st.integers(0, 12), st.one_of(st.binary(max_size=6), st.sampled_from(TOKENS + WORDS))),
    st.tuples(PLACE, st.just("word"), st.one_of(PLACE, st.sampled_from(TOKENS + WORDS))),
)


def changed(content: bytes, changes: list) -> bytes:
    """Puts bytes in place of others, or a word, or another of the words, in place of a word."""
    for where, gone, new in changes:
        at = int(where * len(content))
        words = [each.span() for each in WORD.finditer(content)] or [(0, 0)]
        if gone == "word":
            at, end = words[int(where * (len(words) - 1))]
            gone = end - at
        if isinstance(new, float):
            start, end = words[int(new * (len(words) - 1))]
            new = content[start:end]
        content = content[:at] + new + content[at + gone :]
    return content


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_read_as_they_are(case, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", "")
    *_, oracle, files = CASES[case]
    assert oracle(files)
    compare(case, files)


@pytest.mark.parametrize("case", CASES)
def test_each_word_of_a_line_may_be_another_or_go_on(case, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", "")
    name, content = next(iter(CASES[case][-1].items()))
    line = content.index(b"\n", len(content) // 2) + 1
    for word in WORD.finditer(content, line, content.index(b"\n", line)):
        start, end = word.span()
        another = [content[:start] + each for each in WORDS] + [content[:end] + each for each in ENDS]
        for each in another if content[end + 1 :][:1] != b":" else []:  # after a key
            compare(case, CASES[case][-1] | {name: each + content[end:]}, cached=False)


@pytest.mark.parametrize("case", CASES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    which=st.integers(0, 5),
    changes=st.lists(CHANGE, min_size=1, max_size=3),
    cut=st.booleans(),
    gz=st.sampled_from([False, False, True]),
    damage=st.integers(0, 1),
)
def test_changed_bytes_are_the_same_events_to_both_or_one_line(
    case, which, changes, cut, gz, damage, monkeypatch
):
    monkeypatch.setenv("HYDREC_DATA", "")
    files = dict(CASES[case][-1])
    name = list(files)[which % len(files)]
    content = changed(files.pop(name), changes)
    if gz:
        content = gzip.compress(content, mtime=0)
        content = content[:-5] if cut else changed(content, changes[:damage])
        name += ".gz"
    compare(case, files | {name: content})
