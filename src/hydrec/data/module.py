"""A reader and a protocol to batches: what training, validation and test iterate over.

Shapes: B rows, T history positions, C candidates, E excluded items, N rows of the log, V items.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from hydrec.batch import PAD, Catalog, EvalCandidates, SequenceBatch
from hydrec.data import cache
from hydrec.data.download import fetch, sources
from hydrec.data.log import InteractionLog, Reader
from hydrec.data.protocols import Protocol, Samples, Split, ragged, touched
from hydrec.errors import InputError, MissingData, at_least
from hydrec.sampling import cumulative, lists, permuted

ORDER = 2**16  # places of the shuffled order that are made at once
BLOCK = 1024  # rows whose candidate lists are drawn at once: bounds memory, never changes a list

logger = logging.getLogger("hydrec")


class LogData(pl.LightningDataModule):
    """Batches of a log under a protocol.

    The log stays where it is, usually memory-mapped; a batch is gathered from it in one vectorised step.
    Training batches are a function of (seed, epoch) alone. Of W processes, each takes every W-th row of each
    training batch and every W-th evaluation batch that one process would form; nothing is padded or repeated.

    Args:
        reader: makes the log.
        download: what to get where the raw files are missing: of each ``url``, ``checksum`` and ``unpack``,
            as `Source` has them.
        stand_in: makes another log where they cannot be had; ``False`` makes that an error.
        protocol: makes the parts, and says what targets are ranked against.
        batch_size: training rows of a step, of all processes together.
        eval_batch_size: rows of an evaluation batch; changes speed and memory only.
        cache: folder of the log's columns.
        seed: of the shuffle.
        verify: whether to hash the raw files again.

    Raises:
        InputError: a batch size is not a positive whole number, or an entry of ``download`` is unusable.

    Attributes:
        name: what tables call the data.
        log: the log that the pointers point into.
        split: the parts.
        catalog: what models may know.
        stood_in: whether the log is the stand-in's.
    """

    name: str
    log: InteractionLog
    split: Split
    catalog: Catalog

    def __init__(
        self,
        *,
        reader: Reader,
        download: list[dict[str, Any]],
        stand_in: Reader | bool,
        protocol: Protocol,
        batch_size: int,
        eval_batch_size: int,
        cache: str,
        seed: int,
        verify: bool,
    ) -> None:
        super().__init__()
        self.reader, self.stand_in, self.protocol = reader, stand_in, protocol
        self.sources = sources(download)
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.eval_batch_size = at_least("eval_batch_size", eval_batch_size, 1)
        self.cache, self.seed, self.verify = cache, seed, verify
        self.stood_in = False
        self._ready = False
        self._lists: dict[str, np.ndarray] = {}  # (n, C) int32 competitors of each part that is evaluated

    def prepare(self) -> None:
        """Reads and splits the log and draws the candidate lists, once.

        Raises:
            MissingData: there are no raw files and nothing stands in.
            InputError: the data or the protocol cannot be used.
        """
        if self._ready:
            return
        self.split = self.protocol(self._load())
        self.log, self.name = self.split.log, self.split.log.name
        self._trained = touched(self.split.train, len(self.log))
        self.catalog = _catalog(self.log, self.split.train, self._trained)
        if self.protocol.lists is not None:
            for part in ("valid", "test"):
                self._lists[part] = self._draw_lists(part)
        self._ready = True

    def setup(self, stage: str) -> None:
        """Prepares, where nobody has."""
        self.prepare()

    # Batches ------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Yields a `SequenceBatch` of this process's rows for each step.

        Raises:
            InputError: there are fewer rows in a step than processes.
        """
        rank, world = _process()
        order = Shuffled(len(self.split.train), self.batch_size, seed=self.seed, rank=rank, world=world)
        if order.smallest < world:
            raise InputError(
                f"batch_size={self.batch_size}: a step of {order.smallest} training samples leaves some of"
                f" {world} processes without any; raise it or use fewer processes"
            )
        return _loader(lambda indices: self.gather(self.split.train, indices), order)

    def val_dataloader(self) -> DataLoader:
        """Yields (`SequenceBatch`, `EvalCandidates`) of the validation part, rows in the log's order."""
        return self._evaluation("valid")

    def test_dataloader(self) -> DataLoader:
        """Yields (`SequenceBatch`, `EvalCandidates`) of the test part, rows in the log's order."""
        return self._evaluation("test")

    def _evaluation(self, part: str) -> DataLoader:
        samples, (rank, world) = self.split.parts()[part], _process()
        return _loader(
            lambda indices: (self.gather(samples, indices), self._candidates(part, indices)),
            InOrder(len(samples), self.eval_batch_size, rank=rank, world=world),
        )

    def gather(self, samples: Samples, indices: np.ndarray) -> SequenceBatch:
        """Reads the histories and targets of some samples from the log.

        Args:
            samples: a part.
            indices: (B,) positions in it.

        Returns:
            A batch with T = ``protocol.window`` and one target a row.
        """
        log, some = self.log, samples[indices]
        place = some.first[:, None] + np.arange(self.protocol.window)
        real = place < some.last[:, None]
        place = np.where(real, place, some.target[:, None])  # any row of the log: padding is overwritten
        origin = log.times[some.first][:, None]
        columns = dict(
            items=np.where(real, log.items[place], PAD).astype(np.int64),
            times=np.where(real, log.times[place] - origin, 0),
            values=np.where(real, log.values[place], np.float32(0)),
            lengths=some.last - some.first,
            targets=log.items[some.target][:, None].astype(np.int64),
            target_times=log.times[some.target][:, None] - origin,
            users=log.users[some.target].astype(np.int64),
            rows=some.target,
        )
        return SequenceBatch(**{name: torch.from_numpy(column) for name, column in columns.items()})

    # Candidates of an evaluation ----------------------------------------------------------------------------

    def _candidates(self, part: str, indices: np.ndarray) -> EvalCandidates:
        items = self._lists[part][indices].astype(np.int64) if part in self._lists else None
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
                owner, row = owner[self._trained[row]], row[self._trained[row]]
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
        """What the data is, in plain values.

        Targets are cold if no row in training has their item, untrained if no training target is their item;
        they are in their history if the user met the item before, in the window or not.
        """
        log, split = self.log, self.split
        pair = log.users * np.int64(log.n_items + 1) + log.items
        again = np.ones(len(log), bool)
        again[np.unique(pair, return_index=True)[1]] = False  # the first of each pair
        warm = np.bincount(log.items[self._trained], minlength=log.n_items + 1) > 0
        trained = self.catalog.targets.numpy() > 0
        known = np.bincount(log.users[split.train.target], minlength=log.n_users + 1) > 0
        used, parts = np.zeros(len(log), bool), {}
        for name, samples in split.parts().items():
            met = touched(samples, len(log))
            used |= met
            user, item = log.users[samples.target], log.items[samples.target]
            parts[name] = {
                "samples": len(samples),
                "users": len(np.unique(user)),
                "items": len(np.unique(log.items[met])),
                "samples_of_unseen_users": int((~known[user]).sum()),
                "cold_targets": int((~warm[item]).sum()),
                "untrained_targets": int((~trained[item]).sum()),
                "targets_in_history": float(again[samples.target].mean()),
            }
        last = log.offsets[2:][np.diff(log.offsets[1:]) > 1] - 1
        return {
            "name": self.name,
            "fingerprint": log.fingerprint,
            "stand_in": self.stood_in,
            "label": self.protocol.label,
            "users": log.n_users,
            "items": log.n_items,
            "interactions": len(log),
            "tie_share": log.tie_share,
            "users_whose_last_two_tie": int((log.times[last] == log.times[last - 1]).sum()),
            "windows": split.windows,
            "windows_items": len(np.unique(log.items[used])),
            "windows_interactions": int(used.sum()),
            "parts": parts,
            "left_out": split.notes,
            "candidate_lists": {
                part: {
                    "digest": hashlib.sha256(found.tobytes()).hexdigest(),
                    "short": int((found[:, -1] == PAD).sum()),
                }
                for part, found in self._lists.items()
            },
        }

    def _load(self) -> InteractionLog:
        try:
            self._find()
            return cache.load(self.reader, self.cache, self.verify)
        except MissingData as missing:
            if isinstance(self.stand_in, bool):
                raise
            if self.sources:
                rank_zero_only(logger.warning)("%s", missing)
            self.stood_in = True
            return cache.load(self.stand_in, self.cache, self.verify)

    def _find(self) -> None:
        """Downloads the raw files where there are none."""
        try:
            self.reader.files()
        except MissingData as absent:
            if not self.sources:
                raise
            folder = Path(self.reader.root, self.reader.folder)  # type: ignore[attr-defined]
            try:
                fetch(self.sources, folder, self.reader.files)
            except MissingData as failed:
                raise MissingData(f"{absent}; {failed}") from failed


