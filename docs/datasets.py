"""Writes docs/datasets.md: what the readers find in the publishers' files, beside what the papers print.

    HYDREC_DATA=FOLDER python docs/datasets.py

Data sets whose files are not there are listed as such. Nothing is downloaded. Where there is only the head of
a publisher's file (NAME.head.EXTENSION), it is read from a folder of links, under the publisher's name.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
HEADER = (
    "data set",
    "users",
    "items",
    "events",
    "density",
    "median events of a user",
    "tied",
    "users whose last two tie",
    "in papers (users / items / events)",
    "why they differ",
)
CLICK_HEADER = (
    "data set",
    "users",
    "items",
    "samples: train",
    "valid",
    "test",
    "positives: train",
    "test",
    "events of a test history (mean)",
    "fields: user",
    "context",
    "item, behaviour",
    "in papers",
    "why they differ",
)


class Row(NamedTuple):
    """A line of the table: overrides of the configuration, and what papers and publishers say."""

    overrides: str
    printed: str = ""
    why: str = ""


ROWS = (
    Row(
        "dataset=movielens",
        "IA-SASRec 6,040 / 3,706 / 1,000,209",
        "IA-SASRec says 5-core: the raw set has these counts",
    ),
    Row(
        "dataset=movielens protocol=released_windows",
        "HGNN 3,390 items, 74,079 windows",
        "963,027 printed interactions are windows x 13; 3,390 items come of ties in another order",
    ),
    Row(
        "dataset=movielens_100k",
        "IA-SASRec 943 / 1,682 / 100,000",
        "IA-SASRec says 5-core: the raw set has these counts",
    ),
    Row(
        "dataset=movielens_100k dataset.reader.name=movielens_100k_core dataset.reader.k_core=5",
        "",
        "the 5-core of the row above",
    ),
    Row("dataset=movielens_small"),
    Row("dataset=atomic", "", "the same events as movielens_100k, in RecBole's files"),
    Row("dataset=amazon_office", "IA-SASRec 4,905 / 2,420 / 53,258"),
    Row("dataset=amazon_instruments"),
    Row("dataset=amazon_music", "IA-SASRec 5,541 / 3,568 / 64,706"),
    Row(
        "dataset=amazon_music dataset.reader.name=amazon_music_head"
        " dataset.reader.folder=amazon_2014_5core_head",
        "IA-SASRec 5,541 / 3,568 / 64,706",
        "the first lines of the file, which is sorted by item: users are cut short, so this is no 5-core",
    ),
    Row("dataset=amazon_electronics", "MIAN 192,403 users, 1,689,188 events"),
    Row("dataset=amazon_books"),
    Row("dataset=amazon_beauty"),
    Row(
        "dataset=steam",
        "HGNN 11,667 items, 158,091 windows",
        "2,055,183 printed interactions are windows x 13",
    ),
    Row(
        "dataset=steam_3k",
        "IA-SASRec 5,754 items, 39,450 events",
        "the users drawn are our own: the paper names no seed",
    ),
    Row("dataset=steam_australia", "", "reviews that have a year"),
    Row(
        "dataset=steam_australia dataset.reader.name=steam_australia_hours dataset.reader.events=derived",
        "",
        "reviews that have a year and hours of play",
    ),
    Row(
        "dataset=table dataset.reader.name=steam_200k"
        " dataset.reader.path=steam_kaggle_200k/steam-200k.csv.gz dataset.reader.header=false"
        " dataset.reader.where={3:play} dataset.reader.columns.user=1 dataset.reader.columns.item=2"
        " dataset.reader.columns.value=4 dataset.reader.columns.time=null",
        "",
        "games that were played, with hours, in the order of the file: it has no times",
    ),
    Row(
        "dataset=table dataset.reader.name=movielens_tabs"
        " dataset.reader.path=reference_sequences/TiSASRec/ml-1m.txt dataset.reader.separator=\\t"
        " dataset.reader.header=false dataset.reader.columns.user=1 dataset.reader.columns.item=2"
        " dataset.reader.columns.value=3 dataset.reader.columns.time=4",
        "",
        "the same events as movielens, with tabs",
    ),
    *(
        Row(
            f"dataset=sequences dataset.reader.name={name}"
            f" dataset.reader.folder=reference_sequences/{folder} dataset.reader.file={file}",
            printed,
        )
        for name, folder, file, printed in (
            ("movielens_of_sasrec", "SASRec", "ml-1m.txt", "published as 6,040 / 3,416 / 999,611"),
            ("beauty_of_bert4rec", "BERT4Rec", "beauty.txt", "published as 40,226 / 54,542 / 353,962"),
            ("beauty_of_graphda", "GraphDA", "Beauty.txt", "published as 22,363 / 12,101 / 198,502"),
            ("office_of_graphda", "GraphDA", "Office_Products.txt", "published as 4,905 / 2,420 / 53,258"),
            (
                *("tools_of_graphda", "GraphDA", "Tools_and_Home_Improvement.txt"),
                "published as 16,638 / 10,217 / 134,476",
            ),
        )
    ),
)
CLICK_ROWS = (
    Row(
        "dataset=amazon_instruments protocol=click_last",
        "",
        "the one category here that is whole, not one of MIAN's",
    ),
    Row("dataset=movielens protocol=click_last"),
    Row(
        "dataset=movielens protocol=click_rating",
        "",
        "ratings of 4 and more are positives, no negatives drawn",
    ),
    Row(
        "dataset=alimama protocol=click_rating protocol.threshold=null protocol.cut=user protocol.window=50"
        " protocol.valid=0.3 protocol.test=0.3",
        "",
        "500 rows of the log as prepared for DMR; an item is a category of ads, and rows bring their history",
    ),
    Row(
        "dataset=table dataset.reader.name=steam_recommendations"
        " dataset.reader.path=steam_kaggle_recommendations_sample/recommendations.csv"
        " dataset.reader.columns.user=user_id dataset.reader.columns.item=app_id"
        " dataset.reader.columns.time=date dataset.reader.time_unit=date"
        " dataset.reader.columns.label=is_recommended protocol=click_rating protocol.threshold=null",
        "",
        "5,000 rows drawn by chance: nearly all users have one, so there are no histories",
    ),
    Row(
        "dataset=simulated_clicks protocol=click_days",
        "MIAN's own log: 2.16 million users, 41 items, 36 million samples, 30 days",
        "never published; dataset.reader.shape=commercial has its counts",
    ),
    Row(
        "dataset=amazon_electronics protocol=click_last",
        "MIAN 192,403 users, 1,689,188 samples",
        "MIAN counts reviews; here a user's first has no history, the last but one validates and each has a"
        " negative: 2,223,958, 384,806 and 384,806",
    ),
    Row(
        "dataset=amazon_books protocol=click_last",
        "MIAN's loglosses imply 22 to 23 % positives",
        "one negative a positive makes 50 %, and MIAN does not say how many it has; protocol.neg_ratio",
    ),
)


def main() -> None:
    """Writes the page."""
    os.environ["HYDREC_OFFLINE"] = "1"
    from hydrec.data import inspect, page
    from hydrec.data.__main__ import data_of
    from hydrec.errors import MissingData
    from hydrec.runs import write_atomically

    lines, click_lines, cards, missing = [], [], {}, []
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), _heads() as heads:
        for row in (*ROWS, *CLICK_ROWS):
            overrides = row.overrides.split()
            if not any(each.startswith("protocol=") for each in overrides):
                overrides.append("protocol=leave_one_out")
            given = [*overrides, "dataset.stand_in=false", f"paths.data={heads}"]
            data = data_of(compose("train", given))
            try:
                data.prepare()
            except MissingData:
                missing.append(row)
                continue
            print(row.overrides, file=sys.stderr)
            card = inspect.card(data, f"python -m hydrec.data inspect {shlex.join(overrides)}")
            measured, table = (_clicks, click_lines) if row in CLICK_ROWS else (_counts, lines)
            asked = f"`{shlex.join(row.overrides.split())}`"
            table.append(f"| {' | '.join((asked, *measured(card), row.printed, row.why))} |")
            text = re.sub("^### (.*)$", r"**\1**", page.markdown(card), flags=re.MULTILINE)
            heading, _, text = text.partition("\n")
            assert heading not in cards, f"{heading}: give one of the rows a dataset.reader.name of its own"
            cards[heading] = f"#{heading}\n{text}"
    text = "\n".join(
        (
            "# Data sets",
            "",
            "Written by `HYDREC_DATA=FOLDER python docs/datasets.py` from publishers' files: do not edit.",
            "",
            "Where files have no times (-), the order of their rows stands for them. `amazon_2014_5core_head`"
            " has links to the files `NAME.head.json.gz` of `amazon_2014_5core`, as `NAME.json.gz`.",
            "",
            f"| {' | '.join(HEADER)} |",
            f"|{'---|' * len(HEADER)}",
            *lines,
            "",
            "## Samples of click models",
            "",
            "`click_last` draws one negative beside each positive. Fields are those beside the item's id; a"
            " behaviour has those of its item.",
            "",
            f"| {' | '.join(CLICK_HEADER)} |",
            f"|{'---|' * len(CLICK_HEADER)}",
            *click_lines,
            "",
            "## Not there when this was written",
            "",
            "| data set | in papers | why they may differ |",
            "|---|---|---|",
            *(f"| `{row.overrides}` | {row.printed} | {row.why} |" for row in missing),
            "",
            "## Data cards",
            "",
            *cards.values(),
        )
    )
    write_atomically(ROOT / "docs" / "datasets.md", text.rstrip() + "\n")


@contextmanager
def _heads() -> Iterator[Path]:
    """A folder with links to the heads of files, without ``.head``, in folders of their own, FOLDER_head."""
    with tempfile.TemporaryDirectory() as folder:
        for path in Path(os.environ.get("HYDREC_DATA", "data")).rglob("*.head.*"):
            link = Path(folder, f"{path.parent.name}_head", path.name.replace(".head", ""))
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(path.resolve())
        yield Path(folder)


def _counts(card: dict[str, Any]) -> list[str]:
    found = card["dataset"]
    return [
        *(f"{found[of]:,}" for of in ("users", "items", "interactions")),
        f"{card['density']:.2%}",
        f"{card['lengths']['user']['median']:g}",
        *(
            ("-", "-")
            if card["time"] is None
            else (f"{found['tie_share']:.1%}", f"{found['users_whose_last_two_tie'] / found['users']:.1%}")
        ),
    ]


def _clicks(card: dict[str, Any]) -> list[str]:
    found, parts = card["dataset"], card["dataset"]["parts"]
    return [
        *(f"{found[of]:,}" for of in ("users", "items")),
        *(f"{part['samples']:,}" for part in parts.values()),
        *(f"{parts[part]['base_rate']:.1%}" for part in ("train", "test")),
        f"{parts['test']['behaviours']:.1f}",
        *(str(len(card["inputs"][group])) for group in ("user", "context", "item")),
    ]


if __name__ == "__main__":
    main()
