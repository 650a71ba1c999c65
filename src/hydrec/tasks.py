"""What is trained and how it is judged: the LightningModules that every model config composes.

Letters: B rows, T history positions, P scored positions, M supervised positions, C candidates, V items.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hydrec.batch import PAD, Catalog, EvalCandidates, SequenceBatch
from hydrec.errors import InputError, at_least
from hydrec.metrics import NonFiniteScores, RankMetrics, Ranks, rank
from hydrec.models.popularity import Popularity
from hydrec.sampling import hash64


class NextItem(pl.LightningModule):
    """Trains a net to rank the item that followed a history, and ranks it at validation and test.

    A net's ``encode`` runs once per batch; only supervised positions are scored. Beside the net's own ranks
    the test yields those of popularity, and the random row by formula.

    Args:
        catalog: sizes of the data and what the training part holds.
        metrics: the ranking metrics of the protocol; cloned for each part.
        seed: of the run; every random number of training is a hash of it, the epoch and the row.
        net: makes the net from the catalogue.
        loss: ``objective`` (scores (M, C), target (M,)) -> scalar, and ``candidates``, which makes the
            training sampler from the catalogue.
        optimiser: makes the optimiser from parameter groups; ``None`` for nets without parameters.
        chunk: scores held at once in evaluation; bounds memory, never changes a result.

    Raises:
        InputError: ``chunk`` is not a positive whole number.

    Attributes:
        results: the latest value of each metric, in float64, by its name in ``metrics.json``.
        test_table: after a test, the columns of ``RankMetrics.table`` for the net.
    """

    def __init__(
        self,
        catalog: Catalog,
        metrics: RankMetrics,
        seed: int,
        *,
        net: Callable[[Catalog], Any],
        loss: dict[str, Any],
        optimiser: Callable[[Iterable], torch.optim.Optimizer] | None,
        chunk: int,
    ) -> None:
        super().__init__()
        self.chunk = at_least("model.chunk", chunk, 1)
        self.net: Any = net(catalog)
        popularity = Popularity(catalog, count="targets")
        popularity.fit(catalog)
        if hasattr(self.net, "fit"):
            self.net.fit(catalog)
        self.objective: Any = loss["objective"]
        self.candidates: Any = loss["candidates"](catalog)
        self.make_optimiser = optimiser
        self.n_items, self.seed = catalog.n_items, seed
        self.references: Any = nn.ModuleDict({"popularity": popularity})
        self.valid = metrics.clone()
        self.test: Any = nn.ModuleDict({name: metrics.clone() for name in ("model", *self.references)})
        self.results: dict[str, float] = {}

    @property
    def trainable(self) -> bool:
        """Whether the net has anything to train."""
        return any(p.requires_grad for p in self.net.parameters())

    # Training -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """The optimiser over the net's own parameter groups, or over all that require a gradient."""
        if self.make_optimiser is None:
            return None
        if hasattr(self.net, "parameter_groups"):
            return self.make_optimiser(self.net.parameter_groups())
        return self.make_optimiser([p for p in self.net.parameters() if p.requires_grad])

    def on_train_epoch_start(self) -> None:
        """Forgets the results of the epoch before: not every epoch need be validated."""
        self.results.clear()

    def on_train_batch_start(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Seeds dropout by (seed, step, process): a resumed run draws what it would have drawn."""
        torch.manual_seed(int(hash64(self.seed, "step", self.global_step, self.global_rank)))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Loss over the supervised positions of a batch, plus the net's auxiliary and regularising terms."""
        state, auxiliary = self.net.encode(batch)
        supervised = batch.targets != PAD
        row, position = supervised.nonzero(as_tuple=True)
        drawn = self.candidates(
            batch.targets[supervised],
            batch.items[row],
            batch.users[row],
            batch.rows[row] * supervised.shape[1] + position,
            seed=self.seed,
            epoch=self.current_epoch,
        )
        scores = self.net.score(select(state, supervised), drawn.items)
        terms = {"objective": self.objective(scores, drawn.target), "auxiliary": auxiliary}
        if hasattr(self.net, "regulariser"):
            terms["regulariser"] = self.net.regulariser(batch, drawn.items, drawn.target)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        logged = {f"train/{name}": term.detach() for name, term in ({"loss": loss} | terms).items()}
        self.log_dict(logged, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(row))
        return loss

    # Evaluation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[SequenceBatch, EvalCandidates], batch_idx: int) -> None:
        """Ranks the targets of a validation batch."""
        self.valid.update(*self.ranks(self.net, *batch))

    def on_validation_epoch_end(self) -> None:
        """Keeps the metrics of the whole validation part, equal on every process."""
        self._keep("valid/", self.valid.compute())
        self.valid.reset()

    def test_step(self, batch: tuple[SequenceBatch, EvalCandidates], batch_idx: int) -> None:
        """Ranks the targets of a test batch by the net and by the reference nets."""
        for name, metrics in self.test.items():
            net = self.net if name == "model" else self.references[name]
            metrics.update(*self.ranks(net, *batch))

    def on_test_epoch_end(self) -> None:
        """Keeps the metrics of net, popularity and random row, and the net's ranks."""
        self._keep("test/", self.test["model"].compute())
        for name in self.references:
            self._keep(f"{name}/", self.test[name].compute())
        self.test_table = self.test["model"].table()
        self._keep("random/", self.test["model"].random_row(self.test_table["candidates"]))
        for metrics in self.test.values():
            metrics.reset()

    def _keep(self, prefix: str, metrics: dict[str, Tensor]) -> None:
        self.results.update({prefix + name: float(value) for name, value in metrics.items()})
        self.log_dict({prefix + name: value.float() for name, value in metrics.items()})

    def ranks(
        self, net: Any, batch: SequenceBatch, candidates: EvalCandidates
    ) -> tuple[Tensor, Tensor, Ranks]:
        """How many candidates a net scores higher than each target, and how many the same.

        Scores are float32 whatever the trainer's precision: half precision makes ties.

        Returns:
            (M,) log rows of the targets, (M,) their users, and their ranks.

        Raises:
            InputError: a score is not finite; names the user and the row of the log.
        """
        supervised = batch.targets != PAD
        row, _ = supervised.nonzero(as_tuple=True)
        if not len(row):  # a process without evaluation rows
            return row, row, Ranks(row, row, row)
        encoded, _ = net.encode(batch)
        state = select(encoded, supervised)
        state = type(state)(*(x.float() if x.is_floating_point() else x for x in state))
        targets = batch.targets[supervised]
        some = max(1, self.chunk // self.n_items) if candidates.items is None else len(row)
        parts = []
        with torch.autocast(targets.device.type, enabled=False):
            for first in range(0, len(row), some):
                part = slice(first, first + some)
                these = EvalCandidates(*(None if c is None else c[row[part]] for c in candidates))
                score = partial(net.score, type(state)(*(x[part] for x in state)))
                try:
                    parts.append(rank(score, targets[part], these, n_items=self.n_items, limit=self.chunk))
                except NonFiniteScores as error:
                    at = row[first + error.row]
                    raise InputError(
                        f"a score of user number {int(batch.users[at])}, log row {int(batch.rows[at])}, is "
                        "not finite: the net has diverged; lower model.optimiser.lr"
                    ) from error
        counted = Ranks(*(torch.cat(column) for column in zip(*parts, strict=True)))
        return batch.rows[row], batch.users[row], counted


def select(state: Any, supervised: Tensor) -> Any:
    """The rows of a net's state (fields (B, P, ...)) where ``supervised`` (B, P): fields (M, ...)."""
    return type(state)(*(x[supervised] for x in state))
