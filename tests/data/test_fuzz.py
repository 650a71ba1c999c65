"""Whatever bytes a raw file has, a reader makes a whole log of them or says in one line what is wrong."""

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydrec.data.amazon import Amazon
from hydrec.data.files import Atomic, Sequences, Table
from hydrec.data.log import InteractionLog
from hydrec.data.movielens import MovieLens
from hydrec.data.steam import Steam, SteamAustralia
from hydrec.errors import InputError

Files = dict[str, bytes]
PAIRS = [(user, item) for user in (1, 2, 3) for item in (10, 20, 30)]


def lines(form: str, *, head: str = "", by: str = "\n") -> bytes:
    return (head + by.join(form.format(u=u, i=i, t=10**9 + 60 * i) for u, i in PAIRS) + "\n").encode()


def printed(*rows: object) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def decoded(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


REVIEWS = [
    {"reviewerID": f"A{u}", "asin": f"B{i}", "overall": 4.0, "unixReviewTime": 86400 * i} for u, i in PAIRS
]
PRODUCTS = [{"asin": f"B{i}", "title": 'It\'s "x"', "categories": [["Music", "Pop"]]} for i in (10, 20, 30)]
PLAYED = [
    {"username": f"u{u}", "product_id": f"{i}", "date": "2015-01-02", "hours": 1.5, "text": "it's"}
    for u, i in PAIRS
]
GAMES = [{"id": "10", "genres": ["Action"], "app_name": "A", "url": "http://x/app/10/"}]
POSTED = [
    {"user_id": "u1", "reviews": [{"item_id": "10", "posted": "Posted May 3, 2014.", "recommend": True}]},
    {"user_id": "u2", "reviews": [{"item_id": "20", "posted": "Posted May 4, 2014.", "recommend": False}]},
]
OWNED = [{"user_id": "u1", "items": [{"item_id": "10", "playtime_forever": 90}]}]
DERIVED = "user_id,item_id,date,playtime_minutes,hours,recommend,posted\n"

CASES: dict[str, tuple[Callable[..., object], dict, Files]] = {
    "ml-1m": (
        MovieLens,
        {},
        {
            "ratings.dat": lines("{u}::{i}::4::{t}"),
            "movies.dat": printed("10::A::Drama", "20::B::Drama|War", "30::C::War"),
            "users.dat": printed("1::F::1::10::48067", "2::M::56::16::70072", "3::M::25::15::55117"),
        },
    ),
    "ml-csv": (
        MovieLens,
        {},
        {
            "ratings.csv": lines("{u},{i},4.5,{t}", head="userId,movieId,rating,timestamp\n"),
            "movies.csv": printed("movieId,title,genres", '10,"A, the",Drama', "20,B,War", "30,C,War"),
        },
    ),
    "amazon": (
        Amazon,
        {"edition": "2014", "category": "X"},
        {"reviews_X_5.json": decoded(*REVIEWS), "meta_X.json": printed(*PRODUCTS)},
    ),
    "amazon ratings": (
        Amazon,
        {"edition": "2018", "category": "X", "k_core": 1},
        {"X.csv": lines("B{i},A{u},4.0,{t}")},
    ),
    "steam": (
        Steam,
        {"users": None, "draw_seed": 0},
        {"steam_reviews.json": printed(*PLAYED), "steam_games.json": printed(*GAMES)},
    ),
    "steam australia": (
        SteamAustralia,
        {"events": "reviews"},
        {
            "australian_user_reviews.json": printed(*POSTED),
            "australian_users_items.json": printed(*OWNED),
        },
    ),
    "steam derived": (
        SteamAustralia,
        {"events": "derived"},
        {"derived_review_playtime.csv": lines("u{u},{i},2014-05-0{u},90,1.5,True,Posted", head=DERIVED)},
    ),
    "atomic": (
        Atomic,
        {
            "columns": {"user": "user_id", "item": "item_id", "time": "timestamp", "value": "rating"},
            "time_unit": "s",
            "missing": "error",
            "event_features": [],
        },
        {
            "data.inter": lines(
                "{u}\t{i}\t4\t{t}", head="user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            ),
            "data.item": printed("item_id:token\tgenre:token_seq", "10\tDrama War", "20\tWar"),
        },
    ),
    "sequences": (Sequences, {"file": "x.txt"}, {"x.txt": lines("{u} {i}")}),
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
        {"x.csv": lines('{u},"a ""{i}""",{t},1.5,g{i},1,0|{i}|9', head="u,i,t,v,g,l,h\n")},
    ),
}


def read(case: str, files: Files) -> InteractionLog:
    make, options, _ = CASES[case]
    home = Path(tempfile.mkdtemp())
    try:
        folder = home / "data"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        if make is Table:
            os.environ["HYDREC_DATA"] = str(folder)
            place = {"root": str(home)}
        else:
            os.environ["HYDREC_DATA"] = str(home)
            place = {"root": str(home), "folder": "data"}
        given = {"name": "fuzzed", "k_core": 0, "duplicates": "keep"} | place | options
        return make(**given)()  # type: ignore[operator]
    finally:
        shutil.rmtree(home)


def sound(log: InteractionLog) -> bool:
    """Whether the columns of a log hold what `InteractionLog` promises."""
    order = np.lexsort((log.times, log.users))
    met = log.items if log.past_items is None else np.concatenate([log.items, log.past_items])
    return bool(
        len(log) > 0
        and (order == np.arange(len(log))).all()
        and (log.times >= 0).all()
        and log.users.min() >= 1
        and log.items.min() >= 1
        and np.bincount(log.users)[1:].min() > 0
        and np.bincount(met)[1:].min() > 0
        and (log.labels is None or set(log.labels.tolist()) <= {0, 1})
        and (log.user_ids[1:] != "").all()
        and (log.item_ids[1:] != "").all()
        and not np.isinf(log.values).any()
    )


SPAN = st.tuples(st.floats(0, 1), st.integers(0, 12))
TOKENS = [b"\n", b"\r\n", b",", b"\t", b"::", b'"', b"'", b"\\", b"{", b"}", b"[", b"-1", b"NaN", b"1e400"]
TOKENS += [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"99999999999999999999",
    b"None",
    b"true",
    b"\xe2\x80\xa8",
    b"\x1f",
    b"\x01",
]
CHANGE = st.tuples(SPAN, st.one_of(st.binary(max_size=6), st.sampled_from(TOKENS), st.just(b"")))


def changed(content: bytes, changes: list) -> bytes:
    for (where, gone), new in changes:
        at = int(where * len(content))
        content = content[:at] + new + content[at + gone :]
    return content


@pytest.mark.parametrize("case", CASES)
def test_the_files_are_read_as_they_are(case, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", "")
    assert sound(read(case, CASES[case][2]))


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
    gz=st.booleans(),
)
def test_changed_bytes_are_a_log_or_one_line(case, which, changes, cut, gz, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", "")
    files = dict(CASES[case][2])
    name = list(files)[which % len(files)]
    content = changed(files.pop(name), changes)
    if gz:
        content = gzip.compress(content, mtime=0)
        content = content[:-5] if cut else changed(content, changes[:1])
        name += ".gz"
    try:
        log = read(case, files | {name: content})
    except InputError as error:
        assert str(error).strip() and "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert sound(log)
