import gzip
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from hydrec.data.amazon import EDITIONS, INTER_HEADER, WIDTH, Amazon
from hydrec.errors import InputError, MissingData

DATA = os.environ.get("HYDREC_DATA")
CONF = Path(__file__).parents[2] / "conf"
DAY = 86_400
REVIEWS = {"2014": "reviews_Toys_5.json", "2018": "Toys_5.json"}
RATINGS = {"2014": "ratings_Toys.csv", "2018": "Toys.csv"}

# Users out of order, days falling; every user reviews every item.
ASINS = ["B000A", "0001", "B000B", "B000C"]
EVENTS = [
    (user, item, 1.0 + n % 5, (90 - n) * DAY) for user in ("A3", "A1", "A2") for n, item in enumerate(ASINS)
]
PRODUCTS = {
    "B000A": ('It\'s a "Toy"', "Léo & Co", [["Toys", "Cars", "Slot cars"], ["Toys", "Gifts"]]),
    "B000X": ("Reviewed by nobody", "Other", [["Elsewhere"]]),
    "0001": ("Plain", None, [["Toys"]]),
    "B000B": (None, "", None),
}


def review(edition, user, item, stars, time):
    """A line of reviews as the edition has it; odd users have no name."""
    line = {"reviewerID": user, "asin": item, "reviewerName": 'Ann "A." O\'Hara'}
    if user != "A2":
        del line["reviewerName"]
    about = {"reviewText": 'It\'s {fine},\nsaid\t"he" [1] \\ \u2028', "summary": "}", "overall": stars}
    if edition == "2014":
        return line | {"helpful": [2, 3]} | about | {"unixReviewTime": time, "reviewTime": "02 8, 2014"}
    extra = {"verified": True, "style": {"Size:": " 1"}, "vote": "1,024", "image": ["http://x/y.jpg"]}
    return about | extra | line | {"unixReviewTime": time}


def product(edition, asin, title, brand, paths):
    """A line of metadata as the edition has it: of 2018 only the first path, strict JSON, prices as text."""
    if edition == "2014":
        known = {"asin": asin, "price": 9.5, "salesRank": {"Toys": 7}, "related": {"also_bought": ["B1"]}}
        known |= {"title": title, "brand": brand, "categories": paths}
        return str({key: value for key, value in known.items() if value is not None}).replace("é", "\\xe9")
    known = {
        "category": paths and paths[0],
        "tech1": "",
        "title": title,
        "also_buy": ["B1"],
        "price": "$9.50",
    }
    known |= {"rank": ["1 in Toys"], "brand": brand, "asin": asin}
    return json.dumps({key: value for key, value in known.items() if value is not None})


def lines(path, texts):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def write(folder, edition, events=EVENTS):
    return lines(folder / REVIEWS[edition], (json.dumps(review(edition, *event)) for event in events))


def describe(folder, edition, products=PRODUCTS):
    texts = [product(edition, asin, *rest) for asin, rest in products.items()]
    return lines(folder / "meta_Toys.json", texts)


def rate(folder, edition, events=EVENTS):
    order = (0, 1, 2, 3) if edition == "2014" else (1, 0, 2, 3)
    return lines(folder / RATINGS[edition], (",".join(str(event[n]) for n in order) for event in events))


def atomic(folder, events=EVENTS):
    texts = [INTER_HEADER, *(f"{u}\t{i}\t{stars}\t{time}.0" for u, i, stars, time in events)]
    return lines(folder / "Toys_5.inter", texts)


def reader(folder, edition, **options):
    options = {"name": "toys", "category": "Toys", "k_core": 0, "duplicates": "error"} | options
    return Amazon(folder=folder.name, root=str(folder.parent), edition=edition, **options)


@pytest.fixture(autouse=True)
def no_public_data(monkeypatch):
    monkeypatch.delenv("HYDREC_DATA", raising=False)


