"""Steam, as crawled by J. McAuley's lab at UCSD: all reviews in English, or those of users from Australia.

Reviews, libraries and games are a dictionary a line, as Python prints it or of JSON. Dates are whole days, so
a user's events of one day are in the order of the file. Hours are those on record at the crawl, which may be
years after the review: they know of what came later.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch

from hydrec.data import raw
from hydrec.data.log import LATE, InteractionLog
from hydrec.data.options import typed
from hydrec.errors import InputError, MissingData, at_least, one_of
from hydrec.sampling import hash64

VERSION = 2  # to be raised when the same files give another log
PAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data"
MEND = f"mend the file, or get it again; published files are at {PAGE}"

REVIEW = dict.fromkeys(("username", "product_id", "date", "hours"), pl.String)
POSTED = pl.List(pl.Struct({"item_id": pl.String, "posted": pl.String}))
OWNED = pl.List(pl.Struct({"item_id": pl.String, "playtime_forever": pl.String}))
LABELS = ("genres", "tags", "specs")
WORDS = ("id", "url", "app_name", "title", "developer", "publisher")
GAME = dict.fromkeys(LABELS, pl.List(pl.String)) | dict.fromkeys(WORDS, pl.String())

EVENTS = {"reviews": "australian_user_reviews.json", "derived": "derived_review_playtime.csv"}
LIBRARIES = ("australian_users_items.json", "australian_users_items.subset.json")
PAIR = "user_id,item_id,date,playtime_minutes,hours,recommend,posted"
PAIRS = r"^(?<user>[^,]+),(?<item>[^,]+),(?<date>[^,]*),(?<minutes>-?[0-9]+),[^,]*,[^,]*,"

logger = logging.getLogger("hydrec")


class Steam:
    """Reads the 7.8 million reviews: who reviewed which game on which day, and the hours that Steam showed.

    A user is a display name, which two people may share. Reviews that lack user, game or date are left out;
    absent hours are NaN. The file of games, where there is one, gives titles and the features ``genres``,
    ``tags``, ``specs``, ``developer`` and ``publisher``.

    Args:
        name: what tables call the data.
        folder: where the files lie; looked for in ``$HYDREC_DATA``, then in ``root``.
        root: where to look second.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user reviews a game twice: ``keep``, ``first``, ``last``, ``error``.
        users: how many to draw from those that ``k_core`` leaves, with all their events; None for all. Of
            one ``draw_seed``, a smaller draw is part of a larger one.
        draw_seed: of the draw.

    Raises:
        InputError: ``users`` or ``draw_seed`` is no such number.
    """

    @typed
    def __init__(
        self,
        *,
        name: str,
        folder: str,
        root: str,
        k_core: int,
        duplicates: str,
        users: int | None,
        draw_seed: int,
    ) -> None:
        self.name = name
        self.folder = folder
        self.root = root
        self.k_core = k_core
        self.duplicates = duplicates
        self.users = None if users is None else at_least("dataset.reader.users", users, 1)
        self.draw_seed = at_least("dataset.reader.draw_seed", draw_seed, 0)

    def files(self) -> list[Path]:
        """Lists the file of reviews and, where there is one, that of games.

        Raises:
            MissingData: no place has reviews.
        """
        reviews = _find(self.folder, self.root, "steam_reviews.json")
        return [reviews, *_games_beside(reviews)]

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {
            "reader": "steam",
            "version": VERSION,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
            "users": self.users,
            "draw_seed": self.draw_seed,
        }

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the files are nowhere to be found.
            InputError: a line cannot be used, or ``k_core`` leaves nothing, or fewer than ``users``.
        """
        path, *games = self.files()
        reviews = (
            block.rename({"username": "user", "product_id": "item"}).with_row_index("line", line)
            for line, block in raw.records(path, REVIEW, MEND)
        )
        events = _events(path, reviews, "%Y-%m-%d")
        described = _games(games)
        log = _log(self, path, events, described, self.k_core)
        if self.users is None:
            return log
        if log.n_users < self.users:
            raise InputError(
                f"dataset.reader.users={self.users}: only {log.n_users} are left of {self.name} after"
                f" dataset.reader.k_core={self.k_core}; use fewer, or null for all"
            )
        bits = hash64(self.draw_seed, "users", torch.arange(1, log.n_users + 1))
        drawn = log.user_ids[1 + bits.argsort()[: self.users].numpy()]
        left = pl.col("user").is_in(drawn.tolist()) & pl.col("item").is_in(log.item_ids.tolist())
        return _log(self, path, events.filter(left), described, 0)


