"""Prints tables of finished runs in Markdown, one for each data set and protocol.

    python docs/results.py RUNS [RUNS ...]
    python docs/results.py RUNS --base din         # click models: beside DIN, by AUC and logloss

RUNS is a folder of run folders, such as runs/single. Runs of one model that differ in their seed alone are a
line with mean and standard deviation. Runs whose data or protocols differ are never in one table. Seconds are
of the wall clock, with validation, whatever else the machine had to do: benchmarks/ compares speed.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from hydrec.click_metrics import ratio, relaimpr

RANKING = ("hit@5", "mrr@5", "hit@10", "mrr@10", "ndcg@10")
CLICKS = ("auc", "gauc", "logloss", "base_rate", "ne", "ece")
Run = tuple[dict[str, float], dict[str, Any], str]  # metrics.json, run.json, settings without the seed


def finished(folders: Iterable[str]) -> list[Run]:
    """The finished runs of some folders."""
    runs = []
    for path in (path for folder in folders for path in sorted(Path(folder).glob("*/metrics.json"))):
        settings = yaml.safe_load((path.parent / "config.yaml").read_text())
        for key in ("seed", "paths", "logger", "names"):
            settings.pop(key, None)
        for key in ("seed", "cache"):
            settings["dataset"].pop(key)
        about = json.loads((path.parent / "run.json").read_text())
        runs.append((json.loads(path.read_text()), about, json.dumps(settings, sort_keys=True)))
    return runs


def table(title: str, runs: Sequence[Run], base: str | None = None) -> str:
    """One data set under one protocol: a line for each model, then what they are read beside.

    Args:
        title: stands above.
        runs: of this data set and protocol.
        base: a model; the others get what they gain over it. DIN's RelaImpr, and the plain ratios that MIAN's
            tables print.
    """
    metrics = runs[0][0]
    names = [name for name in (*RANKING, *CLICKS) if f"test/{name}" in metrics]
    kinds = dict.fromkeys(name.partition("/")[0] for name in metrics)
    by_model: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_model.setdefault((run[1]["names"]["model"], run[2]), []).append(run)
    ranks = "hit@10" in names
    beside = [some for (model, _), some in by_model.items() if model == base]
    gains = ["RelaImpr", "auc ratio", "logloss ratio"] if beside else []
    columns = [*(["loss"] if ranks else []), "seeds", *names, *gains]
    lines = [f"| model | {' | '.join(columns)} | epochs (tested) | s an epoch | parameters |"]
    lines.append("|---" * (len(columns) + 4) + "|")
    for (model, _), some in by_model.items():
        cells = [some[0][1]["names"]["loss"] if _trained(some[0]) else ""] if ranks else []
        cells += [str(len(some)), *(_spread([run[0].get(f"test/{name}") for run in some]) for name in names)]
        if beside:
            cells += _gains(some, beside[0])
        epochs = [run[1]["epochs"] for run in some if _trained(run)]
        trained = " ".join(f"{each['trained']} ({each['tested'] + 1})" for each in epochs)
        seconds = ""
        if epochs:
            seconds = f"{mean(run[1]['seconds']['fit'] / run[1]['epochs']['trained'] for run in some):.1f}"
        size = f"{some[0][1]['parameters']:,}"
        lines.append(f"| `{model}` | {' | '.join(cells)} | {trained} | {seconds} | {size} |")
    for kind in kinds:
        if kind not in ("test", "valid", "train"):
            cells = [_spread([run[0].get(f"{kind}/{name}") for run in runs[:1]]) for name in names]
            cells = ["", *([""] if ranks else []), *cells, *([""] * len(gains))]
            lines.append(f"| {kind} | {' | '.join(cells)} | | | |")
    return "\n".join([f"**{title}**", "", *lines, ""])


def main(argv: Sequence[str]) -> int:
    """Prints the tables; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", metavar="RUNS")
    parser.add_argument("--base", help="a model that the other click models are set beside")
    args = parser.parse_args(argv)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for metrics, about, settings in finished(args.folders):
        data = about["dataset"]
        against = (
            f", {about['protocol']['candidates']} candidates" if "candidates" in about["protocol"] else ""
        )
        label = f" ({data['label']})" if data["label"] else ""
        title = f"{data['name']}, {about['names']['protocol']}{label}{against}"
        key = (title, data["fingerprint"], about["protocol_digest"])
        groups.setdefault(key, []).append((metrics, about, settings))
    for (title, *_), runs in sorted(groups.items(), key=lambda group: group[0]):
        rows = f"{runs[0][1]['dataset']['parts']['test']['samples']:,} test rows"
        print(table(f"{title}, {rows}", runs, args.base))
    return 0 if groups else 1


def _trained(run: Run) -> bool:
    return "epochs" in run[1]


def _gains(some: Sequence[Run], base: Sequence[Run]) -> list[str]:
    """RelaImpr, and the ratios of the means to those of a baseline."""
    if not _trained(some[0]):
        return [""] * 3
    auc, logloss = (
        [mean(run[0][f"test/{name}"] for run in runs) for runs in (some, base)] for name in ("auc", "logloss")
    )
    per_cent = [relaimpr(*auc), ratio(*auc), ratio(*logloss)]
    return [f"{each:+.2f} %" for each in per_cent]


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
