import gzip
import os
from pathlib import Path

import numpy as np
import pytest

from hydrec.data.movielens import GENRES, MovieLens
from hydrec.errors import InputError, MissingData

DATA = os.environ.get("HYDREC_DATA")
PAGE = "https://files.grouplens.org/datasets/movielens/"
RATINGS = {"dat": "ratings.dat", "100k": "u.data", "csv": "ratings.csv"}
MOVIES = {"dat": "movies.dat", "100k": "u.item", "csv": "movies.csv"}
USERS = {"dat": "users.dat", "100k": "u.user"}
SEPARATOR = {"dat": "::", "100k": "\t", "csv": ","}
HEADER = {"dat": "", "100k": "", "csv": "userId,movieId,rating,timestamp\n"}

# Users out of order, times falling, all distinct; movie 7 is not among the movies.
EVENTS = [(user, movie, movie / 2, 1000 - 10 * user - movie) for user in (12, 3, 40) for movie in range(1, 8)]
TITLES = ['Se7en (a::b | c), "d" (1995)', "Léon (1994)", "Plain (1990)", '"Quoted" (2000)', "A, B", "X"]
GENRES_OF = [["Action", "War"], ["Drama"], ["Comedy", "Drama", "Western"], [], ["Horror"], ["Sci-Fi"]]
PEOPLE = {
    "dat": ["3::F::25::4::55117", "40::M::1::0::x-1"],
    "100k": ["3|25|F|writer|55117", "40|1|M|none|x-1"],
}


def write(folder, kind, events=EVENTS, encoding="utf-8", end="\n"):
    """Writes a release as GroupLens would."""
    folder.mkdir(exist_ok=True)
    lines = [SEPARATOR[kind].join(map(str, event)) for event in events]
    movies = []
    for movie, (title, genres) in enumerate(zip(TITLES, GENRES_OF, strict=True), 1):
        if kind == "dat":
            movies.append(f"{movie}::{title}::{'|'.join(genres)}")
        elif kind == "100k":
            flags = "|".join(str(int(genre in genres)) for genre in ("unknown", *GENRES))
            movies.append(f"{movie}|{title}|01-Jan-1995||http://us.imdb.com/x|{flags}")
        else:
            quote = title.replace('"', '""')
            shown = f'"{quote}"' if set(title) & set(',"') else title
            movies.append(f"{movie},{shown},{'|'.join(genres) or '(no genres listed)'}")
    tables = {RATINGS[kind]: HEADER[kind].split() + lines}
    tables[MOVIES[kind]] = ["movieId,title,genres"] * (kind == "csv") + movies
    if kind != "csv":
        tables[USERS[kind]] = PEOPLE[kind]
    for name, table in tables.items():
        (folder / name).write_bytes("".join(line + end for line in table).encode(encoding))
    return folder


def reader(folder, **options):
    options = {"name": "ml", "k_core": 0, "duplicates": "error"} | options
    return MovieLens(folder=folder.name, root=str(folder.parent), **options)


@pytest.fixture(autouse=True)
def no_public_data(monkeypatch):
    monkeypatch.delenv("HYDREC_DATA", raising=False)


@pytest.fixture(params=RATINGS)
def kind(request):
    return request.param


def words(feature):
    names = np.array(["PAD", "?", *feature.vocabulary])
    return [
        list(names[feature.codes[a:b]]) for a, b in zip(feature.offsets, feature.offsets[1:], strict=False)
    ]


