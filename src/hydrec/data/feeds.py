"""What the parts of a split give to a run: batches, the catalogue, and what a run leaves on disk about them.

Shapes: B rows, T history positions, C candidates, E excluded items, V items, N rows of the log.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch

from hydrec.batch import PAD, Catalog, ClickBatch, ClickCatalog, EvalCandidates, SequenceBatch
from hydrec.data.clicks import ClickProtocol, ClickSamples
from hydrec.data.fields import Encoded, Trained, encode, stacked
from hydrec.data.log import InteractionLog, ragged
from hydrec.data.protocols import Protocol, Samples, joined, touched
from hydrec.errors import InputError
from hydrec.sampling import cumulative, lists

# rows of the log from a position to its target; None: one target a row
SAMPLES = {"prefixes": None, "histories": 1, "cloze": 0}
BLOCK = 1024  # rows whose candidate lists are drawn at once: bounds memory, never changes a list


class SequenceFeed:
    """Batches of histories and what followed them, and what targets are ranked against.

    Args:
        log: the log.
        protocol: makes the parts, and says what targets are ranked against.
        samples: what a training row is, one of ``SAMPLES``.

    Attributes:
        log: the log that the pointers point into.
        split: the parts.
        lists: (n, C) int32 competitors of each part that is evaluated, where they are drawn.
    """

    def __init__(self, log: InteractionLog, protocol: Protocol, samples: str) -> None:
        self.protocol, self.ahead = protocol, SAMPLES[samples]
        self.split = protocol(log)
        self.log = self.split.log
        self._train = _training(samples, self.split.train, protocol.window, len(self.log))
        self.lists: dict[str, np.ndarray] = {}
        if protocol.lists is not None:
            self.lists = {part: self._draw_lists(part) for part in ("valid", "test")}

    @cached_property
    def trained(self) -> np.ndarray:
        """(N,) whether a training sample touches a row of the log."""
        return touched(self.split.train, len(self.log))

    @cached_property
    def catalog(self) -> Catalog:
        """What models may know; made when one asks."""
        log = self.log
        targets = np.bincount(log.items[self.split.train.target], minlength=log.n_items + 1)
        return Catalog(
            n_users=log.n_users,
            n_items=log.n_items,
            users=torch.from_numpy(log.users[self.trained].astype(np.int64)),
            items=torch.from_numpy(log.items[self.trained].astype(np.int64)),
            times=torch.from_numpy(log.times[self.trained]),
            values=torch.from_numpy(log.values[self.trained]),
            targets=torch.from_numpy(targets),
        )

    @property
    def rows(self) -> int:
        """Training rows of an epoch."""
        return len(self._train)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """(B,) events in the histories of the training rows at some positions."""
        some = self._train[indices]
        return some.last - some.first

    def train(self, indices: np.ndarray) -> SequenceBatch:
        """The training rows at some positions; T is the longest of them."""
        some = self._train[indices]
        return self._gather(some, int((some.last - some.first).max()), ahead=self.ahead)

    def evaluate(self, part: str, indices: np.ndarray) -> tuple[SequenceBatch, EvalCandidates]:
        """The samples of a part at some positions, and what their targets are ranked against."""
        return self.gather(self.split.parts()[part], indices), self._candidates(part, indices)

    def gather(self, samples: Samples, indices: np.ndarray) -> SequenceBatch:
        """Reads the histories and targets of some samples from the log.

        Args:
            samples: a part.
            indices: (B,) positions in it.

        Returns:
            A batch with T = ``protocol.window`` and one target a row.
        """
        return self._gather(samples[indices], self.protocol.window, ahead=None)

    def _gather(self, some: Samples, width: int, *, ahead: int | None) -> SequenceBatch:
        """A batch with T = ``width``: one target a row, or that many rows after each of the history."""
        log, last = self.log, some.target[:, None]
        place = some.first[:, None] + np.arange(width)
        real = place < some.last[:, None]
        place = np.where(real, place, last)  # any row of the log: padding is overwritten
        asked, supervised = (
            (last, last >= 0) if ahead is None else (np.where(real, place + ahead, last), real)
        )
        origin = log.times[some.first][:, None]
        columns = dict(
            items=np.where(real, log.items[place], PAD).astype(np.int64),
            times=np.where(real, log.times[place] - origin, 0),
            values=np.where(real, log.values[place], np.float32(0)),
            lengths=some.last - some.first,
            targets=np.where(supervised, log.items[asked], PAD).astype(np.int64),
            target_times=np.where(supervised, log.times[asked] - origin, 0),
            users=log.users[some.target].astype(np.int64),
            rows=some.target,
        )
        return SequenceBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})

    # Candidates of an evaluation ----------------------------------------------------------------------------

    def _candidates(self, part: str, indices: np.ndarray) -> EvalCandidates:
        items = self.lists[part][indices].astype(np.int64) if part in self.lists else None
        target = self.split.parts()[part].target[indices]
        excluded = self._past(target) if self.protocol.mask_history else None
        return EvalCandidates(*(None if x is None else torch.from_numpy(x) for x in (items, excluded)))

    def _past(self, target: np.ndarray) -> np.ndarray:
        """(B, E) distinct items of all of the user's events before the target, without the target's item."""
        log, width = self.log, self.log.n_items + 1
        start = log.offsets[log.users[target]]
        owner, place = ragged(target - start)
        pair = np.sort(owner * width + log.items[start[owner] + place])  # np.unique would hash: far slower
        owner, item = np.divmod(pair, width)
        kept = np.diff(pair, prepend=-1).astype(bool) & (item != log.items[target][owner])
        owner, item = owner[kept], item[kept]
        counts = np.bincount(owner, minlength=len(target))
        past = np.full((len(target), counts.max(initial=0)), PAD)
        past[owner, ragged(counts)[1]] = item
        return past

    def _draw_lists(self, part: str) -> np.ndarray:
        """(n, C) int32 competitors of each target of a part, by the protocol's seed."""
        rule, log, samples = self.protocol.lists, self.log, self.split.parts()[part]
        assert rule is not None
        if not rule.replace and rule.count >= log.n_items:
            raise InputError(
                f"protocol.sampled.count={rule.count}: {log.name} has {log.n_items} items; draw fewer, or set"
                " protocol.candidates=full"
            )
        cdf = cumulative(self.catalog.targets, rule.exponent, "protocol.sampled.exponent")
        found = np.empty((len(samples), rule.count), np.int32)
        for block in range(0, len(samples), BLOCK):
            some = samples[np.arange(block, min(block + BLOCK, len(samples)))]
            user = log.users[some.target]
            first, last = log.offsets[user], log.offsets[user + 1]
            if rule.exclude == "window":
                first, last = some.first, some.last
            owner, place = ragged(last - first)
            row = first[owner] + place
            if rule.exclude == "train":
                owner, row = owner[self.trained[row]], row[self.trained[row]]
            owner = np.concatenate([owner, np.arange(len(some))])
            row = np.concatenate([row, some.target])
            found[block : block + BLOCK] = lists(
                cdf,
                torch.from_numpy(owner),
                torch.from_numpy(log.items[row].astype(np.int64)),
                torch.from_numpy(user.astype(np.int64)),
                torch.from_numpy(some.target),
                count=rule.count,
                replace=rule.replace,
                seed=rule.seed,
                purpose=f"{part} candidates",
            ).numpy()
        return found

    # The record of a run ------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the parts are, in plain values.

        Targets are cold if no row in training has their item, untrained if no training target is their item;
        they are in their history if the user met the item before, in the window or not.
        """
        log, split = self.log, self.split
        pair = log.users * np.int64(log.n_items + 1) + log.items
        again = np.ones(len(log), bool)
        again[np.unique(pair, return_index=True)[1]] = False  # the first of each pair
        warm = np.bincount(log.items[self.trained], minlength=log.n_items + 1) > 0
        trained = self.catalog.targets.numpy() > 0
        known = np.bincount(log.users[split.train.target], minlength=log.n_users + 1) > 0
        used, parts = np.zeros(len(log), bool), {}
        for name, samples in split.parts().items():
            met = touched(samples, len(log))
            used |= met
            user, item = log.users[samples.target], log.items[samples.target]
            parts[name] = {
                "samples": len(samples),
                "users": distinct(user),
                "items": distinct(log.items[met]),
                "samples_of_unseen_users": int((~known[user]).sum()),
                "cold_targets": int((~warm[item]).sum()),
                "untrained_targets": int((~trained[item]).sum()),
                "targets_in_history": float(again[samples.target].mean()),
            }
        return {
            "windows": split.windows,
            "trained_rows": self.rows,  # of an epoch: histories, where they have several targets
            "windows_items": distinct(log.items[used]),
            "windows_interactions": int(used.sum()),
            "parts": parts,
            "left_out": split.notes,
            "candidate_lists": {
                part: {
                    "digest": _digest(found),
                    "short": int((found[:, -1] == PAD).sum()),
                }
                for part, found in self.lists.items()
            },
        }

    def drawn(self) -> pl.DataFrame:
        """The drawn candidates of each sample that is evaluated, as numbers of items, the target first.

        A list that is short has fewer: there were no more to draw.
        """
        frames = []
        for part, found in self.lists.items():
            rows = self.split.parts()[part].target
            lists = pl.Series(np.column_stack([self.log.items[rows], found])).arr.to_list()
            frames.append(
                pl.DataFrame(
                    {
                        "sample": rows,
                        "part": pl.repeat(part, len(rows), eager=True),
                        "candidates": lists.list.filter(pl.element() != PAD),
                    }
                )
            )
        return pl.concat(frames)

    def tested(self, table: Mapping[str, np.ndarray]) -> pl.DataFrame:
        """What a run leaves of its test, raw ids with the two integers every ranking metric follows from.

        Args:
            table: the columns of ``RankMetrics.table``.
        """
        log, rows = self.log, table["row"]
        return pl.DataFrame(
            {
                "sample": rows,
                "user": log.user_ids[log.users[rows]],
                "target": log.item_ids[log.items[rows]],
                "time": log.times[rows],
                **{name: table[name] for name in ("greater", "equal", "candidates")},
            }
        )

    def counts(self) -> dict[str, np.ndarray]:
        """(V,) what training has of each item, by name."""
        rows = np.bincount(self.catalog.items, minlength=self.log.n_items + 1)
        return {"train_targets": self.catalog.targets[1:].numpy(), "train_rows": rows[1:]}


class ClickFeed:
    """Batches of showings, under a protocol of clicks.

    Args:
        log: the log.
        protocol: makes the parts.
        fields: what the dataset declares, as `hydrec.data.fields.declared` returns it.

    Attributes:
        log: the log that the pointers point into.
        split: the parts.
        catalog: what models may know.
    """

    def __init__(self, log: InteractionLog, protocol: ClickProtocol, fields: Mapping[str, Any]) -> None:
        self.split = protocol(log)
        self.log = log = self.split.log
        train = self.split.train
        self.fields = encode(log, fields, Trained(train.row, train.item))
        ahead = [each for each in self.fields if each.field.group != "item"]
        items = [each for each in self.fields if each.field.group == "item"]
        codes, weights = stacked(items, {"item": np.arange(log.n_items + 1)})
        weights[PAD] = 0
        shown, clicked = (
            torch.from_numpy(np.bincount(some, minlength=log.n_items + 1))
            for some in (train.item, train.item[train.label == 1])
        )
        self.catalog = ClickCatalog(
            n_users=log.n_users,
            n_items=log.n_items,
            clicked=clicked,
            shown=shown,
            fields=tuple(each.field for each in ahead),
            item_fields=tuple(each.field for each in items),
            item_codes=torch.from_numpy(codes),
            item_weights=torch.from_numpy(weights),
        )
        self._ahead: list[Encoded] = ahead

    @property
    def rows(self) -> int:
        """Training samples."""
        return len(self.split.train)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """(B,) behaviours of the training samples at some positions."""
        train = self.split.train
        return train.last[indices] - train.first[indices]

    def train(self, indices: np.ndarray) -> ClickBatch:
        """The training samples at some positions."""
        return self.gather(self.split.train, indices)

    def evaluate(self, part: str, indices: np.ndarray) -> ClickBatch:
        """The samples of a part at some positions."""
        return self.gather(self.split.parts()[part], indices)

    def gather(self, samples: ClickSamples, indices: np.ndarray) -> ClickBatch:
        """Reads some samples from the log; T is the longest history among them, at least 1.

        Args:
            samples: a part.
            indices: (B,) positions in it.
        """
        log, some, past = self.log, samples[indices], self.split.behaviours
        lengths = some.last - some.first
        place = some.first[:, None] + np.arange(max(1, lengths.max(initial=0)))
        real = place < some.last[:, None]
        place *= real  # any behaviour: padding is overwritten
        empty = not len(past.items)
        items, times, values = (
            np.zeros(place.shape, column.dtype) if empty else column.take(place) for column in past
        )
        asked = log.times[some.row]
        origin = np.where(lengths > 0, times[:, 0], asked)
        if log.past_items is not None:  # has no times
            origin = asked
            times = np.broadcast_to(asked[:, None], place.shape)
        users = log.users[some.row]
        codes, weights = stacked(self._ahead, {"row": some.row, "user": users})
        columns = dict(
            items=np.multiply(items, real, dtype=np.int64),  # PAD is 0
            times=(times - origin[:, None]) * real,
            values=np.where(real, values, np.float32(0)),
            lengths=lengths,
            candidates=some.item.astype(np.int64),
            labels=some.label.astype(np.int64),
            target_times=asked - origin,
            users=users.astype(np.int64),
            codes=codes,
            weights=weights,
            rows=np.asarray(indices, np.int64),
        )
        return ClickBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})

    # The record of a run ------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the parts are, in plain values.

        Candidates are cold if no training sample shows their item. The digest of a part is over row, item and
        label of all its samples, so over the negatives drawn. Fields are listed by group with their numbers
        of codes.
        """
        log, split = self.log, self.split
        known = np.bincount(log.users[split.train.row], minlength=log.n_users + 1) > 0
        warm = self.catalog.shown.numpy() > 0
        parts = {}
        for name, samples in split.parts().items():
            user, lengths = log.users[samples.row], samples.last - samples.first
            parts[name] = {
                "samples": len(samples),
                "digest": _digest(samples.row, samples.item, samples.label),
                "base_rate": float(samples.label.mean()),
                "users": distinct(user),
                "items": distinct(samples.item),
                "samples_of_unseen_users": int((~known[user]).sum()),
                "cold_candidates": int((~warm[samples.item]).sum()),
                "behaviours": float(lengths.mean()),
                "samples_without_behaviours": int((lengths == 0).sum()),
            }
        fields: dict[str, dict[str, int]] = {"user": {}, "context": {}, "item": {}}
        for each in self.fields:
            fields[each.field.group][each.field.name] = each.field.size
        return {"parts": parts, "left_out": split.notes, "fields": fields}

    def tested(self, table: Mapping[str, np.ndarray]) -> pl.DataFrame:
        """What a run leaves of its test, raw ids with the label and the logit of each sample.

        Args:
            table: the columns of ``ClickMetrics.table``.
        """
        samples = self.split.test[table["row"]]
        return pl.DataFrame(
            {
                "sample": table["row"],
                "user": self.log.user_ids[self.log.users[samples.row]],
                "item": self.log.item_ids[samples.item],
                "time": self.log.times[samples.row],
                "label": table["label"],
                "logit": table["logit"],
            }
        )

    def counts(self) -> dict[str, np.ndarray]:
        """(V,) what training has of each item, by name, and where items have fields (V, W) their codes."""
        counts = {
            "train_clicked": self.catalog.clicked[1:].numpy(),
            "train_shown": self.catalog.shown[1:].numpy(),
        }
        return counts | _coded(self.catalog.item_codes[1:].numpy(), self.catalog.item_weights[1:].numpy())

    def user_codes(self) -> dict[str, np.ndarray]:
        """(U, W) codes and weights of the fields that are the user's own, in the order of `codings`."""
        own = [each for each in self._ahead if each.by == "user"]
        return _coded(*stacked(own, {"user": np.arange(1, self.log.n_users + 1)}))

    def codings(self) -> pl.DataFrame:
        """What turns values into codes, a row for each field, in the order of their columns."""
        rows = []
        for each in self.fields:
            coding = {
                name: value.tolist() if isinstance(value, np.ndarray) else value
                for name, value in vars(each.coding).items()
            }
            rows.append({**each.field._asdict(), "by": each.by, **coding})
        kinds: dict[str, Any] = dict.fromkeys(("name", "group", "by", "form"), pl.String)
        kinds |= dict.fromkeys(("size", "width", "first"), pl.Int64)
        kinds |= {"words": pl.List(pl.String), "seen": pl.List(pl.Boolean), "bounds": pl.List(pl.Float64)}
        return pl.DataFrame(rows, schema=kinds | dict.fromkeys(("mean", "spread"), pl.Float64))


