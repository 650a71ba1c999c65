"""One run from configuration to numbers: data, task, training, one test, and what is left on disk."""

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import resource
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from hydrec.callbacks import CheckpointFiles, History, Identity, Patience, checkpoints, say
from hydrec.data.clicks import ClickProtocol
from hydrec.data.feeds import ClickFeed, SequenceFeed
from hydrec.data.log import Feature
from hydrec.data.module import LogData
from hydrec.errors import InputError, at_least, one_of
from hydrec.loggers import Mirror
from hydrec.model_card import card
from hydrec.runs import NOT_IN_DIGEST, RunFolder, digest
from hydrec.tasks import Click, NextItem

STAND_IN = "warning: no files were found, {} is simulated; set HYDREC_DATA to their folder"


def run(cfg: DictConfig) -> dict[str, float]:
    """Trains and tests what a configuration describes, in its own folder; continues or shows what is there.

    Args:
        cfg: the composed configuration, with ``names`` of the chosen options.

    Returns:
        The metrics of ``metrics.json``.

    Raises:
        InputError: anything the user can mend, in one line.
    """
    _quiet()
    if cfg.fit and cfg.ckpt_path is not None:
        raise InputError(f"ckpt_path={cfg.ckpt_path}: is for fit=false; a run continues its own by itself")
    if not cfg.fit and cfg.ckpt_path is None:
        raise InputError("fit=false tests a checkpoint: give it as ckpt_path=RUN/checkpoints/best.ckpt")
    if not cfg.fit and not cfg.test:
        raise InputError("fit=false test=false leaves nothing to do; leave one of them out")
    at_least("seed", cfg.seed, 0)
    at_least("stopping.patience", cfg.stopping.patience, 0)
    at_least("stopping.min_steps", cfg.stopping.min_steps, 0)
    if cfg.trainer.max_epochs not in (None, -1):
        at_least("trainer.max_epochs", cfg.trainer.max_epochs, 1)
    pl.seed_everything(cfg.seed, verbose=False)
    started = time.perf_counter()
    data: LogData = instantiate(cfg.dataset, _convert_="all")
    data.prepare()
    if data.stood_in:
        say(STAND_IN.format(data.name))
    job = _Job(cfg, data, seconds={"data": time.perf_counter() - started})
    # Lightning repeats the command for further processes: the first alone decides and holds the folder.
    if any(int(os.environ.get(key, "0")) for key in ("LOCAL_RANK", "SLURM_PROCID")):
        return job.train_and_test()
    if cfg.rerun:
        job.folder.set_aside()
    with job.folder.locked():
        done, about = job.folder.read("metrics.json"), job.folder.read("run.json")
        if about is not None and about["dataset"]["fingerprint"] != data.log.fingerprint:
            raise InputError(
                f"{job.folder.path} was run on other data (fingerprint {about['dataset']['fingerprint'][:12]}"
                f", now {data.log.fingerprint[:12]}): rerun=true sets it aside and starts anew"
            )
        if about is not None and about.get("config_digest") != job.digest and cfg.paths.name is not None:
            raise InputError(
                f"{job.folder.path} was run with other settings; choose another paths.name, or rerun=true"
                " sets it aside and starts anew"
            )
        edited = about is not None and about["source_digest"] != _source_digest()
        if done is None or about is None:
            if edited and job.folder.last.exists():
                raise InputError(
                    f"{job.folder.path} was begun by other sources of hydrec than these: it cannot continue;"
                    " rerun=true sets it aside and starts anew"
                )
            return job.train_and_test()
        say(f"{job.folder.path} is finished; rerun=true repeats it")
        if edited:
            say("warning: other sources of hydrec than these made it")
        _show(done, about, data.protocol.metrics)
        return done


