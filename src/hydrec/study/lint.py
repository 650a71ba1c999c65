"""Finds rows of a published table that no model can have, from its digits alone.

With one target per test case, every ranking metric is a mean over cases of a gain that the target's rank
has, and so linear in how often each rank occurs. A row is possible if some distribution over ranks gives all
its values within rounding, which a linear program tells, and with it the range of one value beside the
others. Hit@k / k <= RR@k <= Hit@k, growth with k, (Hit@10 - Hit@5) / 10 <= RR@10 - RR@5 and all such follow.

Of clicks, whatever the scores: logloss >= (1 - AUC) H, with H the entropy of the base rate r. A positive and
a negative of probabilities p <= q cost -r ln p - (1 - r) ln(1 - q), which is least at p = q = r, and then H;
and at least 1 - AUC of all pairs are such.

Shapes: C columns of a row, R ranks.
"""

import csv
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from hydrec.errors import InputError

Floats = NDArray[np.float64]

TINY = 1e-6  # what is impossible by less is the solver's rounding
NODES, MASSES = special.roots_hermitenorm(128)  # of means over the normal distribution
SPREAD = 1.25  # implied base rates that differ by more are not of one data set

GAINS: dict[str, Callable[[Floats, int], Floats]] = {  # of a rank within the first k
    "hit": lambda rank, k: np.ones_like(rank),
    "precision": lambda rank, k: np.full_like(rank, 1 / k),
    "mrr": lambda rank, k: 1 / rank,
    "ndcg": lambda rank, k: 1 / np.log2(rank + 1),
}
GAINS |= {"recall": GAINS["hit"], "map": GAINS["mrr"]}
COUNTS = ("n", "seeds")
AT_K = {name: name for name in GAINS} | {
    **dict.fromkeys(("h", "hr", "hits", "hitrate", "hit rate"), "hit"),
    **dict.fromkeys(("p", "prec"), "precision"),
    "rr": "mrr",
    "n": "ndcg",
    "r": "recall",
}
UNCUT = {name: name for name in ("mrr", "map", "auc", "gauc", "logloss", "base_rate", *COUNTS)} | {
    **dict.fromkeys(("ll", "log loss", "log_loss"), "logloss"),
    **dict.fromkeys(("ctr", "base rate"), "base_rate"),
    "rr": "mrr",
    "cases": "n",
    "runs": "seeds",
}
WORDS = "|".join(sorted({*AT_K, *UNCUT}, key=len, reverse=True))
HEADER = re.compile(rf"(.*?)(?<![a-z0-9])({WORDS})(?:\s*@\s*([1-9]\d{{0,4}}))?\s*(\(?%\)?)?")
NUMBER = re.compile(r"(?:\\[a-z]+|[^\w.+-])*([-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One value that cannot stand beside the others of its row, or hardly.

    Attributes:
        line: of the file, from 1.
        row: its cells of text, as the names of model and data set.
        column: as the table has it.
        value: as printed.
        bound: what the value breaks.
        certain: arithmetic excludes it; else it takes an assumption, which ``bound`` names.
    """

    line: int
    row: str
    column: str
    value: str
    bound: str
    certain: bool

    def __str__(self) -> str:
        row = f" ({self.row})" if self.row else ""
        grade = "impossible" if self.certain else "doubtful"
        return f"line {self.line}{row}: {self.column} = {self.value} is {grade}: {self.bound}"


class Column(NamedTuple):
    """A column that is understood; ``group`` stands before the metric, as the data set in "Steam hit@5"."""

    header: str
    group: str
    name: str
    k: int | None
    percent: bool


class Cell(NamedTuple):
    """A printed number, a percentage as a share, and the bounds of what it was before rounding."""

    column: Column
    text: str
    value: Fraction
    low: Fraction
    high: Fraction


class Row(NamedTuple):
    """The numbers of one row, in one group of columns."""

    line: int
    label: str
    data: tuple[str, str]  # what a column "dataset" says, and the group
    cells: dict[tuple[str, int | None], Cell]

    def finding(self, cell: Cell, bound: str, *, certain: bool) -> Finding:
        """A finding on one of the cells."""
        return Finding(self.line, self.label, cell.column.header, cell.text, bound, certain)


def lint(path: str | Path) -> list[Finding]:
    """Checks a table.

    Columns are known by name in any case, alone or after that of a data set ("Steam hit@5"): hit@5 (hr, h),
    rr@5 (mrr), ndcg@10 (n), recall@10 (r), precision@10 (prec, p), map@10; mrr; auc, gauc, logloss,
    base_rate (ctr); n (cases), the test cases of a row, and seeds (runs), of which it is a mean. A column
    dataset says whose row it is; all others are text. Ranking metrics are read as of one target per case, and
    as percentages if a column is mostly above 1 or a % says so.

    Args:
        path: of a CSV file with a header.

    Returns:
        What was found, by line. Empty: nothing speaks against the table.

    Raises:
        InputError: the file cannot be read, is no table, or has no column that is known.
    """
    rows = list(_rows(Path(path)))
    found = [finding for row in rows for check in (_ranks, _wholes, _clicks) for finding in check(row)]
    return sorted([*found, *_base_rates(rows)], key=lambda finding: finding.line)


def _rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *body = csv.reader(file, strict=True)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is no CSV table in UTF-8 with a header ({error}); save it as one"
        ) from error
    lines = [(line, cells) for line, cells in enumerate(body, 2) if cells]
    for line, cells in lines:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells under {len(header)} columns; quote what has commas"
            )
    columns = _columns(header, [cells for _, cells in lines])
    groups = dict.fromkeys(column.group for column in columns.values() if column.name not in COUNTS)
    if not groups:
        raise InputError(
            f"{path}: none of its columns ({', '.join(header)}) is known; name them as hit@10, rr@10,"
            " ndcg@10, recall@10, precision@10, map@10, auc or logloss"
        )
    dataset = next((at for at, text in enumerate(header) if text.strip().lower() == "dataset"), None)
    for line, texts in lines:
        known = [cell for at, column in columns.items() if (cell := _cell(column, texts[at]))]
        label = " ".join(text.strip() for at, text in enumerate(texts) if at not in columns and text.strip())
        for group in groups:
            own = {
                (cell.column.name, cell.column.k): cell
                for cell in known
                if cell.column.group == group or (cell.column.name in COUNTS and not cell.column.group)
            }
            yield Row(line, label, ("" if dataset is None else texts[dataset].strip(), group), own)


def _columns(header: Sequence[str], body: Sequence[Sequence[str]]) -> dict[int, Column]:
    """The known columns, by place."""
    known: dict[int, Column] = {}
    for at, text in enumerate(header):
        match = HEADER.fullmatch(text.strip().lower())
        word, k = match.group(2, 3) if match else ("", None)
        name = (AT_K if k else UNCUT).get(word)
        if match and name:
            group = match[1].strip(" /_:.|-")
            column = Column(text.strip(), group, name, int(k) if k else None, bool(match[4]))
            for other in known.values():
                if other[1:4] == column[1:4]:
                    raise InputError(
                        f"the columns {other.header} and {column.header} are the same metric: leave one out,"
                        " or put the name of its data set before it"
                    )
            known[at] = column

    def above(column: Column, at: int) -> bool:
        values = [cell.value for texts in body if (cell := _cell(column, texts[at]))]
        return bool(values) and statistics.median(values) > 1

    large = {at for at, column in known.items() if not column.percent and above(column, at)}
    # the ranking metrics of a table share their unit: the lowest of them may stay below 1 %
    ranking = any(known[at].name in GAINS for at in large)
    for at, column in known.items():
        if ranking if column.name in GAINS else at in large and column.name not in ("logloss", *COUNTS):
            known[at] = column._replace(percent=True)
    return known


def _cell(column: Column, text: str) -> Cell | None:
    """The first number of a cell such as ``0.351 ± 0.002`` or ``**35.1**%``; a dash is none."""
    match = NUMBER.match(text)
    if match is None:
        return None
    digits = match[1].lower().replace(",", "" if column.name in COUNTS else ".")
    try:
        value = Fraction(digits)
    except ValueError:  # two decimal points
        return None
    mantissa, _, exponent = digits.partition("e")
    unit = Fraction(10) ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    scale = 100 if column.percent or text[match.end() :].startswith("%") else 1
    low, high = value - unit / 2, value + unit / 2
    return Cell(column, text.strip(), value / scale, low / scale, high / scale)


def _ranks(row: Row) -> Iterator[Finding]:
    """Drops values, each with its reason, until some distribution over ranks gives the others."""
    cells = [cell for cell in row.cells.values() if cell.column.name in GAINS]
    while cells and not _possible(cells):
        core = list(cells)  # that contradict each other, and would not if one were missing
        for cell in reversed(cells):
            rest = [other for other in core if other is not cell]
            if rest and not _possible(rest):
                core = rest
        *others, last = core
        low, high = (end * (100 if last.column.percent else 1) for end in _range(last, others))
        beside = f" with {_named(others)}" if others else ""
        yield row.finding(last, f"it lies from {low:.4g} to {high:.4g}{beside}", certain=True)
        cells.remove(last)


def _named(cells: Sequence[Cell]) -> str:
    return ", ".join(f"{cell.column.header} = {cell.text}" for cell in cells)


def _program(cells: Sequence[Cell]) -> tuple[Floats, Floats, Floats]:
    """Gains (C, R) of the ranks to the largest k, of one more and of infinity; bounds (C,) of their means.

    Beyond the largest k an uncut mrr alone gains, and all that lies between those two.
    """
    rank = np.arange(1, max(cell.column.k or 1 for cell in cells) + 2, dtype=np.float64)
    gains = np.zeros((len(cells), len(rank) + 1))
    for cell, gain in zip(cells, gains, strict=True):
        last = cell.column.k or len(rank)
        gain[:last] = GAINS[cell.column.name](rank[:last], last)
    low, high = np.array([(cell.low, cell.high) for cell in cells], dtype=np.float64).T
    return gains, low, high


def _possible(cells: Sequence[Cell]) -> bool:
    """Whether a distribution over ranks gives all values: by the least error that would do."""
    gains, low, high = _program(cells)
    error = -np.ones((2 * len(cells), 1))
    found = optimize.linprog(
        np.append(np.zeros(gains.shape[1]), 1),
        A_ub=np.hstack([np.vstack([gains, -gains]), error]),
        b_ub=np.append(high, -low),
        A_eq=np.append(np.ones(gains.shape[1]), 0)[None],
        b_eq=[1],
    )
    return found.fun < TINY


def _range(cell: Cell, others: Sequence[Cell]) -> tuple[float, float]:
    """The least and the largest value of a cell beside others that are possible."""
    gains, low, high = _program([cell, *others])
    ends = [
        optimize.linprog(
            sign * gains[0],
            A_ub=np.vstack([gains[1:], -gains[1:]]),
            b_ub=np.append(high[1:] + 2 * TINY, 2 * TINY - low[1:]),
            A_eq=np.ones((1, gains.shape[1])),
            b_eq=[1],
        ).fun
        for sign in (1, -1)
    ]
    return max(0.0, ends[0]), -ends[1]


def _wholes(row: Row) -> Iterator[Finding]:
    """Shares of n cases are whole numbers over n (Brown and Heathers, "The GRIM test", 2017)."""
    given = [row.cells[name, None] for name in COUNTS if (name, None) in row.cells]
    if not given or given[0].column.name != "n":
        return
    cases = 1
    for cell in given:
        if cell.value.denominator > 1 or cell.value < 1:
            raise InputError(f"line {row.line}: {cell.column.header} = {cell.text} is no whole number from 1")
        cases *= int(cell.value)
    for cell in row.cells.values():
        name, k = cell.column.name, cell.column.k
        if name in ("hit", "recall", "precision"):
            per = cases * (k if name == "precision" and k else 1)
            least = math.ceil(cell.low * per)
            if least > cell.high * per:
                scale = 100 if cell.column.percent else 1
                below, above = (float(Fraction(scale * count, per)) for count in (least - 1, least))
                bound = f"{cases:,} cases give {below:.6g} or {above:.6g}, unless ties are shared"
                yield row.finding(cell, bound, certain=False)


def _clicks(row: Row) -> Iterator[Finding]:
    for (name, _), cell in row.cells.items():
        if name in ("auc", "gauc", "base_rate") and not (cell.high >= 0 and cell.low <= 1):
            yield row.finding(cell, "it lies from 0 to 1", certain=True)
    loss, auc, rate = (row.cells.get((name, None)) for name in ("logloss", "auc", "base_rate"))
    if loss is None:
        return
    if loss.high < 0:
        yield row.finding(loss, "a mean of -ln p is not below 0", certain=True)
    elif auc and rate and 0 <= rate.value <= 1:
        least = float(1 - auc.high) * min(_entropy(rate.low), _entropy(rate.high))
        implied = _implied(loss, auc)
        if loss.high < least - TINY:
            bound = f"whatever the scores, it is above {least:.4g} with {_named([auc, rate])}"
            yield row.finding(loss, bound, certain=True)
        elif implied and implied[1] * SPREAD < min(rate.low, 1 - rate.high):
            usual = _calibrated(float(auc.value), float(rate.value))
            bound = f"calibrated Gaussian scores have {usual:.4g} with {_named([auc, rate])}"
            yield row.finding(loss, bound, certain=False)


def _base_rates(rows: Sequence[Row]) -> Iterator[Finding]:
    """Rows of one data set have one base rate: told of the row that implies the lowest, and the highest."""
    by_data: dict[tuple[str, str], list[tuple[float, float, Row]]] = {}
    for row in rows:
        loss, auc = (row.cells.get((name, None)) for name in ("logloss", "auc"))
        if loss and auc and ("base_rate", None) not in row.cells and (implied := _implied(loss, auc)):
            by_data.setdefault(row.data, []).append((*implied, row))
    for implied_rows in by_data.values():
        _, most, lowest = min(implied_rows, key=lambda each: each[1])
        least, _, highest = max(implied_rows, key=lambda each: each[0])
        if least > SPREAD * most:
            bound = (
                f"calibrated Gaussian scores have it at a base rate of {most:.3f}, and what line"
                f" {highest.line} has at {least:.3f}: not of the same test cases"
            )
            yield lowest.finding(lowest.cells["logloss", None], bound, certain=False)


def _entropy(rate: float | Fraction) -> float:
    rate = min(max(float(rate), 0.0), 1.0)
    return float(special.entr(rate) + special.entr(1 - rate))


def _calibrated(auc: float, rate: float) -> float:
    """Logloss of calibrated scores that are Gaussian in both classes, with one variance."""
    gap = np.sqrt(2) * special.ndtri(auc)  # log likelihood ratios are N(+-gap^2 / 2, gap^2)
    ratio = gap**2 / 2 + gap * NODES
    prior = special.logit(rate)
    each = rate * np.logaddexp(0, -prior - ratio) + (1 - rate) * np.logaddexp(0, prior - ratio)
    return float(MASSES @ each / MASSES.sum())


def _implied(loss: Cell, auc: Cell) -> tuple[float, float] | None:
    """The base rates up to one half with which `_calibrated` gives both values, least and largest."""
    ends = []
    for area, value in ((float(auc.low), float(loss.low)), (float(auc.high), float(loss.high))):
        if not (0.5 < area < 1 and 0 < value < _calibrated(area, 0.5)):
            return None
        start = special.expit(-40.0)
        ends.append(optimize.brentq(lambda r, a=area, v=value: _calibrated(a, r) - v, start, 0.5))
    return ends[0], ends[1]