@pytest.fixture(params=EDITIONS)
def edition(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "amazon"


def words(feature):
    names = np.array(["PAD", "?", *feature.vocabulary])
    return [
        list(names[feature.codes[a:b]]) for a, b in zip(feature.offsets, feature.offsets[1:], strict=False)
    ]


def complaint(folder, edition, **options):
    """The one line that the reader says of bad input."""
    with pytest.raises(InputError) as caught:
        reader(folder, edition, **options)()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reviews_become_a_log(folder, edition):
    write(folder, edition)
    log = reader(folder, edition)()
    expected = sorted((user, time, item, stars) for user, item, stars, time in EVENTS)
    assert log.name == "toys"
    assert log.user_ids.tolist() == ["", "A1", "A2", "A3"]
    assert log.item_ids.tolist() == ["", *sorted(ASINS)]
    assert log.user_ids[log.users].tolist() == [user for user, _, _, _ in expected]
    assert log.item_ids[log.items].tolist() == [item for _, _, item, _ in expected]
    assert log.times.tolist() == [time for _, time, _, _ in expected]
    assert log.values.tolist() == [stars for _, _, _, stars in expected]


def test_reviews_of_one_day_stay_in_the_order_of_the_file(folder, edition):
    write(folder, edition, [("A1", item, 5.0, DAY) for item in ASINS])
    log = reader(folder, edition)()
    assert log.item_ids[log.items].tolist() == ASINS


def test_other_files_of_the_same_reviews_give_the_same_log(folder, edition):
    path = write(folder, edition)
    plain = reader(folder, edition, k_core=1)()
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    path = path.with_name(f"{path.name}.gz")
    for _ in range(3):
        assert reader(folder, edition).files() == [path]
        assert reader(folder, edition, k_core=1)().fingerprint == plain.fingerprint
        path.unlink()
        path = rate(folder, edition) if path.suffix == ".inter" else atomic(folder)


def test_metadata_give_titles_and_features(folder, edition):
    write(folder, edition)
    describe(folder, edition)
    log = reader(folder, edition)()
    assert log.item_ids.tolist() == ["", "0001", "B000A", "B000B", "B000C"]
    assert log.item_titles.tolist() == ["", "Plain", 'It\'s a "Toy"', "", ""]
    assert words(log.item_features["brand"]) == [["PAD"], ["?"], ["Léo & Co"], ["?"], ["?"]]
    assert words(log.item_features["category"]) == [["PAD"], ["Toys"], ["Slot cars"], ["?"], ["?"]]
    more = ["Gifts"] if edition == "2014" else []
    assert words(log.item_features["categories"]) == [
        *(["PAD"], ["Toys"], ["Toys", "Cars", "Slot cars", *more], ["?"], ["?"]),
    ]
    assert set(log.item_features) == {"brand", "category", "categories"}
    assert log.user_features == {}


def test_titles_and_labels_are_text_of_bounded_width(folder, edition):
    write(folder, edition)
    describe(
        folder,
        edition,
        {
            "0001": ("Tom &amp; J&eacute;r&#39;s &amp amp;", "A &quot;B&quot;", [["C &amp; D", "x" * 500]]),
            "B000A": ("y" * 500, "z" * 500, [[]]),
            "B000B": ("var aPageStart = (new Date()).getTime();", None, []),
        },
    )
    log = reader(folder, edition)()
    assert log.item_titles.tolist() == ["", "Tom & Jér's &amp amp;", "y" * WIDTH, "", ""]
    assert words(log.item_features["brand"])[1:3] == [['A "B"'], ["z" * WIDTH]]
    assert words(log.item_features["categories"])[1:4] == [["C & D", "x" * WIDTH], ["?"], ["?"]]
    assert words(log.item_features["category"])[1:4] == [["x" * WIDTH], ["?"], ["?"]]


def test_the_first_of_two_descriptions_counts(folder, edition):
    write(folder, edition)
    path = describe(folder, edition)
    again = product(edition, "B000A", "Another", "Other", [["Z"]])
    path.write_text(f"{path.read_text()}{again}\n{again}\n")
    log = reader(folder, edition)()
    assert log.item_titles[2] == 'It\'s a "Toy"'


def test_without_metadata_a_line_says_so(folder, edition, caplog):
    path = write(folder, edition)
    with caplog.at_level(logging.INFO, "hydrec"):
        log = reader(folder, edition)()
    assert (log.item_titles, log.item_features) == (None, {})
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: read without metadata; items have no titles and no features"
    ]


