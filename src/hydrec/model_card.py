"""The model card of a run: ``README.md`` of its folder, in the form that the Hugging Face Hub reads.

The front matter follows https://huggingface.co/docs/hub/model-cards (library, tags, datasets, metrics,
model-index).
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hydrec.errors import InputError

HEADLINE = (
    *(f"{name}@{k}" for k in (5, 10, 20) for name in ("hit", "mrr", "ndcg")),
    *("auc", "gauc", "logloss", "ne", "ece"),
)
COLUMNS = 6
PARTS = ("test", "valid", "train")  # what other prefixes of metrics stand for are models to compare with


def markdown(folder: Path) -> str:
    """The card of a finished run.

    Raises:
        InputError: the folder has no ``config.yaml``, ``run.json`` or ``metrics.json``.
    """
    try:
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        about, metrics = (json.loads((folder / name).read_text()) for name in ("run.json", "metrics.json"))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give the folder of a finished run") from error
    return card(folder.name, config, about, metrics)


def card(name: str, config: Mapping[str, Any], about: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """The card of a run.

    Args:
        name: of its folder.
        config: ``config.yaml``.
        about: ``run.json``.
        metrics: ``metrics.json``.
    """
    model, data = about["names"]["model"], about["dataset"]
    part = "test" if any(key.startswith("test/") for key in metrics) else "valid"
    shown = [each for each in HEADLINE if f"{part}/{each}" in metrics][:COLUMNS]
    front = OmegaConf.to_yaml(_front(name, about, metrics, part, shown))
    of = f"{data['name']}, {_protocol(about)}"
    sections = {
        f"{model} on {of}": _purpose(config, about),
        "Results": _results(about, metrics, part, shown),
        "Limits": _limits(about, metrics, part, shown),
        "Data": _data(about),
        "Protocol": _block(about["protocol"]),
        "Use": _use(name, "auc" in shown),
        "Repeat": _repeat(about),
    }
    first, *others = sections.items()
    text = "\n\n".join([f"# {first[0]}\n\n{first[1]}", *(f"## {title}\n\n{body}" for title, body in others)])
    return f"---\n{front}---\n\n{text}\n"


def _front(
    name: str, about: Mapping[str, Any], metrics: Mapping[str, float], part: str, shown: list[str]
) -> dict[str, Any]:
    data, model = about["dataset"], about["names"]["model"]
    clicks = "auc" in shown
    task = "click-through-rate prediction" if clicks else "sequential recommendation"
    label = f", {data['label']}" if data["label"] else ""
    return {
        "library_name": "hydrec",
        "tags": [task.replace(" ", "-"), "recommendation", model, *([data["label"]] if label else [])],
        "datasets": [data["name"]],
        "metrics": [*dict.fromkeys(each.partition("@")[0] for each in shown)],
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "other", "name": task},
                        "dataset": {
                            "name": f"{data['name']} ({about['names']['protocol']}{label})",
                            "type": data["name"],
                            "split": part,
                            "revision": data["fingerprint"],
                        },
                        "metrics": [
                            {"type": each.partition("@")[0], "name": each, "value": metrics[f"{part}/{each}"]}
                            for each in shown
                        ],
                    }
                ],
            }
        ],
    }


def _purpose(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What the sources say of the model."""
    target = config["model"]["net"]["_target_"]
    module = importlib.import_module(target.rpartition(".")[0])
    paragraphs = (inspect.getdoc(module) or "").split("\n\n")
    said = [text for text in paragraphs if not text.startswith(("Shapes:", "Letters:"))]
    settings = {key: value for key, value in config["model"]["net"].items() if not key.startswith("_")}
    loss = about["names"]["loss"]
    trained = f"Trained with the loss `{loss}`. " if loss and "epochs" in about else ""
    settled = f"{trained}`{target}`, {about['parameters']:,} parameters:"
    return "\n\n".join([*said, settled, _block(settings)])


