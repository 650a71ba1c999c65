"""What a user may write after ``train.py``: every override is checked before anything starts.

Hydra would take a key that nobody reads (with ``+``), say what is wrong with others in many lines, and stop a
sweep half-way.
"""

import argparse
import difflib
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hydrec.errors import InputError


def check(argv: Sequence[str], conf: Path, root: str = "train") -> None:
    """Refuses a command line that Hydra, a constructor or nobody would understand.

    Args:
        argv: the arguments after ``train.py``, or ``sweep.py``.
        conf: the config folder.
        root: the config of the command, ``train`` or ``sweep``.

    Raises:
        InputError: names the argument and the nearest valid one.
    """
    args = arguments(argv, root)
    with initialize_config_dir(str(conf.resolve()), version_base="1.3"):
        _check(args.overrides, conf, root, multirun=args.multirun)


def arguments(argv: Sequence[str], root: str = "train") -> argparse.Namespace:
    """Hydra's flags, wherever they stand, and the overrides.

    Raises:
        InputError: an unknown flag, or one that would set another config folder than the one that is checked.
    """
    parser = get_args_parser()
    flags = [flag for action in parser._actions for flag in action.option_strings]

    def refuse(message: str) -> NoReturn:
        unknown = next((a for a in argv if a.startswith("-") and a.split("=")[0] not in flags), None)
        hint = f"{unknown} is not a flag; did you mean {nearest(unknown, flags)}?" if unknown else message
        raise InputError(f"{hint} (python {root}.py --help)")

    parser.error = refuse  # type: ignore[method-assign]
    args = parser.parse_intermixed_args(argv)
    for name in ("config_path", "config_name", "config_dir", "experimental_rerun"):
        if getattr(args, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is not for {root}.py: add files to its conf folder instead"
            )
    return args


def defaults(conf: Path, root: str = "train") -> dict[str, str | None]:
    """The groups of the command, in its order, with the option each has unless another is chosen."""
    entries = [
        entry for entry in OmegaConf.load(conf / f"{root}.yaml").defaults if isinstance(entry, DictConfig)
    ]
    return {str(k): v for entry in entries for k, v in entry.items() if not str(k).startswith("override ")}


def options(conf: Path, group: str) -> list[str]:
    """Names of a group's options, sorted; files called _NAME are there for others to start from."""
    folder = conf / group
    paths = [path for path in folder.rglob("*.yaml") if not path.name.startswith("_")]
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in paths)