def test_metadata_are_not_for_the_ids_of_other_files(folder, edition):
    describe(folder, edition)
    path = atomic(folder)
    assert reader(folder, edition).files() == [path]
    path.unlink()
    ratings = rate(folder, edition)
    assert reader(folder, edition).files() == [ratings, folder / "meta_Toys.json"]
    path = atomic(folder)
    assert reader(folder, edition).files() == [path]  # the 5-core goes before all ratings


def test_metadata_of_other_items_are_refused(folder, edition):
    write(folder, edition)
    path = describe(folder, edition, {"B000X": PRODUCTS["B000X"]})
    assert complaint(folder, edition).startswith(
        f"{path}: has none of the 4 items that were reviewed; mend the file, or get it again from https://"
    )


# What is wrong in a review, and what is said of it.
WRONG = {
    "no user": ({"reviewerID": None}, "reviewerID None is not an id"),
    "empty user": ({"reviewerID": ""}, "reviewerID '' is not an id"),
    "no item": ({"asin": None}, "asin None is not an id"),
    "empty item": ({"asin": ""}, "asin '' is not an id"),
    "no rating": ({"overall": None}, "overall None is not a rating of 0 to 5"),
    "rating below": ({"overall": -1}, "overall '-1' is not a rating of 0 to 5"),
    "rating above": ({"overall": 5.5}, "overall '5.5' is not a rating of 0 to 5"),
    "no time": ({"unixReviewTime": None}, "unixReviewTime None is not a whole number of seconds"),
    "time below": ({"unixReviewTime": -5}, "unixReviewTime '-5' is not a whole number of seconds"),
    "fraction of a second": (
        {"unixReviewTime": 9.5},
        "unixReviewTime '9.5' is not a whole number of seconds",
    ),
    "time beyond": (
        {"unixReviewTime": 1e30},
        "unixReviewTime '1000000000000000000000000000000' is not a whole",
    ),
    "text for a time": ({"unixReviewTime": "now"}, "unixReviewTime 'now' is not a whole number of seconds"),
    "text for a rating": ({"overall": "good"}, "overall 'good' is not a rating of 0 to 5"),
    "true for a rating": ({"overall": True}, "overall 'true' is not a rating of 0 to 5"),
    "false for a time": (
        {"unixReviewTime": False},
        "unixReviewTime 'false' is not a whole number of seconds",
    ),
    "a list for a time": (
        {"unixReviewTime": [1]},
        "not a dictionary with the fields reviewerID, asin, overall",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_first_wrong_review_is_named(folder, edition, fault):
    path = write(folder, edition)
    change, what = WRONG[fault]
    content = path.read_text().splitlines(keepends=True)
    content[6] = json.dumps(json.loads(content[6]) | change) + "\n"
    content[8] = content[9] = content[6]  # only the first is named
    path.write_text("".join(content))
    message = complaint(folder, edition)
    assert message.startswith(f"{path}:7: {what}")
    assert message.endswith(f"; mend the file, or get it again from {EDITIONS[edition].page}")


@pytest.mark.parametrize("make", [write, rate, lambda folder, edition, events: atomic(folder, events)])
@pytest.mark.parametrize("time", [1_252_800_000_000, 2**53])
def test_time_after_2099_is_refused(folder, edition, make, time):
    path = make(folder, edition, [*EVENTS[:4], ("A9", "B1", 5.0, time)])
    assert complaint(folder, edition, k_core=1).startswith(
        f"{path}:{5 + (path.suffix == '.inter')}: time {time} is not from 1970 to 2099 in seconds; mend"
    )


@pytest.mark.parametrize("name", ["A1\0", "\0"])
def test_id_with_nul_is_refused(folder, edition, name):  # numpy's text would lose it at the end
    path = write(folder, edition, [EVENTS[5], (name, "B1", 5.0, DAY)])
    assert complaint(folder, edition).startswith(f"{path}:2: the id {name!r} has a NUL character; ")


def test_line_that_is_not_utf_8_is_named(folder, edition):  # and the é of others stays one
    path = write(folder, edition, [("é", *EVENTS[0][1:])])
    path.write_bytes(path.read_bytes().replace(b"\\u00e9", "é".encode()) + b'{"reviewerID": "\xe9"}\n')
    assert complaint(folder, edition).startswith(f"{path}:2: not UTF-8; save the file as UTF-8, or mend")


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '"asin"', '{"asin": "B1", "overall": 5.0', "A1,B1,5.0,86400"]
)
def test_line_that_is_no_review_is_named(folder, edition, line):
    path = write(folder, edition)
    content = path.read_text().splitlines()
    content[6] = line
    lines(path, content)
    assert complaint(folder, edition).startswith(
        f"{path}:7: not a dictionary with the fields reviewerID, asin"
    )


