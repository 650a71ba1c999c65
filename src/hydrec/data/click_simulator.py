"""A log of showings whose clicks are known: to see which interactions a click model finds.

Not from a paper; the shape ``commercial`` is as large as the closed set of "Multi-Interactive Attention
Network for Fine-grained Feature Learning in CTR Prediction" (MIAN, WSDM 2021). Each kind of structure is a
term of the logit of a click, weighed by a dial from 0, absent, to 1:

* ``user_item``: whether the user's ``segment`` matches the item's ``category``, which two of eight do;
* ``context_item``: whether the showing's ``daypart`` matches the item's ``format``, which two of six do;
* ``history``: how much of the user's last five clicks of earlier days are of the item's ``topic``;
* ``popularity``: of the item, whatever else.

The first three have no main effect: `match` sums to zero over either side, all combinations of category,
format and topic are shown alike often, to anybody at any time, and the intercept of each segment, daypart and
history makes its mean click probability the ``base_rate``. So no field of users or contexts and no history
says anything by itself and, at ``popularity=0``, nor does an item: the best logistic regression without
crossed fields has the rates of the items. The other fields (``gender``, ``age``, ``city``, ``position``,
``device``) say nothing in any company.

Differs from real logs in that what is shown is drawn by chance, evenly over 30 days. Dials change nothing but
labels.

Letters: n showings, U users, V items.
"""

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from hydrec.data.log import InteractionLog, ragged
from hydrec.errors import InputError, at_least, one_of

VERSION = 1  # to be raised when the same options give another log

DAY = 86400
START = 1_590_969_600  # Unix seconds of the first day, 1 June 2020
DAYS = 30
RECENT = 5  # clicks of a history that count

USER_FIELDS = {"segment": 8, "gender": 2, "age": 7, "city": 50}  # number of values
EVENT_FIELDS = {"daypart": 6, "position": 8, "device": 3}
CATEGORIES, FORMATS, TOPICS = 4, 3, 3
CELLS = CATEGORIES * FORMATS * TOPICS
DIALS = ("user_item", "context_item", "history", "popularity")


class Shape(NamedTuple):
    """Size of a log.

    Attributes:
        users: U.
        items: V, at least one for each combination of category, format and topic.
        showings: n.
    """

    users: int
    items: int
    showings: int


SHAPES = {
    "tiny": Shape(300, 48, 6_000),
    "small": Shape(10_000, 400, 150_000),
    "commercial": Shape(2_160_000, 41, 36_000_000),
}


