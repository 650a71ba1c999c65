"""One run from configuration to numbers: data, task, training, one test, and what is left on disk."""

import contextlib
import hashlib
import io
import json
import logging
import os
import platform
import resource
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

from hydrec.callbacks import CheckpointFiles, History, Identity, Patience, checkpoints, read_checkpoint, say
from hydrec.data.log import Feature
from hydrec.data.module import LogData
from hydrec.errors import InputError
from hydrec.loggers import Mirror
from hydrec.runs import RunFolder, digest
from hydrec.tasks import NextItem

HEADLINE = ("hit@5", "mrr@5", "hit@10", "mrr@10", "ndcg@10")


def run(cfg: DictConfig) -> dict[str, float]:
    """Trains and tests what a configuration describes, in its own folder; continues or shows what is there already.

    Args:
        cfg: the composed configuration, with ``names`` of the chosen options.

    Returns:
        The metrics of ``metrics.json``.

    Raises:
        InputError: anything the user can mend, in one line.
    """
    _quiet()
    config = _plain(cfg)
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("SLURM_PROCID", "0")) == 0
    pl.seed_everything(cfg.seed, verbose=False)
    started = time.perf_counter()
    data: LogData = instantiate(cfg.dataset, _convert_="all")
    data.prepare()
    seconds = {"data": time.perf_counter() - started}

    names = config["names"]
    neutral = _plain(OmegaConf.merge(cfg, {"paths": {key: key for key in cfg.paths}}))
    name = f"{data.name}-{names['protocol']}-{names['model']}-s{cfg.seed}-{digest(neutral)}"
    folder = RunFolder(Path(cfg.paths.runs) / "single" / name)
    if not first:
        return _train_and_test(cfg, config, data, folder, seconds, names)
    if cfg.rerun:
        folder.set_aside()
    with folder.locked():
        done, about = folder.read("metrics.json"), folder.read("run.json")
        if about is not None and about["dataset"]["fingerprint"] != data.log.fingerprint:
            raise InputError(
                f"{folder.path} was run on other data (fingerprint {about['dataset']['fingerprint'][:12]}, now "
                f"{data.log.fingerprint[:12]}): rerun=true sets it aside and starts anew"
            )
        if done is not None and about is not None:
            say(f"{folder.path} is finished; rerun=true repeats it")
            _show(done, about)
            return done
        return _train_and_test(cfg, config, data, folder, seconds, names)


def _train_and_test(
    cfg: DictConfig,
    config: dict[str, Any],
    data: LogData,
    folder: RunFolder,
    seconds: dict[str, float],
    names: dict[str, str],
) -> dict[str, float]:
    task: NextItem = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, cfg.seed)
    monitor = cfg.stopping.monitor
    known = [f"valid/{name}" for name in data.protocol.metrics.random_row(torch.ones(1, dtype=torch.int64))]
    if monitor not in known:
        raise InputError(f"stopping.monitor={monitor} is not measured; it can be one of {', '.join(known)}")
    mode = "min" if monitor.endswith("mean_rank") else "max"
    identity = {
        "dataset": data.name,
        "fingerprint": data.log.fingerprint,
        "users": data.log.n_users,
        "items": data.log.n_items,
    }
    history = History(folder, echo=not sys.stderr.isatty())
    callbacks: list[pl.Callback] = [
        Patience(monitor, patience=cfg.stopping.patience, mode=mode),
        history,
        Identity(identity),
        *checkpoints(folder, monitor=monitor, mode=mode),
    ]
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar())
    mirrors = [
        Mirror(
            name,
            lambda node=node: instantiate(node, _convert_="all")(
                save_dir=folder.path, job_type=names["model"], name=folder.path.name
            ),
            warn=say,
        )
        for name, node in (cfg.logger or {}).items()
    ]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        _convert_="all",
        callbacks=callbacks,
        logger=mirrors,
        plugins=[CheckpointFiles()],
        default_root_dir=folder.path,
        enable_progress_bar=sys.stderr.isatty(),
    )
    about = _about(cfg, data, task, trainer, names)
    status = "failed"
    try:
        if trainer.is_global_zero:
            folder.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
            folder.write_json("run.json", about | {"status": "running"})
            _write_catalog(folder, data)
        for mirror in mirrors:
            mirror.log_hyperparams(config | {"run": about})
        checkpoint = _fit(cfg, task, data, trainer, folder, identity)
        seconds["fit"] = history.seconds
        started = time.perf_counter()
        task.load_state_dict(checkpoint)
        trainer.test(task, data, verbose=False)
        seconds["test"] = time.perf_counter() - started
        # history's metrics are of the last epoch; what the run stands for is the epoch that was tested
        metrics = {k: v for k, v in task.results.items() if not k.startswith("valid/")}
        best = max(history.rows, key=lambda row: row[monitor] * (1 if mode == "max" else -1), default=None)
        if best is not None:
            metrics |= {k: v for k, v in best.items() if k.startswith("valid/")}
            about["epochs"] = {"trained": len(history.rows), "tested": best["epoch"], "steps": best["step"]}
        about |= {"status": "finished", "seconds": seconds, "peak_memory_mib": _peak_memory()}
        if trainer.is_global_zero:
            table = _table(metrics, names["model"])
            for mirror in mirrors:
                mirror.log_result(metrics, table)
            _write_test(folder, data, task)
            folder.write_json("run.json", about)
            folder.write_json("metrics.json", metrics)
            _show(metrics, about)
            say(f"everything about this run is in {folder.path}")
        status = "success"
        return metrics
    except BaseException as error:
        if trainer.is_global_zero and folder.read("metrics.json") is None:
            with contextlib.suppress(InputError):  # the first error is the one to report
                folder.write_json("run.json", about | {"status": f"failed: {type(error).__name__}: {error}"})
        raise
    finally:
        for mirror in mirrors:
            mirror.close(status)