def test_line_that_is_no_product_is_named(folder, edition):
    write(folder, edition)
    path = describe(folder, edition)
    path.write_text(f"{path.read_text()}<html>\n")
    assert complaint(folder, edition).startswith(
        f"{path}:5: not a dictionary with the fields asin, title, brand"
    )


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("A1\r,B000A,5.0,86400", "a carriage return in the middle of a line"),
        ("A1,B000A,5.0", "3 instead of 4 fields (a line is {form})"),
        ("A1,B000A,5.0,-86400", "unixReviewTime '-86400' is not a number of 0 or more (a line is {form})"),
        ("A1,B000A,6.0,86400", "overall 6.0 is not a rating of 0 to 5"),
        ("A1,B000A,5.0,0.5", "unixReviewTime 0.5 is not a whole number of seconds"),
    ],
)
def test_first_wrong_rating_is_named(folder, edition, line, what):
    path = rate(folder, edition)
    path.write_text(f"{path.read_text()}{line}\n{line}\n")
    form = "reviewerID,asin," if edition == "2014" else "asin,reviewerID,"
    expected = f"{path}:13: {what.format(form=form + 'overall,unixReviewTime')}; mend"
    assert complaint(folder, edition, k_core=1).startswith(expected)


def test_wrong_line_or_header_of_atomic_files_is_named(folder, edition):
    path = atomic(folder)
    path.write_text(f"{path.read_text()}A1\tB000A\t6.0\t86400.0\n")
    assert complaint(folder, edition).startswith(f"{path}:14: overall 6.0 is not a rating of 0 to 5; mend")
    path.write_text(path.read_text().replace("rating:token", "rating:float"))
    assert complaint(folder, edition).startswith(
        f"{path}:1: the header is 'user_id:token\titem_id:token\trating:f"
    )


def test_reviews_of_a_later_block_are_read_and_named(folder):
    path = write(folder, "2014")
    with path.open("a") as file:
        for n in range(66):  # MiB; a block has 64
            file.write(
                json.dumps(review("2014", f"A{n}", "B000Z", 5.0, DAY) | {"reviewText": "x" * 2**20}) + "\n"
            )
    log = reader(folder, "2014")()
    assert (len(log), log.n_users, log.n_items) == (78, 66, 5)
    with path.open("a") as file:
        file.write(json.dumps(review("2014", "A1", "B000A", 9.0, DAY)) + "\n")
    assert complaint(folder, "2014").startswith(f"{path}:79: overall '9' is not")


@pytest.mark.parametrize("make", [write, rate, lambda folder, edition, events: atomic(folder, events)])
def test_second_review_of_an_item_names_both_lines(folder, edition, make):
    path = make(folder, edition, [*EVENTS, (*EVENTS[1][:2], 5.0, 99 * DAY)])
    header = path.suffix == ".inter"
    assert complaint(folder, edition, k_core=1) == (
        f"{path}:{13 + header}: repeats the user and item of {path}:{2 + header};"
        " set dataset.reader.duplicates to keep, first or last"
    )
    kept = [reader(folder, edition, k_core=1, duplicates=each)() for each in ("keep", "first", "last")]
    assert [len(log) for log in kept] == [13, 12, 12]
    assert kept[1].fingerprint != kept[2].fingerprint


def test_ratings_alone_need_a_core(folder, edition):
    path = rate(folder, edition, [*EVENTS, ("A9", "B000A", 1.0, DAY)])
    assert complaint(folder, edition) == (
        f"{path}: every rating of the category, not the 5-core;"
        " set dataset.reader.k_core to 5, or to 1 for no filter"
    )
    assert [len(reader(folder, edition, k_core=core)()) for core in (1, 2)] == [13, 12]


