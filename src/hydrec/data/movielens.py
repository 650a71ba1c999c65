"""MovieLens, every release of GroupLens from 100K to 32M: the files as published, plain or gzipped.

Movies and users are matched as whole lines, because titles may hold separators and quotes. Those of 100K and
1M are Latin-1.
"""

from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hydrec.data import raw
from hydrec.data.log import InteractionLog
from hydrec.data.options import typed
from hydrec.errors import InputError, MissingData

VERSION = 2  # to be raised when the same files give another log
PAGE = "https://files.grouplens.org/datasets/movielens/"
MEND = f"mend the file, or get the release again from {PAGE}"
EVENT = {"user": pl.Int64, "movie": pl.Int64, "rating": pl.Float32, "time": pl.Int64}

GENRES = (  # the flags of u.item in order, after one for "unknown"
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


class Table(NamedTuple):
    """A file of text: what a line looks like, for messages, and a pattern that names the fields to keep."""

    file: str
    form: str
    pattern: str


class Release(NamedTuple):
    """How a family of releases writes its tables; with ``header``, each begins with the form of its lines."""

    ratings: str
    form: str
    separator: str
    header: bool
    movies: Table
    users: Table | None


RELEASES = (
    Release(  # 1M and, without users, 10M
        ratings="ratings.dat",
        form="user::movie::rating::time",
        separator="::",
        header=False,
        movies=Table(
            file="movies.dat",
            form="id::title::genres",
            pattern=r"^(?<id>[0-9]{1,18})::(?<title>.*)::(?<genres>[^:]*)$",
        ),
        users=Table(
            file="users.dat",
            form="id::gender::age::occupation::zip",
            pattern=r"^(?<id>[0-9]{1,18})::(?<gender>\w)::(?<age>[0-9]+)::(?<occupation>[0-9]+)::(?<zip>[^:]*)$",
        ),
    ),
    Release(  # 100K
        ratings="u.data",
        form="user TAB movie TAB rating TAB time",
        separator="\t",
        header=False,
        movies=Table(
            file="u.item",
            form="id|title|released|video|url|19 flags",
            pattern=r"^(?<id>[0-9]{1,18})\|(?<title>.*)\|[^|]*\|[^|]*\|[^|]*\|[01](?<flags>(?:\|[01]){18})$",
        ),
        users=Table(
            file="u.user",
            form="id|age|gender|occupation|zip",
            pattern=r"^(?<id>[0-9]{1,18})\|(?<age>[0-9]+)\|(?<gender>\w)\|(?<occupation>[^|]*)\|(?<zip>[^|]*)$",
        ),
    ),
    Release(  # latest-small, 20M, 25M, 32M
        ratings="ratings.csv",
        form="userId,movieId,rating,timestamp",
        separator=",",
        header=True,
        movies=Table(
            file="movies.csv",
            form="movieId,title,genres",
            pattern=r'^(?<id>[0-9]{1,18}),"?(?<title>.*?)"?,(?<genres>[^,]*)$',
        ),
        users=None,
    ),
)


class MovieLens:
    """Reads a release of MovieLens: ratings, titles, genres and, in 100K and 1M, four fields of each user.

    Args:
        name: what tables call the data.
        folder: the release's folder, such as ``ml-1m``; looked for in ``$HYDREC_DATA``, then in ``root``.
        root: where to look second.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user rated a movie twice: ``keep``, ``first``, ``last`` or ``error``.
    """

    @typed
    def __init__(self, *, name: str, folder: str, root: str, k_core: int, duplicates: str) -> None:
        self.name = name
        self.folder = folder
        self.root = root
        self.k_core = k_core
        self.duplicates = duplicates

    def files(self) -> list[Path]:
        """Lists the files of ratings, movies and, where there are any, users.

        Raises:
            MissingData: no place has a file of ratings.
            InputError: the movies beside the ratings are missing.
        """
        return self._find()[1]

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {
            "reader": "movielens",
            "version": VERSION,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
        }

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the files are nowhere to be found.
            InputError: a line cannot be used, or ``k_core`` leaves nothing.
        """
        release, (ratings, movies, *users) = self._find()
        if release.header:
            raw.expect_header(ratings, release.form, MEND)
        events = raw.delimited(
            ratings,
            EVENT,
            separator=release.separator,
            form=release.form,
            mend=MEND,
            header=int(release.header),
        )
        raw.require(
            ratings,
            events.with_row_index("line", 1 + release.header),
            "rating",
            pl.col("rating").is_between(0.5, 5),
            "a rating of 0.5 to 5",
            MEND,
        )
        films = _table(movies, release.movies, release.header)
        people = [_table(path, release.users, release.header) for path in users if release.users]
        return InteractionLog.build(
            name=self.name,
            users=events["user"],
            items=events["movie"],
            times=events["time"],
            values=events["rating"],
            k_core=self.k_core,
            duplicates=self.duplicates,
            item_titles=(films["id"], films["title"].str.replace_all('""', '"', literal=True)),
            item_features={"genres": (films["id"], _genres(films))},
            user_features={
                field: (table["id"], table[field]) for table in people for field in table.columns[1:]
            },
            where=lambda row: f"{ratings}:{row + 1 + release.header}",
        )

    def _find(self) -> tuple[Release, list[Path]]:
        places = raw.places(self.folder, self.root)
        for place in places:
            for release in RELEASES:
                names = [release.ratings, *(table.file for table in (release.movies, release.users) if table)]
                found = [raw.plain_or_gz(place / name) for name in names]
                if found[0] and not found[1]:
                    raise InputError(f"{place / release.movies.file}: missing beside the ratings; {MEND}")
                if found[0]:
                    return release, [path for path in found if path]
        raise MissingData(
            f"{self.folder}: no ratings.dat, u.data or ratings.csv in {' or '.join(map(str, places))};"
            f" unpack the release from {PAGE} there, or set HYDREC_DATA to the folder that has {self.folder}"
        )


def _table(path: Path, table: Table, header: bool) -> pl.DataFrame:
    """Returns the fields that the table's pattern names, as text but for the id; one row an id."""
    if header:
        raw.expect_header(path, table.form, MEND)
    blocks = raw.blocks(path, MEND, header=int(header), latin=not header)
    lines = pl.concat([block.lines() for block in blocks])
    fields = lines.str.extract_groups(table.pattern).struct.unnest()
    for wrong, what in (
        (fields["id"].is_null(), f"not a line like {table.form}"),
        (~fields["id"].is_first_distinct(), "an id that an earlier line has"),
    ):
        if wrong.any():
            raise InputError(f"{path}:{int(wrong.to_numpy().argmax()) + 1 + header}: {what}; {MEND}")
    return fields.with_columns(pl.col("id").cast(pl.Int64))


def _genres(movies: pl.DataFrame) -> pl.Series:
    """Returns a list of genres for each movie; "(no genres listed)" and "unknown" are an empty one."""
    if "flags" in movies.columns:
        flag = pl.col("flags").str.split("|").list
        named = [pl.when(flag.get(place) == "1").then(pl.lit(name)) for place, name in enumerate(GENRES, 1)]
        return movies.select(pl.concat_list(named).list.drop_nulls()).to_series()
    return movies["genres"].str.replace("(no genres listed)", "", literal=True).str.split("|")
