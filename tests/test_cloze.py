"""What is hidden is the only target, by the published counts; what is asked stands behind the history."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrec.batch import PAD, SequenceBatch
from hydrec.cloze import Cloze
from hydrec.errors import InputError

MASK = 26


@pytest.fixture
def cloze(catalog):
    return partial(Cloze, catalog)


@pytest.fixture
def rows(random_batch):
    """Makes rows whose every event is its own target."""

    def make(*args, **kwargs) -> SequenceBatch:
        batch = random_batch(*args, **kwargs)
        return batch._replace(targets=batch.items, target_times=batch.times)

    return make


def test_what_is_hidden_is_the_target_and_nothing_else_changes(cloze, rows):
    batch = rows(40)
    shown = cloze(ratio=0.4, last=0.3).hide(batch, seed=0, epoch=0)
    hidden = shown.items == MASK
    assert torch.equal(hidden, shown.targets != PAD)
    assert torch.equal(shown.targets[hidden], batch.items[hidden])
    assert torch.equal(shown.items[~hidden], batch.items[~hidden])
    assert torch.equal(shown.target_times, batch.times * hidden)
    assert shown.values[hidden].isnan().all() and torch.equal(shown.values[~hidden], batch.values[~hidden])
    for name in ("times", "lengths", "users", "rows"):
        assert torch.equal(getattr(shown, name), getattr(batch, name))
    assert not (hidden & (torch.arange(12) >= batch.lengths[:, None])).any(), "no padding is hidden"


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.3, 0.5, 0.7, 0.99])
def test_so_many_of_a_row_are_hidden_as_published(cloze, rows, ratio):
    batch = rows(40)
    hidden = (cloze(ratio=ratio, last=0.0).hide(batch, seed=0, epoch=0).items == MASK).sum(1)
    assert hidden.tolist() == [max(1, round(n * ratio)) for n in batch.lengths.tolist()]


def test_of_some_rows_the_last_event_alone_is_hidden(cloze, rows):
    batch = rows(4000)
    ends = torch.arange(12) == batch.lengths[:, None] - 1
    every = cloze(ratio=0.5, last=1.0).hide(batch, seed=0, epoch=0).items == MASK
    assert torch.equal(every, ends)
    some = cloze(ratio=0.5, last=0.25).hide(batch, seed=0, epoch=0).items == MASK
    long = batch.lengths > 3  # half of these are two events or more
    alone = (some == ends).all(1)[long]
    assert abs(alone.float().mean() - 0.25) < 5 * (0.25 * 0.75 / len(alone)) ** 0.5


def test_every_event_is_as_likely_to_be_hidden(cloze, rows):
    batch, hide = rows(2), cloze(ratio=0.25, last=0.0).hide  # the first row has 12 events
    counts = sum((hide(batch, seed=0, epoch=epoch).items[0] == MASK).long() for epoch in range(800))
    assert int(counts.sum()) == 800 * 3
    assert ((counts - 200.0) ** 2 / 200).sum() < 11 + 5 * (2 * 11) ** 0.5


def test_what_is_hidden_depends_on_seed_epoch_and_row_alone(cloze, rows):
    batch, hide = rows(30), cloze(ratio=0.3, last=0.2).hide
    items = hide(batch, seed=1, epoch=2).items
    order = torch.arange(29, -1, -1)
    assert torch.equal(hide(SequenceBatch(*(x[order] for x in batch)), seed=1, epoch=2).items, items[order])
    pad = partial(torch.nn.functional.pad, pad=(0, 3))
    columns = ("items", "times", "values", "targets", "target_times")
    wide = batch._replace(**{name: pad(getattr(batch, name)) for name in columns})
    assert torch.equal(hide(wide, seed=1, epoch=2).items, pad(items))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not torch.equal(hide(batch, **other).items, items)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(deadline=None, max_examples=25)
def test_asking_equals_a_slow_loop(seed, window):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, window + 1, (5,), generator=draw)
    real = torch.arange(window) < lengths[:, None]
    times = torch.randint(10**9, (5, window + 1), generator=draw).cumsum(1)
    times = times - times[:, :1]
    batch = SequenceBatch(
        items=torch.randint(1, 26, (5, window), generator=draw) * real,
        times=times[:, :-1] * real,
        values=torch.rand(5, window, generator=draw) * real,
        lengths=lengths,
        targets=torch.randint(1, 26, (5, 1), generator=draw),
        target_times=times.gather(1, lengths[:, None]),
        users=torch.arange(5),
        rows=torch.arange(5),
    )
    asked = Cloze(Sizes, ratio=0.5, last=0.0).ask(batch)
    for row, n in enumerate(lengths.tolist()):
        kept = slice(1 if n == window else 0, n)
        items = [*batch.items[row, kept].tolist(), MASK]
        moments = [*batch.times[row, kept].tolist(), batch.target_times[row].item()]
        values = batch.values[row, kept].tolist()
        padding = [0] * (window - len(items))
        assert asked.items[row].tolist() == items + padding
        assert asked.times[row].tolist() == [moment - moments[0] for moment in moments] + padding
        assert asked.values[row].tolist()[: len(values)] == values
        assert asked.values[row, len(values)].isnan() and not asked.values[row, len(items) :].any()
        assert asked.lengths[row] == len(items)
        assert asked.target_times[row].item() == moments[-1] - moments[0]
    for name in ("targets", "users", "rows"):
        assert torch.equal(getattr(asked, name), getattr(batch, name))


class Sizes:
    """A catalogue of which only the number of items is read."""

    n_items = 25


@pytest.mark.parametrize(("key", "value"), [("ratio", 0.0), ("ratio", 1.0), ("last", -0.1), ("last", 1.1)])
def test_shares_are_shares(cloze, key, value):
    with pytest.raises(InputError, match=rf"model\.cloze\.{key}={value}"):
        cloze(**({"ratio": 0.5, "last": 0.5} | {key: value}))
