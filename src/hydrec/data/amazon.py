"""Amazon reviews of J. McAuley's lab, editions of 2014 and 2018: one category as published, plain or gzipped.

Reviews and metadata are a dictionary a line, of JSON or, the metadata of 2014, as Python prints it.
"""

import itertools
import logging
from collections.abc import Iterable
from html.entities import html5
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hydrec.data import raw
from hydrec.data.log import InteractionLog
from hydrec.data.options import typed
from hydrec.errors import InputError, MissingData, one_of

VERSION = 2  # to be raised when the same files give another log
EVENT = {"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Float64}
RATING, TIME = (pl.col(name).cast(pl.Float64, strict=False) for name in ("overall", "unixReviewTime"))
USABLE = {
    "reviewerID": ("an id", pl.col("reviewerID") != ""),
    "asin": ("an id", pl.col("asin") != ""),
    "overall": ("a rating of 0 to 5", RATING.is_between(0, 5)),
    "unixReviewTime": ("a whole number of seconds", TIME.is_between(0, 2**53) & (TIME.floor() == TIME)),
}
INTER = "{}_5.inter"  # RecBole's form of the 5-core, with ids of its own
INTER_HEADER = "user_id:token\titem_id:token\trating:token\ttimestamp:float"

# Titles and labels: a log stores each with the width of the longest, and some of 2018 are a page's script
WIDTH = 100
ENTITIES = {f"&{name}": text for name, text in html5.items() if name.endswith(";")} | {"&#39;": "'"}

logger = logging.getLogger("hydrec")


class Edition(NamedTuple):
    """How an edition names its files, where {} is the category, and writes them.

    Attributes:
        page: where the publisher describes it.
        reviews: the 5-core.
        ratings: every rating of the category, without a header.
        columns: those of ``ratings`` in order.
        metadata: the fields that are read of a product.
        path: its first path of labels, from the widest to the most specific.
        labels: those of all its paths.
    """

    page: str
    reviews: str
    ratings: str
    columns: tuple[str, ...]
    metadata: dict[str, Any]
    path: pl.Expr
    labels: pl.Expr


PRODUCT = {"asin": pl.String, "title": pl.String, "brand": pl.String}
EDITIONS = {
    "2014": Edition(
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        reviews="reviews_{}_5.json",
        ratings="ratings_{}.csv",
        columns=("reviewerID", "asin", "overall", "unixReviewTime"),
        metadata=PRODUCT | {"categories": pl.List(pl.List(pl.String))},
        path=pl.col("categories").list.first(),
        labels=pl.col("categories").list.eval(pl.element().explode()),
    ),
    "2018": Edition(
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        reviews="{}_5.json",
        ratings="{}.csv",
        columns=("asin", "reviewerID", "overall", "unixReviewTime"),
        metadata=PRODUCT | {"category": pl.List(pl.String)},
        path=pl.col("category"),
        labels=pl.col("category"),
    ),
}


class Amazon:
    """Reads the reviews of one category: who reviewed what, on which day, with how many stars.

    Where there are metadata, they give titles and three features of items: ``categories``, all labels;
    ``category``, the last label of the first path, as in DIEN's code (DIN's takes that of the last path); and
    ``brand``. Where the reviews are absent, RecBole's form of them is read, without metadata, or else the
    ratings of the whole category.

    Args:
        name: what tables call the data.
        folder: where the files lie; looked for in ``$HYDREC_DATA``, then in ``root``.
        root: where to look second.
        edition: 2014 or 2018.
        category: as the publisher writes it in names of files, such as ``Toys_and_Games``.
        k_core: least number of events of each user and each item, 0 for no filter.
        duplicates: what to do where a user reviews an item twice: ``keep``, ``first``, ``last``, ``error``.

    Raises:
        InputError: there is no such edition.
    """

    @typed
    def __init__(
        self,
        *,
        name: str,
        folder: str,
        root: str,
        edition: str | int,
        category: str,
        k_core: int,
        duplicates: str,
    ) -> None:
        self.name = name
        self.folder = folder
        self.root = root
        self.edition = one_of("dataset.reader.edition", str(edition), EDITIONS)
        self.category = category
        self.k_core = k_core
        self.duplicates = duplicates
        self._as = EDITIONS[self.edition]
        self._mend = f"mend the file, or get it again from {self._as.page}"

    def files(self) -> list[Path]:
        """Lists the file of reviews or ratings and, where there is one, that of metadata.

        Raises:
            MissingData: no place has reviews or ratings of the category.
        """
        names = [form.format(self.category) for form in (self._as.reviews, INTER, self._as.ratings)]
        places = raw.places(self.folder, self.root)
        for place, name in itertools.product(places, names):
            if events := raw.plain_or_gz(place / name):
                metadata = raw.plain_or_gz(place / f"meta_{self.category}.json")
                return [events] if metadata is None or _is(events, "inter") else [events, metadata]
        raise MissingData(
            f"{self.folder}: no {', '.join(names)} (or .gz) in {' or '.join(map(str, places))}; put one there"
            f" from {self._as.page}, or set HYDREC_DATA to the folder that has {self.folder}"
        )

    def options(self) -> dict[str, Any]:
        """Lists what changes the log beyond the files."""
        return {
            "reader": "amazon",
            "version": VERSION,
            "edition": self.edition,
            "k_core": self.k_core,
            "duplicates": self.duplicates,
        }

    def __call__(self) -> InteractionLog:
        """Reads the files.

        Raises:
            MissingData: the files are nowhere to be found.
            InputError: a line cannot be used, the metadata are of other items, ``k_core`` leaves nothing, or
                is 0 where there are only ratings, which are no 5-core.
        """
        path, *metadata = self.files()
        header = int(_is(path, "inter"))
        events = pl.concat((self._checked(path, *block) for block in self._blocks(path)), rechunk=True)
        products = [self._products(table, events["asin"].unique()) for table in metadata]
        if not products:
            logger.info("%s: read without metadata; items have no titles and no features", path)
        return InteractionLog.build(
            name=self.name,
            users=events["reviewerID"],
            items=events["asin"],
            times=events["unixReviewTime"],
            values=events["overall"],
            k_core=self.k_core,
            duplicates=self.duplicates,
            item_titles=next(((table["asin"], table["title"]) for table in products), None),
            item_features={
                field: (table["asin"], table[field])
                for table in products
                for field in ("brand", "categories", "category")
            },
            where=lambda row: f"{path}:{row + 1 + header}",
        )

    def _blocks(self, path: Path) -> Iterable[tuple[int, pl.DataFrame]]:
        """The columns of ``EVENT``, block by block, each with the number of its first line."""
        if _is(path, "json"):
            return raw.records(path, dict.fromkeys(EVENT, pl.String), self._mend)
        if _is(path, "inter"):
            raw.expect_header(path, INTER_HEADER, self._mend)
            columns, separator, header = tuple(EVENT), "\t", 1
        else:
            if self.k_core == 0:
                raise InputError(
                    f"{path}: every rating of the category, not the 5-core; set dataset.reader.k_core to 5,"
                    " or to 1 for no filter"
                )
            columns, separator, header = self._as.columns, ",", 0
        events = raw.delimited(
            path,
            {name: EVENT[name] for name in columns},
            separator=separator,
            form=separator.join(columns),
            mend=self._mend,
            header=header,
        )
        return [(1 + header, events)]

    def _checked(self, path: Path, line: int, events: pl.DataFrame) -> pl.DataFrame:
        """Returns the events with the types of a log, or names the first line that cannot be used."""
        usable = {field: test.fill_null(False) for field, (_, test) in USABLE.items()}
        wrong = events.with_row_index(offset=line).filter(~pl.all_horizontal(usable.values())).head(1)
        if len(wrong):
            named = [pl.when(~test).then(pl.lit(field)) for field, test in usable.items()]
            field = wrong.select(pl.coalesce(named)).item()
            where, found = f"{path}:{wrong['index'][0]}", f"{field} {wrong[field][0]!r}"
            raise InputError(f"{where}: {found} is not {USABLE[field][0]}; {self._mend}")
        return events.select("reviewerID", "asin", RATING.cast(pl.Float32), TIME.cast(pl.Int64))

    def _products(self, path: Path, items: pl.Series) -> pl.DataFrame:
        """Returns title, brand, categories and category of the items that the metadata have, one row each."""
        described = [
            products.join(items.to_frame(), on="asin", how="semi").select(
                "asin",
                # the publisher's advice of 2018: such a title is the script of a page that was not understood
                title=pl.when(~pl.col("title").str.contains("getTime")).then(_text(pl.col("title"))),
                brand=_text(pl.col("brand")),
                categories=self._as.labels.list.eval(_text(pl.element())).list.unique(maintain_order=True),
                category=_text(self._as.path.list.last()),
            )
            for _, products in raw.records(path, self._as.metadata, self._mend)
        ]
        table = pl.concat(described).unique("asin", keep="first", maintain_order=True)  # 2018 repeats some
        if table.is_empty():
            raise InputError(f"{path}: has none of the {len(items)} items that were reviewed; {self._mend}")
        return table


def _is(path: Path, kind: str) -> bool:
    return path.name.removesuffix(".gz").endswith(f".{kind}")


def _text(text: pl.Expr) -> pl.Expr:
    return text.str.replace_many(ENTITIES).str.slice(0, WIDTH)
