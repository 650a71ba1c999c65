"""The data card: what a log under a protocol is, before a model sees any of it.

Intensity and popularity after "Architectural Limitations in Intensity-Aware Sequential Recommendation: A
Negative Result and Mechanism Analysis" (IA-SASRec); known targets, recency and fields after Fig. 3 of
"Multi-Interactive Attention Network for Fine-grained Feature Learning in CTR Prediction" (MIAN); leakage
after "A Critical Study on Data Leakage in Recommender System Offline Evaluation" (Ji et al., TOIS 2023).

Under a protocol of clicks a target is the row of the log that something is shown in. Of a log without times
a card says nothing of them.

Letters: N rows of the log, n samples, T history positions, m cases that are ranked, D draws of them.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from hydrec.batch import PAD, ClickBatch, SequenceBatch
from hydrec.data.clicks import ClickSamples
from hydrec.data.feeds import ClickFeed, SequenceFeed, distinct
from hydrec.data.log import Feature, InteractionLog
from hydrec.data.module import LogData
from hydrec.data.protocols import Samples, touched
from hydrec.layers import intensity
from hydrec.layers.graph import filled
from hydrec.sampling import below, hash64

BINS = 50
BLOCK = 2**20  # numbers held at once: bounds memory, never changes a figure
RARE = 5  # an item with fewer training events says nothing of its mean intensity
EXACT = 1e-6  # what a mean or a share is off by in float32
DIGITS = 9  # beyond, what is equal differs by rounding
DRAWS = 1000  # with replacement, for an interval
SHOWN = ("log1p_minmax", "minmax", "zscore", "none")  # modes of the paper
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
GAPS = 10 ** np.linspace(0, 9, 37)  # seconds: four bins for each power of ten, up to 31 years

# What training knows of a part: the first is leakage, the second may be no more than a shared history
LATER = {
    "users_with_later_training_events": "users with own training events after a target",
    "users_before_the_end_of_training": "users with a target before the end of training",
    "training_events_later": "training events after a target (mean)",
}
LEAKAGE = {
    "targets_in_training_samples": "targets inside a training sample",
    "targets_that_are_training_targets": "targets that are training targets",
    **LATER,
}
OVERLAP = {
    "samples_sharing_events": "samples that share an event with training",
    "events_shared": "events of samples that training has",
    "near_copies": "samples one event apart from a training sample",
}
AGAIN = {
    "positives_in_history": "positives whose item is in the history",
    "negatives_in_history": "negatives whose item is in the history",
    "candidates_in_history": "drawn candidates that the user met before",
}

Card = dict[str, Any]


# Figures ----------------------------------------------------------------------------------------------------


def card(data: LogData, command: str) -> Card:
    """Computes the card, in types that JSON has; what the data cannot tell is ``None``.

    Args:
        data: prepared.
        command: what makes this card, for whoever finds it.
    """
    log, feed, window = data.log, data.feed, data.protocol.window
    pair = np.sort(log.users * np.int64(log.n_items + 1) + log.items)  # to hash them would be far slower
    sizes = np.diff(log.offsets)
    about = data.describe()
    inputs = about.get("fields")  # of click models; a behaviour has the fields of its item
    return {
        "command": command,
        "dataset": about,
        "protocol": data.protocol.identity(),
        "density": len(log) / (log.n_users * log.n_items),
        "repeated": int((np.diff(pair) == 0).sum()) / len(log),
        "lengths": {"user": _lengths(sizes[sizes > 0]), "item": _lengths(np.bincount(log.items)[1:])},
        "time": _time(log.times) if log.dated else None,
        "fields": {
            "item": {name: _field(one, pad=1) for name, one in log.item_features.items()},
            "user": {name: _field(one, pad=1) for name, one in log.user_features.items()},
            "event": {name: _field(one, pad=0) for name, one in log.event_features.items()},
        },
        "inputs": inputs and inputs | {"behaviour": inputs["item"]},
        **(_of_clicks(feed, window) if isinstance(feed, ClickFeed) else _of_targets(feed, window)),
    }


def _of_targets(feed: SequenceFeed, window: int) -> Card:
    """What a card says of histories and the targets that follow them."""
    log, split = feed.log, feed.split
    histories = _histories(partial(feed.gather, split.train), len(split.train), window)
    gaps = {name: log.times[some.target] - log.times[some.last - 1] for name, some in split.parts().items()}
    leakage = {}
    for name in ("valid", "test"):
        samples = split.parts()[name]
        leakage[name] = _leakage(log, samples, split.train, feed.trained)
        if name in feed.lists:
            known = _met_before(log, samples.target, feed.lists[name])
            leakage[name]["candidates_in_history"] = _share(known[feed.lists[name] != PAD])
    return {
        "intensity": _intensity(log, histories, window, feed.trained),
        "recency": {name: _recency(gap) for name, gap in gaps.items()} if log.dated else None,
        "leakage": leakage,
    }


def _of_clicks(feed: ClickFeed, window: int) -> Card:
    """What a card says of behaviours and the showings that follow them."""
    log, split, train = feed.log, feed.split, feed.split.train
    events = _rows_of_behaviours(feed)
    clicked = np.zeros(len(log), bool)
    if events is not None and len(events) == len(log):  # each row is a behaviour
        clicked = touched(Samples(train.first, train.last, train.row), len(log))
    clicked[train.row[train.label == 1]] = True
    trained = clicked.copy()
    trained[train.row] = True
    # each history once: negatives have that of their positive
    once = np.flatnonzero((np.diff(train.row, prepend=-1) > 0) & (train.last > train.first))
    histories = _histories(lambda some: feed.gather(train, once[some]), len(once), window)
    timed = log.dated and events is not None  # past items have no times
    gaps = {}
    for name, samples in split.parts().items():
        some = np.flatnonzero(samples.last > samples.first)
        if len(some) and timed:
            gaps[name] = log.times[samples.row[some]] - split.behaviours.times[samples.last[some] - 1]
    leakage = {}
    for name in ("valid", "test"):
        samples = split.parts()[name]
        known = _in_history(feed, samples, window)
        leakage[name] = {
            "targets_in_training_samples": float(trained[samples.row].mean()),
            **_later(log, samples.row, trained),
            **_shared(samples, None if events is None else trained[events], trained[samples.row]),
            "positives_in_history": _share(known[samples.label == 1]),
            "negatives_in_history": _share(known[samples.label == 0]),
        }
    return {
        "intensity": _intensity(log, histories, window, clicked) if len(once) else None,
        "recency": {name: _recency(gap) for name, gap in gaps.items()} or None,
        "leakage": leakage,
    }


def _rows_of_behaviours(feed: ClickFeed) -> np.ndarray | None:
    """(M,) the row of the log that each behaviour is, or nothing where rows bring their own history."""
    if feed.log.past_items is not None:
        return None
    if len(feed.split.behaviours.items) == len(feed.log):
        return np.arange(len(feed.log))
    parts = feed.split.parts().values()
    return np.sort(np.concatenate([samples.row[samples.label == 1] for samples in parts]))


def _lengths(sizes: np.ndarray) -> Card:
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    numbers = np.unique(np.geomspace(1, sizes.max(), 80).round())
    fewer = np.searchsorted(np.sort(sizes), numbers)
    return {
        **dict(zip(names, np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1)).tolist(), strict=True)),
        "mean": float(sizes.mean()),
        "at_least": {"events": numbers.tolist(), "share": (1 - fewer / len(sizes)).tolist()},
    }


def _time(times: np.ndarray) -> Card:
    first, last = int(times.min()), int(times.max())
    days = (last - first) / 86400
    return {
        "first": str(np.datetime64(first, "s")),
        "last": str(np.datetime64(last, "s")),
        "days": days,
        "days_with_events": distinct(times // 86400 - first // 86400),
        "events_a_day": len(times) / days if days else None,
        "histogram": _histogram(*np.histogram((times - first) / 86400, BINS)),
    }


def _recency(gap: np.ndarray) -> Card:
    """Seconds from the last event of a history to the target; the histogram has those of one or more."""
    return {
        "tied": float((gap == 0).mean()),
        "reversed": float((gap < 0).mean()),  # only where a protocol does not sort by time
        "seconds": dict(zip(map(str, QUANTILES), np.quantile(gap, QUANTILES).tolist(), strict=True)),
        "most_seconds": int(gap.max()),
        "histogram": _histogram(*np.histogram(np.minimum(gap, GAPS[-1]), GAPS)),
    }


def _field(feature: Feature, *, pad: int) -> Card:
    rows = len(feature.offsets) - 1 - pad
    codes = feature.codes[feature.offsets[pad] :]
    return {
        "categories": len(feature.vocabulary),
        "values_a_row": len(codes) / rows,
        "unknown": float((codes == 1).sum() / rows),
    }


def _share(which: np.ndarray) -> float | None:
    return float(which.mean()) if len(which) else None


def _histogram(counts: np.ndarray, edges: np.ndarray) -> Card:
    return {"edges": edges.tolist(), "counts": counts.astype(int).tolist()}


def _entropy(counts: np.ndarray) -> float:
    """Of the bin of a case, in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(abs((share * np.log2(share)).sum()))


