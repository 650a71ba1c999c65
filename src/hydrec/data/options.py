"""Options as yaml has them, which may be anything, against the types that signatures state."""

from collections.abc import Callable
from functools import wraps
from types import NoneType, UnionType
from typing import Any, ParamSpec, get_args, get_origin, get_type_hints, is_typeddict

from hydrec.errors import InputError, one_of

P = ParamSpec("P")

WORDS = {
    str: "text (in quotes if it looks like something else)",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping of keys",
    NoneType: "null",
}


def typed(init: Callable[P, None]) -> Callable[P, None]:
    """Makes a reader's constructor refuse options that are not of the types in its signature.

    Raises:
        InputError: an option is not; names its key.
    """
    kinds = get_type_hints(init)

    @wraps(init)
    def checked(*args: P.args, **options: P.kwargs) -> None:
        for name in options.keys() & kinds:
            expect(f"dataset.reader.{name}", options[name], kinds[name])
        init(*args, **options)

    return checked


def expect(key: str, value: Any, kind: Any) -> None:
    """Refuses a value that is not of a type, nor what it holds of the types that it should hold.

    Args:
        key: what the value is called in a configuration.
        value: as yaml has it.
        kind: one of ``WORDS``, ``list[...]``, ``dict[..., ...]``, a TypedDict or a union of these; text must
            not be empty, and true is no number.

    Raises:
        InputError: it is not; names the key.
    """
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    outer = [dict if is_typeddict(each) else get_origin(each) or each for each in kinds]
    if type(value) not in outer or value == "":
        shown = "null" if value is None else value
        raise InputError(f"{key}={shown}: must be {' or '.join(WORDS[each] for each in outer)}")
    kind = kinds[outer.index(type(value))]
    if isinstance(value, list):
        for place, each in enumerate(value):
            expect(f"{key}[{place}]", each, *get_args(kind))
    elif is_typeddict(kind):
        for name, each in value.items():
            expect(f"{key}.{name}", each, get_type_hints(kind)[one_of(key, name, get_type_hints(kind))])
    elif isinstance(value, dict):
        for name, each in value.items():
            expect(key, name, get_args(kind)[0])
            expect(f"{key}.{name}", each, get_args(kind)[1])
