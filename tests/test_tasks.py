"""NextItem: what is scored, by which numbers, and what stops a run."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hydrec.batch import Catalog, EvalCandidates, SequenceBatch
from hydrec.errors import InputError
from hydrec.losses import BPR
from hydrec.metrics import RankMetrics
from hydrec.sampling import Sampled
from hydrec.tasks import NextItem

V = 30
FULL = EvalCandidates(None, None)


class State(NamedTuple):
    vectors: Tensor


class Linear(nn.Module):
    """Scores by the product of an item's vector with that of an item of the past; counts its calls."""

    def __init__(self, catalog: Catalog, *, positions: int) -> None:
        super().__init__()
        self.item, self.past = nn.Embedding(V + 1, 4), nn.Embedding(V + 1, 4)
        self.positions = positions
        self.encoded = 0
        self.scored: list[tuple[int, ...]] = []

    def encode(self, batch: SequenceBatch) -> tuple[State, Tensor]:
        self.encoded += 1
        return State(self.past(batch.items[:, : self.positions])), torch.tensor(0.25)

    def score(self, state: State, items: Tensor) -> Tensor:
        self.scored.append(tuple(items.shape))
        vectors = self.item(items)
        return (state.vectors[:, None] * vectors).sum(-1) if items.dim() == 2 else state.vectors @ vectors.mT


@pytest.fixture
def task_of():
    def make(*, positions: int = 1, chunk: int = 1000, seed: int = 0) -> NextItem:
        torch.manual_seed(0)
        column = torch.arange(1, V + 1)
        catalog = Catalog(5, V, torch.ones_like(column), column, column, torch.ones(V + 1, dtype=torch.int64))
        loss = {
            "objective": BPR(compare="score"),
            "candidates": partial(Sampled, count=2, exponent=0.0, exclude="target"),
        }
        task = NextItem(
            catalog,
            RankMetrics(at=[5, 10], ties="expected"),
            seed,
            net=partial(Linear, positions=positions),
            loss=loss,
            optimiser=partial(torch.optim.SGD, lr=0.1),
            chunk=chunk,
        )
        task.log_dict = lambda *args, **kwargs: None  # there is no trainer
        return task

    return make


def batch_of(rows: int, targets: Tensor | None = None) -> SequenceBatch:
    row = torch.arange(rows)
    items = (row[:, None] + torch.arange(3)) % V + 1
    targets = (row[:, None] * 7) % V + 1 if targets is None else targets
    return SequenceBatch(
        items=items,
        times=torch.zeros_like(items),
        values=torch.zeros(items.shape),
        lengths=torch.full((rows,), 3),
        targets=targets,
        target_times=torch.zeros_like(targets),
        users=row % 5 + 1,
        rows=row * 100,
    )


def test_nothing_is_encoded_twice_and_only_supervised_positions_are_scored(task_of):
    task = task_of(positions=3)
    targets = torch.tensor([[4, 0, 5], [0, 0, 6]])
    loss = task.training_step(batch_of(2, targets), 0)
    assert task.net.encoded == 1
    assert task.net.scored == [(3, 3)], "three supervised positions, a positive and two negatives each"
    assert loss.requires_grad and loss > 0.25, "the auxiliary term is part of it"


def test_negatives_are_a_function_of_seed_epoch_row_and_position(task_of, monkeypatch):
    drawn = []

    def record(task: NextItem, epoch: int, batch: SequenceBatch) -> Tensor:
        monkeypatch.setattr(NextItem, "current_epoch", epoch)
        sampler = task.candidates.forward
        monkeypatch.setattr(
            task.candidates, "forward", lambda *a, **k: drawn.append(sampler(*a, **k)) or drawn[-1]
        )
        task.training_step(batch, 0)
        return drawn[-1].items[:, 1:]

    whole = batch_of(8)
    part = SequenceBatch(*(x[4:] for x in whole))
    first = record(task_of(), 0, whole)
    assert torch.equal(first, record(task_of(), 0, whole))
    assert torch.equal(first[4:], record(task_of(), 0, part)), "whatever the batch"
    assert not torch.equal(first, record(task_of(), 1, whole))
    assert not torch.equal(first, record(task_of(seed=1), 0, whole))
    same = record(task_of(positions=3), 0, batch_of(1, torch.tensor([[9, 9, 9]])))
    assert len(same.unique(dim=0)) == 3, "the positions of a row draw for themselves"


def test_dropout_is_seeded_by_step(task_of, monkeypatch):
    def draw(step: int, seed: int = 0) -> float:
        monkeypatch.setattr(NextItem, "global_step", step)
        monkeypatch.setattr(NextItem, "global_rank", 0)
        task_of(seed=seed).on_train_batch_start(batch_of(1), 0)
        return float(torch.rand(()))

    assert draw(3) == draw(3)
    assert len({draw(3), draw(4), draw(3, seed=1)}) == 3


@pytest.mark.parametrize("chunk", [1, 29, 31, 100, 10_000])
def test_ranks_do_not_depend_on_how_many_scores_are_held(task_of, chunk):
    batch = batch_of(20)
    rows, users, ranks = task_of(chunk=chunk).ranks(task_of().net, batch, FULL)
    expected = task_of(chunk=10_000).ranks(task_of().net, batch, FULL)[2]
    assert torch.equal(rows, batch.rows)
    assert torch.equal(users, batch.users)
    assert all(map(torch.equal, ranks, expected))
    assert (ranks.candidates == V).all()


def test_candidates_of_a_row_stay_with_it(task_of):
    task, batch = task_of(chunk=V * 3), batch_of(20)
    batch.targets[3] = 0  # no target: the rows behind it move up
    listed = (batch.targets + torch.arange(1, 6)) % V + 1
    excluded = listed.where(listed != batch.targets, 0)
    whole = task.ranks(task.net, batch, EvalCandidates(None, excluded))[2]
    for place, i in enumerate(i for i in range(20) if i != 3):
        one = SequenceBatch(*(x[i : i + 1] for x in batch))
        alone = task.ranks(task.net, one, EvalCandidates(None, excluded[i : i + 1]))[2]
        assert alone.candidates == whole.candidates[place]
        assert alone.greater == whole.greater[place]


def test_half_precision_states_are_ranked_in_float32(task_of):
    task = task_of()
    encode = task.net.encode
    task.net.encode = lambda batch: (State(encode(batch)[0].vectors.bfloat16()), torch.tensor(0.0))
    task.ranks(task.net, batch_of(20), FULL)  # a half-precision product with float32 vectors would raise


def test_a_score_that_is_not_finite_names_user_and_row(task_of):
    task = task_of(chunk=2 * V)
    with torch.no_grad():
        task.net.past.weight[14] = torch.nan  # the first item of row 13's history
    with pytest.raises(InputError, match=r"user number 4, log row 1300"):
        task.ranks(task.net, batch_of(20), FULL)


def test_no_rows_give_no_ranks_and_encode_nothing(task_of):
    task = task_of()
    rows, users, ranks = task.ranks(task.net, batch_of(0), FULL)
    assert len(rows) == len(users) == len(ranks.greater) == task.net.encoded == 0


def test_a_chunk_of_nothing_is_refused(task_of):
    with pytest.raises(InputError, match=r"model\.chunk=0"):
        task_of(chunk=0)
