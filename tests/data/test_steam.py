import gzip
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from hydrec.data import raw
from hydrec.data.steam import GAME, MEND, PAGE, PAIR, Steam, SteamAustralia
from hydrec.errors import InputError, MissingData

DATA = os.environ.get("HYDREC_DATA")
DAY = 86_400

# Users out of order, whose names need every kind of quote; dates falling.
NAMES = ['Zoë\'s "den"', "it's", "plain"]
EVENTS = [
    {
        "username": name,
        "hours": number + 0.5,
        "products": 41,
        "product_id": str(10 * game),
        "page_order": 0,
        "date": f"2017-12-{28 - 9 * number - game}",
        "text": "{u'username': u'trap', u'date': u'2001-01-01'}\n",
        "early_access": False,
        "page": 1,
    }
    for number, name in enumerate(NAMES)
    for game in (1, 2, 3)
]
GAMES = [
    {"app_name": "Élan", "title": "other", "id": "10", "genres": ["Design &amp; Illustration", "Action"]},
    {"title": "A &amp; B", "id": "20", "tags": ["Rogue-like"], "specs": ["Co-op"], "developer": "X, Inc."},
    {"app_name": "later", "id": "20", "publisher": "Y"},
    {"app_name": "in the address", "url": "http://store.steampowered.com/app/30/x", "publisher": "R&amp;D"},
    {"url": "http://store.steampowered.com/"},
]
B = [("20", "Posted June 24, 2014."), ("10", "Posted June 24, 2014."), ("30", "Posted June 3, 2014.")]
REVIEWS = [
    ("b", [*B, ("40", "Posted July 3.")]),
    ("a", [("10", "Posted November 5, 2011.")]),
    ("empty", []),
    ("b", B),
]
LIBRARIES = [
    ("b", [("20", 90), ("10", 0), ("99", 7)]),
    ("b", [("20", 30)]),
    ("c", []),
]
DERIVED = [
    'b,20,2014-06-03,90,1.5,True,"Posted June 3, 2014."',
    "b,30,,8,0.1,False,Posted July 3.",
    'a,10,2011-11-05,0,0.0,True,"Posted November 5, 2011."',
]


def python2(value):
    """What Python 2 prints of a value."""
    if isinstance(value, str):
        return f"u{value!a}"
    if isinstance(value, list):
        return f"[{', '.join(map(python2, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{python2(key)}: {python2(each)}' for key, each in value.items())}}}"
    return str(value)


PRINTED = {"python 2": python2, "python 3": str, "json": json.dumps}


def write(folder, records, name="steam_reviews.json", printed=python2):
    folder.mkdir(exist_ok=True)
    lines = [record if isinstance(record, str) else printed(record) for record in records]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder


def users(key, lists, fields):
    """The records of a file that has a list for each user, or none."""
    named = [
        {"user_id": user, key: [dict(zip(fields, each, strict=True)) for each in of]} for user, of in lists
    ]
    return [*named, {"user_id": "none", key: None}]


def write_australia(folder, reviews=REVIEWS, libraries=LIBRARIES, derived=DERIVED):
    write(folder, users("reviews", reviews, ("item_id", "posted")), "australian_user_reviews.json", str)
    if libraries is not None:
        records = users("items", libraries, ("item_id", "playtime_forever"))
        write(folder, records, "australian_users_items.json", str)
    write(folder, GAMES, "steam_games.json")
    return write(folder, [PAIR, *derived], "derived_review_playtime.csv")


def reader(folder, **options):
    options = {"name": "steam", "k_core": 0, "duplicates": "error", "users": None, "draw_seed": 0} | options
    return Steam(folder=folder.name, root=str(folder.parent), **options)


def australia(folder, **options):
    options = {"name": "steam", "events": "reviews", "k_core": 0, "duplicates": "error"} | options
    return SteamAustralia(folder=folder.name, root=str(folder.parent), **options)


@pytest.fixture(autouse=True)
def no_public_data(monkeypatch):
    monkeypatch.delenv("HYDREC_DATA", raising=False)