class Shuffled:
    """Index batches of one process for training, in an order that (seed, epoch) alone decide.

    All batches of an epoch have the same number of rows, give or take one.

    Args:
        n: samples.
        batch_size: rows of a batch, at most, of all processes together.
        seed: of the run.
        rank, world: this process, and how many there are.
    """

    def __init__(self, n: int, batch_size: int, *, seed: int, rank: int, world: int) -> None:
        self.n = n
        self.batches = -(-n // batch_size)
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0

    @property
    def smallest(self) -> int:
        """Rows of the smallest batch, of all processes together."""
        return self.n // self.batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; Lightning calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[np.ndarray]:
        starts = [self.n * batch // self.batches for batch in range(self.batches + 1)]
        some = -(-ORDER * self.batches // self.n)  # batches made in one step
        for start in range(0, self.batches, some):
            first, *ends = starts[start : start + some + 1]
            order = permuted(torch.arange(first, ends[-1]), self.n, self.seed, "shuffle", self.epoch).numpy()
            for batch in np.split(order, [end - first for end in ends[:-1]]):
                yield batch[self.rank :: self.world]


class InOrder:
    """Index batches of one process for evaluation: every ``world``-th of those that one process would form.

    A process without any gets one batch of no rows, since Lightning would leave it out of the closing step,
    where the others wait for it.

    Args:
        n: samples.
        batch_size: rows of a batch.
        rank, world: this process, and how many there are.
    """

    def __init__(self, n: int, batch_size: int, *, rank: int, world: int) -> None:
        self.n, self.batch_size = n, batch_size
        self.starts = range(rank * batch_size, n, world * batch_size) or range(n, n + 1)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in self.starts:
            yield np.arange(start, min(start + self.batch_size, self.n))


class _Gathered(Dataset):
    """A data set whose elements are whole batches, looked up by the indices of their rows."""

    def __init__(self, batch: Callable[[np.ndarray], Any]) -> None:
        self.batch = batch

    def __getitem__(self, indices: np.ndarray) -> Any:
        return self.batch(indices)


def _loader(batch: Callable[[np.ndarray], Any], batches: Shuffled | InOrder) -> DataLoader:
    return DataLoader(_Gathered(batch), sampler=batches, batch_size=None, num_workers=0)


def _process() -> tuple[int, int]:
    """This process and how many there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _catalog(log: InteractionLog, train: Samples, touched: np.ndarray) -> Catalog:
    targets = np.bincount(log.items[train.target], minlength=log.n_items + 1)
    return Catalog(
        n_users=log.n_users,
        n_items=log.n_items,
        users=torch.from_numpy(log.users[touched].astype(np.int64)),
        items=torch.from_numpy(log.items[touched].astype(np.int64)),
        times=torch.from_numpy(log.times[touched]),
        targets=torch.from_numpy(targets),
    )
