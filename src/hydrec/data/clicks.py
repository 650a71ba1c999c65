"""Which item was shown to whom, with which history and label, in which part: protocols of click models.

A sample is one showing of one item. Where a log has interactions only, each is a positive, and its negatives
are items drawn once, which copy user, history, time and context of their positive: these differ in nothing
but the item, and so tell nothing by themselves. Where a log has labels, its rows are the samples.

Letters: n samples, m positives, N rows of the log, V items.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch

from hydrec.click_metrics import ClickMetrics
from hydrec.data.log import InteractionLog, ragged
from hydrec.data.protocols import later_rows, parts_of_times, selected, shares, tied_by_chance
from hydrec.errors import InputError, at_least, one_of
from hydrec.sampling import below, hash64

NEGATIVES = ("uniform", "same_category", "reviews")
CATEGORIES = ("category", "categories", "genres")  # features of items; the first that is there counts
ROUNDS = 32  # of draws at random; what they leave is drawn from a list of what is left
LISTED = 2**22  # elements of such lists at once
DAY = 86400  # seconds


class Behaviours(NamedTuple):
    """What histories are made of: events in the order that pointers count them, (M,) each.

    Attributes:
        items: 1..V.
        times: seconds.
        values: intensity, NaN where absent.
    """

    items: np.ndarray
    times: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ClickSamples:
    """Showings of items, ascending in ``row``: 29 bytes each, however long the history.

    Attributes:
        first, last: (n,) int64; the history is the behaviours ``first:last``, oldest first; may be empty.
        item: (n,) int32, the item shown.
        label: (n,) int8, 1 if it was clicked.
        row: (n,) int64; the row of the log whose user, time and context it has.
    """

    first: np.ndarray
    last: np.ndarray
    item: np.ndarray
    label: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, which: np.ndarray) -> "ClickSamples":
        """The samples at some positions or where a mask holds."""
        return ClickSamples(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


@dataclass(frozen=True)
class ClickSplit:
    """The parts that a protocol makes of a log.

    Attributes:
        log: what ``row`` points into: the log that was split, or what the protocol made of it.
        behaviours: what histories point into.
        train, valid, test: samples of each part.
        notes: what was left out, by name: counts for the record of a run.
    """

    log: InteractionLog
    behaviours: Behaviours
    train: ClickSamples
    valid: ClickSamples
    test: ClickSamples
    notes: dict[str, int]

    def parts(self) -> dict[str, ClickSamples]:
        """The parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


class ClickProtocol(ABC):
    """What all protocols of clicks share.

    Args:
        window: events of a history, at most.
        shuffle_ties: a seed that orders a user's events of one time by chance, to see how much hangs on it;
            ``None`` for the order of the raw file.
        metrics: the metrics of click models.

    Attributes:
        name: as configurations call it.
        version: counts changes of the rule itself.
        label: what every table from this protocol must say.
        needs: what mends an empty part.

    Raises:
        InputError: a value cannot be used; names the configuration key.
    """

    name: str
    version = 1
    label = ""
    needs = "more data"

    def __init__(self, *, window: int, shuffle_ties: int | None, metrics: ClickMetrics) -> None:
        self.window = at_least("protocol.window", window, 1)
        self.shuffle_ties = shuffle_ties
        if shuffle_ties is not None:
            at_least("protocol.shuffle_ties", shuffle_ties, 0)
        self.metrics = metrics

    def __call__(self, log: InteractionLog) -> ClickSplit:
        """Splits a log.

        Raises:
            InputError: a part would be empty, or the log is not of this kind.
        """
        if self.shuffle_ties is not None:
            log = selected(log, tied_by_chance(log, self.shuffle_ties))
        split = self.split(log)
        for name, part in split.parts().items():
            if not len(part):
                raise InputError(
                    f"protocol={self.name} leaves no sample in {name}: {log.n_users} users have {len(log)}"
                    f" events ({split.notes}); use {self.needs}"
                )
            if name != "train" and part.label.min() == part.label.max():
                raise InputError(
                    f"protocol={self.name}: the labels of all {len(part)} samples of {name} are"
                    f" {part.label[0]}, and AUC compares both; use {self.needs}"
                )
        return split

    @abstractmethod
    def split(self, log: InteractionLog) -> ClickSplit:
        """Makes the parts, any of which may be empty."""

    @abstractmethod
    def rule(self) -> dict[str, Any]:
        """What defines the samples, beside the window."""

    def division(self) -> dict[str, Any]:
        """What says which samples train, as plain values."""
        about = {"protocol": self.name, "version": self.version, "window": self.window}
        return {**about, **self.rule(), "shuffle_ties": self.shuffle_ties}

    def identity(self) -> dict[str, Any]:
        """Everything that makes two results comparable, as plain values."""
        return {**self.division(), "metrics": self.metrics.identity()}