def _coded(codes: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    return {"codes": codes, "weights": weights} if codes.shape[1] else {}


def distinct(ids: np.ndarray) -> int:
    """How many different ids there are."""
    return int(np.count_nonzero(np.bincount(ids)))  # np.unique would hash: far slower


def _digest(*columns: np.ndarray) -> str:
    total = hashlib.sha256()
    for column in columns:
        total.update(np.ascontiguousarray(column).data)
    return total.hexdigest()


def _training(kind: str, samples: Samples, window: int, n: int) -> Samples:
    """What an epoch has of the training samples."""
    if kind == "prefixes":
        return samples
    if kind == "histories":
        return histories(samples, window, n)
    if window < 2:
        raise InputError(
            "protocol.window=1: model.samples=cloze hides some of a row's events; give it 2 or more"
        )
    pieces = histories(samples, window - 1, n)
    return Samples(pieces.first, pieces.target + 1, pieces.target)


def histories(samples: Samples, window: int, n: int) -> Samples:
    """Turns samples into runs of events whose every event but the first is a target, once.

    Two neighbouring rows of the log are of one run if a sample has both, in its history or as its target. So
    under protocols whose samples are the prefixes of each user's events, the targets are exactly those of
    the samples; where samples are windows apart, the events inside of one become targets too.

    A run is cut at its newest end first: the newest targets have the fullest histories, and what is left over
    is the oldest. The history of a target begins with its piece, so it is shorter than the ``window`` events
    that a prefix has, but for the last target of a piece.

    Args:
        samples: a part; each history ends right before its target.
        window: targets of a piece, at most.
        n: rows of the log.

    Returns:
        The pieces: inputs ``first:last``, each followed by its target; ``target`` is the last one.
    """
    runs = np.diff(joined(samples, n), prepend=False, append=False)
    first, last = np.flatnonzero(runs).reshape(-1, 2).T
    counts = -(-(last - first) // window)
    run, place = ragged(counts)
    target = last[run] - window * (counts[run] - 1 - place)
    return Samples(np.maximum(first[run], target - window), target, target)