def rows(log):
    """The events with their raw ids."""
    values = [None if np.isnan(value) else value for value in log.values.tolist()]
    names = log.user_ids[log.users].tolist(), log.item_ids[log.items].tolist()
    return list(zip(*names, log.times.tolist(), values, strict=True))


def words(log, feature):
    """The labels of each item."""
    found = log.item_features[feature]
    names = np.array(["PAD", "?", *found.vocabulary])
    ends = zip(found.offsets, found.offsets[1:], strict=False)
    return dict(zip(log.item_ids, [list(names[found.codes[a:b]]) for a, b in ends], strict=True))


def complaint(read):
    """The one line that the reader says of bad input."""
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The reviews of all users.


@pytest.mark.parametrize("printed", PRINTED)
@pytest.mark.parametrize("packed", [False, True])
def test_reviews_read_the_same_however_they_were_written(tmp_path, printed, packed):
    folder = write(tmp_path / "steam", EVENTS, printed=PRINTED[printed])
    if packed:
        path = folder / "steam_reviews.json"
        path.with_suffix(".json.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    log = reader(folder)()
    assert rows(log) == [
        # 2017-12-28 is day 17,528
        (name, str(10 * game), (17_528 - 9 * NAMES.index(name) - game) * DAY, NAMES.index(name) + 0.5)
        for name in sorted(NAMES)
        for game in (3, 2, 1)
    ]
    assert (log.name, log.item_titles, log.item_features) == ("steam", None, {})


def test_events_of_one_day_stay_in_file_order(tmp_path):
    events = [EVENTS[0] | {"product_id": game} for game in ("5", "1", "6", "2")]
    assert [item for _, item, _, _ in rows(reader(write(tmp_path / "steam", events))())] == [
        "5",
        "1",
        "6",
        "2",
    ]


def test_hours_that_are_absent_are_nan(tmp_path):
    events = [
        EVENTS[0] | {"hours": None},
        {key: EVENTS[1][key] for key in ("username", "product_id", "date")},
    ]
    assert [value for *_, value in rows(reader(write(tmp_path / "steam", events))())] == [None, None]


def test_reviews_without_user_game_or_date_are_left_out_and_counted(tmp_path, caplog):
    lacking = [{key: value for key, value in EVENTS[0].items() if key != field} for field in EVENTS[0]]
    empty = [EVENTS[0] | {field: ""} for field in ("username", "product_id", "date")]
    folder = write(tmp_path / "steam", [*lacking, *empty, EVENTS[1]])
    assert len(reader(folder, duplicates="keep")()) == 7
    assert caplog.messages[0] == (
        f"{folder}/steam_reviews.json: 6 of 13 reviews lack user, game or date and are left out"
    )


def test_games_give_titles_and_features(tmp_path):
    folder = write(tmp_path / "steam", [*EVENTS, EVENTS[0] | {"product_id": "40"}])
    write(folder, GAMES, "steam_games.json")
    log = reader(folder)()
    assert log.item_ids.tolist() == ["", "10", "20", "30", "40"]
    assert log.item_titles.tolist() == ["", "Élan", "A & B", "in the address", ""]
    assert {name: list(words(log, name).values())[1:] for name in log.item_features} == {
        "genres": [["Design & Illustration", "Action"], ["?"], ["?"], ["?"]],
        "tags": [["?"], ["Rogue-like"], ["?"], ["?"]],
        "specs": [["?"], ["Co-op"], ["?"], ["?"]],
        "developer": [["?"], ["X, Inc."], ["?"], ["?"]],
        "publisher": [["?"], ["?"], ["R&D"], ["?"]],
    }


# What is wrong in a record, and what is said of it.
WRONG = {
    "hours beyond 32 bits": (
        {"hours": 1e39},
        "hours '1000000000000000000000000000000000000000' is not a fini",
    ),
    "hours that are text": ({"hours": "soon"}, "hours 'soon' is not a finite number"),
    "hours that are true": ({"hours": True}, "hours 'true' is not a finite number"),
    "no hours that are false": ({"hours": False}, "hours 'false' is not a finite number"),
    "hours that are a list": (
        {"hours": [1.5]},
        "not a dictionary with the fields username, product_id, date,",
    ),
    "a mark of the parser": (
        "{'username': 'a\x02, \x01hours\x02: 7, \x01z\x02: \x01', 'product_id': '1', 'date': '2017-01-01'}",
        "a byte 0x01, which is no text; save it as UTF-8, or",
    ),
    "a key twice": (
        "{'username': 'a', 'username': 'b', 'product_id': '1', 'date': '2017-01-01'}",
        "one of username, product_id, date, hours comes twice; ",
    ),
    "a key twice in JSON": (
        '{"username": "a", "product_id": "1", "date": "2017-01-01", "hours": 1, "hours" : 2}',
        "",
    ),
    "a day in 9999": (
        {"date": "9999-12-01"},
        "date '9999-12-01' is not a date like %Y-%m-%d from 1970 to 2099",
    ),
    "day that is not": ({"date": "2017-02-30"}, "date '2017-02-30' is not a date like %Y-%m-%d"),
    "date in another form": ({"date": "Posted July 3."}, "date 'Posted July 3.' is not a date like"),
    "date before 1970": ({"date": "1969-12-31"}, "date '1969-12-31' is not a date like"),
    "date with a time": ({"date": "2017-01-01 10:00"}, "date '2017-01-01 10:00' is not a date like"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_first_wrong_review_is_named(tmp_path, fault):
    change, what = WRONG[fault]
    wrong = change if isinstance(change, str) else EVENTS[0] | change
    folder = write(tmp_path / "steam", [{}, *EVENTS, wrong, wrong])
    message = complaint(reader(folder))
    assert message.startswith(f"{folder}/steam_reviews.json:11: {what}")
    assert message.endswith(MEND)


def test_negative_hours_are_none_and_counted(tmp_path, caplog):
    events = [EVENTS[0] | {"hours": -0.5}, EVENTS[1] | {"hours": -7}, EVENTS[2]]
    folder = write(tmp_path / "steam", events)
    assert [value for *_, value in rows(reader(folder)())] == [0.5, 0, 0]
    assert caplog.messages == [
        f"{folder}/steam_reviews.json: 2 reviews have negative hours, which are taken for 0"
    ]


@pytest.mark.parametrize("name", ["a\0", "\0", "a\0b"])
def test_name_with_nul_is_refused(tmp_path, name):  # numpy's text would lose it at the end
    folder = write(tmp_path / "steam", [EVENTS[0] | {"username": each} for each in ("a", name)])
    assert complaint(reader(folder)).startswith(
        f"{folder}/steam_reviews.json:2: the id {name!r} has a NUL character; "
    )


def test_what_is_in_text_is_no_key(tmp_path):
    text = {"text": '"hours": 1, "hours": 2', "more": "hours", "other": ["hours"]}
    folder = write(tmp_path / "steam", [EVENTS[0] | text], printed=json.dumps)
    assert len(reader(folder)()) == 1


def test_names_that_are_not_utf_8_are_refused_as_they_are(tmp_path):
    folder = write(tmp_path / "steam", [EVENTS[0], EVENTS[1]], printed=str)
    path = folder / "steam_reviews.json"
    path.write_bytes(path.read_bytes() + EVENTS[2]["text"].encode() + "Zoë\n".encode("latin-1"))
    assert complaint(reader(folder)).startswith(f"{path}:4: not UTF-8; save the file as UTF-8, or ")


def test_file_that_ends_in_the_middle_of_a_line_is_refused(tmp_path):
    path = write(tmp_path / "steam", EVENTS) / "steam_reviews.json"
    path.write_bytes(path.read_bytes()[:-9])
    assert complaint(reader(path.parent)).startswith(f"{path}:9: ")


def test_second_review_of_a_game_names_both_lines(tmp_path):
    folder = write(tmp_path / "steam", [{}, *EVENTS, {}, EVENTS[4] | {"date": "2018-01-01"}])
    path = folder / "steam_reviews.json"
    assert complaint(reader(folder)) == (
        f"{path}:12: repeats the user and item of {path}:6;"
        " set dataset.reader.duplicates to keep, first or last"
    )
    assert [len(reader(folder, duplicates=each)()) for each in ("keep", "first", "last")] == [10, 9, 9]


def test_options_are_what_changes_the_log(tmp_path):
    assert reader(tmp_path, k_core=5, users=3000).options() == {
        "reader": "steam",
        "version": 2,
        "k_core": 5,
        "duplicates": "error",
        "users": 3000,
        "draw_seed": 0,
    }


# The draw: 40 users of the 3-core, and events that are not in it.

CROWD = [
    EVENTS[0]
    | {"username": f"u{user}", "product_id": str(game), "hours": user, "date": f"2017-01-{day + 1:02}"}
    for user in range(40)
    for day, game in enumerate((user % 4, 4 + user % 5, 9 + user % 7))
]
OUTSIDE = [EVENTS[0] | {"username": user, "product_id": "99"} for user in ("u16", "u40")]


def drawn(folder, **options):
    return set(reader(folder, k_core=3, **options)().user_ids.tolist()[1:])


def test_drawn_users_keep_all_events_of_the_core(tmp_path):
    folder = write(tmp_path / "steam", [*OUTSIDE, *CROWD])
    core = reader(folder, k_core=3)()
    log = reader(folder, k_core=3, users=6)()
    assert (core.n_users, log.n_users) == (40, 6)
    assert rows(log) == [row for row in rows(core) if row[0] in set(log.user_ids.tolist())]
    assert np.bincount(log.items)[1:].min() < 3  # the core is taken before, not after


def test_draw_is_the_same_everywhere(tmp_path):
    folder = write(tmp_path / "steam", [*OUTSIDE, *CROWD])
    assert drawn(folder, users=6) == {"u16", "u17", "u18", "u25", "u35", "u39"}


def test_draw_depends_on_nothing_but_seed_and_core(tmp_path):
    forward = write(tmp_path / "a", [*OUTSIDE, *CROWD])
    backward = write(tmp_path / "b", [*reversed(CROWD), *OUTSIDE], printed=json.dumps)
    assert drawn(forward, users=6) == drawn(backward, users=6)
    assert drawn(forward, users=6) < drawn(forward, users=13) < drawn(forward, users=40)
    seeds = [frozenset(drawn(forward, users=20, draw_seed=seed)) for seed in range(4)]
    assert len(set(seeds)) == 4


def test_draw_of_more_users_than_there_are_is_refused(tmp_path):
    folder = write(tmp_path / "steam", [*OUTSIDE, *CROWD])
    assert complaint(reader(folder, k_core=3, users=41)) == (
        "dataset.reader.users=41: only 40 are left of steam after dataset.reader.k_core=3;"
        " use fewer, or null for all"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("users", 0), ("users", 2.0), ("users", "all"), ("draw_seed", -1), ("draw_seed", None)],
)
def test_bad_draw_is_refused(tmp_path, option, value):
    message = complaint(lambda: reader(tmp_path, **{option: value}))
    shown = "null" if value is None else value
    assert message.startswith(f"dataset.reader.{option}={shown}: must be a whole number")


# The reviews of users from Australia.


def test_dated_reviews_get_the_hours_of_the_libraries(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hydrec")
    folder = write_australia(tmp_path / "au")
    log = australia(folder)()
    assert rows(log) == [
        ("a", "10", 15_283 * DAY, None),
        ("b", "30", 16_224 * DAY, None),
        ("b", "20", 16_245 * DAY, 1.5),
        ("b", "10", 16_245 * DAY, 0),
    ]
    assert log.item_titles.tolist() == ["", "Élan", "A & B", "in the address"]
    assert words(log, "genres")["10"] == ["Design & Illustration", "Action"]
    assert caplog.messages == [
        f"{folder}/australian_user_reviews.json: 1 of 8 reviews lack user, game or date and are left out",
        f"{folder}/australian_user_reviews.json: 3 reviews repeat another and are left out",
        f"{folder}/australian_users_items.json: tells the hours of 2 of 4 reviews",
    ]


def test_derived_pairs_have_their_own_hours(tmp_path, caplog):
    folder = write_australia(tmp_path / "au", libraries=None)
    log = australia(folder, events="derived")()
    assert rows(log) == [("a", "10", 15_283 * DAY, 0), ("b", "20", 16_224 * DAY, 1.5)]
    assert log.item_titles.tolist() == ["", "Élan", "A & B"]
    assert caplog.messages == [
        f"{folder}/derived_review_playtime.csv: 1 of 3 reviews lack user, game or date and are left out"
    ]


def test_subset_of_libraries_is_read_where_the_whole_is_absent(tmp_path):
    folder = write_australia(tmp_path / "au")
    whole, subset = folder / "australian_users_items.json", folder / "australian_users_items.subset.json"
    subset.write_bytes(whole.read_bytes())
    assert australia(folder).files()[1] == whole
    whole.unlink()
    assert australia(folder).files()[1] == subset
    subset.unlink()
    assert complaint(australia(folder)) == f"{whole}: missing beside the reviews; get it from {PAGE}"


PARTS = {"reviews": "australian_user_reviews.json", "items": "australian_users_items.json"}
BROKEN = {
    "posted in another form": (
        "reviews",
        "{'user_id': 'a', 'reviews': [{'item_id': '1', 'posted': '2014-06-03'}]}",
        "date '2014-06-03' is not a date like Posted %B %d, %Y. from 1970 to 2099; ",
    ),
    "reviews that are no list": (
        "reviews",
        "{'user_id': 'a', 'reviews': 1}",
        "not a dictionary with the fields user_id, reviews (",
    ),
    "a game with two days": (
        "reviews",
        "{'user_id': 'a', 'reviews': [{'item_id': '1', 'posted': 'Posted June 3, 2014.', 'posted': None}]}",
        "one of user_id, reviews comes twice; ",
    ),
    "playtime beyond 32 bits": (
        "items",
        "{'user_id': 'a', 'items': [{'item_id': '1', 'playtime_forever': 1e300}]}",
        "playtime_forever '1000000000000000000000000000000000000000000000000000000000",
    ),
    "playtime that is text": (
        "items",
        "{'user_id': 'a', 'items': [{'item_id': '1', 'playtime_forever': 'x'}]}",
        "playtime_forever 'x' is not a finite number; ",
    ),
    "playtime that is true": (
        "items",
        "{'user_id': 'a', 'items': [{'item_id': '1', 'playtime_forever': True}]}",
        "playtime_forever 'true' is not a finite number; ",
    ),
    "too few fields": ("derived", "b,20,2014-06-03,90", f"pair 'b,20,2014-06-03,90' is not like {PAIR}; "),
    "playtime with a fraction": (
        "derived",
        "b,20,2014-06-03,9.5,0.2,True,Posted July 3.",
        "pair 'b,20,2014-06-03,9.5,0.2,True,Posted July 3.' is not like ",
    ),
    "playtime in other digits": (
        "derived",
        "b,20,2014-06-03,٩,0.2,True,Posted July 3.",
        "pair 'b,20,2014-06-03,٩,0.2,True,Posted July 3.' is not like ",
    ),
    "date of a pair in another form": (
        "derived",
        "b,20,3.6.2014,9,0.2,True,Posted July 3.",
        "date '3.6.2014' is not a date like %Y-%m-%d from 1970 to 2099; ",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_first_wrong_line_of_an_australian_file_is_named(tmp_path, fault):
    folder = write_australia(tmp_path / "au")
    part, line, what = BROKEN[fault]
    path = folder / PARTS.get(part, "derived_review_playtime.csv")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, f"{line}\n", f"{line}\n"]))
    events = "derived" if part == "derived" else "reviews"
    assert complaint(australia(folder, events=events)).startswith(f"{path}:{len(lines) + 1}: {what}")


def test_negative_playtime_is_none_and_counted(tmp_path, caplog):
    libraries = [("b", [("20", -90), ("10", 30), ("99", -7)])]
    derived = [line.replace(",90,1.5", ",-90,-1.5") for line in DERIVED]
    folder = write_australia(tmp_path / "au", libraries=libraries, derived=derived)
    values = [value for *_, value in rows(australia(folder)())]
    assert values == [None, None, 0, 0.5]
    assert f"{folder}/australian_users_items.json: 1 reviews have negative hours" in caplog.text
    assert [value for *_, value in rows(australia(folder, events="derived")())] == [0, 0]
    assert f"{folder}/derived_review_playtime.csv: 1 reviews have negative hours" in caplog.text


def test_pairs_under_another_header_are_refused(tmp_path):
    folder = write_australia(tmp_path / "au")
    path = folder / "derived_review_playtime.csv"
    path.write_text("user,item\na,10\n")
    assert complaint(australia(folder, events="derived")).startswith(
        f"{path}:1: the header is 'user,item', not '{PAIR}'; "
    )


def test_unknown_events_are_refused(tmp_path):
    assert complaint(lambda: australia(tmp_path, events="review")) == (
        "dataset.reader.events=review is none of reviews, derived; did you mean reviews?"
    )


def test_australian_options_are_what_changes_the_log(tmp_path):
    assert australia(tmp_path, events="derived").options() == {
        "reader": "steam_australia",
        "version": 2,
        "events": "derived",
        "k_core": 0,
        "duplicates": "error",
    }


# Where files lie.


@pytest.mark.parametrize(
    ("make", "options", "file"),
    [
        (reader, {}, "steam_reviews.json"),
        (australia, {}, "australian_user_reviews.json"),
        (australia, {"events": "derived"}, "derived_review_playtime.csv"),
    ],
)
def test_missing_data_name_places_and_publisher(tmp_path, monkeypatch, make, options, file):
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "one"))
    with pytest.raises(MissingData) as caught:
        make(tmp_path / "two" / "steam", **options).files()
    message = str(caught.value)
    assert f"steam: no {file} (or .gz) in {tmp_path}/one/steam or {tmp_path}/two/steam; " in message
    assert message.endswith(PAGE) and "\n" not in message