# Interactions as positives ----------------------------------------------------------------------------------


class Interactions(ClickProtocol):
    """Protocols whose positives are interactions, with negatives drawn beside each.

    Args:
        neg_ratio: negatives of a positive, at least 1, all different.
        neg: ``uniform`` over the items; ``same_category``, uniform over those whose first category is the
            positive's, and over all items where none of these is left; ``reviews``, the item of any event, so
            by popularity. The first two leave out what the user meets, ``reviews`` only the positive.
        seed: of the draws, whatever the seed of the run.
        shared: those of `ClickProtocol`.

    Attributes:
        only_seen: whether a negative has been met by someone before the time of its positive, and only items
            that the user met until then are left out; else the whole log is known.
    """

    only_seen = False

    def __init__(self, *, neg_ratio: int, neg: str, seed: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.neg_ratio = at_least("protocol.neg_ratio", neg_ratio, 1)
        self.neg = one_of("protocol.neg", neg, NEGATIVES)
        self.seed = at_least("protocol.seed", seed, 0)

    def rule(self) -> dict[str, Any]:
        """How negatives are drawn."""
        return {"neg_ratio": self.neg_ratio, "neg": self.neg, "seed": self.seed}

    def split(self, log: InteractionLog) -> ClickSplit:
        """Makes the parts from their positives."""
        if log.labels is not None:
            raise InputError(
                f"protocol={self.name}: the rows of {log.name} have labels, so nothing need be drawn; use"
                " protocol=click_rating or click_days"
            )
        positives, notes = self.positives(log)
        behaviours = Behaviours(log.items, log.times, log.values)
        negatives = _Negatives(
            log, ratio=self.neg_ratio, kind=self.neg, seed=self.seed, only_seen=self.only_seen
        )
        parts, lacking = [], 0
        for rows in positives:
            drawn = negatives(rows)
            item = np.column_stack([log.items[rows], drawn])  # the positive before its negatives
            place, column = np.nonzero(item)
            row = rows[place]
            first = np.maximum(row - self.window, log.offsets[log.users[row]])
            label = (column == 0).astype(np.int8)
            parts.append(ClickSamples(first, row, item[place, column], label, row))
            lacking += int((drawn == 0).sum())
        train, valid, test = parts
        notes |= {"negatives_lacking": lacking}
        return ClickSplit(log, behaviours, train, valid, test, notes)

    @abstractmethod
    def positives(self, log: InteractionLog) -> tuple[list[np.ndarray], dict[str, int]]:
        """The rows of the positives of train, valid and test, ascending, and what was left out."""


class ClickLast(Interactions):
    """A user's last event is tested, the last but one validates, all between the first and these train.

    P1: Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018, with the code
    zhougr1993/DeepInterestNetwork; the reading of MIAN's data that fits its counts. Differs from it in that
    the last but one validates: DIN has no validation part and chooses its epoch by the test part.

    The history of an event is the last ``window`` before it. Other users' later events train.
    """

    name = "click_last"
    needs = "data with more events a user: protocol=click_last trains on users with four or more"

    def positives(self, log: InteractionLog) -> tuple[list[np.ndarray], dict[str, int]]:
        """By each user's last events."""
        sizes = np.diff(log.offsets)
        part = np.where(later_rows(log), 0, -1)
        part[log.offsets[1:][sizes >= 3] - 2] = 1
        part[log.offsets[1:][sizes >= 2] - 1] = 2
        notes = {"users_too_short": int((sizes[1:] == 1).sum())}
        return [np.flatnonzero(part == number) for number in range(3)], notes


class ClickUserSplit(Interactions):
    """Each user's last event is the one positive; the users are divided at random.

    P2: Zhou et al., "Deep interest evolution network for click-through rate prediction", AAAI 2019, with the
    code mouna99/dien, which draws negatives from all reviews (``neg: reviews``): one may be in the history.
    Differs from it in that some of the users validate.

    Args:
        valid, test: share of the users; ``valid`` is of those that are not tested.
        split_seed: of the division.
        shared: those of `Interactions`.
    """

    name = "click_user_split"
    needs = "data of more users, or larger shares protocol.valid and protocol.test"

    def __init__(self, *, valid: float, test: float, split_seed: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.valid, self.test = shares(valid, test)
        self.split_seed = at_least("protocol.split_seed", split_seed, 0)

    def rule(self) -> dict[str, Any]:
        """Shares and seeds."""
        shares = {"valid": str(self.valid), "test": str(self.test), "split_seed": self.split_seed}
        return super().rule() | shares

    def positives(self, log: InteractionLog) -> tuple[list[np.ndarray], dict[str, int]]:
        """By user."""
        sizes = np.diff(log.offsets)
        user = np.flatnonzero(sizes >= 2)
        part = _parts_of_users(user, self.valid, self.test, self.split_seed)
        rows = log.offsets[user + 1] - 1
        notes = {"users_too_short": int((sizes[1:] == 1).sum())}
        return [rows[part == number] for number in range(3)], notes


class ClickGlobalTime(Interactions):
    """Events before a cut in time train, later ones validate, those after a second cut are tested.

    P4: no sample knows anything of later times: neither its history, nor its negatives, which someone has met
    before the time of the positive, and which leave out what the user has met until then, not what comes.

    Args:
        valid, test: share of all events between the cuts and after the second; events of one time fall into
            one part, the later one.
        shared: those of `Interactions`.
    """

    name = "click_global_time"
    needs = "data whose users come back later, or larger shares protocol.valid and protocol.test"
    only_seen = True

    def __init__(self, *, valid: float, test: float, **shared: Any) -> None:
        super().__init__(**shared)
        self.valid, self.test = shares(valid, test)

    def rule(self) -> dict[str, Any]:
        """Shares and negatives."""
        return super().rule() | {"valid": str(self.valid), "test": str(self.test)}

    def positives(self, log: InteractionLog) -> tuple[list[np.ndarray], dict[str, int]]:
        """By time; a user's first event has no history and is left out."""
        later = later_rows(log)
        part = parts_of_times(log, self.valid, self.test)
        notes = {"events_without_history": int((~later).sum())}
        return [np.flatnonzero(later & (part == number)) for number in range(3)], notes


class _Negatives:
    """Draws items beside positives; what a positive gets depends on its row alone."""

    def __init__(self, log: InteractionLog, *, ratio: int, kind: str, seed: int, only_seen: bool) -> None:
        self.log, self.ratio, self.seed = log, ratio, seed
        self.met = None if kind == "reviews" else _Met(log, until=only_seen)
        kinds = (kind, "uniform") if kind == "same_category" else (kind,)
        self.pools = [_Pool(log, each, only_seen) for each in kinds]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(m, ratio) int32 items, distinct in a row, for the positives of some rows; 0 where none is left."""
        found = np.zeros((len(rows), self.ratio), np.int32)
        for number in range(self.ratio):

            def free(which: np.ndarray, item: np.ndarray, number: int = number) -> np.ndarray:
                row = rows[which]
                taken = (item == self.log.items[row]) | (found[which, :number] == item[:, None]).any(1)
                return ~taken if self.met is None else ~(taken | self.met(row, item))

            left = np.arange(len(rows))
            for pool in self.pools:
                low, high = pool.range(rows[left])
                found[left, number] = _draw(pool.items, low, high, left, rows, free, self.seed, number)
                left = left[found[left, number] == 0]
        return found


class _Pool:
    """Where negatives are drawn: elements of a list of items, from a range that depends on the positive."""

    def __init__(self, log: InteractionLog, kind: str, only_seen: bool) -> None:
        self.log = log
        if kind == "reviews":
            item, group, since = log.items, np.zeros(len(log), np.int64), log.times
        else:
            item = np.arange(1, log.n_items + 1, dtype=np.int32)
            group = _first_categories(log)[1:] if kind == "same_category" else np.zeros(len(item), np.int64)
            since = np.full(log.n_items + 1, np.iinfo(np.int64).max)
            np.minimum.at(since, log.items, log.times)
            since = since[1:]
        self.clock = np.sort(since)  # np.unique would hash: far slower
        self.clock = self.clock[np.append(True, np.diff(self.clock) > 0)]
        self.only_seen, self.by_category = only_seen, kind == "same_category"
        key = self._key(group, np.searchsorted(self.clock, since))
        order = np.argsort(key, kind="stable")
        self.key, self.items = key[order], item[order]

    def range(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,) each: the elements ``low:high`` of the list are for the positive of each row."""
        group = _first_categories(self.log)[self.log.items[rows]] if self.by_category else 0 * rows
        times = self.log.times[rows]
        last = np.searchsorted(self.clock, times) if self.only_seen else np.full(len(rows), len(self.clock))
        low, high = self._key(group, 0 * rows), self._key(group, last)
        return np.searchsorted(self.key, low), np.searchsorted(self.key, high)

    def _key(self, group: np.ndarray, place: np.ndarray) -> np.ndarray:
        return group * np.int64(len(self.clock) + 1) + place


class _Met:
    """Whether the user of a row meets an item: ever, or until the time of the row."""

    def __init__(self, log: InteractionLog, until: bool) -> None:
        self.log, self.until = log, until
        pair = log.users * np.int64(log.n_items + 1) + log.items
        order = np.argsort(pair, kind="stable")  # a pair's events stay in order of time
        first = np.append(True, np.diff(pair[order]) > 0)
        self.pair, self.since = pair[order][first], log.times[order][first]

    def __call__(self, row: np.ndarray, item: np.ndarray) -> np.ndarray:
        pair = self.log.users[row] * np.int64(self.log.n_items + 1) + item
        place = np.minimum(np.searchsorted(self.pair, pair), len(self.pair) - 1)
        met = self.pair[place] == pair
        return met & (self.since[place] <= self.log.times[row]) if self.until else met


def _draw(
    pool: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    which: np.ndarray,
    rows: np.ndarray,
    free: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seed: int,
    number: int,
) -> np.ndarray:
    """Draws one free item of each range of a pool, 0 where there is none; depends on the row alone.

    Args:
        pool: items.
        low: (k,) where the ranges begin.
        high: (k,) where they end.
        which: (k,) the positives they are for, as ``free`` and ``rows`` count them.
        rows: row of the log of each positive.
        free: whether items may be drawn for positives.
        seed: of the protocol.
        number: which of the positive's negatives this is.
    """
    found = np.zeros(len(which), pool.dtype)
    lacking = np.flatnonzero(high > low)
    for turn in range(ROUNDS):
        if not len(lacking):
            return found
        place = _below(high[lacking] - low[lacking], seed, rows[which[lacking]], number, turn)
        item = pool[low[lacking] + place]
        good = free(which[lacking], item)
        found[lacking[good]] = item[good]
        lacking = lacking[~good]
    # Little is free in what is left: list it, some at a time.
    ends = np.cumsum(high[lacking] - low[lacking])
    for some in np.split(lacking, np.flatnonzero(np.diff(ends // LISTED)) + 1):
        owner, place = ragged(high[some] - low[some])
        item = pool[low[some][owner] + place]
        good = free(which[some][owner], item)
        owner, item = owner[good], item[good]
        count = np.bincount(owner, minlength=len(some))
        has = count > 0
        choice = (np.cumsum(count) - count)[has]
        choice += _below(count[has], seed, rows[which[some[has]]], number, ROUNDS)
        found[some[has]] = item[choice]
    return found


def _below(bound: np.ndarray, seed: int, row: np.ndarray, number: int, turn: int) -> np.ndarray:
    bits = hash64(seed, "click negatives", torch.from_numpy(row), number, turn)
    return below(bits, torch.from_numpy(bound)).numpy()


def _first_categories(log: InteractionLog) -> np.ndarray:
    """(V + 1,) code of the first category of each item.

    Raises:
        InputError: items have no categories.
    """
    for name in CATEGORIES:
        if feature := log.item_features.get(name):
            return feature.codes[feature.offsets[:-1]].astype(np.int64)
    raise InputError(
        f"protocol.neg=same_category: the items of {log.name} have no feature {' or '.join(CATEGORIES)}; get"
        " their metadata, or use protocol.neg=uniform"
    )


# Rows with labels -------------------------------------------------------------------------------------------


class Labelled(ClickProtocol):
    """Protocols whose samples are the rows of the log, with labels of their own.

    A history is what the row brings with it, or else the last ``window`` rows with label 1 that come before:
    before the row, or before its day. It may be empty.

    Args:
        threshold: rows with a value of at least this have label 1; ``None`` for the labels of the log.
        shared: those of `ClickProtocol`.
    """

    def __init__(self, *, threshold: float | None, **shared: Any) -> None:
        super().__init__(**shared)
        self.threshold = threshold

    def rule(self) -> dict[str, Any]:
        """The threshold."""
        return {"threshold": self.threshold}

    def split(self, log: InteractionLog) -> ClickSplit:
        """Makes the parts of the log's rows."""
        label = self._labels(log)
        part, before, notes = self.divide(log)
        if log.past_items is not None and log.past_offsets is not None:
            first, last = log.past_offsets[:-1], log.past_offsets[1:]
            nothing = np.zeros(len(log.past_items), np.int64)
            behaviours = Behaviours(log.past_items, nothing, np.full(len(nothing), np.nan, np.float32))
        else:
            clicked = np.flatnonzero(label)
            behaviours = Behaviours(log.items[clicked], log.times[clicked], log.values[clicked])
            clicks = np.concatenate([[0], np.cumsum(label, dtype=np.int64)])
            first, last = clicks[log.offsets[log.users]], clicks[before]
        samples = ClickSamples(
            np.maximum(first, last - self.window), last, log.items, label, np.arange(len(log))
        )
        train, valid, test = (samples[part == number] for number in range(3))
        return ClickSplit(log, behaviours, train, valid, test, notes)

    @abstractmethod
    def divide(self, log: InteractionLog) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """(N,) part of each row, 0, 1 or 2; (N,) the row before which its history ends; what was left out."""

    def _labels(self, log: InteractionLog) -> np.ndarray:
        """(N,) int8.

        Raises:
            InputError: there is nothing to make them of.
        """
        if self.threshold is None:
            if log.labels is None:
                raise InputError(
                    f"protocol.threshold=null: the rows of {log.name} have no labels; give the least value"
                    " of a click, or name a column of labels in dataset.reader.columns.label"
                )
            return log.labels
        if log.labels is not None:
            raise InputError(
                f"protocol.threshold={self.threshold}: the rows of {log.name} have labels; set it to null"
            )
        if np.isnan(log.values).any():
            raise InputError(
                f"protocol.threshold={self.threshold}: {int(np.isnan(log.values).sum())} rows of {log.name}"
                " have no value; use a protocol that draws negatives, as protocol=click_last"
            )
        return (log.values >= self.threshold).astype(np.int8)


class ClickRating(Labelled):
    """Every rating is a sample, liked or not; histories are what the user liked before.

    The second form of MovieLens in the literature on clicks: ratings of 4 and more are label 1. Also for any
    log with labels of its own.

    Args:
        cut: ``time`` for one cut in time for all users, ``user`` for users divided at random.
        valid, test: share of the rows; or of the users, ``valid`` of those that are not tested.
        split_seed: of the division of users.
        shared: those of `Labelled`.
    """

    name = "click_rating"
    needs = "more data, or larger shares protocol.valid and protocol.test"

    def __init__(self, *, cut: str, valid: float, test: float, split_seed: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.cut = one_of("protocol.cut", cut, ("time", "user"))
        self.valid, self.test = shares(valid, test)
        self.split_seed = at_least("protocol.split_seed", split_seed, 0)

    def rule(self) -> dict[str, Any]:
        """Threshold, cut and shares."""
        rule = super().rule() | {"cut": self.cut, "valid": str(self.valid), "test": str(self.test)}
        return rule | ({"split_seed": self.split_seed} if self.cut == "user" else {})

    def divide(self, log: InteractionLog) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """By time or by user; histories end before the row."""
        if self.cut == "time":
            part = parts_of_times(log, self.valid, self.test)
        else:
            user = np.arange(log.n_users + 1)
            part = _parts_of_users(user[1:], self.valid, self.test, self.split_seed)[log.users - 1]
        return part, np.arange(len(log)), {}


class ClickDays(Labelled):
    """The last days are tested, those before validate, all earlier ones train; days are UTC.

    As industrial logs are used, MIAN's commercial one among them: clicks of 29 days predict day 30. Histories
    end before the day of the row, since features are made overnight.

    Args:
        valid, test: number of days.
        shared: those of `Labelled`.
    """

    name = "click_days"
    needs = "a log of more days, or fewer of them in protocol.valid and protocol.test"

    def __init__(self, *, valid: int, test: int, **shared: Any) -> None:
        super().__init__(**shared)
        self.valid = at_least("protocol.valid", valid, 1)
        self.test = at_least("protocol.test", test, 1)

    def rule(self) -> dict[str, Any]:
        """Threshold and days."""
        return super().rule() | {"valid": self.valid, "test": self.test}

    def divide(self, log: InteractionLog) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """By day; histories end before the row's day."""
        log.need_dates("protocol=click_days")
        day = log.times // DAY
        from_end = day.max() - day
        part = (from_end < self.test).astype(np.int8) + (from_end < self.test + self.valid)
        begins = np.append(True, (day[1:] != day[:-1]) | (log.users[1:] != log.users[:-1]))
        before = np.maximum.accumulate(np.where(begins, np.arange(len(log)), 0))
        return part, before, {"days": len(np.unique(day))}


# What they share --------------------------------------------------------------------------------------------


def _parts_of_users(user: np.ndarray, valid: Fraction, test: Fraction, seed: int) -> np.ndarray:
    """0, 1 or 2 for each of some users, exact shares by a hash of their numbers."""
    order = np.argsort(hash64(seed, "users", torch.from_numpy(user)).numpy(), kind="stable")
    tested = len(user) * test.numerator // test.denominator
    validated = (len(user) - tested) * valid.numerator // valid.denominator
    part = np.zeros(len(user), np.int64)
    part[order[:tested]], part[order[tested : tested + validated]] = 2, 1
    return part
