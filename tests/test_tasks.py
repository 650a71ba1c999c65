"""NextItem: what is scored, by which numbers, and what stops a run."""

from functools import partial
from typing import NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import DataLoader

from hydrec import tasks
from hydrec.batch import Catalog, EvalCandidates, SequenceBatch
from hydrec.callbacks import History
from hydrec.cloze import Cloze
from hydrec.errors import InputError
from hydrec.losses import BPR, GBCE, Softmax
from hydrec.metrics import RankMetrics
from hydrec.sampling import AllItems, InBatch, Sampled
from hydrec.tasks import Losses, NextItem, made, seeded

V = 30
FULL = EvalCandidates(None, None)


class State(NamedTuple):
    vectors: Tensor


class Linear(nn.Module):
    """Scores by the product of an item's vector with that of an item of the past; counts its calls."""

    def __init__(self, catalog: Catalog, *, positions: int, dropout: float = 0.0, **says: bool) -> None:
        super().__init__()
        self.item, self.past = nn.Embedding(V + 2, 4), nn.Embedding(V + 2, 4)
        self.positions, self.dropout = positions, nn.Dropout(dropout)
        self.seen: list[SequenceBatch] = []
        vars(self).update(says)
        self.encoded = 0
        self.scored: list[tuple[int, ...]] = []

    def encode(self, batch: SequenceBatch) -> tuple[State, Tensor]:
        self.encoded += 1
        self.seen.append(batch)
        return State(self.past(batch.items[:, : self.positions])), torch.tensor(0.25)

    def score(self, state: State, items: Tensor) -> Tensor:
        self.scored.append(tuple(items.shape))
        vectors = self.dropout(self.item(items))
        return (state.vectors[:, None] * vectors).sum(-1) if items.dim() == 2 else state.vectors @ vectors.mT


@pytest.fixture
def task_of():
    def make(*, positions: int = 1, chunk: int = 1000, seed: int = 0, loss=None, **net) -> NextItem:
        task = {"samples": net.pop("samples", "prefixes"), "cloze": net.pop("cloze_task", None)}
        torch.manual_seed(0)
        column = torch.arange(1, V + 1)
        ones = torch.ones(V + 1, dtype=torch.int64)
        catalog = Catalog(5, V, torch.ones_like(column), column, column, column.float(), ones)
        loss = loss or {
            "objective": BPR(compare="score"),
            "candidates": partial(Sampled, count=2, exponent=0.0, exclude="target", correct=False),
        }
        task = NextItem(
            catalog,
            RankMetrics(at=[5, 10], ties="expected"),
            seed,
            net=partial(Linear, positions=positions, **net),
            **task,
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


def test_a_target_draws_the_same_whatever_the_rows_are_and_however_long(task_of):
    """Named by its row in the log: the same of prefixes and histories, and of batches of any width."""
    names = []
    task = task_of(positions=3, samples="histories", causal=True)
    sampler = task.candidates.forward
    task.candidates.forward = lambda *args, **keys: names.append(args[4].tolist()) or sampler(*args, **keys)
    batch = batch_of(2, torch.tensor([[4, 0, 0], [7, 8, 9]]))._replace(lengths=torch.tensor([1, 3]))
    task.training_step(batch, 0)
    assert names.pop() == [0, 98, 99, 100]
    items, targets = (nn.functional.pad(x, (0, 2)) for x in (batch.items, batch.targets))
    wide = batch._replace(items=items, targets=targets)
    task.net.positions = 5
    task.training_step(wide, 0)
    assert names.pop() == [0, 98, 99, 100]
    task.net.positions = 1
    task.training_step(batch_of(2), 0)
    assert names.pop() == [0, 100]


# Losses in parts --------------------------------------------------------------------------------------------

LOSSES = {
    "softmax": {"objective": Softmax(), "candidates": AllItems},
    "sampled": {
        "objective": Softmax(),
        "candidates": partial(Sampled, count=6, exponent=0.5, exclude="window", correct=True),
    },
    "in_batch": {
        "objective": Softmax(),
        "candidates": partial(InBatch, count=4, exponent=0.5, correct=True),
    },
    "gbce": {
        "objective": partial(GBCE, t=0.75),
        "candidates": partial(Sampled, count=6, exponent=0.0, exclude="target", correct=False),
    },
}


def step(task: NextItem, batch: SequenceBatch) -> tuple[Tensor, list[Tensor]]:
    loss = task.double().training_step(batch, 0)
    loss.backward()
    return loss.detach(), [p.grad for p in task.net.parameters()]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk", [1, 100, 250])
def test_a_loss_made_in_parts_is_the_loss_and_has_its_gradient(task_of, name, chunk):
    batch = batch_of(20, (torch.arange(60).view(20, 3) * 7) % V + 1)
    keys = {"positions": 3, "samples": "histories", "causal": True, "loss": LOSSES[name]}
    whole = task_of(chunk=100_000, **keys)
    loss, gradients = step(whole, batch)
    assert len(whole.net.scored) == 1
    parts = task_of(chunk=chunk, **keys)
    found, made = step(parts, batch)
    assert len(parts.net.scored) > 2 and parts.net.encoded == 1
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(made, gradients)


def test_scores_of_a_large_catalogue_are_never_held_whole(task_of, memory):
    batch = batch_of(200, (torch.arange(600).view(200, 3) * 7) % V + 1)
    keys = {"positions": 3, "samples": "histories", "causal": True, "loss": LOSSES["softmax"]}
    largest, kept = {}, {}
    for chunk in (300, 100_000):
        task, memory.largest, saved = task_of(chunk=chunk, **keys), 0, []
        with memory, saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):  # noqa: B023
            task.training_step(batch, 0).backward()
        largest[chunk], kept[chunk] = memory.largest, sum(saved)
    assert largest[100_000] == 600 * V < kept[100_000]
    assert largest[300] <= 600 * 4, "the states are the largest"
    assert kept[300] < kept[100_000] / 4


