"""A log whose structure is known: to see what a model finds where there is something to find, and where not.

Not from a paper. Users, items, events, lengths of histories, ties in time and ratings are as many and as
distributed as those of a named public dataset; what happens next is planted. Each kind of structure has a
dial from 0, absent, to 1:

* ``preference``: a user's events are of three factors (0.40, 0.35, 0.25) rather than of all alike;
* ``timespan``: the share of sessions that are of one factor, never that of the session before: while the gap
  to the previous event is short the factor stays, after a long one it is another of the user's;
* ``intensity``: the share of values that are high where the user's next few events are of the same factor;
* ``fields``: how often a user's fields are those of the main factor, an event's those of its item's factor;
* ``popularity``: within a factor the r-th most popular item has weight ``r ** (-1.5 * popularity)``; at 1
  items are about as unequal as MovieLens's (Gini coefficient 0.63).

Differs from the named datasets in that every history consists of sessions a month apart (in MovieLens most of
a history is one sitting). Times are the same whatever the dials: at ``timespan=0`` the sessions are there and
tell nothing. No user meets an item twice; what a factor has too few items for goes to others. Which of a
factor's items comes when is random, so that at ``timespan=0`` a history is exchangeable: neither times nor
order say anything about what comes next.

Each purpose has random numbers of its own. So ``intensity`` and ``fields`` leave users, items and times as
they are, ``popularity`` the factors and times, ``preference`` and ``timespan`` the times.

Letters: n events, U users, V items, K factors.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydrec.data.log import InteractionLog
from hydrec.data.movielens import GENRES
from hydrec.errors import InputError

VERSION = 2  # to be raised when the same options give another log

DAY = 86400
PROFILE = (0.40, 0.35, 0.25)  # below a half, or leaving a factor for another could not keep the weights
SESSION = 5.0  # mean events of a session, more for users who would need more days than there are
GAP = (31.0, 10.0)  # days between sessions, least and mean beyond it; HGNN's graph joins up to 30
PAUSE = 60.0  # mean seconds between events of a session that are not tied
ROOM = 0.6  # of a factor's items a user is expected to meet at most
HORIZON = 5  # events ahead that a value speaks of
SKEW = 1.5  # exponent of the items' popularity at most
SECOND = 0.4  # share of items with a second genre, which means nothing

USER_FIELDS = {
    "gender": ("F", "M"),
    "age": ("Under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+"),
    "occupation": (
        *("administrator", "artist", "doctor", "educator", "engineer", "executive", "homemaker"),
        *("lawyer", "programmer", "retired", "student", "writer"),
    ),
}
EVENT_FIELDS = {
    "device": ("computer", "phone", "tablet", "television"),
    "company": ("alone", "family", "friends", "partner", "strangers"),
}


class Shape(NamedTuple):
    """Size and outline of a dataset.

    Attributes:
        users: U.
        items: V.
        events: n.
        shortest: events of the shortest history.
        longest: events of the longest history.
        spread: exponent of what a history has beyond ``shortest`` (Weibull; 1 is exponential).
        ties: share of events at the same time as the user's previous one.
        start: Unix seconds of the first event.
        days: from the first event to the last.
        ratings: share of each rating, evenly spaced up to 5.
    """

    users: int
    items: int
    events: int
    shortest: int
    longest: int
    spread: float
    ties: float
    start: int
    days: int
    ratings: tuple[float, ...]


# Measured on the published files, but for `spread`, which fits the quartiles, and `tiny`, which is for tests.
SHAPES = {
    "tiny": Shape(200, 120, 6_000, 15, 60, 1.0, 0.5, 1_000_000_000, 1000, (0.06, 0.11, 0.27, 0.35, 0.21)),
    "ml-100k": Shape(
        943, 1682, 100_000, 20, 737, 1.3, 0.506, 874_724_710, 214, (0.061, 0.114, 0.271, 0.342, 0.212)
    ),
    "ml-1m": Shape(
        6040, 3706, 1_000_209, 20, 2314, 1.3, 0.529, 956_703_932, 1038, (0.056, 0.108, 0.261, 0.349, 0.226)
    ),
    "ml-latest-small": Shape(
        *(610, 9724, 100_836, 20, 2698, 1.7, 0.157, 828_124_615, 8213),
        (0.014, 0.028, 0.018, 0.075, 0.055, 0.199, 0.130, 0.266, 0.085, 0.131),
    ),
}


@dataclass(frozen=True)
class Truth:
    """What was planted, by the ids and rows of the log.

    Attributes:
        genres: (K,) name of each factor, as in the item feature ``genres``.
        item_factors: (V+1,) factor 0..K-1 of each item, its main genre; -1 for PAD.
        user_factors: (U+1,) main factor of each user, the one of ``PROFILE``'s first weight; -1 for user 0.
        user_weights: (U+1, K) probability of each factor in the user's history; user 0 has none.
        factors: (n,) factor of each event's item.
        sessions: (n,) number of each event's session, ascending over the log.
        planted: (n,) whether the event's factor is that of a session which is of one factor.
        telling: (n,) whether the event's value speaks of the events after it.
    """

    genres: tuple[str, ...]
    item_factors: np.ndarray
    user_factors: np.ndarray
    user_weights: np.ndarray
    factors: np.ndarray
    sessions: np.ndarray
    planted: np.ndarray
    telling: np.ndarray


class Simulator:
    """Reads a log that it makes up.

    Args:
        name: the name that tables use.
        shape: one of ``SHAPES``: whose sizes and outline the log has.
        seed: of the random numbers, from 0.
        factors: number K of planted factors, 1 (no structure) to 18.
        preference: 0 (all users alike) to 1.
        timespan: 0 (times tell nothing) to 1.
        intensity: 0 (values tell nothing) to 1.
        fields: 0 (fields of users and events tell nothing) to 1.
        popularity: 0 (all items of a factor alike) to 1.

    Raises:
        InputError: an argument outside its range; names its key.
    """

    def __init__(
        self,
        *,
        name: str,
        shape: str,
        seed: int,
        factors: int,
        preference: float,
        timespan: float,
        intensity: float,
        fields: float,
        popularity: float,
    ) -> None:
        if shape not in SHAPES:
            raise InputError(
                f"dataset.reader.shape={shape} is none of {', '.join(SHAPES)}: choose one of them"
            )
        self.name, self.shape = name, shape
        self.seed = _number("seed", seed, 0, 2**63 - 1, whole=True)
        self.factors = _number("factors", factors, 1, len(GENRES), whole=True)
        self.preference = _number("preference", preference, 0.0, 1.0)
        self.timespan = _number("timespan", timespan, 0.0, 1.0)
        self.intensity = _number("intensity", intensity, 0.0, 1.0)
        self.fields = _number("fields", fields, 0.0, 1.0)
        self.popularity = _number("popularity", popularity, 0.0, 1.0)

    def files(self) -> list[Path]:
        """No files."""
        return []

    def options(self) -> dict[str, Any]:
        """What the log depends on."""
        dials = ("shape", "seed", "factors", "preference", "timespan", "intensity", "fields", "popularity")
        return {"version": VERSION, **{dial: getattr(self, dial) for dial in dials}}

    def __call__(self) -> InteractionLog:
        """Makes the log; the same options give the same bytes."""
        shape, (made, truth) = SHAPES[self.shape], self._make()
        raw = np.unique(made.items)
        random = self._stream("catalogue")
        newest = int(np.datetime64(shape.start, "s").astype("M8[Y]").astype(np.int64)) + 1970
        years = newest - (60 * random.random(shape.items) ** 2).astype(np.int64)[raw - 1]
        main = truth.item_factors[1:]
        two = random.random(shape.items) < SECOND
        second = np.where(two, _below(random, self.factors, shape.items), -1)[raw - 1]
        genres = [[GENRES[m]] + [GENRES[s]] * (s not in (-1, m)) for m, s in zip(main, second, strict=True)]
        return InteractionLog.build(
            name=self.name,
            users=made.users,
            items=made.items,
            times=made.times,
            values=made.values,
            item_titles=(raw, [f"Film {item} ({year})" for item, year in zip(raw, years, strict=True)]),
            item_features={"genres": (raw, genres)},
            user_features={name: (np.arange(1, shape.users + 1), v) for name, v in made.user_fields.items()},
            event_features=made.event_fields,
        )

    def truth(self) -> Truth:
        """What is planted in the log that a call returns."""
        return self._make()[1]

    def _stream(self, purpose: str) -> np.random.Generator:
        """Random numbers for one purpose, independent of those for any other."""
        key = np.random.SeedSequence([self.seed, zlib.crc32(purpose.encode())])
        return np.random.Generator(np.random.Philox(key))

    def _make(self) -> tuple["_Columns", Truth]:
        shape, count = SHAPES[self.shape], self.factors
        lengths = _lengths(shape, self._stream("lengths"))
        users = np.repeat(np.arange(shape.users), lengths)
        times, begins = _times(shape, lengths, users, self._stream("times"))
        sessions = np.cumsum(begins) - 1
        order, weights = _tastes(shape, lengths, count, self.preference, self._stream("tastes"))
        factors, planted = _walk(users, sessions, order, weights, self.timespan, self._stream("factors"))

        sizes = np.full(count, shape.items // count)
        sizes[: shape.items % count] += 1
        # In which turn the events of a user and factor get their items: one that does not depend on time.
        turn = self._stream("turns").random(len(users))
        meant, factors = factors, _fit(users, factors, turn, sizes)
        items = _items(users, factors, turn, sizes, SKEW * self.popularity, self._stream("items"))
        raw = 1 + np.argsort(self._stream("ids").random(shape.items))[items]

        values, telling = _values(shape, users, factors, self.intensity, self._stream("values"))
        random = self._stream("fields")
        columns = _Columns(
            users=users + 1,
            items=raw,
            times=times,
            values=values,
            user_fields=_fields(USER_FIELDS, order[:, 0], self.fields, random),
            event_fields=_fields(EVENT_FIELDS, factors, self.fields, random),
        )
        by_factor = np.zeros((shape.users + 1, count))
        np.put_along_axis(by_factor[1:], order, weights, axis=1)
        truth = Truth(
            genres=GENRES[:count],
            item_factors=np.concatenate([[-1], factors[np.unique(raw, return_index=True)[1]]]),
            user_factors=np.concatenate([[-1], order[:, 0]]),
            user_weights=by_factor,
            factors=factors,
            sessions=sessions,
            planted=planted & (factors == meant),
            telling=telling,
        )
        return columns, truth


class _Columns(NamedTuple):
    """The raw log, in the order of users and times."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray
    user_fields: dict[str, np.ndarray]
    event_fields: dict[str, np.ndarray]