class _Job:
    """A configuration with its data: one run folder, one task, one trainer.

    Args:
        cfg: the configuration.
        data: prepared.
        seconds: spent so far, by what for.
    """

    def __init__(self, cfg: DictConfig, data: LogData, *, seconds: dict[str, float]) -> None:
        self.cfg, self.data, self.seconds = cfg, data, seconds
        if isinstance(data.protocol, ClickProtocol):  # whose loss is one: the option reaches nothing
            without: Any = OmegaConf.merge(cfg, {"loss": None, "names": {"loss": None}})
            cfg = self.cfg = without
        self.config = _plain(cfg)
        self.names = self.config["names"]
        # the same run from other folders, or of files that came in another way, is the same run
        elsewhere = {"paths": {key: key for key in cfg.paths}, "dataset": {"download": []}, "verify": False}
        neutral = _plain(OmegaConf.merge(cfg, elsewhere))
        if not cfg.fit:
            neutral["ckpt_path"] = _sha256(cfg.ckpt_path)
        self.digest = digest(neutral)
        name = f"{data.name}-{self.names['protocol']}-{self.names['model']}-s{cfg.seed}-{self.digest}"
        self.folder = RunFolder(Path(cfg.paths.runs) / cfg.paths.study / (cfg.paths.name or name))
        measured = data.protocol.metrics
        self.monitor = cfg.stopping.monitor or f"valid/{measured.main}"
        one_of("stopping.monitor", self.monitor, [f"valid/{metric}" for metric in measured.directions])
        self.mode = measured.directions[self.monitor.removeprefix("valid/")]

    def train_and_test(self) -> dict[str, float]:
        """Does what is left to do and writes the results, ``metrics.json`` last."""
        data, folder = self.data, self.folder
        task: NextItem | Click = instantiate(self.cfg.model, _convert_="all")(
            data.catalog, data.protocol.metrics, self.cfg.seed
        )
        mirrors = self._mirrors()
        trainer = self._trainer(mirrors)
        about = self._about(task, trainer)
        status = "failed"
        try:
            if trainer.is_global_zero:
                folder.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)))
                folder.write_json("run.json", about | {"status": "running"})
                _write_catalog(folder, data)
                _write_users(folder, data)
                _write_candidates(folder, data)
            for mirror in mirrors:
                mirror.log_hyperparams(self.config | {"run": about})
            task.load_state_dict(self._fit(task, trainer))
            if self.cfg.test:
                started = time.perf_counter()
                trainer.test(task, data, verbose=False)
                self.seconds["test"] = time.perf_counter() - started
            metrics = self._results(task, about)
            if trainer.is_global_zero:
                for mirror in mirrors:
                    headline = data.protocol.metrics.headline
                    mirror.log_result(metrics, _table(metrics, self.names["model"], headline))
                if self.cfg.test:
                    _write_test(folder, data, task)
                folder.write_json("run.json", about)
                folder.write("README.md", card(folder.path.name, self.config, about, metrics))
                folder.write_json("metrics.json", metrics)
                _show(metrics, about, data.protocol.metrics)
                say(f"everything about this run is in {folder.path}")
            status = "success"
            return metrics
        except BaseException as error:
            if trainer.is_global_zero:
                stopped = isinstance(error, KeyboardInterrupt | SystemExit)
                ended = "interrupted" if stopped else f"{type(error).__name__}: {error}"
                with contextlib.suppress(InputError):  # the first error is the one to report
                    folder.write_json("run.json", about | {"status": ended})
            raise
        finally:
            for mirror in mirrors:
                mirror.close(status)

    def _mirrors(self) -> list[Mirror]:
        """The loggers that are chosen, none of which can stop the run."""
        known = {
            "save_dir": self.folder.path,
            "job_type": self.names["model"],
            "name": self.folder.path.name,
        }

        def make(node: DictConfig) -> Any:
            return instantiate(node, _convert_="all")(**known)

        return [Mirror(name, partial(make, node), warn=say) for name, node in (self.cfg.logger or {}).items()]

    def _trainer(self, mirrors: list[Mirror]) -> pl.Trainer:
        """Lightning's trainer of the configuration, with what every run has.

        Raises:
            InputError: the machine has no such device.
        """
        interactive = sys.stderr.isatty()
        log = self.data.log
        sizes = {"users": log.n_users, "items": log.n_items}
        protocol = self.data.protocol
        self.identity = Identity(
            {"dataset": self.data.name, "fingerprint": log.fingerprint}
            | sizes
            # what was trained on under one split may be tested under another
            | {"protocol": protocol.name, "split": digest(protocol.division())}
            | {"model": self.names["model"], "net": digest(self.config["model"]["net"])}
            | {"seed": self.cfg.seed}
        )
        self.history = History(self.folder, monitor=self.monitor, echo=not interactive)
        callbacks: list[pl.Callback] = [
            Patience(
                self.monitor,
                mode=self.mode,
                patience=self.cfg.stopping.patience,
                min_steps=self.cfg.stopping.min_steps,
            ),
            self.history,
            self.identity,
            *checkpoints(self.folder, monitor=self.monitor, mode=self.mode),
        ]
        if interactive:
            callbacks.append(RichProgressBar())
        try:
            return instantiate(
                self.cfg.trainer,
                _convert_="all",
                callbacks=callbacks,
                logger=mirrors,
                plugins=[CheckpointFiles()],
                default_root_dir=self.folder.path,
                enable_progress_bar=interactive,
            )
        except InstantiationException as error:
            if isinstance(error.__cause__, MisconfigurationException):
                raise InputError(
                    f"trainer.accelerator={self.cfg.trainer.accelerator}: {error.__cause__} trainer=auto "
                    "takes whatever device there is"
                ) from error
            raise

    def _fit(self, task: NextItem | Click, trainer: pl.Trainer) -> dict[str, Any]:
        """Trains where there is something to train; returns the weights to test."""
        folder = self.folder
        if not self.cfg.fit:
            return self.identity.weights(self.cfg.ckpt_path)
        if not task.trainable:
            trainer.strategy.connect(task)
            trainer.save_checkpoint(folder.best)
            return task.state_dict()
        last = folder.last if folder.last.exists() else None
        if last is not None:
            self.identity.weights(last)
            say(f"continuing {folder.path}")
        trainer.fit(task, self.data, ckpt_path=last, weights_only=True)
        return self.identity.weights(folder.best)

    def _results(self, task: NextItem | Click, about: dict[str, Any]) -> dict[str, float]:
        """Test metrics with the validation metrics of the epoch that was tested; completes ``about``."""
        metrics = {k: v for k, v in task.results.items() if self.cfg.test and not k.startswith("valid/")}
        rows = [row for row in self.history.rows if self.monitor in row]
        if rows:
            best = (max if self.mode == "max" else min)(
                rows, key=lambda row: np.float32(row[self.monitor])
            )  # as it was chosen
            metrics |= {k: v for k, v in best.items() if k.startswith("valid/")}
            about["epochs"] = {
                "trained": len(self.history.rows),
                "tested": best["epoch"],
                "steps": best["step"],
            }
        self.seconds |= {"fit": self.history.seconds, "valid": self.history.validating}
        about |= {"status": "finished", "seconds": self.seconds, "peak_memory_mib": _peak_memory()}
        if self.cfg.test:
            about["tested_rows"] = len(task.test_table["row"])
        return metrics

    def _about(self, task: NextItem | Click, trainer: pl.Trainer) -> dict[str, Any]:
        """What identifies a run, for ``run.json``."""
        protocol = self.data.protocol.identity()
        packages = ("hydrec", "torch", "pytorch-lightning", "numpy", "polars")
        return {
            "names": self.names,
            "seed": self.cfg.seed,
            "command": _command(),
            "dataset": self.data.describe(),
            "protocol": protocol,
            "protocol_digest": hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest(),
            "parameters": sum(p.numel() for p in task.net.parameters()),
            "device": str(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "batch_size": self.cfg.batch_size,  # of all processes together
            "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
            "config_digest": self.digest,
            "source_digest": _source_digest(),
        }


def _command() -> str | None:
    """The command line, without what says where or how loudly; ``None`` where no command line composed."""
    if not HydraConfig.initialized():
        return None
    given = [o for o in HydraConfig.get().overrides.task if not o.lstrip("+~").startswith(NOT_IN_DIGEST)]
    return shlex.join(["python", "train.py", *given])


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"ckpt_path={path}: {error.strerror}; a run has checkpoints/best.ckpt") from error


