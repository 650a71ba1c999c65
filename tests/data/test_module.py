"""Batches are the facts of the log; shards and lists depend on nothing but what names them."""

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_utilities.core.apply_func import apply_to_collection

from hydrec.batch import PAD, EvalCandidates, SequenceBatch
from hydrec.data import feeds, module
from hydrec.data.feeds import histories
from hydrec.data.log import InteractionLog
from hydrec.data.module import InOrder, LogData, Shuffled
from hydrec.data.protocols import GlobalTime, LeaveOneOut, ReleasedWindows, Samples, SlidingWindow
from hydrec.errors import InputError, MissingData
from hydrec.metrics import RankMetrics

RULE = {"count": 6, "exponent": 0.0, "exclude": "user", "replace": False, "seed": 63}
SHARED = {
    "mask_history": False,
    "cold": "keep",
    "shuffle_ties": None,
    "candidates": "full",
    "sampled": RULE,
    "metrics": RankMetrics(at=[5], ties="expected"),
}


class Toy:
    """A reader of 60 users with 1 to 40 events on 25 items, with ties."""

    name = "toy"

    def __init__(self) -> None:
        self.calls = 0

    def files(self) -> list[Path]:
        return []

    def options(self) -> dict:
        return {"version": 1, "name": self.name}

    def __call__(self) -> InteractionLog:
        self.calls += 1
        draw = np.random.default_rng(7)
        users = np.repeat(np.arange(1, 61), draw.integers(1, 41, 60))
        return InteractionLog.build(
            name=self.name,
            users=users,
            items=draw.integers(1, 26, len(users)),
            times=10**9 + draw.integers(0, 500, len(users)),
            values=draw.random(len(users)).astype(np.float32),
        )


class Missing(Toy):
    """A reader without files."""

    name = "missing"

    def files(self) -> list[Path]:
        raise MissingData("no files")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make(folder):
    def build(protocol=None, **changes) -> LogData:
        given = {
            "reader": Toy(),
            "download": [],
            "stand_in": False,
            "fields": {},
            "protocol": protocol or loo(),
            "samples": "prefixes",
            "batch_size": 100,
            "eval_batch_size": 7,
            "cache": str(folder),
            "seed": 0,
            "verify": False,
        }
        data = LogData(**(given | changes))
        data.prepare()
        return data

    return build


def loo(**changes) -> LeaveOneOut:
    return LeaveOneOut(**(SHARED | {"window": 5} | changes))


def sliding(**changes) -> SlidingWindow:
    given = {"window": 5, "stride": 2, "scope": "global", "valid": 0.1, "test": 0.1}
    return SlidingWindow(**(SHARED | given | changes))


def released(**changes) -> ReleasedWindows:
    given = {
        "window": 5,
        "seed": 63,
        "valid": 0.1,
        "test": 0.1,
        "order": "string",
        "validation_in_train": True,
    }
    return ReleasedWindows(**(SHARED | given | changes))


def global_time(**changes) -> GlobalTime:
    return GlobalTime(**(SHARED | {"window": 5, "valid": 0.1, "test": 0.1, "targets": "first"} | changes))


PROTOCOLS = [loo, sliding, released, global_time]