def complaint(folder, **options):
    """The one line that the reader says of bad input."""
    with pytest.raises(InputError) as caught:
        reader(folder, **options)()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [("dat", "utf-8"), ("dat", "latin-1"), ("100k", "utf-8"), ("100k", "latin-1"), ("csv", "utf-8")],
)
def test_all_releases_read_the_same_log(tmp_path, kind, encoding):
    log = reader(write(tmp_path / "ml", kind, encoding=encoding))()
    assert log.name == "ml"
    assert log.user_ids.tolist() == ["", "3", "12", "40"]
    assert log.item_ids.tolist() == ["", *"1234567"]
    assert log.item_titles.tolist() == ["", *TITLES, ""]
    assert words(log.item_features["genres"]) == [["PAD"], *(each or ["?"] for each in GENRES_OF), ["?"]]
    expected = sorted((user, time, movie, rating) for user, movie, rating, time in EVENTS)
    assert log.times.tolist() == [time for _, time, _, _ in expected]
    assert log.items.tolist() == [movie for _, _, movie, _ in expected]
    assert log.values.tolist() == [rating for _, _, _, rating in expected]
    if kind != "csv":
        assert words(log.user_features["gender"]) == [["PAD"], ["F"], ["?"], ["M"]]
        assert words(log.user_features["zip"]) == [["PAD"], ["55117"], ["?"], ["x-1"]]
        assert set(log.user_features) == {"age", "gender", "occupation", "zip"}
    else:
        assert log.user_features == {}


def test_sorted_input_gives_the_same_log(tmp_path, kind):
    other = sorted(EVENTS, key=lambda event: (event[0], event[3]))
    logs = [reader(write(tmp_path / f"ml{n}", kind, events))() for n, events in enumerate((EVENTS, other))]
    assert logs[0].fingerprint == logs[1].fingerprint


def test_ties_stay_in_file_order(tmp_path, kind):
    movies = [5, 1, 6, 2, 4, 3]
    log = reader(write(tmp_path / "ml", kind, [(1, movie, 3.0, 77) for movie in movies]))()
    assert log.items.tolist() == movies


def test_ten_million_has_no_users(tmp_path):
    folder = write(tmp_path / "ml", "dat")
    (folder / "users.dat").unlink()
    log = reader(folder)()
    assert (len(log), log.user_features) == (21, {})


def windows_line_ends(folder, kind):
    write(folder, kind, end="\r\n")


def blank_last_lines(folder, kind):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + b"\n\r\n")


def byte_order_marks(folder, kind):
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def gzips(folder, kind):
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("change", [windows_line_ends, blank_last_lines, byte_order_marks, gzips])
def test_the_same_log_however_it_was_saved(tmp_path, kind, change):
    folder = write(tmp_path / "ml", kind)
    plain = reader(folder)()
    change(folder, kind)
    assert reader(folder)().fingerprint == plain.fingerprint