def test_hydrec_data_goes_before_root(tmp_path, monkeypatch):
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        write(write(tmp_path / place / "steam", EVENTS), GAMES, "steam_games.json")
    (tmp_path / "first" / "steam" / "steam_games.json").unlink()
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "first"))
    found = reader(tmp_path / "second" / "steam").files()
    assert found == [tmp_path / "first" / "steam" / "steam_reviews.json"]
    monkeypatch.delenv("HYDREC_DATA")
    found = reader(tmp_path / "second" / "steam").files()
    assert [path.name for path in found] == ["steam_reviews.json", "steam_games.json"]


# The published files.


def published(**options):
    if not (DATA and (Path(DATA) / "steam_ucsd").is_dir()):
        pytest.skip("needs steam_ucsd in $HYDREC_DATA")
    return australia(Path(DATA) / "steam_ucsd", **options)


def sizes(log):
    return len(log), log.n_users, log.n_items


def test_games():
    *_, path = published().files()
    blocks = [block for _, block in raw.records(path, GAME, MEND)]
    assert sum(len(block) for block in blocks) == 32_135
    assert sum(block["genres"].count() for block in blocks) == 28_852


def test_reviews_and_libraries(caplog):
    caplog.set_level(logging.INFO, "hydrec")
    log = published()()
    assert sizes(log) == (48_498, 22_795, 2_897)
    assert (log.times.min(), log.times.max()) == (14_898 * DAY, 16_800 * DAY)  # 2010-10-16, 2015-12-31
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "10119 of 59305 reviews lack user, game or date and are left out",
        "688 reviews repeat another and are left out",
        f"tells the hours of {np.isfinite(log.values).sum()} of 48498 reviews",
    ]
    portal = log.item_ids.tolist().index("620")
    assert (log.item_titles[portal], words(log, "genres")["620"]) == ("Portal 2", ["Action", "Adventure"])
    batman = log.item_ids.tolist().index("200260")  # has no id of its own
    assert log.item_titles[batman] == "Batman: Arkham City - Game of the Year Edition"
    assert len(log.item_features["genres"].vocabulary) == 20


def test_derived_pairs(caplog):
    log = published(events="derived")()
    assert sizes(log) == (32_893, 16_759, 2_188)
    assert "7212 of 40105 reviews lack" in caplog.text
    events = np.bincount(log.users)[1:]
    assert ((events >= 3).sum(), (events >= 5).sum()) == (3_900, 1_397)
    assert (log.values.min(), round(float(log.values.max()), 1)) == (0, 10_712.9)