def equal(one: SequenceBatch, other: SequenceBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_gather_equals_a_slow_loop(make, protocol):
    data = make(protocol())
    log, samples = data.log, data.split.train
    indices = np.random.default_rng(0).integers(0, len(samples), 50)
    batch = data.feed.gather(samples, indices)
    assert batch.items.shape == (50, 5) and batch.targets.shape == (50, 1)
    for b, index in enumerate(indices):
        first, last, target = samples.first[index], samples.last[index], samples.target[index]
        n = last - first
        assert batch.lengths[b] == n and batch.rows[b] == target and batch.users[b] == log.users[target]
        assert log.users[first] == log.users[target]
        assert batch.items[b].tolist() == log.items[first:last].tolist() + [PAD] * (5 - n)
        assert batch.times[b].tolist() == (log.times[first:last] - log.times[first]).tolist() + [0] * (5 - n)
        assert batch.values[b].tolist() == log.values[first:last].tolist() + [0] * (5 - n)
        assert batch.targets[b].item() == log.items[target]
        assert batch.target_times[b].item() == log.times[target] - log.times[first]
    kinds = [column.dtype for column in batch]
    assert kinds == [torch.int64, torch.int64, torch.float32, *[torch.int64] * 5]


def test_gather_of_nothing_is_a_batch_of_nothing(make):
    data = make()
    assert [column.shape[0] for column in data.feed.gather(data.split.test, np.zeros(0, np.int64))] == [0] * 8


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_epoch_has_every_training_sample_once(make, protocol):
    data = make(protocol())
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, SequenceBatch) for batch in batches)
    rows = torch.cat([batch.rows for batch in batches])
    assert rows.sort().values.tolist() == data.split.train.target.tolist()
    sizes = [len(batch.rows) for batch in batches]
    assert max(sizes) <= 100 and max(sizes) - min(sizes) <= 1 and len(sizes) == -(-len(rows) // 100)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluation_has_every_sample_once_in_the_order_of_the_log(make, protocol):
    data = make(protocol())
    for loader, part in (
        (data.val_dataloader(), data.split.valid),
        (data.test_dataloader(), data.split.test),
    ):
        rows = torch.cat([batch.rows for batch, _ in loader])
        assert rows.tolist() == sorted(part.target.tolist())
        assert len(loader) == -(-len(part) // 7)


def test_batches_keep_their_types_through_lightning(make):
    batch = next(iter(make(loo(mask_history=True)).val_dataloader()))
    moved = make().transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert isinstance(moved[0], SequenceBatch) and isinstance(moved[1], EvalCandidates)
    assert moved[1].items is None and torch.equal(moved[1].excluded, batch[1].excluded)
    assert apply_to_collection(EvalCandidates(None, None), torch.Tensor, torch.clone) == (None, None)


# Histories --------------------------------------------------------------------------------------------------


def slow_histories(samples: Samples, window: int) -> list[list[int]]:
    """Runs of rows that samples join, cut from their newest end, one row at a time."""
    edges = {r for a, b in zip(samples.first, samples.target, strict=True) for r in range(a, b)}
    found = []
    for end in sorted({r + 1 for r in edges} - edges):
        start = end
        while start - 1 in edges:
            start -= 1
        while end > start:
            found.append([max(start, end - window), end, end])
            end -= window
    return sorted(found)


def pointers(samples: Samples) -> list[list[int]]:
    return np.stack([samples.first, samples.last, samples.target], 1).tolist()


@pytest.mark.parametrize("window", [1, 3, 5, 100])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_histories_equal_a_slow_loop(make, protocol, window):
    data = make(protocol())
    found = histories(data.split.train, window, len(data.log))
    assert pointers(found) == slow_histories(data.split.train, window)
    assert (np.diff(found.target) > 0).all()
    assert {column.dtype for column in vars(found).values()} == {np.dtype(np.int64)}


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=100)
def test_every_event_of_a_run_but_the_first_is_a_target_once(pairs, window):
    first, length = np.array(sorted(dict(pairs).items())).T
    samples = Samples(first, first + length, first + length)
    found = histories(samples, window, 60)
    assert pointers(found) == slow_histories(samples, window)
    sizes = found.last - found.first
    assert sizes.min() >= 1 and sizes.max() <= window
    targets = [row for a, b in zip(found.first, found.target, strict=True) for row in range(a + 1, b + 1)]
    assert len(set(targets)) == len(targets)
    assert set(targets) == {r + 1 for a, b in zip(first, samples.target, strict=True) for r in range(a, b)}
    # a piece with fewer targets than the window is the oldest of its run
    starts = set(found.first[sizes < window].tolist())
    assert not starts & set(found.target.tolist())


@pytest.mark.parametrize("protocol", [loo, global_time])
def test_histories_train_the_targets_of_the_prefixes(make, protocol):
    prefixes, data = make(protocol()), make(protocol(), samples="histories")
    batches = list(data.train_dataloader())
    asked = torch.cat([batch.targets[batch.targets != PAD] for batch in batches])
    rows = torch.cat([target_rows(batch) for batch in batches])
    assert rows.sort().values.tolist() == prefixes.split.train.target.tolist()
    assert asked.tolist() == data.log.items[rows].tolist()
    assert all(map(torch.equal, data.catalog[2:], prefixes.catalog[2:]))


def target_rows(batch: SequenceBatch) -> torch.Tensor:
    """Log rows of the supervised positions of a batch."""
    place = torch.arange(batch.targets.shape[1])
    rows = batch.rows[:, None] - (batch.lengths[:, None] - 1) + place
    return rows[place < batch.lengths[:, None]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_histories_stay_among_what_trains(make, protocol):
    """The inner events of a window become targets; nothing that no training sample has does."""
    data = make(protocol(), samples="histories")
    asked = torch.cat([target_rows(batch) for batch in data.train_dataloader()])
    train = data.split.train
    touched = {r for a, b in zip(train.first, train.target, strict=True) for r in range(a, b + 1)}
    assert set(train.target.tolist()) <= set(asked.tolist()) <= touched
    assert (len(asked) > len(train)) == (protocol in (sliding, released))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("samples", "ahead"), [("histories", 1), ("cloze", 0)])
def test_a_batch_with_a_target_at_each_position_equals_a_slow_loop(make, protocol, samples, ahead):
    data = make(protocol(), samples=samples, batch_size=9)
    log = data.log
    for batch in data.train_dataloader():
        width = int(batch.lengths.max())
        shapes = {tuple(column.shape) for column in (batch.items, batch.targets, batch.target_times)}
        assert shapes == {(len(batch.rows), width)} and width <= 5
        for b, (last, n) in enumerate(zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)):
            start, padding = last - n + 1 - ahead, [0] * (width - n)
            there, asked = slice(start, start + n), slice(start + ahead, start + ahead + n)
            assert log.users[start] == log.users[last] == batch.users[b]
            assert batch.items[b].tolist() == log.items[there].tolist() + padding
            assert batch.targets[b].tolist() == log.items[asked].tolist() + padding
            assert batch.times[b].tolist() == (log.times[there] - log.times[start]).tolist() + padding
            assert batch.target_times[b].tolist() == (log.times[asked] - log.times[start]).tolist() + padding
            assert batch.values[b].tolist() == log.values[there].tolist() + padding


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rows_with_gaps_have_every_event_that_trains_and_two_at_least(make, protocol):
    data = make(protocol(), samples="cloze")
    train, batches = data.split.train, list(data.train_dataloader())
    last, sizes = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("rows", "lengths"))
    rows = [range(end - n + 1, end + 1) for end, n in zip(last.tolist(), sizes.tolist(), strict=True)]
    touched = {r for a, b in zip(train.first, train.target, strict=True) for r in range(a, b + 1)}
    assert {row for each in rows for row in each} == touched
    assert {len(each) for each in rows} <= {2, 3, 4, 5}


