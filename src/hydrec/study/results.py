"""Finished runs, read back: a frame with a row a run, and settings, whose runs may be compared.

A *setting* is a dataset under a protocol. Runs of one setting are compared only if data, protocol and test
rows are the same; the line that refuses them says which field differs.

Shapes: S seeds, U test users, N test rows, C metrics.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
import yaml
from polars.exceptions import PolarsError

from hydrec import click_metrics, metrics
from hydrec.click_metrics import ClickMetrics
from hydrec.errors import InputError, one_of
from hydrec.metrics import RankMetrics
from hydrec.runs import NOT_IN_DIGEST
from hydrec.study.significance import gauc_sums

# what may differ between runs of one model beside the seed: where and how it ran, not what
ELSEWHERE = (
    *NOT_IN_DIGEST,
    *("seed", "names", "eval_batch_size"),
    *(f"dataset.{key}" for key in ("seed", "cache", "download", "verify", "eval_batch_size", "reader.root")),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "strategy")),
)
RESULTS = ("greater", "equal", "logit")  # columns of test.parquet; the others say what was tested
CLICKS = ("auc", "gauc", "logloss")  # the click metrics whose sums over users can be resampled
ALPHA, DRAWS, POOLING = 0.05, 2000, "users"  # of a folder without study.yaml: spec, section 8
SAME = 1e-9  # a metric from test.parquet and the one in metrics.json

Config = dict[str, str]


class Study(NamedTuple):
    """What a study asks: ``study.yaml``, or what a folder of runs amounts to.

    Attributes:
        title: for people.
        models: in the order of the tables.
        references: models that stand below the others, to read them by.
        baseline: the model that the others are set against; ``None``: no verdicts.
        metrics: those shown; empty for the usual ones of each setting.
        alpha: level of every test.
        draws: B, resamples of the users.
        pooling: ``users`` or ``rows``, as `significance.compare` has it.
        claims: published values by dataset, model and metric.
        source: where the claims were published.
        monitor: the metric that the search went by; "" where nothing was searched.
    """

    title: str
    models: list[str]
    references: list[str]
    baseline: str | None
    metrics: list[str]
    alpha: float
    draws: int
    pooling: str
    claims: dict[str, dict[str, dict[str, float]]]
    source: str
    monitor: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: of the run.
        name: of the folder.
        about: ``run.json``.
        metrics: ``metrics.json``.
        config: ``config.yaml``, values in JSON under dotted keys, without what is ``ELSEWHERE``.
        model: its name in tables: that of the ledger, where variants have names, else that of the model.
    """

    folder: Path
    name: str
    about: dict[str, Any]
    metrics: dict[str, float]
    config: Config
    model: str

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.about["seed"]

    @property
    def trained(self) -> bool:
        """Whether it has epochs: popularity and its like are counted, not trained, and have no seeds."""
        return "epochs" in self.about

    @property
    def rows(self) -> int:
        """Test rows; earlier versions left no count of those that were tested."""
        return self.about.get("tested_rows", self.about["dataset"]["parts"]["test"]["samples"])

    def history(self) -> pl.DataFrame:
        """``history.csv``: a row an epoch; empty where nothing was trained."""
        path = self.folder / "history.csv"
        return pl.read_csv(path, infer_schema_length=None) if path.exists() else pl.DataFrame()


# Reading ----------------------------------------------------------------------------------------------------