# What is wrong in line 17 of the events, by separator, and what is said of it.
WRONG = {
    "too few fields": (lambda s: f"3{s}7{s}3.5\n", "3 instead of 4 fields"),
    "too many fields": (lambda s: f"3{s}7{s}3.5{s}960{s}1\n", "5 instead of 4 fields"),
    "wrong separator": (lambda s: "3;7;3.5;960\n", "1 instead of 4 fields"),
    "blank line": (lambda s: "\n", "1 instead of 4 fields"),
    "time that is text": (
        lambda s: f"3{s}7{s}3.5{s}soon\n",
        "time 'soon' is not a whole number of 0 or more",
    ),
    "time that is NaN": (lambda s: f"3{s}7{s}3.5{s}nan\n", "time 'nan' is not a whole number of 0 or more"),
    "time with a fraction": (
        lambda s: f"3{s}7{s}3.5{s}9.5\n",
        "time '9.5' is not a whole number of 0 or more",
    ),
    "negative time": (lambda s: f"3{s}7{s}3.5{s}-960\n", "time '-960' is not a whole number of 0 or more"),
    "time left out": (lambda s: f"3{s}7{s}3.5{s}\n", "time '' is not a whole number of 0 or more"),
    "time beyond 64 bits": (lambda s: f"3{s}7{s}3.5{s}9{'0' * 19}\n", "is not a whole number of 0 or more"),
    "rating that is text": (lambda s: f"3{s}7{s}good{s}960\n", "rating 'good' is not a number of 0 or more"),
    "rating that is NaN": (lambda s: f"3{s}7{s}NaN{s}960\n", "rating 'NaN' is not a number of 0 or more"),
    "infinite rating": (lambda s: f"3{s}7{s}inf{s}960\n", "rating 'inf' is not a number of 0 or more"),
    "negative rating": (lambda s: f"3{s}7{s}-3.5{s}960\n", "rating '-3.5' is not a number of 0 or more"),
    "rating above": (lambda s: f"3{s}7{s}5.5{s}960\n", "rating '5.5' is not a rating of 0.5 to 5"),
    "rating in percent": (lambda s: f"3{s}7{s}400{s}960\n", "rating '400.0' is not a rating of 0.5 to 5"),
    "rating below": (lambda s: f"3{s}7{s}0{s}960\n", "rating '0.0' is not a rating of 0.5 to 5"),
    "two carriage returns": (lambda s: f"3{s}7{s}3.5{s}960\r\r\n", "time '960\\r"),
    "user that is text": (
        lambda s: f"Ann{s}7{s}3.5{s}960\n",
        "user 'Ann' is not a whole number of 0 or more",
    ),
    "movie that is text": (
        lambda s: f"3{s}Up{s}3.5{s}960\n",
        "movie 'Up' is not a whole number of 0 or more",
    ),
    "UTF-8 letter": (lambda s: f"3{s}7\xc3\xa9{s}3.5{s}960\n", "movie '7é' is not a whole number"),
    "Latin-1 byte": (lambda s: f"3{s}7é{s}3.5{s}960\n", "not UTF-8; save the file as UTF-8, or "),
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_first_wrong_line_of_ratings_is_named(tmp_path, kind, fault, end):
    folder = write(tmp_path / "ml", kind, end=end)
    path, (line, what) = folder / RATINGS[kind], WRONG[fault]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[16] = line(SEPARATOR[kind]).replace("\n", end).encode("latin-1")
    path.write_bytes(b"".join(lines) + lines[16] * (fault != "blank line"))  # only the first is named
    message = complaint(folder)
    assert message.startswith(f"{path}:17: ")
    assert what in message
    assert message.endswith(PAGE)


@pytest.mark.parametrize("time", [1_252_800_000_000, 4_102_444_800, 2**63 - 1])
def test_time_after_2099_is_refused(tmp_path, kind, time):
    folder = write(tmp_path / "ml", kind, [*EVENTS[:4], (3, 9, 1.0, time), (3, 8, 1.0, time)])
    assert complaint(folder) == (
        f"{folder / RATINGS[kind]}:{5 + (kind == 'csv')}: time {time} is not from 1970 to 2099 in seconds;"
        " mend the file, or if it has milliseconds, read it with dataset=table and"
        " dataset.reader.time_unit=ms"
    )


def test_what_stands_for_a_separator_is_none(tmp_path):
    folder = write(tmp_path / "ml", "dat")
    path = folder / "ratings.dat"
    path.write_bytes(path.read_bytes() + b"3\x1f9\x1f3.5\x1f960\n")
    assert complaint(folder).startswith(f"{path}:22: a byte 0x1f, which is no text; ")


def test_movies_in_two_encodings_are_refused(tmp_path, kind):
    folder = write(tmp_path / "ml", kind)  # the second title has an é
    path = folder / MOVIES[kind]
    path.write_bytes(path.read_bytes().replace(b"Plain", "Plané".encode("latin-1")))
    assert complaint(folder).startswith(
        f"{path}:{3 + (kind == 'csv')}: not UTF-8; save the file as UTF-8, or "
    )


def test_movies_in_csv_are_no_latin_1(tmp_path):
    folder = write(tmp_path / "ml", "csv", encoding="latin-1")
    assert complaint(folder).startswith(f"{folder}/movies.csv:3: not UTF-8; ")


def test_wrong_line_far_down_a_long_file_is_named(tmp_path):
    folder = write(tmp_path / "ml", "dat", [(user, 1, 3.0, user) for user in range(200_000)])
    path = folder / "ratings.dat"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[150_000] = b"1::2::3\n"
    path.write_bytes(b"".join(lines))
    assert complaint(folder).startswith(f"{path}:150001: 3 instead of 4 fields ")


@pytest.mark.parametrize("missing", range(1, 8))
def test_file_that_ends_in_the_middle_of_a_line_is_refused(tmp_path, kind, missing):
    folder = write(tmp_path / "ml", kind)
    path = folder / RATINGS[kind]
    last = len(path.read_bytes().splitlines())
    path.write_bytes(path.read_bytes()[:-missing])  # with 1 to 3 bytes gone, the line still has four numbers
    assert complaint(folder).startswith(f"{path}:{last}: the last line has no end, so it may be cut off; ")


@pytest.mark.parametrize("size", [0.0, 0.5, 0.99])
def test_cut_gzip_is_refused(tmp_path, kind, size):
    folder = write(tmp_path / "ml", kind)
    gzips(folder, kind)
    path = folder / f"{RATINGS[kind]}.gz"
    path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])
    assert complaint(folder).startswith(f"{path}: {'cannot be read (' if size else 'empty; '}")


