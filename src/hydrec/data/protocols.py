"""Which event is predicted from which history, in which part: a log to pointers, nothing copied.

A protocol also fixes what its numbers mean: the candidates of a target, whether the user's past competes, and
the metrics. All of that is its `identity`; results of other identities are not comparable.

Letters: n samples, U users, V items.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hydrec.batch import PAD
from hydrec.data.log import Feature, InteractionLog, gathered, ragged
from hydrec.errors import InputError, at_least, one_of
from hydrec.metrics import RankMetrics
from hydrec.sampling import hash64

CANDIDATES = ("full", "sampled")
EXCLUDE = ("window", "user", "train")


class Samples:
    """Pointers into a log, ascending in ``target``: 24 bytes a sample, however long its history.

    Attributes:
        first, last: (n,) int64; the history is the rows ``first:last``, oldest first.
        target: (n,) int64; the row to predict. No two samples of a part share it.
    """

    def __init__(self, first: np.ndarray, last: np.ndarray, target: np.ndarray) -> None:
        self.first, self.last, self.target = first, last, target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, which: np.ndarray) -> "Samples":
        """The samples at some positions or where a mask holds."""
        return Samples(self.first[which], self.last[which], self.target[which])

    def spans(self) -> "Samples":
        """Samples that have the same rows, and the same neighbours among them; fewer, where that is easy."""
        return self


class Latest(Samples):
    """Samples whose history is the last ``window`` events of the target's user: 8 bytes a sample.

    Args:
        log: the log.
        target: rows in ascending order, no user's first.
        window: events of a history, at most.
    """

    def __init__(self, log: InteractionLog, target: np.ndarray, window: int) -> None:
        self.log, self.window = log, window
        self.last = self.target = target

    @cached_property
    def first(self) -> np.ndarray:  # type: ignore[override]
        """Found when asked for, and that is mostly of the few samples of a batch."""
        return np.maximum(self.target - self.window, self.log.offsets[self.log.users[self.target]])

    def __getitem__(self, which: np.ndarray) -> "Latest":
        return Latest(self.log, self.target[which], self.window)

    def spans(self) -> Samples:
        """One for each run of targets: what the first of a run has before it, the others have as well."""
        gaps, n = np.flatnonzero(np.diff(self.target) > 1), len(self)
        first, target = self[np.append(0, gaps + 1)[:n]].first, self.target[np.append(gaps, n - 1)[:n]]
        return Samples(first, target, target)


@dataclass(frozen=True)
class Split:
    """The parts that a protocol makes of a log.

    Attributes:
        log: what the pointers point into: the log that was split, or what the protocol made of it.
        train, valid, test: samples of each part.
        windows: samples in all.
        notes: what was left out, by name: counts for the record of a run.
    """

    log: InteractionLog
    train: Samples
    valid: Samples
    test: Samples
    windows: int
    notes: dict[str, int]

    def parts(self) -> dict[str, Samples]:
        """The parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


@dataclass(frozen=True)
class ListRule:
    """How the competitors of a target are drawn when they are not the whole catalogue.

    Args:
        count: competitors of each target.
        exponent: an item's weight is (times it is a training target) ** exponent; 0 draws uniformly.
        exclude: what does not compete, beside the target: ``window``, the history; ``user``, all of the
            user's events; ``train``, the user's events in training.
        replace: whether an item may come twice in a list.
        seed: of the lists, whatever the seed of the run.
    """

    count: int
    exponent: float
    exclude: str
    replace: bool
    seed: int

    def __post_init__(self) -> None:
        at_least("protocol.sampled.count", self.count, 1)
        at_least("protocol.sampled.seed", self.seed, 0)
        one_of("protocol.sampled.exclude", self.exclude, EXCLUDE)
        flag("sampled.replace", self.replace)