def study(folder: Path, runs: Sequence[Run], baseline: str, shown: Sequence[str]) -> Study:
    """The study of a folder; what is given goes before what ``study.yaml`` says.

    Args:
        folder: of the study.
        runs: its finished runs.
        baseline: "" for that of ``study.yaml``.
        shown: metrics; none for those of ``study.yaml``.

    Raises:
        InputError: ``study.yaml`` is not YAML, or no run is of the baseline.
    """
    path = folder / "study.yaml"
    try:
        said = yaml.safe_load(path.read_text()) if path.exists() else {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({error}); mend it or move it away") from error
    trained = [run.model for run in runs if run.trained]
    counted = [run.model for run in runs if not run.trained]
    claims = dict(said.get("claims") or {})
    found = Study(
        title=said.get("title", folder.resolve().name),
        models=[*(said.get("models") or dict.fromkeys(sorted(trained))), *(said.get("variants") or {})],
        references=[*(said.get("references") or [] if said else dict.fromkeys(sorted(counted)))],
        baseline=baseline or said.get("baseline"),
        metrics=[*(shown or said.get("metrics") or [])],
        alpha=float(said.get("alpha", ALPHA)),
        draws=int(said.get("draws", DRAWS)),
        pooling=one_of("pooling", said.get("pooling", POOLING), ("users", "rows")),
        source=str(claims.pop("source", "")),
        claims=claims,
        monitor=(said.get("search") or {}).get("monitor") or "",
    )
    if baseline:
        one_of("baseline", baseline, dict.fromkeys(run.model for run in runs))
    first = found.baseline
    return found._replace(
        models=[*dict.fromkeys([first, *found.models] if first else found.models)],
        references=[model for model in found.references if model != first],
    )


class Ledger(NamedTuple):
    """What became of the jobs of a study: ``ledger.json``; empty where there is none.

    Attributes:
        jobs: each with ``kind``, ``state``, ``dataset``, ``protocol``, ``model``, ``seed``, ``folder``,
            ``reason`` and ``lines``; trials also with ``params`` and ``value``.
        absent: datasets that could not be read, with the reason.
    """

    jobs: list[dict[str, Any]]
    absent: dict[str, str]

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The jobs of some kinds."""
        return [job for job in self.jobs if job["kind"] in kinds]


def ledger(folder: Path) -> Ledger:
    """Reads ``ledger.json``.

    Raises:
        InputError: it is damaged.
    """
    path = folder / "ledger.json"
    found = _json(path) if path.exists() else {}
    jobs = [{"name": name, **job} for name, job in found.get("jobs", {}).items()]
    absent = {job["dataset"]: " ".join(job["lines"][-1:]) for job in jobs if job["state"] == "absent"}
    return Ledger(jobs, absent | found.get("absent", {}))


def finished(folder: Path) -> list[Run]:
    """The finished runs of a study, in the order of their names.

    With a ledger they are its seeds and references; without one all folders with ``metrics.json``, but those
    that were set aside or not tested; or the folder itself, if it is that of a run.

    Raises:
        InputError: there is none, or a file of one is damaged.
    """
    jobs = ledger(folder).of("seed", "reference")
    names = {folder / job["folder"]: job["model"] for job in jobs}
    there = sorted(path.parent for path in folder.glob("*/metrics.json"))
    if (folder / "metrics.json").exists():
        there = [folder]
    paths = [path for path in there if (path in names if names else not re.search(r"\.old\d+$", path.name))]
    runs = [_run(path, names.get(path)) for path in paths]
    tested = [run for run in runs if any(name.startswith("test/") for name in run.metrics)]
    if not tested:
        raise InputError(f"{folder} has no finished run; give a folder of run folders, such as runs/single")
    return tested


def _run(path: Path, model: str | None) -> Run:
    try:
        config = yaml.safe_load((path / "config.yaml").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path / 'config.yaml'} cannot be read ({error}); move the run away") from error
    flat = {key: json.dumps(value) for key, value in _flat(config)}
    kept = {
        key: value
        for key, value in flat.items()
        if not any(key == name or key.startswith(f"{name}.") for name in ELSEWHERE)
    }
    about, measured = _json(path / "run.json"), _json(path / "metrics.json")
    return Run(path, path.resolve().name, about, measured, kept, model or about["names"]["model"])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); move the run away or repeat it") from error


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dictionaries under dotted keys; an empty one is a leaf."""
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def frame(runs: Sequence[Run]) -> pl.DataFrame:
    """A row a run: what it is, what it cost, and every metric; seconds of the wall clock, memory in MiB."""
    return pl.DataFrame([_row(run) for run in runs], infer_schema_length=None)


def _row(run: Run) -> dict[str, Any]:
    about, data = run.about, run.about["dataset"]
    epochs = about.get("epochs", {})
    return {
        "dataset": data["name"],
        "protocol": about["names"]["protocol"],
        "label": data["label"],
        "model": run.model,
        "loss": about["names"]["loss"],
        "seed": run.seed,
        "folder": run.name,
        "fingerprint": data["fingerprint"],
        "protocol_digest": about["protocol_digest"],
        "source_digest": about["source_digest"],
        "versions": ", ".join(f"{name} {number}" for name, number in about["versions"].items()),
        "device": about["device"],
        "processes": about["processes"],
        "precision": about["precision"],
        "batch_size": about["batch_size"],
        "parameters": about["parameters"],
        "epochs_trained": epochs.get("trained"),
        "epoch_tested": epochs.get("tested"),
        "steps": epochs.get("steps"),
        **{f"seconds_{part}": float(seconds) for part, seconds in about["seconds"].items()},
        **{f"memory_{where}": mib for where, mib in about["peak_memory_mib"].items()},
        **{key: data[key] for key in ("users", "items", "interactions")},
        "test_rows": run.rows,
        "test_users": data["parts"]["test"]["users"],
        **run.metrics,
    }


# Settings ---------------------------------------------------------------------------------------------------


class Setting:
    """A dataset under a protocol, with the runs that may be compared.

    Args:
        runs: all of it.
        asked: the study; says the order of the models and which are references.

    Raises:
        InputError: two runs differ in data, protocol, test rows, or, of one model, in another setting than
            the seed.

    Attributes:
        models: runs by model and seed.
        references: one run of each reference.
        metrics: those shown.
    """

    def __init__(self, runs: Sequence[Run], asked: Study) -> None:
        first = runs[0]
        self.dataset, self.protocol = first.about["dataset"]["name"], first.about["names"]["protocol"]
        self.label = first.about["dataset"]["label"]
        self._first = first
        for run in runs[1:]:
            _same_ground(first, run)
        by_model: dict[str, dict[int, Run]] = {}
        for run in runs:
            others = by_model.setdefault(run.model, {})
            for other in others.values():
                _same_model(other, run)
            others[run.seed] = run
        known = [*asked.models, *asked.references]
        order = sorted(by_model, key=lambda model: known.index(model) if model in known else len(known))
        seeds = {model: dict(sorted(by_model[model].items())) for model in order}
        self.models = {model: runs for model, runs in seeds.items() if model not in asked.references}
        self.references = {
            model: next(iter(runs.values())) for model, runs in seeds.items() if model not in self.models
        }
        self.metrics = self._shown(asked.metrics)
        for run in self.runs:
            self.tested(run)

    @property
    def title(self) -> str:
        """Dataset and protocol, with the label of one that leaks."""
        return f"{self.dataset}, {self.protocol}" + (f" ({self.label})" if self.label else "")

    @property
    def key(self) -> str:
        """Dataset and protocol, for names of files."""
        return f"{self.dataset}-{self.protocol}"

    @property
    def runs(self) -> list[Run]:
        """Those of the models, then those of the references."""
        return [run for seeds in self.models.values() for run in seeds.values()] + [*self.references.values()]

    @functools.cached_property
    def measured(self) -> RankMetrics | ClickMetrics:
        """The metrics of the protocol."""
        about = {k: v for k, v in self._first.about["protocol"]["metrics"].items() if k != "version"}
        kind = RankMetrics if "at" in about else ClickMetrics
        return kind(**about)

    def lower_is_better(self, metric: str) -> bool:
        """Whether a drop of the metric is a gain."""
        return self.measured.directions[metric] == "min"

    def prefixes(self) -> list[str]:
        """References that every run carries with it, such as popularity, and that are no runs themselves."""
        kinds = dict.fromkeys(name.partition("/")[0] for name in self._first.metrics)
        return [
            kind for kind in kinds if kind not in ("test", "valid", "train", *self.models, *self.references)
        ]

    def carried(self, prefix: str, metric: str) -> float | None:
        """A metric of such a reference."""
        return self._first.metrics.get(f"{prefix}/{metric}")

    def known(self) -> list[str]:
        """The metrics that can be tested: whose sums over users can be resampled."""
        names = self.measured.directions if isinstance(self.measured, RankMetrics) else CLICKS
        return [name for name in names if f"test/{name}" in self._first.metrics]

    def _shown(self, asked: Sequence[str]) -> list[str]:
        if shown := [name for name in asked if name in self.known()]:
            return shown
        if not isinstance(self.measured, RankMetrics):
            return self.known()
        k = 10 if 10 in self.measured.at else self.measured.at[-1]
        return [f"{name}@{k}" for name in ("hit", "mrr", "ndcg")]

    # What was tested

    def tested(self, run: Run) -> pl.DataFrame:
        """``test.parquet`` in the order of samples.

        Raises:
            InputError: its rows are not those of the other runs; names the column.
        """
        path = run.folder / "test.parquet"
        try:
            found = pl.read_parquet(path).sort("sample")
        except (OSError, PolarsError) as error:
            raise InputError(f"{path} cannot be read ({error}); move the run away or repeat it") from error
        facts = self.facts if run is not self._first else found
        if len(found) != len(facts):
            _refuse(self._first, run, "number of test rows", len(facts), len(found))
        for name in facts.columns:
            if name not in RESULTS and not (name in found.columns and found[name].equals(facts[name])):
                _refuse(self._first, run, f"test rows: column {name} of test.parquet")
        return found

    @functools.cached_property
    def facts(self) -> pl.DataFrame:
        """The test rows without results."""
        return self.tested(self._first).drop(RESULTS, strict=False)

    @functools.cached_property
    def users(self) -> np.ndarray:
        """(N,) int64, the user of each test row, numbered from 0."""
        return np.unique(self.facts["user"].to_numpy(), return_inverse=True)[1]

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """(U,) int64, test rows of each user."""
        return np.bincount(self.users)

    def weights(self, metric: str) -> np.ndarray:
        """(U,) what the sums of a metric are divided by: rows; for GAUC the weight of each user."""
        if metric != "gauc":
            return self.rows
        return self._gauc(np.empty((0, len(self.users))))[1]

    def sums(self, run: Run) -> dict[str, np.ndarray]:
        """(U,) float64 for each metric but AUC: its sum over the test rows of each user.

        Raises:
            InputError: as `tested` has it, or the mean is not that of ``metrics.json``.
        """
        table, found = self.tested(run), {}
        for name in self.metrics:
            if name == "auc":
                continue
            if name == "gauc":
                sums = self._gauc(table["logit"].to_numpy()[None])[0][0]
            else:
                sums = np.bincount(self.users, self._values(table, name))
            mean, said = sums.sum() / self.weights(name).sum(), run.metrics[f"test/{name}"]
            if not abs(mean - said) <= SAME * max(1, abs(said)):
                raise InputError(
                    f"{run.folder}: {name} is {mean:.6g} by test.parquet and {said:.6g} by metrics.json, so"
                    " they are not of one run; move it away or repeat it"
                )
            found[name] = sums
        return found

    def _gauc(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert isinstance(self.measured, ClickMetrics)
        labels, weights = self.facts["label"].to_numpy(), self.measured.gauc
        return gauc_sums(labels, logits, self.users, users=len(self.rows), weights=weights)

    def _values(self, table: pl.DataFrame, name: str) -> np.ndarray:
        if name == "logloss":
            return click_metrics.logloss(*_tensors(table, "label", "logit")).numpy()
        ranks = metrics.Ranks(*_tensors(table, "greater", "equal", "candidates"))
        assert isinstance(self.measured, RankMetrics)
        ranks = metrics.break_ties(ranks, self.measured.ties)
        kind, _, k = name.partition("@")
        if k:
            return metrics.AT_K[kind](ranks, int(k)).numpy()
        return {"mrr": metrics.mrr, "mean_rank": metrics.mean_rank}[kind](ranks).numpy()


def settings(runs: Sequence[Run], asked: Study) -> list[Setting]:
    """The settings of some runs, by name.

    Raises:
        InputError: runs of one cannot be compared, or a metric is of none.
    """
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.about["dataset"]["name"], run.about["names"]["protocol"]), []).append(run)
    found = [Setting(grouped[key], asked) for key in sorted(grouped)]
    for name in asked.metrics:
        one_of("metrics", name, sorted({known for setting in found for known in setting.known()}))
    return found