@pytest.mark.parametrize("samples", ["prefixes", "histories", "cloze"])
def test_a_training_batch_is_as_wide_as_its_longest_row(make, samples):
    batches = list(make(samples=samples, batch_size=9).train_dataloader())
    assert all(batch.items.shape[1] == batch.lengths.max() for batch in batches)
    assert len({batch.items.shape[1] for batch in batches}) > 2


@pytest.mark.parametrize("samples", ["histories", "cloze"])
def test_evaluation_has_one_target_a_row_whatever_trains(make, samples):
    loaders = [make(samples=name).test_dataloader() for name in ("prefixes", samples)]
    assert all(equal(one[0], other[0]) for one, other in zip(*loaders, strict=True))


def test_samples_are_named(make):
    with pytest.raises(InputError, match=r"model\.samples=history .*did you mean histories"):
        make(samples="history")
    with pytest.raises(InputError, match=r"protocol\.window=1.*cloze"):
        make(loo(window=1), samples="cloze")


# Order and shards -------------------------------------------------------------------------------------------


def lengths(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(1, 20, n)


def shuffled(
    n: int, size: int, world: int = 1, rank: int = 0, seed: int = 0, epoch: int = 0, of=None
) -> list[np.ndarray]:
    some = lengths(n) if of is None else of
    order = Shuffled(some.__getitem__, n, size, seed=seed, rank=rank, world=world)
    order.set_epoch(epoch)
    assert len(order) == len(list(order))
    return list(order)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "size"), [(103, 10), (100, 10), (3, 10), (3, 2), (1, 1), (11, 100)])