class Protocol(ABC):
    """What all protocols share: the length of a history and the rules of evaluation.

    Args:
        window: events of a history, at most.
        candidates: what a target is ranked against: ``full``, the whole catalogue; ``sampled``, a list drawn
            by the rule ``sampled``.
        mask_history: whether the user's earlier items do not compete. The target always does.
        cold: ``keep`` tests targets whose item no training row has, as they fall; ``drop`` leaves them out.
        shuffle_ties: a seed that orders a user's events of one time by chance, to see how much hangs on it;
            ``None`` for the order of the raw file.
        sampled: settings of a `ListRule`; read only for ``sampled`` candidates.
        metrics: the ranking metrics, with their cut-offs and tie rule.

    Attributes:
        name: as configurations call it.
        version: counts changes of the rule itself.
        label: what every table from this protocol must say.
        needs: what mends an empty part.
        lists: the rule of sampled candidates, ``None`` for the whole catalogue.

    Raises:
        InputError: a value cannot be used; names the configuration key.
    """

    name: str
    version = 1
    label = ""
    needs = "more data, or a protocol.window below {}"

    def __init__(
        self,
        *,
        window: int,
        candidates: str,
        mask_history: bool,
        cold: str,
        shuffle_ties: int | None,
        sampled: Mapping[str, Any],
        metrics: RankMetrics,
    ) -> None:
        self.window = at_least("protocol.window", window, 1)
        self.candidates = one_of("protocol.candidates", candidates, CANDIDATES)
        self.mask_history = flag("mask_history", mask_history)
        self.cold = one_of("protocol.cold", cold, ("keep", "drop"))
        self.shuffle_ties = shuffle_ties
        if shuffle_ties is not None:
            at_least("protocol.shuffle_ties", shuffle_ties, 0)
        self.lists = _list_rule(sampled) if candidates == "sampled" else None
        self.metrics = metrics

    def __call__(self, log: InteractionLog) -> Split:
        """Splits a log.

        Raises:
            InputError: a part would be empty.
        """
        if log.labels is not None:
            raise InputError(
                f"protocol={self.name}: the rows of {log.name} have labels, so not all are interactions; use"
                " a protocol of clicks, or read clicks only (dataset.reader.where) and no label"
            )
        if self.shuffle_ties is not None:
            log = selected(log, tied_by_chance(log, self.shuffle_ties))
        split = self.split(log)
        if self.cold == "drop":
            split = _without_cold(split)
        empty = [name for name, part in split.parts().items() if not len(part)]
        if empty:
            raise InputError(
                f"protocol={self.name} leaves no sample in {' and '.join(empty)}: {log.n_users} users give"
                f" {split.windows} samples ({split.notes}); use {self.needs.format(self.window)}"
            )
        return split

    @abstractmethod
    def split(self, log: InteractionLog) -> Split:
        """Makes the parts, any of which may be empty."""

    @abstractmethod
    def rule(self) -> dict[str, Any]:
        """What defines the split, beside the window."""

    def division(self) -> dict[str, Any]:
        """What says which rows train, as plain values."""
        about = {"protocol": self.name, "version": self.version, "window": self.window}
        return {**about, **self.rule(), "shuffle_ties": self.shuffle_ties}

    def identity(self) -> dict[str, Any]:
        """Everything that makes two results comparable, as plain values."""
        lists = {} if self.lists is None else {"sampled": dataclasses.asdict(self.lists)}
        return {
            **self.division(),
            "candidates": self.candidates,
            **lists,
            "mask_history": self.mask_history,
            "cold": self.cold,
            "metrics": self.metrics.identity(),
        }


