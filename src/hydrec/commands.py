"""Command lines of key=value: ``python -m hydrec.X [COMMAND] key=value ...``, a command being a function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from hydrec import cli
from hydrec.errors import InputError, at_least, one_of
from hydrec.overrides import nearest

Commands = Mapping[str, Callable[..., None]]


def answer(argv: Sequence[str], commands: Commands, page: str) -> int:
    """Answers one command line.

    Args:
        argv: the arguments after the name of the program.
        commands: what there is by name, "" where none is given; their arguments are the keys that they take.
        page: what ``--help`` prints.

    Returns:
        The exit status, as `hydrec.cli` has it.
    """
    try:
        if {"--help", "-h"} & set(argv):
            print(page, end="")
            return 0
        name = argv[0] if argv and "=" not in argv[0] else ""
        if name not in commands:
            there = f"command: there is {', '.join(filter(None, commands))}" if any(commands) else "key=value"
            raise InputError(f"{name or 'nothing'} is no {there} (--help says more)")
        given = arguments(argv[bool(name) :], commands[name])
        cli.tune()
        commands[name](**given)
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except Exception as error:
        return cli.report(error)
    return 0


def arguments(texts: Sequence[str], command: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a command, of the types that it says, from key=value.

    Raises:
        InputError: a key is unknown or needed, or its value is missing or of another type.
    """
    known, given = inspect.signature(command).parameters, {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in known:
            raise InputError(f"{text}: did you mean {nearest(key, known)}=...? (--help says more)")
        if not value:
            raise InputError(f"{text}: a value is missing; write {key}=VALUE")
        given[key] = _typed(key, value, known[key].annotation)
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"{key}=... is needed (--help says more)")
    return given


def _typed(key: str, value: str, annotation: Any) -> Any:
    kinds = get_args(annotation) or (annotation,)
    if bool in kinds:
        return one_of(key, value, ("true", "false")) == "true"
    if int in kinds:
        return at_least(key, int(value) if value.isdecimal() else value, 1)
    return value