class ClickSimulator:
    """Reads a log that it makes up.

    Args:
        name: the name that tables use.
        shape: one of ``SHAPES``.
        seed: of the random numbers, from 0.
        user_item, context_item, history, popularity: 0 (absent) to 1; a term's deviation over showings, but
            the history's is smaller, the more topics a history has.
        base_rate: mean click probability, between 0 and 1.

    Raises:
        InputError: an argument outside its range; names its key.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: str,
        seed: int,
        user_item: float,
        context_item: float,
        history: float,
        popularity: float,
        base_rate: float,
    ) -> None:
        self.name = name
        self.shape = one_of("dataset.reader.shape", shape, SHAPES)
        self.seed = at_least("dataset.reader.seed", seed, 0)
        self.user_item = _dial("user_item", user_item)
        self.context_item = _dial("context_item", context_item)
        self.history = _dial("history", history)
        self.popularity = _dial("popularity", popularity)
        self.base_rate = _dial("base_rate", base_rate)
        if self.base_rate in (0, 1):
            raise InputError(f"dataset.reader.base_rate={base_rate} leaves one label: choose between 0 and 1")

    def files(self) -> list[Path]:
        """No files."""
        return []

    def options(self) -> dict[str, Any]:
        """What the log depends on."""
        names = ("shape", "seed", *DIALS, "base_rate")
        return {"version": VERSION, **{name: getattr(self, name) for name in names}}

    def __call__(self) -> InteractionLog:
        """Makes the log; the same options give the same bytes."""
        shape, made = SHAPES[self.shape], self._showings()
        labels, _ = self._clicks(made)
        users, items = (np.arange(1, count + 1) for count in (shape.users, shape.items))
        return InteractionLog.build(
            name=self.name,
            users=made.users + 1,
            items=made.items + 1,
            times=START + made.seconds,
            labels=labels,
            item_features={
                "category": (items, _named("category", made.cells % CATEGORIES, CATEGORIES)),
                "format": (items, _named("format", made.cells // CATEGORIES % FORMATS, FORMATS)),
                "topic": (items, _named("topic", made.cells // CATEGORIES // FORMATS, TOPICS)),
            },
            user_features={
                name: (users, _named(name, codes, USER_FIELDS[name]))
                for name, codes in made.user_fields.items()
            },
            event_features={
                name: _named(name, codes, EVENT_FIELDS[name]) for name, codes in made.event_fields.items()
            },
        )

    def truth(self) -> np.ndarray:
        """(n,) float64 logit that each row of the log has its label drawn by."""
        return self._clicks(self._showings())[1]

    def _stream(self, purpose: str) -> np.random.Generator:
        """Random numbers for one purpose, independent of those for any other."""
        key = np.random.SeedSequence([self.seed, zlib.crc32(purpose.encode())])
        return np.random.Generator(np.random.Philox(key))

    def _showings(self) -> "_Showings":
        shape = SHAPES[self.shape]
        users, seconds = _visits(shape, self._stream("visits"))
        random = self._stream("items")
        cells = random.permutation(shape.items) % CELLS
        counts = np.bincount(cells)
        shown = random.integers(0, CELLS, shape.showings, np.int8)  # however many items a cell has
        place = (np.cumsum(counts) - counts)[shown] + random.integers(0, counts[shown])
        random = self._stream("fields")
        drawn = {
            name: random.integers(0, size, shape.showings, np.int8)
            for name, size in EVENT_FIELDS.items()
            if name != "daypart"
        }
        daypart = (seconds // (DAY // EVENT_FIELDS["daypart"]) % EVENT_FIELDS["daypart"]).astype(np.int8)
        return _Showings(
            users=users,
            seconds=seconds,
            items=np.argsort(cells, kind="stable").astype(np.int32)[place],
            cells=cells,
            user_fields={name: random.permutation(shape.users) % size for name, size in USER_FIELDS.items()},
            event_fields={"daypart": daypart, **drawn},
        )

    def _clicks(self, made: "_Showings") -> tuple[np.ndarray, np.ndarray]:
        """Label (n,) and logit (n,) of each showing, day by day."""
        table, random = self._table(made.cells), self._stream("labels")
        segment, daypart = made.user_fields["segment"] % CATEGORIES, made.event_fields["daypart"] % FORMATS
        topic = made.cells // CATEGORIES // FORMATS
        recent = np.full((len(segment), RECENT), TOPICS, np.int8)  # topics, oldest first; TOPICS for none
        day = (made.seconds // DAY).astype(np.int8)
        labels, logits = np.empty(len(day), np.int8), np.empty(len(day))
        for today in range(DAYS):
            rows = np.flatnonzero(day == today)
            user, item = made.users[rows], made.items[rows]
            logit = table[segment[user], daypart[rows], _histories(recent)[user], item]
            clicked = random.random(len(rows)) < 1 / (1 + np.exp(-logit))
            labels[rows], logits[rows] = clicked, logit
            _remember(recent, user[clicked], topic[item[clicked]])
        return labels, logits

    def _table(self, cells: np.ndarray) -> np.ndarray:
        """Logits of clicks: (segment modulo CATEGORIES, daypart modulo FORMATS, history, item)."""
        counts = np.indices((RECENT + 1,) * TOPICS).reshape(TOPICS, -1).T  # of topics, as `_histories` counts
        clicks = counts.sum(1, keepdims=True)
        shares = counts / np.maximum(clicks, 1)
        liking = np.where(clicks > 0, shares @ match(TOPICS), 0)
        popular = self._stream("popularity").standard_normal(len(cells))
        planted = (
            self.user_item * match(CATEGORIES)[:, None, None, cells % CATEGORIES]
            + self.context_item * match(FORMATS)[:, None, cells // CATEGORIES % FORMATS]
            + self.history * liking[:, cells // CATEGORIES // FORMATS]
            + self.popularity * (popular - popular.mean()) / popular.std()
        )
        shown = 1 / (CELLS * np.bincount(cells)[cells])
        return planted + _intercepts(planted, shown, self.base_rate)[..., None]


class _Showings(NamedTuple):
    """What is shown, before anybody clicks; rows by user and second.

    Attributes:
        users: (n,) 0..U-1.
        seconds: (n,) since ``START``.
        items: (n,) 0..V-1.
        cells: (V,) combination of category, format and topic.
        user_fields: name -> (U,) codes.
        event_fields: name -> (n,) codes.
    """

    users: np.ndarray
    seconds: np.ndarray
    items: np.ndarray
    cells: np.ndarray
    user_fields: dict[str, np.ndarray]
    event_fields: dict[str, np.ndarray]


def match(kinds: int) -> np.ndarray:
    """(kinds, kinds) high where both sides agree; each row and column sums to 0 and has variance 1.

    >>> match(2)
    array([[ 1., -1.],
           [-1.,  1.]])
    """
    return (kinds * np.eye(kinds) - 1) / math.sqrt(kinds - 1)


def _dial(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"dataset.reader.{key}={value} is not a number from 0 to 1: choose one")
    return float(value)


def _named(field: str, codes: np.ndarray, size: int) -> pl.Series:
    """Codes as values of a field, a byte each."""
    names = [f"{field} {code}" for code in range(size)]
    return pl.Series(names, dtype=pl.Enum(names))[codes]


def _visits(shape: Shape, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """User and second (n,) of each showing, ascending; users have one and a share of the rest that varies."""
    share = np.cumsum(random.exponential(size=shape.users))
    ends = np.rint(share * ((shape.showings - shape.users) / share[-1])).astype(np.int64)
    moments = np.repeat(np.arange(shape.users) * (DAYS * DAY), 1 + np.diff(ends, prepend=0))
    moments += random.integers(0, DAYS * DAY, shape.showings)
    moments.sort()
    users = (moments // (DAYS * DAY)).astype(np.int32)
    moments %= DAYS * DAY
    return users, moments


def _histories(recent: np.ndarray) -> np.ndarray:
    """(U,) number of each history: how many of its clicks are of each topic, as digits."""
    base = RECENT + 1
    digits = np.append(base ** np.arange(TOPICS)[::-1], 0)
    return digits[recent].sum(1)


def _remember(recent: np.ndarray, user: np.ndarray, topic: np.ndarray) -> None:
    """Appends a day's clicks, which are in order of users and times, to the histories, in place."""
    first = np.flatnonzero(np.diff(user, prepend=-1))
    counts = np.diff(first, append=len(user))
    owner, place = ragged(counts)
    ago = counts[owner] - 1 - place
    kept = ago < RECENT
    new = np.full((len(first), RECENT), -1)
    new[owner[kept], RECENT - 1 - ago[kept]] = topic[kept]
    moved = np.minimum(np.arange(RECENT) + counts[:, None], RECENT - 1)
    old = np.take_along_axis(recent[user[first]], moved, 1)
    recent[user[first]] = np.where(new < 0, old, new)


def _intercepts(logits: np.ndarray, shares: np.ndarray, rate: float) -> np.ndarray:
    """(...,) what to add to each row of logits (..., V) so that its mean probability is ``rate``.

    Args:
        logits: (..., V).
        shares: (V,) weights of the mean, of sum 1.
        rate: between 0 and 1.
    """
    centre = math.log(rate / (1 - rate))
    low, high = centre - logits.max(-1), centre - logits.min(-1)
    for _ in range(60):  # halvings, to the last bit
        middle = (low + high) / 2
        above = (1 / (1 + np.exp(-logits - middle[..., None]))) @ shares > rate
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2
