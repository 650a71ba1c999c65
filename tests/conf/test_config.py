"""The config tree: every file composes, says what it is for, and names only what its constructor takes."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from hydrec.overrides import defaults, options, parameters, purpose

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
FILES = {path.relative_to(CONF).as_posix(): path for path in sorted(CONF.rglob("*.yaml"))}
OPTIONS = [f"{group}={name}" for group in defaults(CONF) for name in options(CONF, group)]
LONGEST = 32  # lines; past that a file has become a program that nobody can test


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*overrides: str) -> dict[str, Any]:
    config = compose("train", list(overrides))
    assert OmegaConf.is_struct(config), "a mistyped key would be taken"
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def nodes(value: Any, key: str = "") -> Iterator[tuple[str, dict]]:
    """All mappings of a configuration, with their keys."""
    if isinstance(value, dict):
        yield key, value
        for name, inner in value.items():
            yield from nodes(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nodes(inner, f"{key}[{index}]")


def faults(config: dict[str, Any]) -> list[str]:
    """Where a composed configuration and the constructors it names do not fit.

    A hydrec constructor takes what yaml gives it by keyword and has no value of its own. Its positional
    arguments come from the program (the catalogue, say); where all is known at once, nothing may be missing.
    """
    found = []
    for key, node in nodes(config):
        found += [f"{key}: key {name!r} is no string: quote it" for name in node if not isinstance(name, str)]
        target = node.get("_target_")
        if target is None:
            continue
        given = {name for name in node if not str(name).startswith("_")}
        takes = parameters(get_object(target))
        extra = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        found += [f"{key}.{name} is not read by {target}" for name in given - set(takes) if not extra]
        if not target.startswith("hydrec."):
            continue
        for name, parameter in takes.items():
            if parameter.default is not parameter.empty:
                found.append(f"{target} has a default for {name}: values live in yaml")
            elif name in given and parameter.kind is not parameter.KEYWORD_ONLY:
                found.append(f"{target} takes {name} by position: make it keyword-only")
            elif name not in given and not node.get("_partial_"):
                found.append(f"{key}.{name} is missing: {target} needs it")
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_its_constructors(option: str) -> None:
    assert faults(composed(option)) == []


def test_datasets_protocols_and_models_go_together() -> None:
    parts = [[o for o in OPTIONS if o.startswith(f"{group}=")] for group in ("dataset", "protocol", "model")]
    assert all(parts)
    # all pairs of the first two, and every model with some of them
    datasets, protocols, models = parts
    pairs = list(itertools.product(datasets, protocols))
    assert len(models) <= len(pairs)
    for (dataset, protocol), model in zip(pairs, itertools.cycle(models), strict=False):
        assert faults(composed(dataset, protocol, model)) == [], (dataset, protocol, model)


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_it_is_for_and_is_short(file: str) -> None:
    text = FILES[file].read_text()
    about = purpose(FILES[file])
    assert re.match(r"\S.*[.?]$", about), "the first comment line is what --help shows: one sentence"
    assert len(about) <= 108
    # the top file also has a line for each group
    longest = LONGEST + len(defaults(CONF)) if file == "train.yaml" else LONGEST
    assert len(text.splitlines()) <= longest


def test_every_top_level_key_says_what_it_is_for() -> None:
    lines = FILES["train.yaml"].read_text().splitlines()
    keys = [line for line in lines if re.match(r"\w+:", line) and not line.startswith("defaults:")]
    assert len(keys) == len(OmegaConf.load(FILES["train.yaml"])) - 1
    assert [line for line in keys if not re.search(r" # \w", line)] == []


def test_nothing_depends_on_the_day_or_the_clock() -> None:
    assert [file for file, path in FILES.items() if re.search(r"\$\{now|asctime", path.read_text())] == []
    config = compose("train", return_hydra_config=True)
    for part in (config.hydra.job_logging, config.hydra.hydra_logging):
        formats = OmegaConf.to_container(part.formatters)
        assert all("asctime" not in str(f) for f in formats.values())
        assert "file" not in part.handlers


def test_yaml_has_references_and_no_resolvers() -> None:
    found = [
        (file, use) for file, path in FILES.items() for use in re.findall(r"\$\{[^}]*:", path.read_text())
    ]
    assert found == []


def test_the_five_seeds_are_those_of_the_command_line() -> None:
    config = compose("train", ["seeds=five"], return_hydra_config=True)
    assert OmegaConf.to_container(config.hydra.sweeper.params) == {"seed": "0,1,2,3,4"}
    for option in options(CONF, "seeds"):
        assert "seeds" not in compose("train", [f"seeds={option}"]), "a choice of seeds is no part of a run"


def test_trainers_differ_only_where_they_say() -> None:
    base = composed()["trainer"]
    for option in options(CONF, "trainer"):
        trainer = composed(f"trainer={option}")["trainer"]
        said = OmegaConf.load(FILES[f"trainer/{option}.yaml"])
        inherited = {
            "auto": set(),
            "gpu_bf16": {"accelerator"},
            "ddp": {"accelerator"},
            "ddp_cpu": {"accelerator"},
        }
        assert isinstance(said, DictConfig)
        differs = {key for key in base | trainer if base.get(key) != trainer.get(key)}
        assert differs <= set(said) | inherited.get(option, set())
        assert trainer["use_distributed_sampler"] is False
        assert trainer["num_sanity_val_steps"] == 0


def test_faults_are_found() -> None:
    node = {"_target_": "hydrec.losses.BPR", "compare": "score"}
    assert faults({"loss": node}) == []
    assert faults({"loss": node | {"beta": 1}}) == ["loss.beta is not read by hydrec.losses.BPR"]
    assert faults({"a": {"loss": {"_target_": "hydrec.losses.BPR"}}}) != []
    assert faults({"loss": {True: 1}}) == ["loss: key True is no string: quote it"]
    assert faults({"x": {"_target_": "hydrec.metrics.Ranks", "equal": 0}}) != []
    assert faults({"x": {"_target_": "torch.optim.Adam", "_partial_": True, "learning_rate": 1}}) != []


def test_every_dependency_has_an_exact_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(
        re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#")
    )
    for requirement in map(Requirement, wanted):
        if requirement.name != project["name"]:
            assert pins[requirement.name] in requirement.specifier