# Intensity --------------------------------------------------------------------------------------------------


Histories = Iterator[tuple[torch.Tensor, torch.Tensor]]


def _intensity(log: InteractionLog, histories: Histories, window: int, trained: np.ndarray) -> Card | None:
    """How strongly items are met, if the log says it.

    Args:
        log: the log.
        histories: those of training, as `_histories` has them.
        window: events of a history, at most.
        trained: (N,) rows that count for popularity.
    """
    known = np.isfinite(log.values)
    if not known.any():
        return None
    raw = log.values[known].astype(np.float64)
    counts, edges = np.histogram(raw, BINS)
    return {
        "missing": int((~known).sum()),
        "negative": int((raw < 0).sum()),
        "raw": {
            "cases": len(raw),
            "entropy_bits": _entropy(counts),
            "zeros": float((raw == 0).mean()),
            "ones": float((raw == 1).mean()),
            "mean_deviation": None,
            "histogram": _histogram(counts, edges),
        },
        "normalised": _normalised(histories, window, float(raw.max())),
        "popularity": _popularity(log, trained & known, np.bincount(log.items[trained]), window),
    }


def _normalised(histories: Histories, window: int, highest: float) -> dict[str, Card]:
    """What each mode makes of histories: every position is a case."""
    reach = math.sqrt(max(window - 1, 1))
    of_modes = (0.0, 1.0), (intensity.FLOOR, 1.0), (-reach, reach), (0.0, highest if highest > 0 else 1.0)
    ranges = dict(zip(SHOWN, of_modes, strict=True))
    counts = {mode: np.zeros(BINS) for mode in ranges}
    zeros, ones, apart = (dict.fromkeys(ranges, 0.0) for _ in range(3))
    rows = cases = 0
    for values, seen in histories:
        rows += len(values)
        cases += int(seen.sum())
        for mode, (low, high) in ranges.items():
            x = intensity.MODES[mode](values, seen)
            flat = x[seen]
            counts[mode] += torch.histc(flat.clamp(low, high), BINS, low, high).numpy()
            zeros[mode] += int((flat.abs() < EXACT).sum())
            ones[mode] += int(((flat - 1).abs() < EXACT).sum())
            apart[mode] += float(_deviations(x.double(), seen).sum())
    return {
        mode: {
            "cases": cases,
            "entropy_bits": _entropy(counts[mode]),
            "zeros": zeros[mode] / cases,
            "ones": ones[mode] / cases,
            "mean_deviation": apart[mode] / rows,
            "histogram": _histogram(counts[mode], np.linspace(*ranges[mode], BINS + 1)),
        }
        for mode in ranges
    }


