"""A log whose structure is known: to see what a model finds when there is something to find, and when there is not.

Not from a paper. Numbers of users, items and events, lengths of histories, ties in time and ratings are those of a
named public dataset; what happens next is planted. Every kind of structure has a dial from 0, absent, to 1:

* ``preference``: a user's events come from three of the factors (0.40, 0.35, 0.25) rather than from all alike;
* ``timespan``: while the gap to the previous event is short the factor stays, after a long one it is another;
* ``intensity``: a value is high where the user's next few events are of the same factor;
* ``fields``: a user's fields follow the main factor, an event's fields the factor of its item;
* ``popularity``: within a factor the r-th most popular item has weight ``r ** (-1.5 * popularity)``; at 1 items are
  as unequal as those of MovieLens-100K (Gini coefficient 0.62, there 0.63).

Differs from the named datasets in that every history consists of sessions some days apart (in MovieLens most of a
history is one sitting). The times are the same whatever the dials: at ``timespan=0`` sessions are there and tell
nothing. No user meets an item twice, and within a user and a factor the order of the items is random, so that at
``timespan=0`` a history is exchangeable: neither time, order nor recency says anything about what comes next.

A purpose has a stream of random numbers of its own. Turning ``intensity`` or ``fields`` leaves users, items and times
as they are, ``popularity`` the factors and times, and ``preference`` and ``timespan`` the times.

Letters: n events, U users, V items, K factors.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydrec.data.log import InteractionLog
from hydrec.errors import InputError

VERSION = 1

DAY = 86400
PROFILE = (0.40, 0.35, 0.25)  # below a half, or leaving a factor for another could not keep the weights
SESSION = 5.0  # mean events of a session, more for users who would need more days than there are
GAP = (2.0, 10.0)  # days between sessions: the least, and the mean beyond it
PAUSE = 60.0  # mean seconds between events of a session that are not tied
ROOM = 0.6  # of a factor's items a user is expected to meet at most
HORIZON = 5  # events ahead that a value speaks of
SKEW = 1.5  # exponent of the items' popularity at most
SECOND = 0.4  # share of items with a second genre, which means nothing

GENRES = (
    *(
        "Drama",
        "Comedy",
        "Action",
        "Thriller",
        "Romance",
        "Adventure",
        "Children's",
        "Crime",
        "Sci-Fi",
        "Horror",
    ),
    *("War", "Mystery", "Musical", "Documentary", "Animation", "Western", "Film-Noir", "Fantasy"),
)
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
    "tiny": Shape(200, 120, 6_000, 15, 60, 1.0, 0.5, 1_000_000_000, 400, (0.06, 0.11, 0.27, 0.35, 0.21)),
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
        user_weights: (U+1, K) probability of each factor in the user's history; rows sum to 1, that of user 0 is zero.
        factors: (n,) factor of each event's item.
        sessions: (n,) number of each event's session, ascending over the log.
        planted: (n,) whether the event's factor was its session's rather than a free draw from the user's weights.
        telling: (n,) whether the event's value was set by the events after it.
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
        shape, made = SHAPES[self.shape], self._make()
        # The table of items is in order of factor and popularity; raw ids are not.
        raw, order = np.arange(1, shape.items + 1), np.argsort(made.raw_items)
        main = made.item_factors[order]
        random = self._stream("catalogue")
        other = np.where(random.random(shape.items) < SECOND, _below(random, self.factors, shape.items), main)
        genres = [[GENRES[a], GENRES[b]][: 1 + (a != b)] for a, b in zip(main, other, strict=True)]
        newest = int(np.datetime64(shape.start, "s").astype("M8[Y]").astype(np.int64)) + 1970
        years = newest - (60 * random.random(shape.items) ** 2).astype(np.int64)
        return InteractionLog.build(
            name=self.name,
            users=made.users + 1,
            items=made.raw_items[made.items],
            times=made.times,
            values=made.values,
            item_titles=(raw, [f"Film {item} ({year})" for item, year in zip(raw, years, strict=True)]),
            item_features={"genres": (raw, genres)},
            user_features={
                field: (np.arange(1, shape.users + 1), column) for field, column in made.user_fields.items()
            },
            event_features=made.event_fields,
        )

    def truth(self) -> Truth:
        """What was planted in the log that a call returns."""
        made = self._make()
        raw = made.raw_items[made.items]
        met, rows = np.unique(
            raw, return_index=True
        )  # the log numbers the items it has, in order of their raw ids
        nobody = np.zeros((1, self.factors))
        return Truth(
            genres=GENRES[: self.factors],
            item_factors=np.concatenate([[-1], made.factors[rows]]),
            user_factors=np.concatenate([[-1], made.user_factors]),
            user_weights=np.concatenate([nobody, made.user_weights]),
            factors=made.factors,
            sessions=made.sessions,
            planted=made.planted,
            telling=made.telling,
        )

    def _stream(self, purpose: str) -> np.random.Generator:
        """Random numbers for one purpose, independent of those for any other."""
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence([self.seed, zlib.crc32(purpose.encode())]))
        )

    def _make(self) -> "_Made":
        shape, count = SHAPES[self.shape], self.factors
        lengths = _lengths(shape, self._stream("lengths"))
        users = np.repeat(np.arange(shape.users), lengths)
        times, begins = _times(shape, lengths, users, self._stream("times"))
        order, weights = _tastes(shape, lengths, count, self.preference, self._stream("users"))
        factors, planted = _walk(users, begins, order, weights, self.timespan, self._stream("factors"))

        sizes = np.full(count, shape.items // count)
        sizes[: shape.items % count] += 1
        # One random order within every user and factor, of events and so of items: no trace of who was drawn first.
        shuffle = self._stream("shuffle").random(len(users))
        factors = _fit(users, factors, shuffle, sizes)
        items = _items(users, factors, shuffle, sizes, SKEW * self.popularity, self._stream("items"))

        values, telling = _values(shape, users, factors, self.intensity, self._stream("values"))
        random = self._stream("fields")
        by_factor = np.empty_like(weights)
        np.put_along_axis(by_factor, order, weights, axis=1)
        return _Made(
            users=users,
            items=items,
            times=times,
            values=values,
            factors=factors,
            sessions=np.cumsum(begins) - 1,
            planted=planted,
            telling=telling,
            raw_items=1 + np.argsort(self._stream("ids").random(shape.items)),
            item_factors=np.repeat(np.arange(count), sizes),
            user_factors=order[:, 0],
            user_weights=by_factor,
            user_fields=_fields(USER_FIELDS, order[:, 0], self.fields, random),
            event_fields=_fields(EVENT_FIELDS, factors, self.fields, random),
        )


class _Made(NamedTuple):
    """Everything about a log; users and items count from 0, items in order of factor and popularity."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    values: np.ndarray
    factors: np.ndarray
    sessions: np.ndarray
    planted: np.ndarray
    telling: np.ndarray
    raw_items: np.ndarray
    item_factors: np.ndarray
    user_factors: np.ndarray
    user_weights: np.ndarray
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
    """Events of each user, (U,): Weibull beyond the shortest, at evenly spaced quantiles, with the exact sum."""
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
    sessions = np.minimum(lengths / SESSION, 0.7 * shape.days / GAP[0])
    begins = random.random(n) < (sessions / lengths)[users]
    begins[first] = True
    beyond = np.minimum(GAP[1], np.maximum(0.7 * shape.days / sessions - GAP[0], 0.0))
    days = GAP[0] - beyond[users] * np.log1p(-random.random(n))
    tied = random.random(n) < shape.ties * n / (n - begins.sum())
    pause = np.where(tied, 0.0, 1 - PAUSE * np.log1p(-random.random(n)))

    within = np.where(begins, 0, np.rint(pause)).astype(np.int64)
    between = np.where(begins, days * DAY, 0.0)
    between[first] = 0.0
    # Whoever would outlast the dataset has all gaps shortened alike.
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
    begins: np.ndarray,
    order: np.ndarray,
    weights: np.ndarray,
    timespan: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The factor each event is meant to have (n,), and whether its session set it (n,).

    A user's factors are arcs of a circle, as long as they are probable. A session is a point, uniform at first; the
    next one is a step further, at least as long as the longest arc and as far from a whole turn: so never the same
    factor, and every session's point is uniform, so that all events, free or not, have the user's weights.
    """
    longest = weights[:, 0][users]
    step = longest + (1 - 2 * longest) * random.random(len(users))
    first = np.flatnonzero(np.diff(users, prepend=-1))
    step[first] = random.random(len(first))
    session = np.cumsum(np.where(begins, step, 0.0))
    planted = random.random(len(users)) < timespan
    point = np.where(planted, session, random.random(len(users))) % 1.0
    ends = np.cumsum(weights, axis=1)
    ends[:, -1] = 1.0
    arcs = np.searchsorted((ends + np.arange(len(ends))[:, None]).ravel(), users + point, side="right")
    arcs = np.minimum(arcs - users * weights.shape[1], weights.shape[1] - 1)
    return order[users, arcs], planted


def _fit(users: np.ndarray, factors: np.ndarray, shuffle: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The factors (n,), but that no user has more events of one than it has items; the excess goes where there is room."""
    slots, rank = _slots(users, factors, shuffle, len(sizes))
    excess = slots[rank >= sizes[factors[slots]]]
    if not len(excess):
        return factors
    excess = excess[np.argsort(users[excess], kind="stable")]
    owners, which, counts = np.unique(users[excess], return_inverse=True, return_counts=True)
    taken = np.zeros((len(owners), len(sizes)), np.int64)
    affected = np.isin(users, owners)
    np.add.at(taken, (np.searchsorted(owners, users[affected]), factors[affected]), 1)
    room = np.maximum(sizes - taken, 0).ravel()
    before = np.cumsum(room.reshape(taken.shape).sum(1))
    place = (
        np.concatenate([[0], before[:-1]])[which]
        + np.arange(len(excess))
        - (np.cumsum(counts) - counts)[which]
    )
    fitted = factors.copy()
    fitted[excess] = np.searchsorted(np.cumsum(room), place, side="right") % len(sizes)
    return fitted