def purpose(path: Path) -> str:
    """The first comment line of a config file, which says what it is for; empty where there is none."""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"#\s*@", line):
            return line.lstrip("# ").strip()
    return ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name most like ``word``, with its last component counting as much as the whole.

    >>> nearest("max_epoch", ["model.net.max_gap", "trainer.max_epochs"])
    'trainer.max_epochs'
    """

    def likeness(name: str) -> float:
        pairs = ((word, name), (word.rsplit(".", 1)[-1], name.rsplit(".", 1)[-1]))
        return sum(difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio() for a, b in pairs)

    return max(sorted(known), key=likeness)


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """What a constructor or function takes; where it is ours, also what it hands on by ``**`` to a parent."""
    found = dict(inspect.signature(target).parameters)
    ours = inspect.isclass(target) and target.__module__.startswith("hydrec.")
    for parent in target.__mro__[1:] if ours else ():
        handed = [name for name, each in found.items() if each.kind is each.VAR_KEYWORD]
        if not handed:
            break
        del found[handed[0]]
        found |= inspect.signature(parent).parameters
    return found


class Argument(NamedTuple):
    """One argument of the command line and the overrides it stands for: one, or those of a sweep."""

    text: str
    swept: bool
    overrides: list[Override]

    @property
    def key(self) -> str:
        """The key or group that is set."""
        return self.overrides[0].key_or_group


def _parse(text: str, root: str) -> Argument:
    if "=" not in text and not text.startswith("~"):
        help_page = f"python {root}.py --help lists groups and keys"
        raise InputError(f"{text}: a value is missing; write {text}=VALUE ({help_page})")
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    try:
        override = parser.parse_override(text)
        if not override.is_sweep_override():
            return Argument(text, False, [override])
        if not override.is_discrete_sweep():
            raise InputError(f"{text}: an interval has no end of values; write out those you mean")
        key = override.get_key_element()
        singles = [parser.parse_override(f"{key}={value}") for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise InputError(f"{text} cannot be read; quote special characters: 'key=\"a, b\"'") from error
    if not singles:
        raise InputError(f"{text} stands for no value at all")
    return Argument(text, True, singles)


def _check(texts: Sequence[str], conf: Path, root: str, *, multirun: bool) -> None:
    chosen = defaults(conf, root)
    every = [_parse(text, root) for text in texts]
    # choices first: which keys exist, and of which type, follows from them
    choices = [a for a in every if a.key in chosen and not isinstance(a.overrides[0].value(), dict)]
    for override in itertools.chain(*(a.overrides for a in choices)):
        default = chosen[override.key_or_group]
        _check_choice(override, default, options(conf, override.key_or_group))
    hydras = [a for a in every if re.match(r"hydra[./]", a.key)]
    values = [a for a in every if a not in choices and a not in hydras]
    swept = next((a for a in every if a.swept), None)
    modes = set()
    for choice in itertools.product(*(a.overrides for a in (*choices, *hydras))):
        base, hydra = _compose(choice, root)
        several = hydra.mode == RunMode.MULTIRUN
        if swept and not (multirun or several):
            as_list = "" if swept in choices else f"; a single value that is a list: {swept.key}=[...]"
            raise InputError(f"{swept.text}: several values need -m, as in -m {swept.text}{as_list}")
        modes.add(several)
        known = dict(_flat(OmegaConf.to_container(base, resolve=False)))
        loss = next((a for a in every if a.key.partition(".")[0] == "loss"), None)
        if loss and known.get("model.loss") != "${loss}":
            model = hydra.runtime.choices["model"]
            raise InputError(f"{loss.text}: model={model} has a loss of its own; leave this out")
        for override in itertools.chain(*(a.overrides for a in values)):
            _check_value(override, base, known, hydra.runtime.choices, conf, root)
            if several and override.key_or_group in hydra.sweeper.params:
                raise InputError(
                    f"{override.input_line}: seeds=five or the like sets this too; leave one out"
                )
        _compose([*choice, *(a.overrides[0] for a in values)], root, resolve=True)
    if len(modes) > 1:
        raise InputError("an option that starts several runs itself (seeds=five) cannot be one of several")


def _compose(
    overrides: Iterable[Override], root: str, *, resolve: bool = False
) -> tuple[DictConfig, DictConfig]:
    """The configuration, and Hydra's part of it."""
    texts = [override.input_line or "" for override in overrides]
    try:
        config = compose(root, texts, return_hydra_config=True)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        if resolve:
            OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise InputError(f"{error.full_key} has no value: give {error.full_key}=VALUE") from error
    except (HydraException, OmegaConfBaseException) as error:
        said = [str(link).splitlines()[0] for link in (error, error.__cause__) if str(link or "")]
        raise InputError(f"{' '.join(texts) or f'conf/{root}.yaml'}: {'; '.join(said)}") from error
    return own, config.hydra


def _check_choice(override: Override, default: str | None, names: list[str]) -> None:
    group, value = override.key_or_group, override.value()
    if override.is_add() or override.is_force_add():
        raise InputError(f"{override.input_line}: {group} has its place already; write {group}={value}")
    if override.is_delete() or value is None:
        remedy = f"a run needs a {group}: {', '.join(names)}" if default else f"for no {group}, leave it out"
        raise InputError(f"{override.input_line}: {remedy}")
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in names:
            near = f"; did you mean {group}={nearest(str(name), names)}?" if names else ""
            raise InputError(
                f"{override.input_line}: there is no such {group}{near} (there are: {', '.join(names)})"
            )


