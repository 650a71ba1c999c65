"""What is trained and how it is judged: the LightningModules that every model config composes.

Letters: B rows, T history positions, P scored positions, M supervised positions, C candidates, V items.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hydrec.batch import PAD, Catalog, ClickBatch, ClickCatalog, EvalCandidates, SequenceBatch
from hydrec.click_metrics import ClickMetrics
from hydrec.cloze import Cloze
from hydrec.errors import InputError, at_least, one_of
from hydrec.losses import Softmax
from hydrec.metrics import NonFiniteScores, RankMetrics, Ranks, rank
from hydrec.models.itemknn import ItemKNN
from hydrec.models.markov import Markov
from hydrec.models.popularity import Popularity, RecentPopularity
from hydrec.models.rate import Rate
from hydrec.optim import Lazy
from hydrec.sampling import AllItems, Drawn, hash64

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)  # one pass over the memory, not a dozen
LARGE = 2 * 10**7  # training rows: to count the pairs of more takes GiB and most of a minute


def references(catalog: Catalog) -> dict[str, Callable[[Catalog], Any]]:
    """What makes the nets that every test is read beside; those of pairs of items up to ``LARGE`` rows."""
    nets: dict[str, Callable[[Catalog], Any]] = {
        "popularity": partial(Popularity, count="targets"),
        "recent_popularity": partial(RecentPopularity, days=30.0),
    }
    if len(catalog.items) > LARGE:
        return nets
    return nets | {
        "itemknn": partial(ItemKNN, exponent=0.5, shrink=20.0),
        "markov": partial(Markov, prior=1.0),
    }


class Losses:
    """Means of the terms of the loss over the rows of an epoch: to log them at each step took over 1 ms."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Starts anew."""
        self.names: tuple[str, ...] = ()
        self.sums, self.rows = torch.zeros(()), 0

    def add(self, terms: dict[str, Tensor], *, rows: int) -> None:
        """Counts the means of some rows."""
        self.names = tuple(terms)
        means = torch.stack([term.detach().float() for term in terms.values()])
        self.sums = means * rows + self.sums.to(means)
        self.rows += rows

    def means(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """Those of the rows of all processes, each of which must call it."""
        sums = torch.cat([self.sums, self.sums.new_tensor([self.rows])])
        *terms, rows = trainer.strategy.reduce(sums, reduce_op="sum")
        return {f"train/{name}": term / rows for name, term in zip(self.names, terms, strict=True)}


class NextItem(pl.LightningModule):
    """Trains a net to rank the item that followed a history, and ranks it at validation and test.

    A net's ``encode`` runs once per batch; only supervised positions are scored. Beside the net's own ranks
    the test yields those of popularity, lately and ever, and of what follows the last item by item-kNN and by
    a Markov chain; and the random row by formula.

    Args:
        catalog: sizes of the data and what the training part holds.
        metrics: the ranking metrics of the protocol; cloned for each part.
        seed: of the run; every random number of training is a hash of it, the epoch and the row.
        net: makes the net from the catalogue.
        samples: what a training row is, as `hydrec.data.module.LogData` makes it: ``prefixes``, one target
            after its history; ``histories``, every position's next item, for nets that are ``causal``;
            ``cloze``, hidden events, for nets that say ``cloze``.
        cloze: makes what hides events from the catalogue, for ``samples: cloze``; else ``None``.
        loss: ``objective`` (scores (M, C), target (M,)) -> scalar, or what makes it from the catalogue; and
            ``candidates``, which makes the training sampler from the catalogue.
        optimiser: makes the optimiser from parameter groups; ``None`` for nets without parameters.
        chunk: scores held at once. Where there are more, an evaluation makes and counts them in parts, and
            training makes them in parts, and again for the gradient. Bounds memory, and changes no result but
            by rounding.

    Raises:
        InputError: ``chunk`` is not a positive whole number, or the net cannot train on such ``samples``.

    Attributes:
        results: the latest value of each metric, in float64, by its name in ``metrics.json``.
        losses: of the epoch.
        test_table: after a test, the columns of ``RankMetrics.table`` for the net.
    """

    def __init__(
        self,
        catalog: Catalog,
        metrics: RankMetrics,
        seed: int,
        *,
        net: Callable[[Catalog], Any],
        samples: str,
        cloze: Callable[[Catalog], Cloze] | None,
        loss: dict[str, Any],
        optimiser: Callable[[Iterable], torch.optim.Optimizer] | None,
        chunk: int,
    ) -> None:
        super().__init__()
        self.chunk = at_least("model.chunk", chunk, 1)
        self.net: Any = net(catalog)
        self.cloze = None if cloze is None else cloze(catalog)
        _match(self.net, samples, self.cloze)
        if hasattr(self.net, "fit"):
            self.net.fit(catalog)
        objective: Any = loss["objective"]
        self.objective = objective(catalog) if isinstance(objective, partial) else objective
        self.candidates: Any = loss["candidates"](catalog)
        self.optimiser = made(optimiser, self.net)
        self.n_items, self.seed = catalog.n_items, seed
        self.catalog = catalog
        self.references: dict[str, Any] = {}  # no modules of this one: no checkpoint needs to carry them
        self.valid = metrics.clone()
        self.test: Any = nn.ModuleDict({name: metrics.clone() for name in ("model", *references(catalog))})
        self.results: dict[str, float] = {}
        self.losses = Losses()

    @property
    def trainable(self) -> bool:
        """Whether the net has anything to train."""
        return trainable(self.net)

    # Training -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """The optimiser over the net's own parameter groups, or over all that require a gradient."""
        return self.optimiser

    def on_train_epoch_start(self) -> None:
        """Forgets the results of the epoch before: not every epoch need be validated."""
        self.results.clear()
        self.losses.clear()

    def on_train_batch_start(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Seeds dropout by (seed, step, process): a resumed run draws what it would have drawn."""
        seeded(self.device, int(hash64(self.seed, "step", self.global_step, self.global_rank)))

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Loss over the supervised positions of a batch, plus the net's auxiliary and regularising terms."""
        shown = batch
        if self.cloze is not None:
            shown = self.cloze.hide(batch, seed=self.seed, epoch=self.current_epoch)
        state, auxiliary = self.net.encode(shown)
        supervised = shown.targets != PAD
        row, position = supervised.nonzero(as_tuple=True)
        last = (batch.lengths - 1).clamp(max=supervised.shape[1] - 1)  # the position of the target in `rows`
        drawn = self.candidates(
            batch.targets[supervised],
            row,
            batch.items,
            batch.users,
            (batch.rows - last)[row] + position,  # the target's row in the log, whatever P
            seed=self.seed,
            epoch=self.current_epoch,
        )
        terms = {"objective": self._objective(select(state, supervised), drawn), "auxiliary": auxiliary}
        if hasattr(self.net, "regulariser"):
            terms["regulariser"] = self.net.regulariser(shown, drawn.items, drawn.target)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        self.losses.add({"loss": loss} | terms, rows=len(row))
        return loss

    def on_validation_start(self) -> None:
        """Makes the weights of the epoch those that will be judged."""
        settle(self)

    def on_train_epoch_end(self) -> None:
        """Passes losses and the net's own values on to the loggers; the history asks for them."""
        settle(self)
        self.log_dict(self.losses.means(self.trainer))
        if hasattr(self.net, "scalars"):
            self.log_dict(self.net.scalars())

    def _objective(self, state: Any, drawn: Drawn) -> Tensor:
        """Mean loss of M positions, never more than ``chunk`` of their scores at once."""
        everything = isinstance(self.objective, Softmax) and isinstance(self.candidates, AllItems)
        if everything and hasattr(self.net, "products"):
            vectors, table, bias = self.net.products(state, drawn.items)
            return self.objective.of_products(vectors, table, bias, drawn.target, limit=self.chunk)
        positions = len(drawn.target)
        some = max(1, self.chunk // drawn.items.shape[-1])
        if positions <= some:
            return self._compared(state, drawn)
        losses = []
        for first in range(0, positions, some):
            part = slice(first, first + some)
            few = drawn.part(part)
            loss = checkpoint(self._compared, _rows(state, part), few, use_reentrant=False)
            losses.append(loss * (len(few.target) / positions))
        return torch.stack(losses).sum()

    def _compared(self, state: Any, drawn: Drawn) -> Tensor:
        scores = self.net.score(state, drawn.items).float()
        return self.objective(drawn.corrected(scores), drawn.target)

    # Evaluation ---------------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[SequenceBatch, EvalCandidates], batch_idx: int) -> None:
        """Ranks the targets of a validation batch."""
        self.valid.update(*self.ranks(self.net, *batch))

    def on_validation_epoch_end(self) -> None:
        """Keeps the metrics of the whole validation part, equal on every process."""
        self._keep("valid/", self.valid.compute())
        self.valid.reset()

    def on_test_start(self) -> None:
        """Fits the nets that the test is read beside."""
        for name, make in references(self.catalog).items():
            net = make(self.catalog)
            net.fit(self.catalog)
            self.references[name] = net.to(self.device)

    def test_step(self, batch: tuple[SequenceBatch, EvalCandidates], batch_idx: int) -> None:
        """Ranks the targets of a test batch by the net and by the reference nets."""
        for name, metrics in self.test.items():
            net = self.net if name == "model" else self.references[name]
            metrics.update(*self.ranks(net, *batch))

    def on_test_epoch_end(self) -> None:
        """Keeps the metrics of net, references and random row, and the net's ranks."""
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
        asked = self.cloze.ask(batch) if self.cloze is not None and net is self.net else batch
        encoded, _ = net.encode(asked)
        state = select(encoded, supervised)
        state = type(state)(*(x.float() if x.is_floating_point() else x for x in state))
        targets = batch.targets[supervised]
        some = max(1, self.chunk // self.n_items) if candidates.items is None else len(row)
        parts = []
        with torch.autocast(targets.device.type, enabled=False):
            for first in range(0, len(row), some):
                part = slice(first, first + some)
                these = EvalCandidates(*(None if c is None else c[row[part]] for c in candidates))
                score = partial(net.score, _rows(state, part))
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


def trainable(net: nn.Module) -> bool:
    """Whether a net has anything to train."""
    return any(p.requires_grad for p in net.parameters())


def seeded(device: torch.device, seed: int) -> None:
    """Seeds the draws of the CPU and of a device; torch's own seeds all kinds, too slow for each step."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def made(make: Callable[[Iterable], torch.optim.Optimizer] | None, net: Any) -> torch.optim.Optimizer | None:
    """The optimiser over a net's own parameter groups, or over all parameters that require a gradient.

    Raises:
        InputError: a value is out of range, or the net has tables with sparse gradients, which the optimiser
            cannot take.
    """
    if make is None or not trainable(net):
        return None
    groups = hasattr(net, "parameter_groups")
    if isinstance(make, partial) and make.func in FUSED:
        make = partial(make, **{"fused": True} | make.keywords)
    try:
        optimiser = make(
            net.parameter_groups() if groups else [p for p in net.parameters() if p.requires_grad]
        )
    except ValueError as error:  # torch's, of a value out of range
        raise InputError(f"model.optimiser: {error}") from error
    if isinstance(optimiser, Lazy):
        optimiser.watch(net)
    elif any(getattr(module, "sparse", False) for module in net.modules()):
        raise InputError(
            f"model.net.sparse=true: {type(optimiser).__name__} needs dense gradients; set it to false, or"
            " use hydrec.optim.LazyAdam or RowAdagrad, as conf/model/deepfm_lazy.yaml does"
        )
    return optimiser


def settle(module: pl.LightningModule) -> None:
    """Makes rows of tables that a lazy optimiser left alone pay their decay, before all of them are read."""
    for optimiser in module.trainer.optimizers:
        if isinstance(optimiser, Lazy):
            optimiser.settle()


def select(state: Any, supervised: Tensor) -> Any:
    """The rows of a net's state (fields (B, P, ...)) where ``supervised`` (B, P): fields (M, ...)."""
    return _rows(state, supervised)


def _rows(state: Any, which: Any) -> Any:
    return type(state)(*(x[which] for x in state))


def _match(net: Any, samples: str, cloze: Cloze | None) -> None:
    """Refuses samples that a net cannot train on."""
    one_of("model.samples", samples, ("prefixes", "histories", "cloze"))
    name, fills = type(net).__name__, getattr(net, "cloze", False)
    if fills != (samples == "cloze"):
        raise InputError(
            f"model.samples={samples}: {name} is trained on gaps, set model.samples=cloze"
            if fills
            else f"model.samples=cloze: {name} fills no gaps; set model.samples=prefixes"
        )
    if fills != (cloze is not None):
        remedy = "needs its settings" if fills else "fills no gaps; set it to null"
        raise InputError(f"model.cloze: {name} {remedy}")
    if samples == "histories" and not getattr(net, "causal", False):
        raise InputError(
            f"model.samples=histories trains every position of a history, and {name} is not causal: one would"
            " see its own target; set model.samples=prefixes"
        )


class Click(pl.LightningModule):
    """Trains a net to tell clicks from showings without one, and judges its probabilities.

    The loss is binary cross-entropy with logits. Beside the net's own metrics the test yields those of two
    rows that every model must beat: the base rate of training, and that of each item.

    Args:
        catalog: sizes and fields of the data and what the training part shows.
        metrics: the click metrics of the protocol; cloned for each part.
        seed: of the run.
        net: makes the net from the catalogue.
        samples: ``clicks``; says to `hydrec.data.module.LogData` what a row is.
        optimiser: makes the optimiser from parameter groups; ``None`` for nets without parameters.

    Raises:
        InputError: the net trains on other ``samples``.

    Attributes:
        results: the latest value of each metric, in float64, by its name in ``metrics.json``.
        losses: of the epoch.
        test_table: after a test, the columns of ``ClickMetrics.table`` for the net.
    """

    def __init__(
        self,
        catalog: ClickCatalog,
        metrics: ClickMetrics,
        seed: int,
        *,
        net: Callable[[ClickCatalog], Any],
        samples: str,
        optimiser: Callable[[Iterable], torch.optim.Optimizer] | None,
    ) -> None:
        super().__init__()
        one_of("model.samples", samples, ("clicks",))
        self.net: Any = net(catalog)
        if hasattr(self.net, "fit"):
            self.net.fit(catalog)
        self.references: dict[str, Any] = {}  # no modules of this one: no checkpoint needs to carry them
        for name, by in (("constant", "none"), ("popularity", "item")):
            self.references[name] = Rate(catalog, by=by, prior=1.0)
            self.references[name].fit(catalog)
        self.optimiser, self.seed = made(optimiser, self.net), seed
        self.valid: Any = metrics.clone()
        self.test: Any = nn.ModuleDict({name: metrics.clone() for name in ("model", *self.references)})
        self.results: dict[str, float] = {}
        self.losses = Losses()

    @property
    def trainable(self) -> bool:
        """Whether the net has anything to train."""
        return trainable(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """The optimiser over the net's own parameter groups, or over all that require a gradient."""
        return self.optimiser

    def on_train_epoch_start(self) -> None:
        """Forgets the results of the epoch before: not every epoch need be validated."""
        self.results.clear()
        self.losses.clear()

    def on_train_batch_start(self, batch: ClickBatch, batch_idx: int) -> None:
        """Seeds dropout by (seed, step, process): a resumed run draws what it would have drawn."""
        seeded(self.device, int(hash64(self.seed, "step", self.global_step, self.global_rank)))

    def training_step(self, batch: ClickBatch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch, plus the net's auxiliary term."""
        logits, auxiliary = self.net(batch)
        objective = F.binary_cross_entropy_with_logits(logits.float(), batch.labels.float())
        loss = objective + auxiliary.float()
        self.losses.add({"loss": loss, "objective": objective, "auxiliary": auxiliary}, rows=len(logits))
        return loss

    def on_train_epoch_end(self) -> None:
        """Makes the weights of the epoch those that will be saved; passes its losses on to the loggers."""
        settle(self)
        self.log_dict(self.losses.means(self.trainer))

    def on_validation_start(self) -> None:
        """Makes the weights of the epoch those that will be judged."""
        settle(self)

    def validation_step(self, batch: ClickBatch, batch_idx: int) -> None:
        """Judges a validation batch."""
        self._judge(self.valid, self.net, batch)

    def on_validation_epoch_end(self) -> None:
        """Keeps the metrics of the whole validation part, equal on every process."""
        self._keep("valid/", self.valid.compute())
        self.valid.reset()

    def on_test_start(self) -> None:
        """Brings the references to the device."""
        for net in self.references.values():
            net.to(self.device)

    def test_step(self, batch: ClickBatch, batch_idx: int) -> None:
        """Judges a test batch by the net and by the references."""
        for name, metrics in self.test.items():
            self._judge(metrics, self.net if name == "model" else self.references[name], batch)

    def on_test_epoch_end(self) -> None:
        """Keeps the metrics of the net and of the references, and the net's logits."""
        self._keep("test/", self.test["model"].compute())
        for name in self.references:
            self._keep(f"{name}/", self.test[name].compute())
        self.test_table = self.test["model"].table()
        for metrics in self.test.values():
            metrics.reset()

    def _judge(self, metrics: ClickMetrics, net: Any, batch: ClickBatch) -> None:
        if len(batch.rows):  # a process without evaluation rows has a batch of none
            metrics.update(batch.rows, batch.users, batch.labels, net(batch)[0])

    def _keep(self, prefix: str, metrics: dict[str, Tensor]) -> None:
        self.results.update({prefix + name: float(value) for name, value in metrics.items()})
        self.log_dict({prefix + name: value.float() for name, value in metrics.items()})