def _results(about: Mapping[str, Any], metrics: Mapping[str, float], part: str, shown: list[str]) -> str:
    rows = [(about["names"]["model"], part)]
    if part == "test":
        rows += [(kind, kind) for kind in _references(metrics)]
    lines = [f"| | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for label, kind in rows:
        cells = [f"{metrics[f'{kind}/{each}']:.4f}" if f"{kind}/{each}" in metrics else "-" for each in shown]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    samples = about.get("tested_rows") if part == "test" else about["dataset"]["parts"]["valid"]["samples"]
    chosen = ""
    if "epochs" in about:
        epochs = about["epochs"]
        chosen = f" Epoch {epochs['tested'] + 1} of {epochs['trained']}, chosen by the validation part."
    what = "Test part" if part == "test" else "Validation part, by which the epoch was chosen; not tested"
    return "\n".join([f"{what}: {samples:,} rows, seed {about['seed']}.{chosen}", "", *lines])


def _limits(about: Mapping[str, Any], metrics: Mapping[str, float], part: str, shown: list[str]) -> str:
    """What a reader must know before using model or figures."""
    data, protocol = about["dataset"], about["protocol"]
    tested = data["parts"][part]
    said = [
        "Meant for research: to compare models on this data under this protocol. Figures of other data,"
        " splits, candidates or metrics cannot be set beside these.",
        f"Knows the {data['items']:,} items of its data and no others, and what users did then; it repeats"
        " what was popular, and says nothing of why.",
        "One seed: how much chance there is in the figures needs several.",
    ]
    if data["label"]:
        said.append(
            f"**The protocol is {data['label']}**: training has seen events of the test part, and the figures"
            " say little of new data."
        )
    if data["stand_in"]:
        said.append("**The data are simulated**: the raw files were not there.")
    if protocol.get("candidates") == "sampled":
        said.append(
            f"Targets were ranked against {protocol['sampled']['count']} drawn candidates, not the catalogue:"
            " such figures are far higher, and may order models differently."
        )
    if part == "test" and shown:
        main = next((each for each in ("hit@10", "auc") if each in shown), shown[0])
        mine = metrics[f"test/{main}"]
        better = [kind for kind in _references(metrics) if metrics.get(f"{kind}/{main}", 0.0) > mine]
        if better:
            said.append(f"**Below {' and '.join(better)} on {main}.**")
    cold = tested.get("cold_targets", tested.get("cold_candidates", 0))
    said.append(
        f"Of {tested['samples']:,} samples of the {part} part, {tested['samples_of_unseen_users']:,} are of"
        f" users and {cold:,} of items that training has not."
    )
    return "\n".join(f"- {each}" for each in said)


def _data(about: Mapping[str, Any]) -> str:
    data = about["dataset"]
    parts = ", ".join(f"{one['samples']:,} {name}" for name, one in data["parts"].items())
    lines = [
        f"`{data['name']}`: {data['users']:,} users, {data['items']:,} items, {data['interactions']:,}"
        f" events; samples: {parts}. Fingerprint of raw files and options: `{data['fingerprint']}`."
    ]
    if data.get("raw_files"):
        lines += ["", "| file | sha256 |", "|---|---|"]
        lines += [f"| {each['name']} | `{each['sha256']}` |" for each in data["raw_files"]]
    return "\n".join(lines)


def _use(name: str, clicks: bool) -> str:
    call = 'score("rows.csv", histories="histories.csv")' if clicks else 'recommend("histories.csv", k=20)'
    return (
        f'```python\nimport hydrec\n\nhydrec.load("{name}").{call}  # columns user, item, time; raw ids\n```'
    )


def _repeat(about: Mapping[str, Any]) -> str:
    names = {key: value for key, value in about["names"].items() if value}
    command = about.get("command") or " ".join(
        ["python train.py", *(f"{key}={value}" for key, value in names.items()), f"seed={about['seed']}"]
    )
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    seconds = about.get("seconds", {}).get("fit")
    took = f" Training took {seconds:,.0f} s." if seconds else ""
    where = f"{about['device']}, {about['processes']} process(es), precision {about['precision']}"
    return (
        f"    {command}\n\n`config.yaml` has every value. {versions}; sources"
        f" `{about['source_digest'][:12]}`; {where}.{took}"
    )


def _references(metrics: Mapping[str, float]) -> list[str]:
    """The models that the test is read beside."""
    return [kind for kind in dict.fromkeys(key.partition("/")[0] for key in metrics) if kind not in PARTS]


def _protocol(about: Mapping[str, Any]) -> str:
    label = about["dataset"]["label"]
    return f"{about['names']['protocol']}{f' ({label})' if label else ''}"


def _block(values: Mapping[str, Any]) -> str:
    return f"```yaml\n{OmegaConf.to_yaml(dict(values))}```"