def test_processes_share_each_training_batch(n, size, world):
    whole = shuffled(n, size)
    shares = [shuffled(n, size, world, rank) for rank in range(world)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert np.concatenate(parts).tolist() != [] and sorted(np.concatenate(parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(np.concatenate(whole)) == list(range(n))
    assert len(whole) == -(-n // size)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(("n", "size"), [(103, 10), (100, 10), (3, 10), (3, 1), (1, 1)])
def test_processes_take_whole_evaluation_batches(n, size, world):
    whole = [batch.tolist() for batch in InOrder(n, size, rank=0, world=1)]
    assert whole == [list(range(n))[k : k + size] for k in range(0, n, size)]
    for rank in range(world):
        share = InOrder(n, size, rank=rank, world=world)
        batches = [batch.tolist() for batch in share]
        assert len(share) == len(batches) and batches == (whole[rank::world] or [[]])


def test_order_is_a_function_of_seed_and_epoch():
    def flat(**keys):
        return np.concatenate(shuffled(1000, 64, **keys)).tolist()

    assert flat(seed=1, epoch=2) == flat(seed=1, epoch=2)
    orders = [flat(), flat(epoch=1), flat(seed=1), flat(seed=1, epoch=1), list(range(1000))]
    assert len(set(map(tuple, orders))) == 5
    again = Shuffled(lengths(1000).__getitem__, 1000, 64, seed=0, rank=0, world=1)
    list(again)
    assert np.concatenate(list(again)).tolist() == flat()  # iterating changes nothing


def test_every_place_of_the_order_is_equally_likely():
    even = np.full(8, 5)
    orders = np.stack([np.concatenate(shuffled(8, 8, epoch=epoch, of=even)) for epoch in range(1600)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert ((counts - 200) ** 2 / 200).sum() < 49 + 5 * (
        2 * 49
    ) ** 0.5  # chi-square with 7 x 7 degrees of freedom


def test_rows_of_a_batch_are_of_about_one_length(monkeypatch):
    of = lengths(3000)
    batches = shuffled(3000, 30, of=of)
    spread = [np.ptp(of[batch]) for batch in batches]
    assert max(spread) <= 1, "19 lengths in 100 batches"
    means = np.array([of[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.4, "short batches do not come first"
    monkeypatch.setattr(module, "ORDER", 300)
    blocks = shuffled(3000, 30, of=of)
    assert sorted(np.concatenate(blocks)) == list(range(3000))
    assert {len(batch) for batch in blocks} == {30}
    even = shuffled(3000, 30, of=np.ones(3000, int))
    for block in range(0, 100, 10):  # its rows are those of the shuffled order, whatever their lengths
        some = slice(block, block + 10)
        assert sorted(np.concatenate(blocks[some])) == sorted(np.concatenate(even[some]))


def test_shares_of_a_batch_are_of_about_one_length():
    of = lengths(3000)
    shares = [shuffled(3000, 30, 3, rank, of=of) for rank in range(3)]
    for parts in zip(*shares, strict=True):
        longest = [of[part].max() for part in parts]
        assert max(longest) - min(longest) <= 1


class Record(pl.LightningModule):
    """Notes the rows it is given."""

    def __init__(self, epochs: list) -> None:
        super().__init__()
        self.epochs, self.weight = epochs, torch.nn.Parameter(torch.zeros(()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

    def on_train_epoch_start(self):
        self.epochs.append([])

    def training_step(self, batch, _):
        self.epochs[-1] += batch.rows.tolist()
        return self.weight

    def validation_step(self, batch, _):
        assert isinstance(batch[0], SequenceBatch)


def test_lightning_goes_through_the_epochs_and_resumes_between_them(make, tmp_path):
    settings = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    data, whole, halves = make(), [], []
    pl.Trainer(max_epochs=3, **settings, enable_checkpointing=False).fit(Record(whole), data)
    trainer = pl.Trainer(max_epochs=1, **settings, enable_checkpointing=False)
    trainer.fit(Record(halves), make())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    pl.Trainer(max_epochs=3, **settings, enable_checkpointing=False).fit(
        Record(halves), make(), ckpt_path=tmp_path / "one.ckpt"
    )
    train = data.split.train
    order = Shuffled((train.last - train.first).__getitem__, len(train), 100, seed=0, rank=0, world=1)
    expected = []
    for epoch in range(3):
        order.set_epoch(epoch)
        expected.append([int(train.target[k]) for batch in order for k in batch])
    assert whole == halves == expected


def test_more_processes_than_rows_in_a_step_are_refused(make, monkeypatch):
    data = make(batch_size=2)
    monkeypatch.setattr(module, "_process", lambda: (0, 3))
    with pytest.raises(InputError, match=r"batch_size=2: a step of [12] .* 3 processes"):
        data.train_dataloader()
    assert len(make(batch_size=100).train_dataloader())


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_wrong_batch_sizes_name_the_key(make, key, value):
    with pytest.raises(InputError, match=f"^{key}={value}"):
        make(**{key: value})


# Candidates -------------------------------------------------------------------------------------------------


def past(log, target: int) -> set[int]:
    return {int(log.items[row]) for row in range(log.offsets[log.users[target]], target)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_masked_history_is_the_whole_past_but_the_target(make, protocol):
    data, seen = make(protocol(mask_history=True)), 0
    for batch, candidates in data.test_dataloader():
        assert candidates.items is None and candidates.excluded.dtype == torch.int64
        for row, target, excluded in zip(batch.rows, batch.targets[:, 0], candidates.excluded, strict=True):
            found = [item for item in excluded.tolist() if item != PAD]
            assert sorted(found) == sorted(past(data.log, int(row)) - {int(target)})
            assert excluded.tolist()[len(found) :] == [PAD] * (len(excluded) - len(found))
            seen += int(target) in past(data.log, int(row))
    assert seen  # repeats are in the data, and stay reachable


def test_without_masking_or_lists_candidates_are_the_catalogue(make):
    assert all(candidates == (None, None) for _, candidates in make().test_dataloader())


def forbidden(data, exclude: str, first: int, last: int, target: int) -> set[int]:
    log = data.log
    rows = set(range(log.offsets[log.users[target]], log.offsets[log.users[target] + 1]))
    if exclude == "window":
        rows = set(range(first, last))
    if exclude == "train":
        train = data.split.train
        rows &= {r for a, b in zip(train.first, train.target, strict=True) for r in range(a, b + 1)}
    return {int(log.items[row]) for row in rows | {target}}


@pytest.mark.parametrize("exclude", ["window", "user", "train"])
@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("protocol", [loo, sliding])
def test_lists_have_only_what_competes(make, protocol, exclude, exponent):
    data = make(protocol(candidates="sampled", sampled=RULE | {"exclude": exclude, "exponent": exponent}))
    for part, loader in (("valid", data.val_dataloader()), ("test", data.test_dataloader())):
        samples = data.split.parts()[part]
        lists = torch.cat([candidates.items for _, candidates in loader])
        assert lists.shape == (len(samples), 6) and lists.dtype == torch.int64
        for k, found in enumerate(lists.tolist()):
            out = forbidden(data, exclude, samples.first[k], samples.last[k], samples.target[k])
            left = {
                i for i in range(1, 26) if i not in out and (exponent == 0 or data.catalog.targets[i] > 0)
            }
            kept = [item for item in found if item != PAD]
            assert set(kept) <= left and len(set(kept)) == len(kept) == min(6, len(left))


def test_lists_depend_on_their_row_alone(make, monkeypatch):
    protocol = loo(candidates="sampled")
    data = make(protocol)
    monkeypatch.setattr(feeds, "BLOCK", 3)
    blocks = make(protocol, seed=5, eval_batch_size=3)
    for part in ("valid", "test"):
        assert np.array_equal(data.feed.lists[part], blocks.feed.lists[part])
    assert data.describe()["candidate_lists"] == blocks.describe()["candidate_lists"]
    other = make(loo(candidates="sampled", sampled=RULE | {"seed": 64}))
    assert not np.array_equal(data.feed.lists["test"], other.feed.lists["test"])
    digest = [d.describe()["candidate_lists"]["test"]["digest"] for d in (data, other)]
    assert digest[0] != digest[1]
    # The last sample of each user is tested under both protocols that have its row: the lists are the same.
    wide = make(loo(candidates="sampled", window=3))
    assert np.array_equal(wide.feed.lists["test"], data.feed.lists["test"])


def test_short_lists_are_counted(make):
    data = make(loo(candidates="sampled", sampled=RULE | {"count": 20}))
    short = sum(len(past(data.log, t) | {int(data.log.items[t])}) > 5 for t in data.split.test.target)
    assert data.describe()["candidate_lists"]["test"]["short"] == short > 0


def test_the_drawn_candidates_of_a_run_are_its_lists_after_the_targets(make):
    data = make(loo(candidates="sampled", sampled=RULE | {"count": 20}))
    parts = ("valid", "test")
    frame = data.feed.drawn()
    assert frame["sample"].to_list() == [row for part in parts for row in data.split.parts()[part].target]
    assert frame["part"].to_list() == [part for part in parts for _ in data.feed.lists[part]]
    expected = [
        [int(data.log.items[row]), *(item for item in drawn if item != PAD)]
        for part in parts
        for row, drawn in zip(data.split.parts()[part].target, data.feed.lists[part].tolist(), strict=True)
    ]
    assert frame["candidates"].to_list() == expected
    assert {len(each) for each in expected} > {21}  # and shorter ones


def test_lists_and_masking_go_together(make):
    _, candidates = next(iter(make(loo(candidates="sampled", mask_history=True)).test_dataloader()))
    assert candidates.items.shape == (7, 6) and len(candidates.excluded) == 7


# Preparing --------------------------------------------------------------------------------------------------


def test_data_is_prepared_once(make):
    data = make()
    log, calls = data.log, data.reader.calls
    data.prepare()
    data.setup("fit")
    assert data.log is log and data.reader.calls == calls
    assert data.name == "toy" and not data.stood_in and not data.hparams


def test_a_stand_in_replaces_missing_files_and_says_so(make):
    with pytest.raises(MissingData):
        make(reader=Missing())
    data = make(reader=Missing(), stand_in=Toy())
    assert data.stood_in and data.name == "toy" and data.describe()["stand_in"]


def test_raw_files_are_described_by_name_and_digest(make, tmp_path):
    class Reader(Toy):
        def files(self) -> list[Path]:
            return [tmp_path / "a.txt"]

    (tmp_path / "a.txt").write_text("abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert make(reader=Reader()).describe()["raw_files"] == [{"name": "a.txt", "sha256": digest}]
    assert make().describe()["raw_files"] == []


def test_a_log_without_times_is_silent_on_ties(make):
    class Undated(Toy):
        name = "undated"

        def __call__(self) -> InteractionLog:
            log = super().__call__()
            return InteractionLog.build(name=self.name, users=log.users, items=log.items)

    found = make(reader=Undated()).describe()
    assert found["tie_share"] is None and found["users_whose_last_two_tie"] is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_catalogue_knows_the_training_part_only(make, protocol):
    data = make(protocol())
    log, train, catalog = data.log, data.split.train, data.catalog
    rows = sorted({r for a, b in zip(train.first, train.target, strict=True) for r in range(a, b + 1)})
    assert (catalog.n_users, catalog.n_items) == (log.n_users, log.n_items)
    assert (
        catalog.users.tolist() == log.users[rows].tolist()
        and catalog.times.tolist() == log.times[rows].tolist()
    )
    assert catalog.items.tolist() == log.items[rows].tolist()
    np.testing.assert_array_equal(catalog.values.numpy(), log.values[rows])
    counts = [0] * 26
    for target in train.target:
        counts[log.items[target]] += 1
    assert catalog.targets.tolist() == counts
    if protocol is not released:
        assert not set(rows) & set(data.split.test.target.tolist())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_description_equals_a_slow_count(make, protocol):
    data = make(protocol())
    log, split, found = data.log, data.split, data.describe()
    touched = {
        name: {r for a, b in zip(part.first, part.target, strict=True) for r in range(a, b + 1)}
        for name, part in split.parts().items()
    }
    every = set.union(*touched.values())
    assert found["windows"] == split.windows and found["windows_interactions"] == len(every)
    assert found["windows_items"] == len({log.items[row] for row in every})
    warm, known = {log.items[r] for r in touched["train"]}, {log.users[r] for r in split.train.target}
    for name, part in split.parts().items():
        targets = part.target.tolist()
        assert found["parts"][name] == {
            "samples": len(targets),
            "users": len({log.users[t] for t in targets}),
            "items": len({log.items[r] for r in touched[name]}),
            "samples_of_unseen_users": sum(log.users[t] not in known for t in targets),
            "cold_targets": sum(log.items[t] not in warm for t in targets),
            "untrained_targets": sum(log.items[t] not in log.items[split.train.target] for t in targets),
            "targets_in_history": pytest.approx(
                sum(log.items[t] in past(log, t) for t in targets) / len(targets)
            ),
        }
    ends = [(log.offsets[u + 1] - 1, log.offsets[u]) for u in range(1, 61)]
    assert found["users_whose_last_two_tie"] == sum(
        log.times[e] == log.times[e - 1] for e, s in ends if e > s
    )
    assert (found["users"], found["items"], found["interactions"]) == (60, 25, len(log))
    assert found["left_out"] == split.notes and found["label"] == data.protocol.label


def real(folder, name: str, file: str, protocol) -> LogData:
    path = Path(os.environ.get("HYDREC_DATA", "nowhere")) / name / file
    if not path.exists():
        pytest.skip(f"no {name} in HYDREC_DATA")

    class Reader(Toy):
        def options(self):
            return {"version": 1, "name": name}

        def __call__(self):
            columns = np.array(path.read_text().replace("::", " ").split(), np.int64).reshape(-1, 4).T
            return InteractionLog.build(name=name, users=columns[0], items=columns[1], times=columns[3])

    data = LogData(
        reader=Reader(),
        download=[],
        stand_in=False,
        fields={},
        protocol=protocol,
        samples="prefixes",
        batch_size=1024,
        eval_batch_size=512,
        cache=str(folder),
        seed=0,
        verify=False,
    )
    data.prepare()
    return data


def test_real_data_is_described(folder):
    found = real(folder, "ml-100k", "u.data", loo(window=12)).describe()
    assert found["users_whose_last_two_tie"] == 415 and round(found["tie_share"], 2) == 0.51
    assert found["parts"]["test"]["cold_targets"] == 3 and found["parts"]["test"]["samples"] == 943
    assert found["parts"]["test"]["targets_in_history"] == 0


def test_popularity_alone_hits_what_was_published_for_hgnn_among_the_released_candidates(folder):
    rule = {"count": 50, "exponent": 0.0, "exclude": "window", "replace": True, "seed": 63}
    protocol = {"window": 12, "order": "numeric", "validation_in_train": False, "candidates": "sampled"}
    data = real(folder, "ml-1m", "ratings.dat", released(**protocol, sampled=rule))
    popularity, hits = data.catalog.targets.double(), []
    for batch, candidates in data.test_dataloader():
        own, others = popularity[batch.targets], popularity[candidates.items]
        greater, equal = (others > own).sum(1), (others == own).sum(1)
        hits.append(torch.stack([((k - greater) / (equal + 1)).clamp(0, 1) for k in (5, 10)], 1))
    found = torch.cat(hits).mean(0)
    assert data.log.n_items == 3_388 and len(torch.cat(hits)) == 7_407
    assert (found - torch.tensor([0.579, 0.759])).abs().max() < 0.012  # two standard errors