def _plain(cfg: Any) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _source_digest() -> str:
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _quiet() -> None:
    """Leaves the terminal to the run: Lightning's banners and advice on loader workers do not apply."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("hydrec").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",  # a batch is one indexing step
        ".*`configure_optimizers` returned `None`.*",
        ".*exists and is not empty.*",  # a run continues in its folder
        ".*sync_dist=True.*",  # ranking metrics are gathered, not averaged
        ".*smaller than the logging interval.*",  # losses are logged by epoch
        ".*Sparse CSR tensor support.*",
        ".*LeafSpec.*",  # Lightning's, for torch to mend
    ):
        warnings.filterwarnings("ignore", message)


def _peak_memory() -> dict[str, int]:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def _write_test(folder: RunFolder, data: LogData, task: NextItem | Click | Click) -> None:
    """``test.parquet``: of each test row what every metric follows from."""
    table = {name: column.cpu().numpy() for name, column in task.test_table.items()}
    folder.write("test.parquet", _parquet(data.feed.tested(table)))


def _write_catalog(folder: RunFolder, data: LogData) -> None:
    """``catalog.parquet``: raw ids, titles, features and training counts of the items, by item number."""
    log = data.log
    columns: dict[str, Any] = {"item": range(1, log.n_items + 1), "raw": log.item_ids[1:]}
    if log.item_titles is not None:
        columns["title"] = log.item_titles[1:]
    for name, feature in log.item_features.items():
        columns[name] = _words(feature)[1:]
    columns |= data.feed.counts()
    folder.write("catalog.parquet", _parquet(polars.DataFrame(columns)))


def _write_users(folder: RunFolder, data: LogData) -> None:
    """``users.parquet``: raw ids of the users, by number; for clicks also ``fields.parquet``, and codes."""
    log = data.log
    columns: dict[str, Any] = {"user": range(1, log.n_users + 1), "raw": log.user_ids[1:]}
    if isinstance(data.feed, ClickFeed):
        columns |= data.feed.user_codes()
        folder.write("fields.parquet", _parquet(data.feed.codings()))
    folder.write("users.parquet", _parquet(polars.DataFrame(columns)))


def _write_candidates(folder: RunFolder, data: LogData) -> None:
    """``candidates.parquet``: where candidates are drawn, those of each sample, by item number."""
    if isinstance(data.feed, SequenceFeed) and data.feed.lists:
        folder.write("candidates.parquet", _parquet(data.feed.drawn()))


def _words(feature: Feature) -> polars.Series:
    """A feature's values as lists of words, one per row."""
    words = np.concatenate([["", "unknown"], feature.vocabulary])[feature.codes]
    row = np.repeat(np.arange(len(feature.offsets) - 1), np.diff(feature.offsets))
    return (
        polars.DataFrame({"row": row, "word": words}).group_by("row", maintain_order=True).agg("word")["word"]
    )