def _fit(
    cfg: DictConfig, task: NextItem, data: LogData, trainer: pl.Trainer, folder: RunFolder, identity: dict[str, Any]
) -> dict[str, Any]:
    """Trains where there is something to train; returns the weights to test."""
    if cfg.fit and cfg.ckpt_path is not None:
        raise InputError("ckpt_path is for fit=false: a run trains from the start, and continues its own checkpoint by itself")
    if not cfg.fit and cfg.ckpt_path is None:
        raise InputError("fit=false tests a checkpoint: give it as ckpt_path=RUN_FOLDER/checkpoints/best.ckpt")
    if cfg.fit and not task.trainable:
        trainer.strategy.connect(task)
        trainer.save_checkpoint(folder.best)
    elif cfg.fit:
        last = folder.last if folder.last.exists() else None
        if last is not None:
            Identity.check(last, identity)
            say(f"continuing {folder.path}")
        trainer.fit(task, data, ckpt_path=last, weights_only=True)
    path = folder.best if cfg.fit else Path(cfg.ckpt_path)
    Identity.check(path, identity)
    return read_checkpoint(path)["state_dict"]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def _quiet() -> None:
    """Leaves the terminal to the run: Lightning's banners and advice on loader workers do not apply."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("hydrec").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",  # a batch is one indexing step
        ".*`configure_optimizers` returned `None`.*",
        ".*exists and is not empty.*",  # a run continues in its folder
        ".*LeafSpec.*",  # Lightning's, for torch to mend
    ):
        warnings.filterwarnings("ignore", message)


def _about(
    cfg: DictConfig, data: LogData, task: NextItem, trainer: pl.Trainer, names: dict[str, str]
) -> dict[str, Any]:
    """What identifies a run, for ``run.json``."""
    identity = data.protocol.identity()
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return {
        "names": names,
        "seed": cfg.seed,
        "dataset": data.describe(),
        "protocol": identity,
        "protocol_digest": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        "parameters": sum(p.numel() for p in task.net.parameters()),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "batch_size": cfg.batch_size,  # of all processes together
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("hydrec", "torch", "pytorch-lightning", "numpy", "polars")},
        "source_digest": hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest(),
    }


def _peak_memory() -> dict[str, int]:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() // 2**20
    return peak


def _write_test(folder: RunFolder, data: LogData, task: NextItem) -> None:
    """``test.parquet``: per test row the two integers from which every ranking metric follows."""
    log, table = data.log, {name: column.cpu().numpy() for name, column in task.test_table.items()}
    rows = table["row"]
    frame = polars.DataFrame(
        {
            "sample": rows,
            "user": log.user_ids[log.users[rows]],
            "target": log.item_ids[log.items[rows]],
            "time": log.times[rows],
            **{name: table[name] for name in ("greater", "equal", "candidates")},
        }
    )
    folder.write("test.parquet", _parquet(frame))


def _write_catalog(folder: RunFolder, data: LogData) -> None:
    """``catalog.parquet``: raw ids, titles, features and training counts of the items, by item number."""
    log, catalog = data.log, data.catalog
    columns: dict[str, Any] = {"item": range(1, log.n_items + 1), "raw": log.item_ids[1:]}
    if log.item_titles is not None:
        columns["title"] = log.item_titles[1:]
    for name, feature in log.item_features.items():
        columns[name] = _words(feature)[1:]
    columns["train_targets"] = catalog.targets[1:].numpy()
    columns["train_rows"] = torch.bincount(catalog.items, minlength=log.n_items + 1)[1:].numpy()
    folder.write("catalog.parquet", _parquet(polars.DataFrame(columns)))


def _words(feature: Feature) -> polars.Series:
    """A feature's values as lists of words, one per row."""
    words = np.concatenate([["", "unknown"], feature.vocabulary])[feature.codes]
    row = np.repeat(np.arange(len(feature.offsets) - 1), np.diff(feature.offsets))
    return polars.DataFrame({"row": row, "word": words}).group_by("row", maintain_order=True).agg("word")["word"]


def _parquet(frame: polars.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _table(metrics: dict[str, float], model: str) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of the table of results: the model, popularity, random."""
    rows = {model: "test", "popularity": "popularity", "random": "random"}
    names = [name for name in HEADLINE if f"test/{name}" in metrics]
    return ["model", *names], [
        [label, *(metrics[f"{prefix}/{name}"] for name in names)] for label, prefix in rows.items()
    ]


def _show(metrics: dict[str, float], about: dict[str, Any]) -> None:
    """Prints the table of results with what it was measured on, and what a reader should be warned of."""
    dataset, protocol = about["dataset"], about["protocol"]
    label = f" ({dataset['label']})" if dataset["label"] else ""
    header, rows = _table(metrics, about["names"]["model"])
    table = Table(
        *header,
        title=f"{dataset['name']}, {about['names']['protocol']}{label}, {protocol['candidates']} candidates, "
        f"{dataset['parts']['test']['samples']:,} test rows, seed {about['seed']}",
        title_justify="left",
    )
    for name, *values in rows:
        table.add_row(name, *(f"{value:.4f}" for value in values))
    Console(soft_wrap=True).print(table)
    headline = f"{header[-1]}"
    if rows[0][-1] < rows[1][-1] and rows[0][0] != "popularity":
        say(f"warning: {rows[0][0]} is below popularity on {headline}: a finding about the protocol, or a bug")
    if dataset["stand_in"]:
        say(f"warning: {dataset['name']} is simulated: no files were found; set HYDREC_DATA to the folder of the real ones")
