"""A study: which runs it has, and which of them can be made now.

A cell is a data set under a protocol with a model; it has trials, where a search is asked for, then a run for
each seed. Everything that Hydra has to say of a cell is asked once, when the study is planned; afterwards the
jobs follow from the plan and the ledger alone.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydrec.errors import InputError, at_least, one_of
from hydrec.overrides import check, nearest, options
from hydrec.runs import digest
from hydrec.sweep import search
from hydrec.sweep.ledger import ABSENT, FINISHED, OVER, Job, Ledger

TIMED_STEPS = 10  # of the optimiser, in a job that tells what a step costs


class Cell(NamedTuple):
    """A data set under a protocol with a model.

    Attributes:
        dataset, protocol, model: names; ``model`` is the one that tables use.
        overrides: the command line of its runs, without the seed.
        space: what is searched, as `search.propose` takes it; empty: nothing.
        defaults: the values that trial 0 has.
        kind: ``seed``; ``reference`` for a model that is there to be read beside the others; ``curve`` for
            one value of a key.
        epochs: of a run, at most; 0 where none is trained to an end known beforehand.
    """

    dataset: str
    protocol: str
    model: str
    overrides: tuple[str, ...]
    space: dict[str, Any]
    defaults: dict[str, Any]
    kind: str
    epochs: int
    own: tuple[str, ...]  # what it is there for: no search changes that
    tuned_as: str  # the model whose search finds its settings
    point: dict[str, Any] | None  # of a curve: the key with its value

    @property
    def name(self) -> str:
        """Names the cell in its study."""
        return f"{self.dataset}-{self.protocol}-{self.model}"


def plan(study: Mapping[str, Any], conf: Path) -> list[Cell]:
    """The cells of a study, each of whose command lines has been checked.

    Args:
        study: the group ``study`` of the configuration, resolved.
        conf: the config folder.

    Raises:
        InputError: a key of the study, a command line or a space makes no sense; names it.
    """
    _check_keys(study, conf)
    entries, searching = _entries(study), study["search"]
    cells = []
    taken: set[str] = set()
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        own_loss = {
            model: _raw(compose("train", [f"model={model}"]).model).get("loss") != "${loss}"
            for model in dict.fromkeys(entry.model for entry in entries)
        }
    for dataset, protocol, entry in itertools.product(study["datasets"], study["protocols"], entries):
        loss = study["loss"]
        overrides = merged(
            f"model={entry.model}",
            f"dataset={dataset}",
            f"protocol={protocol}",
            *([f"loss={loss}"] if loss is not None and not own_loss[entry.model] else []),
            "dataset.stand_in=false",
            *study["overrides"],
            *itertools.chain(*_where(study, dataset=dataset, protocol=protocol, model=entry.model)),
            *entry.own,
        )
        check(overrides, conf)
        with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
            cfg = compose("train", list(overrides))
        usual: dict[str, Any] = {}
        if searching is not None and entry.tuned_as == entry.name:
            usual = {key: OmegaConf.select(cfg, key, default=None) for key in searching["space"]}
        defaults = {key: value for key, value in usual.items() if value is not None}
        space = {key: searching["space"][key] for key in defaults}
        taken |= space.keys()
        epochs = max(cfg.trainer.max_epochs or 0, 0)
        cells.append(
            Cell(
                dataset,
                protocol,
                entry.name,
                overrides,
                space=space,
                defaults=defaults,
                kind=entry.kind,
                epochs=epochs,
                own=entry.own,
                tuned_as=entry.tuned_as,
                point=entry.point,
            )
        )
    if searching is not None and (others := searching["space"].keys() - taken):
        known = _known_keys(conf)
        for key in sorted(others - known):
            raise InputError(
                f"study.search.space.{key}: no model has it; did you mean {nearest(key, known)}?"
            )
    return cells


class _Entry(NamedTuple):
    """A line of tables, or a point of a curve: as of `Cell`, ``model`` being that of ``conf``."""

    name: str
    model: str
    kind: str
    own: tuple[str, ...]
    tuned_as: str
    point: dict[str, Any] | None


def _entries(study: Mapping[str, Any]) -> list[_Entry]:
    of = study["search"]["of"] if study["search"] is not None else None
    found = [_Entry(name, name, "seed", (), of or name, None) for name in study["models"]]
    for name, overrides in study["variants"].items():
        own = tuple(text for text in overrides if not text.startswith("model="))
        found.append(_Entry(name, _model_of(name, study["variants"]), "seed", own, of or name, None))
    for curve in study["curves"]:
        model, key = curve["model"], curve["key"]
        for value in curve["values"]:
            name = f"{model}.{key.rsplit('.', 1)[-1]}.{value}"
            own = (f"{key}={json.dumps(value)}",)
            found.append(_Entry(name, model, "curve", own, of or model, {key: value}))
    return found + [_Entry(name, name, "reference", (), "", None) for name in study["references"]]


def merged(*overrides: str) -> tuple[str, ...]:
    """One override for each key, the last one given, in the order in which keys first appear."""
    return tuple({text.partition("=")[0].lstrip("+"): text for text in overrides}.values())


def _raw(node: Any) -> dict[str, Any]:
    return OmegaConf.to_container(node)  # type: ignore[return-value]


def _check_keys(study: Mapping[str, Any], conf: Path) -> None:
    for key in ("datasets", "protocols", "seeds"):
        if not study[key]:
            raise InputError(f"study.{key} is empty: a study needs one at least")
    names = [*study["models"], *study["variants"], *study["references"]]
    for key in ("datasets", "protocols", "seeds"):
        _unique(f"study.{key}", study[key])
    _unique("study.models, variants and references", names)
    for curve in study["curves"]:
        if not isinstance(curve, dict) or curve.keys() != {"model", "key", "values"} or not curve["values"]:
            raise InputError(f"study.curves: {curve} needs model=NAME, key=KEY and values=[...], no more")
        one_of("study.curves.model", curve["model"], study["models"])
    models = {"models": study["models"], "references": study["references"]}
    models |= {f"variants.{name}": [_model_of(name, study["variants"])] for name in study["variants"]}
    chosen = {"dataset": {"datasets": study["datasets"]}, "protocol": {"protocols": study["protocols"]}}
    for group, keys in (chosen | {"model": models}).items():
        for key, given in keys.items():
            for name in given:
                one_of(f"study.{key}", name, options(conf, group))
    for seed in study["seeds"]:
        at_least("study.seeds", seed, 0)
    if study["baseline"] is not None:
        one_of("study.baseline", study["baseline"], names)
    for rule in study["where"]:
        if not isinstance(rule.get("set"), list):
            raise InputError(f"study.where: {rule} needs set=[key=value, ...]")
        for key in rule.keys() - {"set"}:
            one_of("study.where", key, ("dataset", "protocol", "model", "set"))
            for name in _listed(rule[key]):
                one_of(f"study.where.{key}", name, options(conf, key))
    if study["search"] is not None:
        search.check(study["search"])
        of = study["search"]["of"]
        if of is not None:
            one_of("study.search.of", of, [*study["models"], *study["variants"]])


def _where(study: Mapping[str, Any], **cell: str) -> Iterator[list[str]]:
    """What the rules of a study set for a cell."""
    for rule in study["where"]:
        if all(name == rule.get(key, name) or name in _listed(rule[key]) for key, name in cell.items()):
            yield rule["set"]


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names


def _unique(key: str, names: Sequence[Any]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{key}: {name} stands there twice; leave one out")


def _model_of(name: str, variants: Mapping[str, Sequence[str]]) -> str:
    """The model of a name in tables: a variant names its own."""
    if name not in variants:
        return name
    chosen = [o.partition("=")[2] for o in variants[name] if o.startswith("model=")]
    if len(chosen) != 1:
        raise InputError(f"study.variants.{name}: needs one model=NAME among its overrides")
    return chosen[0]


def _known_keys(conf: Path) -> set[str]:
    """The keys of all models, whether the study has them or not: a space may serve several studies."""
    nodes = [OmegaConf.to_container(OmegaConf.load(path)) for path in (conf / "model").glob("*.yaml")]
    return {key for node in nodes for key in _keys(node, "model")}


def _keys(node: Any, key: str) -> set[str]:
    if not isinstance(node, dict):
        return {key}
    return set().union(*(_keys(child, f"{key}.{name}") for name, child in node.items()))


def jobs(cells: Sequence[Cell], study: Mapping[str, Any], ledger: Ledger) -> Iterator[Job]:
    """The jobs that can be made or are made already, in the order in which they are to run.

    Data sets come one after the other; in each the trials, then seed by seed all models, so that what is
    there at any time can be compared.

    Args:
        cells: of `plan`.
        study: its configuration.
        ledger: what is done: later trials, and the runs after them, follow from earlier ones.
    """
    for _, some in itertools.groupby(cells, key=lambda cell: cell.dataset):
        group = list(some)
        first = [_data(cell) for cell in {cell.protocol: cell for cell in group}.values()]
        yield from first
        if any(ledger.state(job.name) != FINISHED for job in first):
            continue
        for cell in group:
            if cell.space:
                yield from _trials(cell, study["search"], ledger)
        runs: list[Job] = []
        for cell in group:
            best = _best(cell, group, study, ledger)
            if best is not None:
                chosen = study["seeds"][:1] if cell.kind == "reference" else study["seeds"]
                runs += [_run(cell, seed, best) for seed in chosen]
        yield from sorted(runs, key=lambda job: study["seeds"].index(job.seed))


def count(cells: Sequence[Cell], study: Mapping[str, Any], ledger: Ledger) -> int:
    """How many jobs the study has in all, but for those whose data are absent."""
    there = [cell for cell in cells if ledger.state(_data(cell).name) != ABSENT]
    data = len({(cell.dataset, cell.protocol) for cell in cells})
    trials = study["search"]["trials"] if study["search"] is not None else 0
    runs = {"seed": len(study["seeds"]), "curve": len(study["seeds"]), "reference": 1}
    return data + sum(trials * bool(cell.space) + runs[cell.kind] for cell in there)


def _data(cell: Cell) -> Job:
    of_data = tuple(o for o in cell.overrides if o.split("=")[0].split(".")[0] in ("dataset", "protocol"))
    name = f"data-{cell.dataset}-{cell.protocol}-{digest({'overrides': of_data})}"
    return Job(name, "data", cell.dataset, cell.protocol, "", None, None, of_data)


def timing(cell: Cell) -> Job:
    """A run of a few steps, which tells what a step costs."""
    overrides = merged(
        *cell.overrides,
        "seed=0",
        "test=false",
        "logger=none",
        "trainer.max_epochs=1",
        f"trainer.limit_train_batches={TIMED_STEPS}",
        "trainer.limit_val_batches=2",
    )
    name = f"{cell.name}-{digest({'overrides': overrides})}"
    folder = f"timing/{name}"
    return Job(folder, "timing", cell.dataset, cell.protocol, cell.model, 0, folder, overrides)


def _trials(cell: Cell, searching: Mapping[str, Any], ledger: Ledger) -> Iterator[Job]:
    """The trials of a cell up to those that need results which are not there yet."""
    shaping = {key: value for key, value in searching.items() if key not in ("trials", "of", "pruner")}
    search_digest = digest({"cell": cell.overrides, "search": shaping})
    before: list[search.Trial] = []
    for number in range(searching["trials"]):
        name = f"trials/{cell.name}-t{number}-{search_digest}"
        if name in ledger.jobs:
            params = ledger.jobs[name]["params"]
        else:
            known = before[: number - number % searching["at_once"]]
            if any(trial.state is None for trial in known):
                return
            key = f"{searching['seed']}/{cell.name}"
            params = search.propose(cell.space, cell.defaults, known, number, mode=searching["mode"], key=key)
        overrides = merged(
            *cell.overrides,
            *_assigned(params),
            f"seed={searching['seed']}",
            "test=false",
            f"trainer.max_epochs={searching['epochs']}",
            f"stopping.monitor={searching['monitor']}",
            *searching["overrides"],
        )
        where = (cell.dataset, cell.protocol, cell.model, searching["seed"], name)
        yield Job(name, "trial", *where, overrides, number, params)
        before.append(trial_of(ledger, name, params))


def trial_of(ledger: Ledger, name: str, params: dict[str, Any]) -> search.Trial:
    """What the search may know of a trial."""
    entry = ledger.jobs.get(name, {"state": None, "value": None, "curve": {}})
    curve = {int(epoch): value for epoch, value in entry["curve"].items()}
    return search.Trial(params, entry["state"] if entry["state"] in OVER else None, entry["value"], curve)


def _best(
    cell: Cell, group: Iterable[Cell], study: Mapping[str, Any], ledger: Ledger
) -> dict[str, Any] | None:
    """The settings that a search found for a cell, or ``None`` while it is not through, or found none."""
    searching = study["search"]
    if searching is None or cell.kind == "reference":
        return {}
    searched = next(c for c in group if c.protocol == cell.protocol and c.model == cell.tuned_as)
    if not searched.space:
        return {}
    trials = [trial_of(ledger, job.name, job.params or {}) for job in _trials(searched, searching, ledger)]
    if len(trials) < searching["trials"] or any(trial.state is None for trial in trials):
        return None
    return search.best(trials, mode=searching["mode"])


def _assigned(params: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in params.items()]


def _run(cell: Cell, seed: int, best: Mapping[str, Any]) -> Job:
    overrides = merged(*cell.overrides, *_assigned(best), *cell.own, f"seed={seed}")
    name = f"{cell.name}-s{seed}-{digest({'overrides': overrides})}"
    model = cell.model if cell.point is None else cell.overrides[0].removeprefix("model=")
    where = (cell.dataset, cell.protocol, model, seed, name)
    return Job(name, cell.kind, *where, overrides, params=cell.point)
