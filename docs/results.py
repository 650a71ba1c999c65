"""Prints tables of finished runs in Markdown, one for each data set and protocol.

    python docs/results.py RUNS [RUNS ...]

RUNS is a folder of run folders, such as runs/single. Runs of one model that differ in their seed alone are a
line with mean and standard deviation. Runs whose data or protocols differ are never in one table.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

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


def table(title: str, runs: Sequence[Run]) -> str:
    """One data set under one protocol: a line for each model, then what they are read beside."""
    metrics = runs[0][0]
    names = [name for name in (*RANKING, *CLICKS) if f"test/{name}" in metrics]
    kinds = dict.fromkeys(name.partition("/")[0] for name in metrics)
    lines = [f"| model | seeds | {' | '.join(names)} | epochs (tested) | training | parameters |"]
    lines.append("|---" * (len(names) + 5) + "|")
    by_model: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_model.setdefault((run[1]["names"]["model"], run[2]), []).append(run)
    for (model, _), some in by_model.items():
        cells = [_spread([run[0].get(f"test/{name}") for run in some]) for name in names]
        epochs = [run[1]["epochs"] for run in some if "epochs" in run[1]]
        trained = " ".join(f"{each['trained']} ({each['tested'] + 1})" for each in epochs)
        seconds = f"{mean(run[1]['seconds']['fit'] for run in some):.0f} s"
        size = f"{some[0][1]['parameters']:,}"
        lines.append(f"| `{model}` | {len(some)} | {' | '.join(cells)} | {trained} | {seconds} | {size} |")
    for kind in kinds:
        if kind not in ("test", "valid", "train"):
            cells = [_spread([run[0].get(f"{kind}/{name}") for run in runs[:1]]) for name in names]
            lines.append(f"| {kind} | | {' | '.join(cells)} | | | |")
    return "\n".join([f"**{title}**", "", *lines, ""])


def main(folders: Sequence[str]) -> int:
    """Prints the tables; the exit status."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for metrics, about, settings in finished(folders):
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
        print(table(f"{title}, {rows}", runs))
    return 0 if groups else 1


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.4f}" + (f" ± {stdev(known):.4f}" if len(known) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
