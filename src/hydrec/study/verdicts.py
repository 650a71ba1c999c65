"""A verdict on every difference of a study, and what a reader of one seed would have said of it."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from hydrec.study.results import Run, Setting, Study
from hydrec.study.significance import Verdict, adjust, compare, compare_auc, resamples

CELL: dict[str, Any] = {
    "dataset": str,
    "protocol": str,
    "label": str,
    "baseline": str,
    "model": str,
    "metric": str,
}
SCHEMA = CELL | {field.name: field.type for field in dataclasses.fields(Verdict)}
ALONE = CELL | {"seed": int, "verdict": str}


def judged(
    settings: Sequence[Setting], pairs: Mapping[str, Sequence[tuple[str, str]]], asked: Study
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sets models against their baselines, metric by metric, over the seeds that both have.

    Args:
        settings: of the study.
        pairs: baseline and model, by `Setting.key`: together with the metrics, the family that Holm and
            Benjamini and Hochberg correct for.
        asked: says level, draws and pooling.

    Returns:
        A row a cell with the fields of `Verdict`, ``p`` (the larger of both), ``p_holm`` and ``p_bh``; and a
        row for each cell and seed with what a test over the users of that seed says: ``gain``, ``loss`` or
        ``none``.

    Raises:
        InputError: the test rows of two runs of a setting are not the same.
    """
    cells: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    for setting in settings:
        tests = _Tests(setting, asked)
        for baseline, model in pairs[setting.key]:
            one, other = setting.models[baseline], setting.models[model]
            seeds = [seed for seed in one if seed in other]
            if not seeds:
                continue
            names = (setting.dataset, setting.protocol, setting.label, baseline, model)
            cell = dict(zip(CELL, names, strict=False))
            each = {seed: tests.all([one[seed]], [other[seed]]) for seed in seeds}
            pooled = each[seeds[0]]
            if len(seeds) > 1:
                pooled = tests.all([one[seed] for seed in seeds], [other[seed] for seed in seeds])
            for metric, verdict in pooled.items():
                cells.append(cell | {"metric": metric} | dataclasses.asdict(verdict))
                for seed, verdicts in each.items():
                    said = _claimed(verdicts[metric], asked.alpha, setting.lower_is_better(metric))
                    alone.append(cell | {"metric": metric, "seed": seed, "verdict": said})
    frame = pl.DataFrame(cells, schema=SCHEMA, orient="row")
    p = np.maximum(frame["p_seeds"].to_numpy(), frame["p_users"].to_numpy())  # NaN if one is
    frame = frame.with_columns(
        pl.Series("p", p), *(pl.Series(f"p_{method}", adjust(p, method)) for method in ("holm", "bh"))
    )
    return frame.fill_nan(None), pl.DataFrame(alone, schema=ALONE, orient="row")


def _claimed(verdict: Verdict, alpha: float, lower: bool) -> str:
    """What a test over users alone says."""
    if not verdict.p_users < alpha:
        return "none"
    return "gain" if (verdict.difference > 0) != lower else "loss"


class _Tests:
    """The tests of one setting: the same draws of users for all its models and metrics."""

    def __init__(self, setting: Setting, asked: Study) -> None:
        self.setting, self.asked = setting, asked
        # metrics that one call compares: of the same weights and the same direction
        self.groups: dict[tuple[bool, bool], list[str]] = {}
        for metric in setting.metrics:
            if metric != "auc":
                kind = (metric == "gauc", setting.lower_is_better(metric))
                self.groups.setdefault(kind, []).append(metric)
        self.known: dict[tuple[str, str], np.ndarray] = {}

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(B, U) how often each user is drawn."""
        return resamples(len(self.setting.rows), self.asked.draws, f"{self.setting.dataset} users")

    def all(self, one: Sequence[Run], other: Sequence[Run]) -> dict[str, Verdict]:
        """The verdict of each metric on runs of the same seeds."""
        asked: dict[str, Any] = {"alpha": self.asked.alpha}
        found: dict[str, Verdict] = {}
        for (_, lower), metrics in self.groups.items():
            verdicts = compare(
                self._of(one, metrics),
                self._of(other, metrics),
                self.setting.weights(metrics[0]),
                self.counts,
                pooling=self.asked.pooling,
                higher_is_better=not lower,
                **asked,
            )
            found |= dict(zip(metrics, verdicts, strict=True))
        if "auc" in self.setting.metrics:
            labels = self.setting.facts["label"].to_numpy()
            before, after = (np.stack([self._read(run, "logit") for run in runs]) for runs in (one, other))
            found["auc"] = compare_auc(labels, before, after, self.setting.users, self.counts, **asked)
        return {metric: found[metric] for metric in self.setting.metrics}

    def _of(self, runs: Sequence[Run], metrics: Sequence[str]) -> np.ndarray:
        """(C, S, U) sums over the rows of each user."""
        return np.array([[self._read(run, metric) for run in runs] for metric in metrics])

    def _read(self, run: Run, what: str) -> np.ndarray:
        """The sums of a metric, or the logits, of a run, read once."""
        if (run.name, what) not in self.known:
            if what == "logit":
                self.known[run.name, what] = self.setting.tested(run)[what].to_numpy()
            else:
                self.known |= {(run.name, name): sums for name, sums in self.setting.sums(run).items()}
        return self.known[run.name, what]