def _histories(gather: Callable[[np.ndarray], SequenceBatch | ClickBatch], n: int, window: int) -> Histories:
    """Intensities (B, T) of n histories, some at a time, and which positions are no padding.

    Args:
        gather: makes a batch of the samples at some positions.
        n: samples.
        window: events of a history, at most.
    """
    for some in _blocks(n, window):
        batch = gather(some)
        yield batch.values, filled(batch.lengths, batch.values.shape[1])


def _blocks(n: int, width: int) -> Iterator[np.ndarray]:
    """The positions of n samples, some at a time."""
    step = max(BLOCK // width, 1)
    for start in range(0, n, step):
        yield np.arange(start, min(start + step, n))


def _deviations(x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(n,) standard deviation of each row over the positions that count; the others are 0."""
    n = seen.sum(1)
    apart = (x - (x.sum(1) / n)[:, None]) * seen
    return (apart.square().sum(1) / n).sqrt()


def _popularity(log: InteractionLog, rows: np.ndarray, popularity: np.ndarray, window: int) -> Card:
    """Whether what is popular is also met strongly, by Spearman's rank correlation.

    Args:
        log: the log.
        rows: (N,) whether a row trains and has an intensity.
        popularity: training rows of each item.
        window: events of a history, at most.
    """
    users, items, values = log.users[rows], log.items[rows], log.values[rows].astype(np.float64)
    value = pl.col("value")
    each = pl.DataFrame({"item": items, "value": values}).group_by("item")
    means = each.agg(mean=value.mean(), median=value.median()).sort("item")
    means = means.with_columns(events=popularity[means["item"]]).filter(pl.col("events") >= RARE)

    apart = {}
    for mode, normal in _each_once(users, values, window).items():
        usual = np.bincount(users, normal) / np.maximum(np.bincount(users), 1)
        apart[mode] = (normal - usual[users]).round(DIGITS)
    return {
        "item_mean": _correlation(means["events"], means["mean"], interval=True),
        "item_median": _correlation(means["events"], means["median"], interval=True),
        "event": _correlation(popularity[items], values, interval=False),
        "event_less_user_mean": {
            mode: _correlation(popularity[items], each, interval=False) for mode, each in apart.items()
        },
        "octaves": _octaves(means),
    }


def _each_once(users: np.ndarray, values: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """(n,) by mode: the intensity of each event, normalised in a history that has it.

    The events of a user are cut into histories of ``window`` from the newest, so each is in one.

    Args:
        users: (n,) ascending.
        values: (n,) float64, in order of time.
        window: events of a history, at most.
    """
    found = {mode: np.empty(len(values)) for mode in SHOWN}
    after = np.searchsorted(users, users, "right") - np.arange(len(users))  # events left, with it
    first = np.flatnonzero((np.diff(users, prepend=-1) > 0) | (after % window == 0))
    sizes = np.diff(first, append=len(users))
    for some in _blocks(len(first), window):
        seen = np.arange(window) < sizes[some, None]
        place = (first[some, None] + np.arange(window))[seen]
        history, mask = torch.zeros(seen.shape, dtype=torch.float64), torch.from_numpy(seen)
        history[mask] = torch.from_numpy(values[place])
        for mode, each in found.items():
            each[place] = intensity.MODES[mode](history, mask)[mask].numpy()
    return found


def _octaves(means: pl.DataFrame) -> list[Card]:
    """Quartiles of the items' mean intensities, from each number of events to its double."""
    octave = RARE * pl.lit(2.0).pow((pl.col("events") / RARE).log(2).floor())
    quartiles = {
        name: pl.quantile("mean", q, "linear")
        for name, q in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
    }
    found = means.group_by(octave.alias("events")).agg(pl.len().alias("items"), **quartiles)
    return found.sort("events").to_dicts()


def _correlation(x: Any, y: Any, *, interval: bool) -> Card:
    a, b = (pl.Series(each).rank("average").to_numpy() for each in (x, y))
    varied = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    return {
        "cases": len(a),
        "rho": float(np.corrcoef(a, b)[0, 1]) if varied else None,
        "interval": _interval(a, b) if varied and interval else None,
    }


def _interval(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Bounds of 95 % of Spearman's correlation over draws of as many cases.

    A draw is a number of copies of each case, which share their ranks as ties do.
    """
    m = len(x)
    step = max(BLOCK // m, 1)
    found = []
    for start in range(0, DRAWS, step):
        draw = torch.arange(start, min(start + step, DRAWS))
        picked = below(hash64(0, "data card", draw[:, None], torch.arange(m)), m).numpy()
        place = picked + m * np.arange(len(draw))[:, None]
        copies = np.bincount(place.ravel(), minlength=m * len(draw)).reshape(-1, m)
        a, b = (_ranks(each, copies) - (m + 1) / 2 for each in (x, y))
        ab, aa, bb = ((copies * product).sum(1) for product in (a * b, a * a, b * b))
        varied = aa * bb > 0
        found.append(ab[varied] / np.sqrt(aa * bb)[varied])
    return np.quantile(np.concatenate(found), (0.025, 0.975)).tolist()


def _ranks(x: np.ndarray, copies: np.ndarray) -> np.ndarray:
    """(D, m) average rank of each case among the copies of all."""
    order = np.argsort(x, kind="stable")
    _, first, group = np.unique(x[order], return_index=True, return_inverse=True)
    tied = np.add.reduceat(copies[:, order], first, axis=1)
    ranks = np.empty(copies.shape)
    ranks[:, order] = (tied.cumsum(1) - (tied - 1) / 2)[:, group]
    return ranks


# Leakage ----------------------------------------------------------------------------------------------------


def _leakage(log: InteractionLog, part: Samples, train: Samples, trained: np.ndarray) -> Card:
    """What training knows of a part: shares of its users, samples and events.

    Args:
        log: the log.
        part: what is evaluated.
        train: what trains.
        trained: (N,) rows in a history of ``train`` or its target.
    """
    size = part.last - part.first + 1
    is_target = np.zeros(len(log), bool)
    is_target[train.target] = True
    return {
        "targets_in_training_samples": float(trained[part.target].mean()),
        "targets_that_are_training_targets": float(is_target[part.target].mean()),
        **_later(log, part.target, trained),
        **_shared(part, trained, trained[part.target]),
        "near_copies": float((_overlap(part, train) >= size - 1).mean()),
    }


def _shared(part: Samples | ClickSamples, history: np.ndarray | None, target: np.ndarray) -> Card:
    """What samples have in common with training: shares of samples, and of their events.

    Args:
        part: what is evaluated.
        history: whether training has each event that histories are made of; nothing if these are no events.
        target: (n,) whether it has the target.
    """
    if history is None:
        return dict.fromkeys(("samples_sharing_events", "events_shared"))
    before = np.concatenate([[0], history.cumsum()])
    shared = before[part.last] - before[part.first] + target
    return {
        "samples_sharing_events": float((shared > 0).mean()),
        "events_shared": float(shared.sum() / (part.last - part.first + 1).sum()),
    }


def _later(log: InteractionLog, targets: np.ndarray, trained: np.ndarray) -> Card:
    """What training has of the time after targets: shares of users, and of training.

    Args:
        log: the log.
        targets: (n,) their rows.
        trained: (N,) rows that training has.
    """
    if not log.dated:
        return dict.fromkeys(LATER)
    user, when = log.users[targets], log.times[targets]
    times = np.sort(log.times[trained])
    latest = np.full(log.n_users + 1, np.iinfo(np.int64).min)
    np.maximum.at(latest, log.users[trained], log.times[trained])
    return {
        "users_with_later_training_events": distinct(user[latest[user] > when]) / distinct(user),
        "users_before_the_end_of_training": distinct(user[when < times[-1]]) / distinct(user),
        "training_events_later": float(1 - np.searchsorted(times, when, "right").mean() / len(times)),
    }


def _met_before(log: InteractionLog, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """(n, C) whether the user of each of n rows met items (n, C) in a row before it."""
    width = np.int64(log.n_items + 1)
    pair = log.users * width + log.items
    order = np.argsort(pair, kind="stable")
    since = order[np.append(True, np.diff(pair[order]) > 0)]  # the first row of each pair
    met, found = pair[since], []
    for some in _blocks(len(rows), items.shape[1]):
        row = rows[some, None]
        asked = log.users[row] * width + items[some]
        place = np.minimum(np.searchsorted(met, asked), len(met) - 1)
        found.append((met[place] == asked) & (since[place] < row))
    return np.concatenate(found)


def _in_history(feed: ClickFeed, samples: ClickSamples, window: int) -> np.ndarray:
    """(n,) whether the item that is shown is among the behaviours."""
    found = []
    for some in _blocks(len(samples), window):
        batch = feed.gather(samples, some)
        found.append((batch.items == batch.candidates[:, None]).any(1).numpy())
    return np.concatenate(found)


def _overlap(part: Samples, train: Samples) -> np.ndarray:
    """(n,) events that each sample has in common with the one training sample that has most of them.

    That is one of the two whose targets are next to its own: of two samples of a user, the later begins no
    earlier and is no shorter.
    """
    place = np.searchsorted(train.target, part.target)
    common = []
    for neighbour in (place - 1, place):
        near = train[neighbour.clip(0, len(train) - 1)]
        history = np.minimum(part.last, near.last) - np.maximum(part.first, near.first)
        common.append(
            np.maximum(history, 0)
            + ((near.first <= part.target) & (part.target < near.last))
            + ((part.first <= near.target) & (near.target < part.last))
            + (part.target == near.target)
        )
    return np.maximum(*common)
