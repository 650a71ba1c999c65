"""``python -m hydrec.explain COMMAND run=FOLDER``: what a trained model does, from its run folder.

A command is a function of ``COMMANDS``; its arguments are the keys that it takes.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydrec import cli
from hydrec.errors import InputError, one_of
from hydrec.overrides import nearest

HELP = """\
Explains a trained model from the folder of its run: tables (csv) and figures (svg, png).

  python -m hydrec.explain gim run=FOLDER      what MIAN weighs: its parts, behaviours and fields, over the
                                               whole test part; by length of history and by recency

  run=FOLDER     a finished run, such as runs/single/NAME
  out=FOLDER     where the files go; else into explain/COMMAND in the run's folder
  wandb=true     also adds figures and tables to the run's W&B run

gim leaves gim.csv, the weights of each test case in the order of the heat map beside it, and means.csv, means
with 95 % intervals over users, who are drawn with replacement; the trained net stays the same.

The data are found as in train.py (HYDREC_DATA=FOLDER says where raw files lie); other data than those of the
run are refused. Exit status: 0 done, 1 failed, 2 something you can mend, 130 interrupted.
"""


def gim(*, run: str, out: str = "", wandb: bool = False) -> None:
    """MIAN's weights."""
    from hydrec.explain.gim import explain  # torch and matplotlib take seconds to import

    explain(run, out, wandb=wandb)


COMMANDS: dict[str, Callable[..., None]] = {"gim": gim}


def main(argv: Sequence[str]) -> int:
    """Answers one command line.

    Args:
        argv: the arguments after ``python -m hydrec.explain``.

    Returns:
        The exit status, as `hydrec.cli` has it.
    """
    try:
        if {"--help", "-h"} & set(argv):
            print(HELP, end="")
            return 0
        name = argv[0] if argv else "nothing"
        if name not in COMMANDS:
            raise InputError(
                f"{name} is no command: there is python -m hydrec.explain {', '.join(COMMANDS)} (--help says"
                " more)"
            )
        given = _given(argv[1:], COMMANDS[name])
        cli.tune()
        COMMANDS[name](**given)
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except Exception as error:
        return cli.report(error)
    return 0


def _given(texts: Sequence[str], command: Callable[..., None]) -> dict[str, Any]:
    """The arguments of a command, from key=value.

    Raises:
        InputError: a key is unknown or needed, or its value is missing.
    """
    known, given = inspect.signature(command).parameters, {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in known:
            raise InputError(f"{text}: did you mean {nearest(key, known)}=...? (--help says more)")
        if not value:
            raise InputError(f"{text}: a value is missing; write {key}=VALUE")
        flag = isinstance(known[key].default, bool)
        given[key] = one_of(key, value, ("true", "false")) == "true" if flag else value
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise InputError(f"{key}=... is needed (--help says more)")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