class SteamAustralia:
    """Reads the reviews of users from Australia, with the hours in their libraries, NaN where there are none.

    Reviews of the crawl's own year, whose date has no year, are left out, and so are those that the file
    repeats. Games are as in `Steam`.

    Args:
        name: what tables call the data.
        folder: where the files lie; looked for in ``$HYDREC_DATA``, then in ``root``.
        root: where to look second.
        events: ``reviews`` and libraries as published, or ``derived``: a table of both, one row a pair of
            user and game, `PAIR`.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user reviews a game twice: ``keep``, ``first``, ``last``, ``error``.

    Raises:
        InputError: there are no such events.
    """

    @typed
    def __init__(
        self, *, name: str, folder: str, root: str, events: str, k_core: int, duplicates: str
    ) -> None:
        self.name = name
        self.folder = folder
        self.root = root
        self.events = one_of("dataset.reader.events", events, EVENTS)
        self.k_core = k_core
        self.duplicates = duplicates

    def files(self) -> list[Path]:
        """Lists the file of events, that of libraries where the events need one, and that of games if any.

        Raises:
            MissingData: no place has the events.
            InputError: the libraries beside the reviews are missing.
        """
        events = _find(self.folder, self.root, EVENTS[self.events])
        games = _games_beside(events)
        if self.events == "derived":
            return [events, *games]
        for name in LIBRARIES:
            if libraries := raw.plain_or_gz(events.with_name(name)):
                return [events, libraries, *games]
        raise InputError(f"{events.with_name(LIBRARIES[0])}: missing beside the reviews; get it from {PAGE}")

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {
            "reader": "steam_australia",
            "version": VERSION,
            "events": self.events,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
        }

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the files are nowhere to be found.
            InputError: a line cannot be used, or ``k_core`` leaves nothing.
        """
        path, *games = self.files()
        if self.events == "derived":
            events = _events(path, _derived(path), "%Y-%m-%d")
        else:
            libraries, *games = games
            reviews = _events(path, _reviews(path), "Posted %B %d, %Y.")
            events = _played(_distinct(path, reviews), libraries)
        return _log(self, path, events, _games(games), self.k_core)


# Files ------------------------------------------------------------------------------------------------------


def _find(folder: str, root: str, name: str) -> Path:
    places = raw.places(folder, root)
    for place in places:
        if found := raw.plain_or_gz(place / name):
            return found
    raise MissingData(
        f"{folder}: no {name} (or .gz) in {' or '.join(map(str, places))}; put it there, or set HYDREC_DATA"
        f" to the folder that has {folder}; published files are at {PAGE}"
    )


def _games_beside(events: Path) -> list[Path]:
    games = raw.plain_or_gz(events.with_name("steam_games.json"))
    return [games] if games else []


# Events -----------------------------------------------------------------------------------------------------


def _events(path: Path, blocks: Iterable[pl.DataFrame], form: str) -> pl.DataFrame:
    """Puts blocks of line, user, item, date and hours together; dates become seconds at 00:00 UTC.

    Events that lack user, item or date are left out and counted, and negative hours are 0 and counted.
    """
    known = pl.all_horizontal(pl.col("user", "item", "date") != "")
    time = pl.col("date").str.to_date(form, strict=False).dt.epoch("s")
    dated, what = time.is_between(0, LATE, closed="left"), f"a date like {form} from 1970 to 2099"
    total, kept = 0, []
    for block in blocks:
        total += len(block)
        events = block.filter(known)
        raw.require(path, events, "date", dated, what, MEND)
        kept.append(events.select("line", "user", "item", time=time, hours=_hours(path, events, "hours", 1)))
    events = pl.concat(kept, rechunk=True)
    if len(events) < total:
        left = total - len(events)
        logger.warning("%s: %d of %d reviews lack user, game or date and are left out", path, left, total)
    return _clamped(path, events)


def _hours(path: Path, rows: pl.DataFrame, field: str, per_hour: int) -> pl.Series:
    """Returns a field of numbers, or of text that is one, in hours."""
    hours = (pl.col(field).cast(pl.Float64, strict=False) / per_hour).cast(pl.Float32)
    raw.require(path, rows, field, pl.col(field).is_null() | hours.is_finite(), "a finite number", MEND)
    return rows.select(hours).to_series()


def _clamped(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    if negative := (events["hours"] < 0).sum():
        logger.warning("%s: %d reviews have negative hours, which are taken for 0", path, negative)
    return events.with_columns(pl.col("hours").clip(0))


def _reviews(path: Path) -> Iterator[pl.DataFrame]:
    for line, block in raw.records(path, {"user_id": pl.String(), "reviews": POSTED}, MEND):
        yield _unnested(block, "reviews", line).select(
            "line",
            user="user_id",
            item="item_id",
            # without the year there is no date
            date=pl.when(~pl.col("posted").str.contains(r"^Posted \w+ \d+\.$")).then("posted"),
            hours=pl.lit(None, pl.String),
        )


def _derived(path: Path) -> Iterator[pl.DataFrame]:
    raw.expect_header(path, PAIR, MEND)
    for block in raw.blocks(path, MEND, header=1):
        lines = block.lines()
        pairs = lines.str.extract_groups(PAIRS).struct.unnest().with_row_index("line", block.line)
        whole = pl.col("user").is_not_null()
        raw.require(path, pairs.with_columns(pair=lines), "pair", whole, f"like {PAIR}", MEND)
        yield pairs.select("line", "user", "item", "date", hours=pl.col("minutes").cast(pl.Float64) / 60)


def _unnested(users: pl.DataFrame, field: str, line: int) -> pl.DataFrame:
    """Returns one row for each entry of a field of lists, with the line of its user."""
    return users.with_row_index("line", line).explode(field).drop_nulls(field).unnest(field)


def _distinct(path: Path, reviews: pl.DataFrame) -> pl.DataFrame:
    events = reviews.unique(["user", "item", "time"], keep="first", maintain_order=True)
    if len(events) < len(reviews):
        logger.warning("%s: %d reviews repeat another and are left out", path, len(reviews) - len(events))
    return events


def _played(reviews: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Returns the reviews with the hours in the libraries."""
    pair, found = ["user", "item"], []
    for line, block in raw.records(path, {"user_id": pl.String(), "items": OWNED}, MEND):
        owned = _unnested(block, "items", line).rename({"user_id": "user", "item_id": "item"})
        owned = owned.with_columns(hours=_hours(path, owned, "playtime_forever", 60))
        found.append(owned.join(reviews, on=pair, how="semi"))
    # some libraries are there twice: playtime only grows
    played = _clamped(path, pl.concat(found)).group_by(pair).agg(pl.col("hours").max())
    events = reviews.drop("hours").join(played, on=pair, how="left", maintain_order="left")
    logger.info("%s: tells the hours of %d of %d reviews", path, events["hours"].count(), len(events))
    return events


