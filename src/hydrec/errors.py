"""What a user can mend, said in one line; and the checks that constructors share."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where (file and line, or configuration key), and the remedy.
    The command line prints it without a traceback and exits with status 2.
    """


class MissingData(InputError):
    """The raw files of a dataset are nowhere to be found."""


def one_of(key: str, value: Any, options: Iterable[str]) -> str:
    """Returns ``value`` if it is one of ``options``.

    Raises:
        InputError: it is not; names the configuration key and the nearest option.
    """
    options = list(options)
    if value not in options:
        near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.0)
        raise InputError(f"{key}={value} is none of {', '.join(options)}; did you mean {near[0]}?")
    return value


def at_least(key: str, value: Any, minimum: int) -> int:
    """Returns ``value`` if it is a whole number and not below ``minimum``.

    Raises:
        InputError: it is not; names the configuration key.
    """
    if type(value) is not int or value < minimum:  # not isinstance: true is no number
        raise InputError(f"{key}={value}: must be a whole number, {minimum} or more")
    return value


def share_of(key: str, value: Any) -> float:
    """Returns ``value`` if it is a share that leaves something, as of dropout: from 0 to below 1.

    Raises:
        InputError: it is not; names the configuration key.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"{key}={value}: must be 0 or more, and below 1")
    return value