def test_dropout_within_a_score_is_that_of_the_loss(task_of, monkeypatch):
    """What is made again for the gradient has the mask that the loss had."""
    batch = batch_of(20)
    keys = {"chunk": 100, "loss": LOSSES["softmax"], "dropout": 0.5}
    torch.manual_seed(5)
    loss, gradients = step(task_of(**keys).train(), batch)
    monkeypatch.setattr(tasks, "checkpoint", lambda function, *args, use_reentrant: function(*args))
    torch.manual_seed(5)
    kept, expected = step(task_of(**keys).train(), batch)
    assert torch.equal(loss, kept)
    torch.testing.assert_close(gradients, expected)


def test_half_precision_scores_are_compared_in_float32(task_of):
    task, seen = task_of(loss=LOSSES["softmax"]), []
    forward = task.objective.forward
    task.objective.forward = lambda scores, target: seen.append(scores.dtype) or forward(scores, target)
    task.net.bfloat16()
    task.training_step(batch_of(5), 0)
    assert seen == [torch.float32]
    del task.objective.forward


# What trains ------------------------------------------------------------------------------------------------


def test_a_net_is_refused_samples_that_it_cannot_train_on(task_of):
    task_of(samples="histories", causal=True)
    with pytest.raises(InputError, match=r"model\.samples=histories .* Linear is not causal.*=prefixes"):
        task_of(samples="histories")
    hide = partial(Cloze, ratio=0.5, last=0.0)
    task_of(samples="cloze", cloze=True, cloze_task=hide)
    with pytest.raises(InputError, match=r"model\.samples=cloze: Linear fills no gaps"):
        task_of(samples="cloze", cloze_task=hide)
    with pytest.raises(InputError, match=r"model\.samples=prefixes: Linear is trained on gaps"):
        task_of(cloze=True, cloze_task=hide)
    for keys in ({"samples": "cloze", "cloze": True}, {"cloze_task": hide}):
        with pytest.raises(InputError, match=r"^model\.cloze: "):
            task_of(**keys)
    with pytest.raises(InputError, match=r"model\.samples=history .*did you mean histories"):
        task_of(samples="history")