def _number(key: str, value: Any, least: float, most: float, whole: bool = False) -> Any:
    """The value as a number of its kind; InputError where it is none, or out of range."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"dataset.reader.{key}={value} is not {kind} from {least} to {most}: choose one")
    return value if whole else float(value)


def _below(random: np.random.Generator, bound: int, count: int) -> np.ndarray:
    return (random.random(count) * bound).astype(np.int64)


def _lengths(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Events of each user (U,): Weibull beyond the shortest, at evenly spaced quantiles, of the exact sum."""
    quantiles = (np.argsort(random.random(shape.users)) + 0.5) / shape.users
    beyond = (-np.log1p(-quantiles)) ** shape.spread
    room = shape.events - shape.users * shape.shortest
    for _ in range(10):  # what the longest may not have goes to the others
        beyond = np.minimum(beyond * (room / beyond.sum()), shape.longest - shape.shortest)
    ends = np.rint(np.cumsum(beyond) * (room / beyond.sum())).astype(np.int64)
    return shape.shortest + np.diff(ends, prepend=0)


def _times(
    shape: Shape, lengths: np.ndarray, users: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Unix seconds (n,), ascending within a user, and which events begin a session (n,)."""
    n, span = len(users), shape.days * DAY
    first = np.cumsum(lengths) - lengths
    # A session ends after any event with the same probability: how long it has lasted says nothing.
    sessions = np.minimum(lengths / SESSION, 0.6 * shape.days / GAP[0])
    begins = random.random(n) < (sessions / lengths)[users]
    begins[first] = True
    passed = np.cumsum(begins)
    begins &= (
        passed - passed[first][users] <= 0.8 * shape.days / GAP[0]
    )  # the last one that there is time for goes on
    beyond = np.clip(0.6 * shape.days / sessions - GAP[0], 1.0, GAP[1])
    days = GAP[0] - beyond[users] * np.log1p(-random.random(n))
    tied = random.random(n) < shape.ties * n / (n - begins.sum())
    pause = np.where(tied, 0.0, 1 - PAUSE * np.log1p(-random.random(n)))

    within = np.where(begins, 0, np.rint(pause)).astype(np.int64)
    between = np.where(begins, days * DAY, 0.0)
    between[first] = 0.0
    # Whoever would still outlast the dataset has all gaps shortened alike.
    left = (span - np.add.reduceat(within, first)) / np.maximum(np.add.reduceat(between, first), 1)
    steps = within + np.floor(between * np.minimum(left, 1.0)[users]).astype(np.int64)
    enter = random.random(shape.users) * (span - np.add.reduceat(steps, first))
    steps[first] = enter.astype(np.int64)
    total = np.cumsum(steps)
    return shape.start + total - (total[first] - steps[first])[users], begins


def _tastes(
    shape: Shape, lengths: np.ndarray, count: int, preference: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each user's factors, most preferred first (U, K), and their probabilities (U, K) in that order."""
    order = np.argsort(random.random((len(lengths), count)), axis=1)
    profile = np.zeros(count)
    profile[: len(PROFILE)] = PROFILE[:count] if count >= len(PROFILE) else 1 / count
    # Long histories are broader, since a factor has only so many items.
    most = ROOM * shape.items / count / lengths
    even = 1 / count
    sharp = preference * np.clip((most - even) / max(profile[0] - even, 1e-9), 0.0, 1.0)[:, None]
    return order, (1 - sharp) * even + sharp * profile


def _walk(
    users: np.ndarray,
    sessions: np.ndarray,
    order: np.ndarray,
    weights: np.ndarray,
    timespan: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The factor each event is meant to have (n,), and whether its session set it (n,).

    A user's factors are arcs of a circle, as long as they are probable, and a session is a point on it: the
    first anywhere, the next a step on that is at least the longest arc and at least as far from a whole turn,
    so never to the same factor. Each point by itself is uniform: sessions have the user's weights.
    """
    first = np.flatnonzero(np.diff(sessions, prepend=-1))  # of each session
    owner = users[first]
    longest = weights[owner, 0]
    step = longest + (1 - 2 * longest) * random.random(len(first))
    start = random.random(len(first))
    point = np.cumsum(np.where(np.diff(owner, prepend=-1) > 0, start, step))
    planted = (random.random(len(first)) < timespan)[sessions]
    point = np.where(planted, point[sessions], random.random(len(users))) % 1.0
    ends = np.cumsum(weights, axis=1)
    ends[:, -1] = 1.0
    arcs = np.searchsorted((ends + np.arange(len(ends))[:, None]).ravel(), users + point, side="right")
    return order[users, np.minimum(arcs - users * weights.shape[1], weights.shape[1] - 1)], planted


def _fit(users: np.ndarray, factors: np.ndarray, turn: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The factors (n,), but what a user has of one beyond its items is spread over what others have left."""
    slots, rank = _slots(users, factors, turn, len(sizes))
    excess = slots[rank >= sizes[factors[slots]]]
    owners, row, counts = np.unique(users[excess], return_inverse=True, return_counts=True)
    affected = np.isin(users, owners)
    cell = np.searchsorted(owners, users[affected]) * len(sizes) + factors[affected]
    taken = np.bincount(cell, minlength=len(owners) * len(sizes)).reshape(-1, len(sizes))
    room = np.maximum(sizes - taken, 0)
    each = room.sum(1)
    index = np.arange(len(row)) - np.searchsorted(row, row)
    place = (np.cumsum(each) - each)[row] + (2 * index + 1) * each[row] // (2 * counts[row])
    fitted = factors.copy()
    fitted[excess] = np.searchsorted(np.cumsum(room), place, side="right") % len(sizes)
    return fitted


def _slots(
    users: np.ndarray, factors: np.ndarray, turn: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Events by user, factor and turn (n,), and the place of each within its user and factor (n,)."""
    group = users * count + factors
    slots = np.argsort(group + turn)
    group = group[slots]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return slots, np.arange(len(slots)) - np.repeat(first, np.diff(first, append=len(slots)))


def _items(
    users: np.ndarray,
    factors: np.ndarray,
    turn: np.ndarray,
    sizes: np.ndarray,
    exponent: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Items (n,), in the table's order, drawn by popularity without replacement within each user."""
    slots, _ = _slots(users, factors, turn, len(sizes))
    users, factors = users[slots], factors[slots]
    starts, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    table = np.repeat(np.arange(len(sizes)), sizes)
    mass = (1.0 + np.arange(total) - starts[table]) ** -exponent
    ends = np.cumsum(mass)
    low = np.concatenate([[0.0], ends])[starts]
    high = ends[starts + sizes - 1]

    items = np.empty(len(slots), np.int64)
    owner = np.zeros(
        (users[-1] + 1) * total, np.int32
    )  # 1 + the slot where a user meets an item, 0 for nowhere
    left = np.arange(len(slots))
    for _ in range(16):
        factor = factors[left]
        point = low[factor] + (high - low)[factor] * random.random(len(left))
        drawn = np.searchsorted(ends, point, side="right")
        drawn = np.clip(drawn, starts[factor], starts[factor] + sizes[factor] - 1)
        pair = users[left] * total + drawn
        new = np.flatnonzero(owner[pair] == 0)
        owner[pair[new]] = left[new] + 1
        met = owner[pair] == left + 1  # of several at once the last one has it
        items[left[met]] = drawn[met]
        left = left[~met]
    if len(left):  # deep into a factor: its most popular items that the user has not met
        who, row = np.unique(users[left], return_inverse=True)
        unmet = np.flatnonzero(owner.reshape(-1, total)[who] == 0)
        group = row * len(sizes) + factors[left]
        place = np.arange(len(left)) - np.searchsorted(group, group)
        choice = np.searchsorted(unmet // total * len(sizes) + table[unmet % total], group) + place
        items[left] = unmet[choice] % total
    # A published catalogue has no items without events: one event of a popular item of the factor for each.
    unused = np.flatnonzero(np.bincount(items, minlength=total) == 0)
    popular = np.flatnonzero(items - starts[factors] < sizes[factors] / 10)
    popular = popular[np.argsort(factors[popular] + turn[slots][popular])]
    place = np.arange(len(unused)) - np.searchsorted(table[unused], table[unused])
    items[popular[np.searchsorted(factors[popular], table[unused]) + place]] = unused
    back = np.empty_like(items)
    back[slots] = items
    return back


def _values(
    shape: Shape, users: np.ndarray, factors: np.ndarray, intensity: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (n,) with the dataset's shares, and which of them speak of the events that follow (n,).

    A user's last events speak of none: of fewer than the others do, they would tell more, and
    leave-one-out tests just these.
    """
    n = len(users)
    same, ahead = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for step in range(1, HORIZON + 1):
        mine = users[step:] == users[:-step]
        ahead[:-step] += mine
        same[:-step] += mine & (factors[step:] == factors[:-step])
    telling = (random.random(n) < intensity) & (ahead == HORIZON)
    counts = np.bincount(same[telling], minlength=HORIZON + 1)
    # A quantile: uniform over all events, whatever the intensity, so that the shares of the ratings stay.
    uniform = random.random(n)
    planted = ((np.cumsum(counts) - counts)[same] + uniform * counts[same]) / max(counts.sum(), 1)
    quantile = np.where(telling, planted, uniform)
    scale = 5.0 * np.arange(1, len(shape.ratings) + 1) / len(shape.ratings)
    ends = np.cumsum(shape.ratings) / np.sum(shape.ratings)
    return scale[np.searchsorted(ends[:-1], quantile, side="right")].astype(np.float32), telling


def _fields(
    fields: dict[str, tuple[str, ...]], factors: np.ndarray, strength: float, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """A column of categories for each field: the factor's with probability ``strength``, else any."""
    columns = {}
    for field, names in fields.items():
        free = _below(random, len(names), len(factors))
        told = random.random(len(factors)) < strength
        columns[field] = np.array(names)[np.where(told, factors % len(names), free)]
    return columns
