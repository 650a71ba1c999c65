"""A reader and a protocol to batches: what training, validation and test iterate over.

Shapes: B rows, T history positions, P scored positions, C candidates, E excluded items, N rows of the log,
V items.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset

from hydrec.batch import Catalog, ClickCatalog
from hydrec.data import cache
from hydrec.data.clicks import ClickProtocol, ClickSplit
from hydrec.data.download import fetch, sources
from hydrec.data.feeds import SAMPLES, ClickFeed, SequenceFeed
from hydrec.data.fields import declared
from hydrec.data.log import InteractionLog, Reader
from hydrec.data.protocols import Protocol, Split
from hydrec.errors import InputError, MissingData, at_least, one_of
from hydrec.sampling import hash64, permuted

CLICKS = "clicks"
ORDER = 2**16  # places of the shuffled order that are made, and sorted by length, at once

logger = logging.getLogger("hydrec")


class LogData(pl.LightningDataModule):
    """Batches of a log under a protocol.

    The log stays where it is, usually memory-mapped; a batch is gathered from it in one vectorised step.
    Training batches are a function of (seed, epoch) alone; their rows are of about one length, and T is the
    longest. Of W processes, each takes every W-th row of each training batch and every W-th evaluation batch
    that one process would form; no row is padded or repeated.

    Args:
        reader: makes the log.
        download: what to get where the raw files are missing: of each ``url``, ``checksum`` and ``unpack``,
            as `Source` has them.
        stand_in: makes another log where they cannot be had; ``False`` makes that an error.
        fields: what click models embed, as `hydrec.data.fields.declared` has it.
        protocol: makes the parts, and says what targets are ranked against; or one of clicks.
        samples: what a training row is: ``prefixes``, one target after its history, as the protocol makes
            them; ``histories``, `histories` with a target after every position; ``cloze``, up to
            ``protocol.window`` events of such a history, each its own target; ``clicks``, one showing of an
            item. Evaluation rows of the first three are prefixes.
        batch_size: training rows of a step, of all processes together.
        eval_batch_size: rows of an evaluation batch; changes speed and memory only.
        cache: folder of the log's columns.
        seed: of the shuffle.
        verify: whether to hash the raw files again.

    Raises:
        InputError: ``samples`` or a batch size cannot be used, or an entry of ``download``.

    Attributes:
        name: what tables call the data.
        log: the log that the pointers point into.
        raw_files: name and sha256 of each file that it was read from.
        feed: makes the batches.
        split: the parts.
        stood_in: whether the log is the stand-in's.
    """

    name: str
    log: InteractionLog
    raw_files: list[tuple[str, str]]
    feed: SequenceFeed | ClickFeed
    split: Split | ClickSplit

    def __init__(
        self,
        *,
        reader: Reader,
        download: list[dict[str, Any]],
        stand_in: Reader | bool,
        fields: dict[str, Any],
        protocol: Protocol | ClickProtocol,
        samples: str,
        batch_size: int,
        eval_batch_size: int,
        cache: str,
        seed: int,
        verify: bool,
    ) -> None:
        super().__init__()
        self.reader, self.stand_in, self.protocol = reader, stand_in, protocol
        self.sources = sources(download)
        self.fields = declared(fields)
        self.samples = one_of("model.samples", samples, (*SAMPLES, CLICKS))
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.eval_batch_size = at_least("eval_batch_size", eval_batch_size, 1)
        self.cache, self.seed, self.verify = cache, seed, verify
        self.stood_in = False
        self._ready = False

    def prepare(self) -> None:
        """Reads and splits the log and draws the candidate lists, once.

        Raises:
            MissingData: there are no raw files and nothing stands in.
            InputError: the data or the protocol cannot be used.
        """
        if self._ready:
            return
        if isinstance(self.protocol, ClickProtocol):
            if self.samples != CLICKS:
                raise InputError(
                    f"protocol={self.protocol.name} is of clicks, and this model ranks items: choose another"
                    " model, or protocol=sliding_window, leave_one_out or global_time"
                )
            self.feed = ClickFeed(self._load(), self.protocol, self.fields)
        else:
            if self.samples == CLICKS:
                raise InputError(
                    f"protocol={self.protocol.name} ranks items, and this model predicts clicks: use another"
                    " model, or protocol=click_last, click_user_split, click_global_time, click_rating or"
                    " click_days"
                )
            self.feed = SequenceFeed(self._load(), self.protocol, self.samples)
        self.log, self.split = self.feed.log, self.feed.split
        self.name = self.log.name
        self._ready = True

    def setup(self, stage: str) -> None:
        """Prepares, where nobody has."""
        self.prepare()

    @property
    def catalog(self) -> Catalog | ClickCatalog:
        """What models may know."""
        return self.feed.catalog

    # Batches ------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Yields what the feed makes of this process's rows for each step.

        Raises:
            InputError: there are fewer rows in a step than processes.
        """
        rank, world = _process()
        feed = self.feed
        order = Shuffled(feed.lengths, feed.rows, self.batch_size, seed=self.seed, rank=rank, world=world)
        if order.smallest < world:
            raise InputError(
                f"batch_size={self.batch_size}: a step of {order.smallest} training samples leaves some of"
                f" {world} processes without any; raise it or use fewer processes"
            )
        return _loader(self.feed.train, order)

    def val_dataloader(self) -> DataLoader:
        """Yields batches of the validation part, rows in the log's order."""
        return self._evaluation("valid")

    def test_dataloader(self) -> DataLoader:
        """Yields batches of the test part, rows in the log's order."""
        return self._evaluation("test")

    def _evaluation(self, part: str) -> DataLoader:
        rank, world = _process()
        order = InOrder(len(self.split.parts()[part]), self.eval_batch_size, rank=rank, world=world)
        return _loader(partial(self.feed.evaluate, part), order)

    # The record of a run ------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What the data is, in plain values, with what the feed says of its parts.

        A log without times is silent on ties: None.
        """
        log = self.log
        last = log.offsets[2:][np.diff(log.offsets[1:]) > 1] - 1
        return {
            "name": self.name,
            "fingerprint": log.fingerprint,
            "raw_files": [{"name": name, "sha256": sha256} for name, sha256 in self.raw_files],
            "stand_in": self.stood_in,
            "label": self.protocol.label,
            "users": log.n_users,
            "items": log.n_items,
            "interactions": len(log),
            "tie_share": log.tie_share if log.dated else None,
            "users_whose_last_two_tie": (
                int((log.times[last] == log.times[last - 1]).sum()) if log.dated else None
            ),
            **self.feed.describe(),
        }

    def _load(self) -> InteractionLog:
        try:
            self._find()
            return self._read(self.reader)
        except MissingData as missing:
            if isinstance(self.stand_in, bool):
                raise
            if self.sources:
                rank_zero_only(logger.warning)("%s", missing)
            self.stood_in = True
            return self._read(self.stand_in)

    def _read(self, reader: Reader) -> InteractionLog:
        log = cache.load(reader, self.cache, self.verify)
        self.raw_files = cache.raw_files(reader, self.cache)
        return log

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

    All batches of an epoch have the same number of rows, give or take one. Rows come in shuffled order; those
    of many neighbouring batches are then sorted by length and cut anew, so that little of a batch is padding,
    and the batches are shuffled. Where all lengths are equal that is a shuffled order like any other.

    Args:
        lengths: (B,) of the histories of the samples at (B,) positions.
        n: samples.
        batch_size: rows of a batch, at most, of all processes together.
        seed: of the run.
        rank, world: this process, and how many there are.
    """

    def __init__(
        self,
        lengths: Callable[[np.ndarray], np.ndarray],
        n: int,
        batch_size: int,
        *,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.lengths, self.n = lengths, n
        self.batches = -(-self.n // batch_size)
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
            order = order[np.argsort(self.lengths(order), kind="stable")]
            batches = np.split(order, [end - first for end in ends[:-1]])
            turns = hash64(self.seed, "batches", self.epoch, torch.arange(start, start + len(batches)))
            for turn in turns.argsort():
                yield batches[turn][self.rank :: self.world]


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