def test_hidden_events_are_the_targets_and_candidates_know_the_whole_row(task_of):
    whole = batch_of(6)._replace(targets=batch_of(6).items)
    loss = {
        "objective": Softmax(),
        "candidates": partial(Sampled, count=40, exponent=0.0, exclude="window", correct=False),
    }
    task = task_of(
        positions=3, samples="cloze", cloze=True, cloze_task=partial(Cloze, ratio=0.4, last=0.0), loss=loss
    )
    drawn = []
    sampler = task.candidates.forward
    task.candidates.forward = lambda *args, **keys: drawn.append(sampler(*args, **keys)) or drawn[-1]
    task.training_step(whole, 0)
    (shown,) = task.net.seen
    hidden = shown.items == V + 1
    assert hidden.sum(1).tolist() == [1] * 6
    assert drawn[0].items[:, 0].tolist() == whole.items[hidden].tolist()
    for row, negatives in enumerate(drawn[0].items[:, 1:]):
        assert not set(negatives.tolist()) & set(whole.items[row].tolist())


def test_an_evaluation_asks_behind_the_history_and_references_see_it_as_it_is(task_of):
    hide = partial(Cloze, ratio=0.4, last=0.0)
    task = task_of(samples="cloze", cloze=True, cloze_task=hide)
    batch = batch_of(4)._replace(lengths=torch.tensor([3, 2, 1, 3]))
    rows, _, ranks = task.ranks(task.net, batch, FULL)
    (asked,) = task.net.seen
    assert asked.items[:, 0].tolist() == [2, 2, 3, 5] and (asked.items == V + 1).sum() == 4
    assert rows.tolist() == batch.rows.tolist() and (ranks.candidates == V).all()
    other = task_of().net
    task.ranks(other, batch, FULL)
    assert other.seen[0] is batch


def test_the_values_of_a_net_reach_its_history_and_the_loggers(task_of):
    class Folder:
        def write_csv(self, name, rows):
            self.rows = rows

    class Lines(Logger):
        name, version, lines = "lines", "", []

        def log_hyperparams(self, *args, **kwargs): ...

        def log_metrics(self, metrics, step=None):
            self.lines.append((step, metrics))

    task = task_of()
    del task.log_dict
    task.net.scalars = lambda: {"lambda/0": float(task.global_step)}
    folder, lines = Folder(), Lines()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=lines,
        callbacks=[History(folder, monitor="valid/hit@5", echo=False)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, DataLoader([batch_of(8), batch_of(4)], batch_size=None))
    assert [(row["step"], row["lambda/0"]) for row in folder.rows] == [(2, 2.0), (4, 4.0)]
    assert [metrics["lambda/0"] for _, metrics in lines.lines if "lambda/0" in metrics] == [2.0, 4.0]


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


# What a step costs ----------------------------------------------------------------------------------------


def test_losses_are_means_over_rows():
    losses, trainer = Losses(), pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    losses.add({"loss": torch.tensor(4.0), "auxiliary": torch.tensor(1.0)}, rows=1)
    losses.add({"loss": torch.tensor(1.0), "auxiliary": torch.tensor(3.0)}, rows=3)
    assert losses.means(trainer) == {"train/loss": 7 / 4, "train/auxiliary": 10 / 4}
    losses.clear()
    losses.add({"loss": torch.tensor(2.0, requires_grad=True)}, rows=5)
    found = losses.means(trainer)
    assert found == {"train/loss": 2} and not found["train/loss"].requires_grad


def test_a_seed_gives_the_draws_of_torch():
    for seed in (3, -(2**62)):
        torch.manual_seed(seed)
        expected = torch.rand(5)
        torch.rand(7)
        seeded(torch.device("cpu"), seed)
        assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimiser_takes_the_steps_of_the_plain_one(kind):
    nets = []
    for make in (
        partial(kind, lr=0.1, weight_decay=0.1),
        partial(kind, lr=0.1, weight_decay=0.1, fused=False),
    ):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        optimiser = made(make, net)
        assert optimiser.defaults["fused"] == ("fused" not in make.keywords)
        for _ in range(3):
            optimiser.zero_grad()
            net(torch.randn(5, 4)).square().sum().backward()
            optimiser.step()
        nets.append(net)
    torch.testing.assert_close(nets[0].weight, nets[1].weight)