def _slots(
    users: np.ndarray, factors: np.ndarray, shuffle: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Events by user and factor, shuffled within (n,), and the place of each within its user and factor (n,)."""
    group = users * count + factors
    slots = np.argsort(group + shuffle)
    group = group[slots]
    first = np.flatnonzero(np.diff(group, prepend=-1))
    return slots, np.arange(len(slots)) - np.repeat(first, np.diff(first, append=len(slots)))


def _items(
    users: np.ndarray,
    factors: np.ndarray,
    shuffle: np.ndarray,
    sizes: np.ndarray,
    exponent: float,
    random: np.random.Generator,
) -> np.ndarray:
    """Items (n,), in the table's order, drawn by popularity without replacement within each user."""
    slots, _ = _slots(users, factors, shuffle, len(sizes))
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
    )  # 1 + slot of the event in which a user met an item; 0: never
    left = np.arange(len(slots))
    for _ in range(16):
        factor = factors[left]
        drawn = np.searchsorted(
            ends, low[factor] + (high - low)[factor] * random.random(len(left)), side="right"
        )
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
    back = np.empty_like(items)
    back[slots] = items
    return back


def _values(
    shape: Shape, users: np.ndarray, factors: np.ndarray, intensity: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (n,) with the dataset's shares, and which of them speak of the events that follow (n,)."""
    n = len(users)
    same, ahead = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for step in range(1, HORIZON + 1):
        mine = users[step:] == users[:-step]
        ahead[:-step] += mine
        same[:-step] += mine & (factors[step:] == factors[:-step])
    telling = (random.random(n) < intensity) & (ahead > 0)
    level = np.rint(same * HORIZON / np.maximum(ahead, 1)).astype(np.int64)
    counts = np.bincount(level[telling], minlength=HORIZON + 1)
    # A quantile: uniform over all events, whatever the intensity, so that the shares of the ratings stay.
    uniform = random.random(n)
    planted = ((np.cumsum(counts) - counts)[level] + uniform * counts[level]) / max(counts.sum(), 1)
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