def test_damaged_gzip_is_refused(tmp_path):
    folder = write(tmp_path / "ml", "dat")
    gzips(folder, "dat")
    path = folder / "ratings.dat.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert complaint(folder).startswith(f"{path}: cannot be read (")
    path.write_bytes(b"not a gzip file")
    assert complaint(folder).startswith(f"{path}: cannot be read (Not a gzipped file")


@pytest.mark.parametrize("content", [b"", b"\n", b"  \r\n\r\n"])
def test_empty_file_is_refused(tmp_path, kind, content):
    folder = write(tmp_path / "ml", kind)
    for name in (RATINGS[kind], MOVIES[kind]):
        write(tmp_path / "ml", kind)
        (folder / name).write_bytes(content)
        assert complaint(folder).startswith(f"{folder / name}: empty; ")


def test_header_without_ratings_is_refused(tmp_path):
    folder = write(tmp_path / "ml", "csv", events=[])
    assert complaint(folder).startswith(f"{folder}/ratings.csv: empty; ")


@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv"])
def test_header_without_a_column_is_refused(tmp_path, name):
    folder = write(tmp_path / "ml", "csv")
    whole = (folder / name).read_text().splitlines()
    lacking = [line.rpartition(",")[0] for line in whole]
    (folder / name).write_text("".join(line + "\n" for line in lacking))
    assert complaint(folder).startswith(
        f"{folder}/{name}:1: the header is '{lacking[0]}', not '{whole[0]}'; mend the file"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf_16_is_refused(tmp_path, kind, encoding):
    folder = write(tmp_path / "ml", kind, encoding=encoding)
    message = complaint(folder)
    assert message.startswith(
        f"{folder / RATINGS[kind]}:1: a NUL byte, as in UTF-16 text; save it as UTF-8, or "
    )
    assert message.endswith(PAGE)


@pytest.mark.parametrize("line", ["5", "x::y::z", "Drama", "", "5::A", "5|A|B", "5,A", "٩::A::B", "٩,A,B"])
def test_line_that_is_no_movie_is_named(tmp_path, kind, line):
    folder = write(tmp_path / "ml", kind)
    path = folder / MOVIES[kind]
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = f"{line}\n".encode()
    path.write_bytes(b"".join(lines))
    assert complaint(folder).startswith(f"{path}:4: not a line like ")


@pytest.mark.parametrize("name", ["movies.dat", "users.dat", "u.user", "movies.csv"])
def test_id_given_twice_is_named(tmp_path, name):
    kind = next(kind for kind in RATINGS if name in (MOVIES[kind], USERS.get(kind)))
    folder = write(tmp_path / "ml", kind)
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content + content.splitlines(keepends=True)[1])
    line = len(path.read_bytes().splitlines())
    assert complaint(folder).startswith(f"{path}:{line}: an id that an earlier line has; ")


def test_second_rating_of_a_movie_names_both_lines(tmp_path, kind):
    folder = write(tmp_path / "ml", kind, [*EVENTS, (*EVENTS[1][:2], 5.0, 2000)])
    path, header = folder / RATINGS[kind], kind == "csv"
    assert complaint(folder) == (
        f"{path}:{22 + header}: repeats the user and item of {path}:{2 + header};"
        " set dataset.reader.duplicates to keep, first or last"
    )
    assert [len(reader(folder, duplicates=each)()) for each in ("keep", "first", "last")] == [22, 21, 21]


def test_k_core_that_leaves_nobody_names_its_key(tmp_path, kind):
    folder = write(tmp_path / "ml", kind)
    assert complaint(folder, k_core=4) == (
        "dataset.reader.k_core=4: nothing is left of ml's 3 users, 7 items and 21 events; use a lower k_core"
    )


def test_missing_movies_are_an_error(tmp_path, kind):
    folder = write(tmp_path / "ml", kind)
    (folder / MOVIES[kind]).unlink()
    assert complaint(folder).startswith(f"{folder / MOVIES[kind]}: missing beside the ratings; ")


def test_missing_data_name_places_and_publisher(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "one"))
    (tmp_path / "two" / "ml").mkdir(parents=True)
    with pytest.raises(MissingData) as caught:
        reader(tmp_path / "two" / "ml").files()
    message = str(caught.value)
    assert f"{tmp_path}/one/ml or {tmp_path}/two/ml" in message
    assert PAGE in message and "\n" not in message