def _parquet(frame: polars.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _table(
    metrics: dict[str, float], model: str, headline: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of results: the model, and what it is to be compared with."""
    part = _part(metrics)
    names = [name for name in headline if f"{part}/{name}" in metrics]
    kinds = dict.fromkeys(name.partition("/")[0] for name in metrics)
    references = [kind for kind in kinds if kind not in ("test", "valid", "train")]
    rows = [(model, part), *((name, name) for name in references)]  # the model may be one of them
    return ["model", *names], [
        [label, *(metrics.get(f"{prefix}/{name}") for name in names)] for label, prefix in rows
    ]


def _part(metrics: dict[str, float]) -> str:
    """The part that the results are of."""
    return "test" if any(name.startswith("test/") for name in metrics) else "valid"


def _show(metrics: dict[str, float], about: dict[str, Any], measured: Any) -> None:
    """Prints the table of results with what it was measured on, and what a reader should be warned of."""
    dataset, protocol = about["dataset"], about["protocol"]
    label = f" ({dataset['label']})" if dataset["label"] else ""
    header, rows = _table(metrics, about["names"]["model"], measured.headline)
    part = _part(metrics)
    rows_there = dataset["parts"][part]["samples"]
    scored = about.get("tested_rows", rows_there)  # earlier versions left no such count
    some = "" if scored == rows_there else f" of {rows_there:,}"
    against = f"{protocol['candidates']} candidates, " if "candidates" in protocol else ""
    table = Table(
        *header,
        title=f"{dataset['name']}, {about['names']['protocol']}{label}, {against}"
        f"{scored:,}{some} {part} rows, seed {about['seed']}",
        title_justify="left",
    )
    for name, *values in rows:
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in values))
    Console(soft_wrap=True).print(table)
    name, main = about["names"]["model"], measured.main
    better = [kind for kind, *_ in rows[1:] if metrics[f"{kind}/{main}"] > metrics[f"{part}/{main}"]]
    if better:
        say(
            f"warning: {name} is below {' and '.join(better)} on {main}: too little training, a finding about"
            " the protocol, or a bug"
        )
    if (left := metrics.get("test/gauc_excluded", 0.0)) > 0.5:
        say(f"warning: gauc is of few: {left:.0%} of the test rows are of users with one label only")
    if dataset["stand_in"]:
        say(STAND_IN.format(dataset["name"]))