class SlidingWindow(Protocol):
    """Windows over each user's events, cut by the time of their targets.

    "Modeling Factorial User Preference with Hierarchical Graph Neural Network for Enhanced Sequential
    Recommendation" (HGNN), section on data: windows of 13 events, the earlier ones to train. Users with fewer
    events than a window and a target are left out.

    A window ends with its target, so everything in a training window is earlier than every validation target,
    and that earlier than every test target: of all users (``scope: global``), or of the same user (``user``).
    All samples of one time fall into one part.

    Args:
        window: events of a history, exactly.
        stride: events from one window of a user to the next; ``window + 1`` shares no event, 1 makes all.
        scope: ``global`` cuts at one time for all users; ``user`` at each user's own, so that at least one
            window is tested and one validates; users with fewer than three windows only train.
        valid, test: share of the samples; ``valid`` is of those that are not tested.
        shared: all others of `Protocol`.
    """

    name = "sliding_window"

    def __init__(
        self,
        *,
        window: int,
        stride: int,
        scope: str,
        valid: float,
        test: float,
        **shared: Any,
    ) -> None:
        super().__init__(window=window, **shared)
        self.stride = at_least("protocol.stride", stride, 1)
        self.scope = one_of("protocol.scope", scope, ("global", "user"))
        self.valid, self.test = share("valid", valid), share("test", test)

    def rule(self) -> dict[str, Any]:
        """Stride, scope and shares."""
        return {"stride": self.stride, "scope": self.scope, "valid": str(self.valid), "test": str(self.test)}

    def split(self, log: InteractionLog) -> Split:
        """Splits a log by target time."""
        if self.scope == "global":
            log.need_dates("protocol.scope=global")
        sizes = np.diff(log.offsets)
        samples = _windows(log, self.window, self.stride, (sizes - self.window - 1) // self.stride + 1)
        time = log.times[samples.target]
        group = log.users[samples.target] if self.scope == "user" else np.zeros(len(samples), np.int64)
        test = self._latest(group, time, self.test, enough=3)
        valid = np.zeros_like(test)
        valid[~test] = self._latest(group[~test], time[~test], self.valid, enough=2)
        valid &= np.isin(group, group[test])
        return Split(
            log,
            samples[~test & ~valid],
            samples[valid],
            samples[test],
            windows=len(samples),
            notes={"users_too_short": int((sizes[1:] <= self.window).sum())},
        )

    def _latest(self, group: np.ndarray, time: np.ndarray, share: Fraction, enough: int) -> np.ndarray:
        """Whether each sample is among the last ``share`` of its group, or as late as one that is."""
        order = np.lexsort((time, group))
        sizes = np.bincount(group)
        count = sizes * share.numerator // share.denominator
        if self.scope == "user":
            count = np.where(sizes >= enough, np.maximum(count, 1), 0)
        some = count > 0
        cut = np.full(len(sizes), np.iinfo(np.int64).max)
        cut[some] = time[order[(sizes.cumsum() - count)[some]]]
        return time >= cut[group]


class ReleasedWindows(Protocol):
    """Windows and split of the code released with HGNN (data/movielens/preprocess.py, commit 2193524).

    Differs from the paper's text in that a user with l events gives l // (window + 1) windows that start at
    its first events, one event apart, and that windows go to parts by a random permutation. Neighbouring
    windows share all but one of their events, so most test targets are in training windows: hence the label.

    The log is cut down to the events of its windows. So the catalogue is theirs, as released: 3,388 of the
    3,706 items of MovieLens-1M. Competitors drawn from the others, which no window has, would be too easy.

    Users are taken by ascending id, the order of the file for MovieLens-1M.

    Args:
        window: events of a history, exactly.
        seed: of NumPy's legacy generator, whose permutation of the windows is reproduced bit for bit.
        valid, test: share of the windows; ``valid`` is of those that are not tested.
        order: ``numeric`` sorts a user's events by time; ``string``, like the released code, by the time's
            digits, which puts times below 10^9 (before 9 September 2001) last.
        validation_in_train: whether validation windows train as well, as in the released code.
        shared: all others of `Protocol`.
    """

    name = "released_windows"
    label = "leaky"

    def __init__(
        self,
        *,
        window: int,
        seed: int,
        valid: float,
        test: float,
        order: str,
        validation_in_train: bool,
        **shared: Any,
    ) -> None:
        super().__init__(window=window, **shared)
        self.seed = at_least("protocol.seed", seed, 0)
        self.valid, self.test = share("valid", valid), share("test", test)
        self.order = one_of("protocol.order", order, ("numeric", "string"))
        self.validation_in_train = flag("validation_in_train", validation_in_train)

    def rule(self) -> dict[str, Any]:
        """Permutation seed, shares, order of events, and whether validation trains."""
        return {
            "seed": self.seed,
            "valid": str(self.valid),
            "test": str(self.test),
            "order": self.order,
            "validation_in_train": self.validation_in_train,
        }

    def split(self, log: InteractionLog) -> Split:
        """Splits a log by permutation."""
        rows = np.arange(len(log))
        if self.order == "string":
            rows = np.lexsort((log.times.astype(str), log.users))
        sizes = np.diff(log.offsets)
        counts = sizes // (self.window + 1)
        reached = np.where(counts > 0, counts + self.window, 0)
        log = selected(log, rows[ragged(sizes)[1] < reached[log.users]])
        samples = _windows(log, self.window, 1, counts)
        shuffled = np.random.RandomState(self.seed).permutation(len(samples))
        tested = len(samples) * self.test.numerator // self.test.denominator
        validated = (len(samples) - tested) * self.valid.numerator // self.valid.denominator
        test, valid, train = np.split(shuffled, [tested, tested + validated])
        if self.validation_in_train:
            train = np.concatenate([train, valid])
        return Split(
            log,
            samples[np.sort(train)],
            samples[np.sort(valid)],
            samples[np.sort(test)],
            windows=len(samples),
            notes={"users_too_short": int((sizes[1:] <= self.window).sum())},
        )


class LeaveOneOut(Protocol):
    """Each user's last event is tested, the last but one validates, every event between trains.

    A history is the last ``window`` events before its target; those of a test target include the validation
    target. Users with fewer than three events only train. Not free of leakage in time: other users' later
    events are in training.

    Args:
        shared: those of `Protocol`.
    """

    name = "leave_one_out"
    needs = "data with more events a user: protocol=leave_one_out tests users with three or more"

    def rule(self) -> dict[str, Any]:
        """Nothing beside the window."""
        return {}

    def split(self, log: InteractionLog) -> Split:
        """Splits a log by each user's last events."""
        sizes = np.diff(log.offsets)
        last = log.offsets[1:][sizes >= 3] - 1
        trains = later_rows(log)
        trains[last] = trains[last - 1] = False
        train, valid, test = (
            Latest(log, target, self.window) for target in (np.flatnonzero(trains), last - 1, last)
        )
        return Split(
            log,
            train,
            valid,
            test,
            windows=len(train) + len(valid) + len(test),
            notes={
                "users_too_short": int((sizes[1:] == 1).sum()),
                "users_only_training": int((sizes[1:] == 2).sum()),
            },
        )


class GlobalTime(Protocol):
    """Events before a cut in time train, later ones validate, those after a second cut are tested.

    The cuts are the same for all users, so nothing in training is as late as any validation target, and
    nothing of those as late as any test target. A history is the last ``window`` events of the user before
    the target, whatever their part. Targets without a history are left out.

    "A Critical Study on Data Leakage in Recommender System Offline Evaluation", Ji et al., TOIS 2023.

    Args:
        valid, test: share of all events between the cuts and after the second; events of one time fall into
            one part, the later one.
        targets: of a user's events in a part that is evaluated: the ``first``, ``all`` or the ``last``.
        shared: those of `Protocol`.
    """

    name = "global_time"
    needs = "data whose users come back later, or larger shares protocol.valid and protocol.test"

    def __init__(self, *, valid: float, test: float, targets: str, **shared: Any) -> None:
        super().__init__(**shared)
        self.valid, self.test = shares(valid, test)
        self.targets = one_of("protocol.targets", targets, ("first", "all", "last"))

    def rule(self) -> dict[str, Any]:
        """Shares and targets."""
        return {"valid": str(self.valid), "test": str(self.test), "targets": self.targets}

    def split(self, log: InteractionLog) -> Split:
        """Splits a log at two times."""
        part = parts_of_times(log, self.valid, self.test)
        stay = (log.users[1:] == log.users[:-1]) & (part[1:] == part[:-1])  # with the row before
        asked = {
            "first": np.append(True, ~stay),
            "all": np.ones(len(log), bool),
            "last": np.append(~stay, True),
        }[self.targets]
        later = later_rows(log)
        asked |= part == 0
        train, valid, test = (
            Latest(log, np.flatnonzero(asked & later & (part == number)), self.window) for number in range(3)
        )
        return Split(
            log,
            train,
            valid,
            test,
            windows=len(train) + len(valid) + len(test),
            notes={"targets_without_history": int((asked & ~later).sum())},
        )


def parts_of_times(log: InteractionLog, valid: Fraction, test: Fraction) -> np.ndarray:
    """(N,) part of each row, 0, 1 or 2: two cuts at quantiles of the times, rows of one time in one part.

    Raises:
        InputError: the log has no times.
    """
    log.need_dates("a cut in time")
    early = [len(log) - len(log) * late.numerator // late.denominator for late in (valid + test, test)]
    ordered = np.append(np.sort(log.times), np.iinfo(np.int64).max)
    return np.searchsorted(ordered[early], log.times, "right")


def _windows(log: InteractionLog, window: int, stride: int, counts: np.ndarray) -> Samples:
    """The first so many windows of each user."""
    user, place = ragged(np.maximum(counts, 0))
    first = log.offsets[user] + stride * place
    return Samples(first, first + window, first + window)


def later_rows(log: InteractionLog) -> np.ndarray:
    """(N,) whether a row is not the first of its user."""
    later = np.ones(len(log), bool)
    later[log.offsets[:-1][np.diff(log.offsets) > 0]] = False
    return later


def touched(samples: Samples, n: int) -> np.ndarray:
    """(n,) whether a row of the log is in a history or the target of a sample."""
    spans = samples.spans()
    found = _inside(spans.first, spans.last, n)
    found[spans.target] = True
    return found


def joined(samples: Samples, n: int) -> np.ndarray:
    """(n,) whether a row and the one after it are both in the history of a sample, or one is its target."""
    spans = samples.spans()
    return _inside(spans.first, spans.target, n)


def _inside(first: np.ndarray, last: np.ndarray, n: int) -> np.ndarray:
    """(n,) whether a place is in any of the ranges ``first:last``."""
    steps = np.zeros(n + 1, np.int32)
    np.add.at(steps, first, 1)
    np.add.at(steps, last, -1)
    return np.cumsum(steps, out=steps)[:n] > 0


def _without_cold(split: Split) -> Split:
    """Leaves out evaluation targets whose item no training row has."""
    items = split.log.items
    warm = np.bincount(items[touched(split.train, len(items))], minlength=split.log.n_items + 1) > 0
    kept = {name: part[warm[items[part.target]]] for name, part in split.parts().items()}
    dropped = {f"{name}_cold": len(split.parts()[name]) - len(kept[name]) for name in ("valid", "test")}
    return dataclasses.replace(split, valid=kept["valid"], test=kept["test"], notes=split.notes | dropped)


def tied_by_chance(log: InteractionLog, seed: int) -> np.ndarray:
    """The rows of a log in its order but for each user's events of one time, which come in any."""
    chance = hash64(seed, "ties", torch.arange(len(log))).numpy()
    return np.lexsort((chance, log.times, log.users))


def selected(log: InteractionLog, rows: np.ndarray) -> InteractionLog:
    """A log of some rows, each user's together, and of the items that they have; users keep their numbers."""
    past_items, past_offsets = log.past_items, log.past_offsets
    met = np.bincount(log.items[rows], minlength=log.n_items + 1) > 0
    if past_items is not None and past_offsets is not None:
        place, past_offsets = gathered(past_offsets, rows)
        past_items = past_items[place]
        met |= np.bincount(past_items, minlength=log.n_items + 1) > 0
    met[PAD] = True
    number = met.cumsum(dtype=np.int32) - 1
    users, items = log.users[rows], number[log.items[rows]]
    sizes = np.bincount(users, minlength=log.n_users + 1)
    return dataclasses.replace(
        log,
        users=users,
        items=items,
        times=log.times[rows],
        values=log.values[rows],
        labels=None if log.labels is None else log.labels[rows],
        past_items=None if past_items is None else number[past_items],
        past_offsets=past_offsets,
        offsets=np.concatenate([[0], sizes.cumsum()]),
        item_ids=log.item_ids[met],
        item_titles=None if log.item_titles is None else log.item_titles[met],
        item_features={name: _rows_of(one, np.flatnonzero(met)) for name, one in log.item_features.items()},
        event_features={name: _rows_of(one, rows) for name, one in log.event_features.items()},
    )


def _rows_of(feature: Feature, rows: np.ndarray) -> Feature:
    place, offsets = gathered(feature.offsets, rows)
    return Feature(feature.vocabulary, feature.codes[place], offsets)


def _list_rule(settings: Mapping[str, Any]) -> ListRule:
    names = [field.name for field in dataclasses.fields(ListRule)]
    for name in settings:
        one_of("protocol.sampled", name, names)
    missing = [name for name in names if name not in settings]
    if missing:
        raise InputError(f"protocol.candidates=sampled needs protocol.sampled.{missing[0]}: give it a value")
    return ListRule(**settings)


def flag(key: str, value: Any) -> bool:
    """The value of an option that is true or false; raises InputError where it is neither."""
    if not isinstance(value, bool):
        raise InputError(f"protocol.{key}={value}: must be true or false")
    return value


def share(key: str, value: Any) -> Fraction:
    """A share as the decimal number it was written as, so that a tenth of 70 is 7."""
    if not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"protocol.{key}={value}: must be a share between 0 and 1, both excluded")
    return Fraction(str(value))


def shares(valid: Any, test: Any) -> tuple[Fraction, Fraction]:
    """Shares of validation and test, which leave something to train on."""
    found = share("valid", valid), share("test", test)
    if sum(found) >= 1:
        raise InputError(f"protocol.valid={valid} and protocol.test={test} leave nothing to train on")
    return found