# Games ------------------------------------------------------------------------------------------------------


def _games(paths: list[Path]) -> dict[str, Any]:
    """Returns titles and features of games, as `InteractionLog.build` takes them; nothing without a file."""
    if not paths:
        logger.info("no steam_games.json beside the reviews: games have no titles and no features")
        return {}
    plain = pl.element().str.replace_all("&amp;", "&", literal=True)
    games = (
        pl.concat([block for _, block in raw.records(paths[0], GAME, MEND)])
        .with_columns(pl.col(LABELS).list.eval(plain))
        .with_columns(pl.col(pl.String).str.replace_all("&amp;", "&", literal=True))
        # two games have no id, one of them has it in its address; one game is there twice
        .with_columns(id=pl.coalesce("id", pl.col("url").str.extract(r"/app/(\d+)")))
        .unique("id", keep="first", maintain_order=True)
    )
    ids = games["id"]
    return {
        "item_titles": (ids, games.select(pl.coalesce("app_name", "title")).to_series()),
        "item_features": {name: (ids, games[name]) for name in (*LABELS, "developer", "publisher")},
    }


def _log(
    reader: Steam | SteamAustralia, path: Path, events: pl.DataFrame, games: dict[str, Any], k_core: int
) -> InteractionLog:
    return InteractionLog.build(
        name=reader.name,
        users=events["user"],
        items=events["item"],
        times=events["time"],
        values=events["hours"],
        k_core=k_core,
        duplicates=reader.duplicates,
        where=lambda row: f"{path}:{events['line'][row]}",
        **games,
    )