def test_hydrec_data_goes_before_root(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first, second = write(tmp_path / "first" / "ml", "csv"), write(tmp_path / "second" / "ml", "dat")
    monkeypatch.setenv("HYDREC_DATA", str(first.parent))
    assert reader(second).files() == [first / "ratings.csv", first / "movies.csv"]
    monkeypatch.setenv("HYDREC_DATA", str(tmp_path / "absent"))
    assert reader(second).files() == [second / "ratings.dat", second / "movies.dat", second / "users.dat"]


def test_options_are_what_changes_the_log(tmp_path):
    assert reader(tmp_path, k_core=5).options() == {
        "reader": "movielens",
        "version": 2,
        "k_core": 5,
        "duplicates": "error",
    }


# The published files.


def published(folder, k_core=0):
    if not (DATA and (Path(DATA) / folder).is_dir()):
        pytest.skip(f"needs {folder} in $HYDREC_DATA")
    return MovieLens(name=folder, folder=folder, root=DATA, k_core=k_core, duplicates="error")()


def sizes(log):
    return len(log), log.n_users, log.n_items


def test_one_million():
    log = published("ml-1m")
    assert sizes(log) == (1_000_209, 6_040, 3_706)
    assert log.tie_share == 529_046 / 1_000_209
    assert np.bincount(log.values.astype(int)).tolist() == [0, 56_174, 107_557, 261_197, 348_971, 226_310]
    assert (log.times.min(), log.times.max()) == (956_703_932, 1_046_454_590)
    assert "Misérables, Les (1995)" in log.item_titles  # Latin-1
    assert len(log.item_features["genres"].vocabulary) == 18
    assert {name: len(feature.vocabulary) for name, feature in log.user_features.items()} == {
        "gender": 2,
        "age": 7,
        "occupation": 21,
        "zip": 3_439,
    }


def test_one_hundred_thousand():
    log = published("ml-100k")
    assert sizes(log) == (100_000, 943, 1_682)
    assert round(100 * log.tie_share) == 51
    last = log.offsets[2:] - 1
    assert (log.times[last] == log.times[last - 1]).sum() == 415
    assert log.item_titles[log.item_ids.tolist().index("543")] == "Misérables, Les (1995)"
    assert len(log.item_features["genres"].vocabulary) == 18
    assert len(log.user_features["occupation"].vocabulary) == 21


def test_one_hundred_thousand_in_its_5_core():
    log = published("ml-100k", k_core=5)
    assert sizes(log) == (99_287, 943, 1_349)
    assert np.bincount(log.items)[1:].min() == 5


def test_latest_small():
    log = published("ml-latest-small")
    assert sizes(log) == (100_836, 610, 9_724)
    assert log.item_titles[log.item_ids.tolist().index("11")] == "American President, The (1995)"  # quoted
    assert (log.values.min(), log.values.max()) == (0.5, 5.0)
    assert len(log.item_features["genres"].vocabulary) == 19