def test_missing_data_name_files_places_and_publisher(tmp_path, monkeypatch, edition):
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "one"))
    describe(tmp_path / "two", edition)  # metadata alone are no data
    with pytest.raises(MissingData) as caught:
        reader(tmp_path / "two", edition).files()
    message = str(caught.value)
    assert f"no {REVIEWS[edition]}, Toys_5.inter, {RATINGS[edition]} (or .gz)" in message
    assert f"in {tmp_path}/one/two or {tmp_path}/two;" in message
    assert EDITIONS[edition].page in message and "\n" not in message


def test_editions(folder):
    assert reader(folder, 2018).options() == reader(folder, "2018").options()  # as yaml or a shell has it
    with pytest.raises(
        InputError, match=r"^dataset.reader.edition=2012 is none of 2014, 2018; did you mean 201"
    ):
        reader(folder, 2012)


def test_options_are_what_changes_the_log(folder, edition):
    assert reader(folder, edition, k_core=5).options() == {
        "reader": "amazon",
        "version": 2,
        "edition": edition,
        "k_core": 5,
        "duplicates": "error",
    }


CONFIGS = sorted(path.stem for path in (CONF / "dataset").glob("amazon*.yaml"))


@pytest.mark.parametrize("dataset", CONFIGS)
@pytest.mark.parametrize("category", [None, "Video_Games"])
def test_what_is_downloaded_is_what_the_reader_looks_for(tmp_path, dataset, category):
    overrides = [f"dataset={dataset}", f"paths.data={tmp_path}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "train", overrides + [f"dataset.reader.category={category}"] * (category is not None)
        )
        amazon = instantiate(config.dataset.reader)
        urls = [entry.url for entry in config.dataset.download]
    found = [tmp_path / amazon.folder / url.rpartition("/")[2] for url in urls]
    with pytest.raises(MissingData):
        amazon.files()
    for path in found:
        lines(path, [""])
    assert amazon.files() == found[::-1]  # reviews come last, so that they do not stand for metadata
    assert re.search(category or amazon.category, urls[0])


# The published files.


def published(category, tmp_path, k_core=0):
    """Reads them from a folder of their own, where the heads of larger files have the names of the whole."""
    folder = Path(DATA or "") / "amazon_2014_5core"
    found = [path for path in folder.glob("*.gz") if category in path.name]
    if not (DATA and found):
        pytest.skip(f"needs {category} of amazon_2014_5core in $HYDREC_DATA")
    for path in found:
        (tmp_path / path.name.replace(".head", "")).symlink_to(path)
    options = {"name": category, "category": category, "k_core": k_core, "duplicates": "error"}
    return Amazon(folder=tmp_path.name, root=str(tmp_path.parent), edition=2014, **options)()


def sizes(log):
    return len(log), log.n_users, log.n_items


def cores(log):
    return np.bincount(log.users)[1:].min(), np.bincount(log.items)[1:].min()


@pytest.mark.parametrize(
    ("category", "size", "stars", "span"),
    [
        (
            "Musical_Instruments",
            (10_261, 1_429, 900),
            [217, 250, 772, 2_084, 6_938],
            (1_095_465_600, 1_405_987_200),
        ),
        (
            "Office_Products",
            (53_258, 4_905, 2_420),
            [1_130, 1_726, 5_060, 15_015, 30_327],
            (970_185_600, 1_406_073_600),
        ),
    ],
)
def test_five_cores(tmp_path, category, size, stars, span):
    log = published(category, tmp_path)
    assert sizes(log) == size
    assert cores(log) == (5, 5)
    assert np.bincount(log.values.astype(int)).tolist() == [0, *stars]
    assert (log.times.min(), log.times.max()) == span
    assert (log.times % DAY == 0).all()


def test_head_of_digital_music_with_its_metadata(tmp_path):
    log = published("Digital_Music", tmp_path)
    assert sizes(log) == (6_908, 2_490, 382)
    assert log.item_titles[log.item_ids.tolist().index("5555991584")] == "Memory of Trees"
    assert (log.item_titles[1:] != "").all()
    unknown = {name: words(each).count(["?"]) for name, each in log.item_features.items()}
    assert unknown == {"brand": 331, "category": 0, "categories": 0}
    assert {name: len(each.vocabulary) for name, each in log.item_features.items()} == {
        "brand": 30,
        "category": 64,
        "categories": 183,
    }