def _check_value(
    override: Override,
    base: DictConfig,
    known: Mapping[str, Any],
    choices: Mapping[str, str],
    conf: Path,
    root: str,
) -> None:
    """Checks every single value that an override sets, also those inside ``key={...}``.

    Args:
        override: what is to be checked.
        base: the configuration without it.
        known: the keys of ``base``, dotted, with unresolved values.
        choices: the chosen option of each group.
        conf: the config folder.
        root: the config of the command.

    Raises:
        InputError: nobody reads the key, or the type of its value cannot be meant.
    """
    whole, given = override.key_or_group, override.value()
    free = known.get(whole, "") is None and _taker(whole, known)  # a null may become a mapping with any keys
    for key, value in [(whole, given)] if free else _leaves(whole, given):
        taker = _taker(key, known)
        library = taker is not None and not taker.startswith("hydrec.")
        if key not in known:
            if library and (override.is_add() or override.is_force_add()):
                continue  # the constructor answers for it
            raise InputError(_unknown(key, taker if library else None, known, choices, conf, root))
        if override.is_delete():
            if not library:
                raise InputError(f"{override.input_line}: {key} is needed; set it to another value instead")
        elif override.is_add():
            raise InputError(f"{override.input_line}: {key} is there already; write it without the +")
        elif value is None and key.startswith("study."):
            continue  # a study leaves parts out by null; it checks its keys itself
        elif expected := _mismatch(value, _usual(base, key), taker):
            shown = override.input_line if key == override.key_or_group else f"{key}={value}"
            raise InputError(f"{shown}: {expected} is expected{_example(key, known[key])}")


def _unknown(
    key: str,
    library: str | None,
    known: Mapping[str, Any],
    choices: Mapping[str, str],
    conf: Path,
    root: str,
) -> str:
    group = key.split(".")[0]
    if group in choices:
        others = [name for name in options(conf, group) if key in _keys_of(group, name, root)]
        if others:
            return f"{key} is not a key of {group}={choices[group]}; it is one of {group}={','.join(others)}"
    public = [name for name in (*known, *defaults(conf, root)) if not name.rsplit(".", 1)[-1].startswith("_")]
    also = f" (if {library} takes it: +{key}=...)" if library else ""
    return f"{key} is not a key; did you mean {nearest(key, public)}?{also}"


def _keys_of(group: str, option: str, root: str) -> set[str]:
    try:
        config = compose(root, [f"{group}={option}"])
    except HydraException:  # an option that only goes with others
        return set()
    return {key for key, _ in _flat(OmegaConf.to_container(config, resolve=False))}


def _usual(base: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(base, key)
    except OmegaConfBaseException:  # refers to what is not there yet
        return None


def _flat(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested mappings in dotted form, inner nodes as well, with its value."""
    if isinstance(node, dict):
        for name, child in node.items():
            inner = f"{key}.{name}" if key else str(name)
            yield inner, child
            yield from _flat(child, inner)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def _taker(key: str, known: Mapping[str, Any]) -> str | None:
    """The constructor that a key reaches: ``_target_`` of the nearest mapping around it."""
    while "." in key:
        key = key.rsplit(".", 1)[0]
        target = known.get(f"{key}._target_")
        if target is not None:
            return str(target)
    return None


def _mismatch(value: Any, usual: Any, taker: str | None) -> str | None:
    """What is expected in place of ``value`` if its type cannot be meant; the yaml's value shows the type.

    Libraries take several types where hydrec takes one: what is kept from them is a word for a number, and
    anything but true or false for these.
    """
    if usual is None or (isinstance(value, str) and "${" in value):
        return None
    library = taker is not None and not taker.startswith("hydrec.")
    if value is None:
        return None if taker else "a value"
    if isinstance(usual, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(usual, int | float):
        if isinstance(value, str) and not (library and value == "auto"):
            return "a whole number" if isinstance(usual, int) else "a number"
        if library:
            return None
        if isinstance(value, bool | list | dict) or (isinstance(usual, int) and not isinstance(value, int)):
            return "a whole number" if isinstance(usual, int) else "a number"
    elif isinstance(usual, ListConfig):
        return None if library or isinstance(value, list) else "a list"
    elif isinstance(usual, DictConfig):
        left_out = taker is not None and value is False
        return None if library or left_out or isinstance(value, dict) else "a mapping of keys"
    elif isinstance(value, list | dict) and not library:
        return "a single value"
    return None


def _example(key: str, usual: Any) -> str:
    if isinstance(usual, dict):
        return f" ({', '.join(f'{key}.{name}' for name in usual)})"
    shown = str(usual).lower() if isinstance(usual, bool) else str(usual).replace(" ", "")
    return f", as in {key}={shown}"