def _tensors(table: pl.DataFrame, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(table[name].to_numpy().copy()) for name in names]


def _same_ground(one: Run, other: Run) -> None:
    """Refuses runs whose numbers are not of the same test."""
    for field in ("fingerprint", "label"):
        a, b = (run.about["dataset"][field] for run in (one, other))
        if a != b:
            _refuse(one, other, f"dataset {field}", a[:12], b[:12])
    a, b = (dict(_flat(run.about["protocol"])) for run in (one, other))
    for key in dict.fromkeys([*a, *b]):
        if a.get(key) != b.get(key):
            _refuse(one, other, f"protocol.{key}", a.get(key), b.get(key))
    if one.rows != other.rows:
        _refuse(one, other, "number of test rows", one.rows, other.rows)


def _same_model(one: Run, other: Run) -> None:
    """Refuses runs of one model that differ in more than the seed, or in nothing."""
    a, b = one.config, other.config
    differ = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    if differ or one.seed == other.seed:
        what = ", ".join(f"{key} ({a.get(key)}, {b.get(key)})" for key in differ[:5])
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise InputError(
            f"{one.folder} and {other.folder} are both {one.model} and differ in {what or 'nothing'}{more}:"
            " which of them counts cannot be told; move one away"
        )


def _refuse(one: Run, other: Run, field: str, *values: Any) -> None:
    shown = f" ({', '.join(map(str, values))})" if values else ""
    raise InputError(
        f"{one.folder} and {other.folder} cannot be compared: they differ in the {field}{shown}; move one"
        " away"
    )
