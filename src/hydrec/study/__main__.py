"""``python -m hydrec.study COMMAND``: what finished runs say, and whether a table can be true."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hydrec import cli
from hydrec.commands import arguments
from hydrec.errors import InputError, one_of

HELP = """\
Reads finished runs, or a table of numbers; trains nothing.

  python -m hydrec.study report FOLDER     tables, figures and report.html of the run folders in FOLDER
  python -m hydrec.study lint TABLE.csv    finds rows that no experiment can give: bounds between metrics

report takes, behind the folder (runs/NAME of a study, or any folder of run folders, such as runs/single)
  baseline=MODEL            the model that the others are compared with; else that of the study
  metrics=ndcg@10,hit@10    those to show, the first in figures too; else those of the study, or hit, mrr and
                            ndcg at 10; of clicks auc, gauc and logloss
  out=FOLDER                where the files go; else into report/ of the folder
  wandb=offline             also into W&B, as a run in the group of the study; online: with a workspace too
  project=NAME              of W&B; else hydrec

report leaves report.html, which opens offline in any browser, runs.parquet (a row a run), verdicts.csv,
tables (csv, md, tex) and figures (svg, png). Runs on other data, under another protocol or on other test rows
are refused: a line says which field differs.

Exit status: 0 done, and for lint nothing found; 1 failed, or something found; 2 something you can mend; 130
interrupted.
"""


def report(
    folder: str,
    *,
    baseline: str = "",
    metrics: str = "",
    out: str = "",
    wandb: str = "",
    project: str = "hydrec",
) -> int:
    """Writes the report of a folder of runs."""
    from hydrec.study.dashboard import MODES, mirror
    from hydrec.study.report import write  # matplotlib and torch take seconds to import
    from hydrec.study.results import finished, study

    if wandb:
        one_of("wandb", wandb, MODES)
    runs, shown = Path(folder), [name for name in metrics.split(",") if name]
    target = Path(out) if out else runs / "report"
    page = write(runs, baseline=baseline, metrics=shown, out=target)
    print(f"the report is {page}")
    if wandb:
        asked = study(runs, finished(runs), baseline, shown)
        where = mirror(target, study=asked, name=runs.resolve().name, project=project, mode=wandb)
        print(f"in W&B: {where}")
    return 0


def lint(path: str) -> int:
    """Prints what is impossible in a table."""
    from hydrec.study.lint import lint

    findings = lint(path)
    print("\n".join(map(str, findings)) if findings else f"{path}: nothing that is impossible was found")
    return 1 if findings else 0


COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "report": (report, "FOLDER"),
    "lint": (lint, "TABLE.csv"),
}


def main(argv: Sequence[str]) -> int:
    """Answers one command line.

    Args:
        argv: the arguments after ``python -m hydrec.study``.

    Returns:
        The exit status, as `hydrec.cli` has it; 1 also where lint found something.
    """
    try:
        if {"--help", "-h"} & set(argv):
            print(HELP, end="")
            return 0
        name, *rest = argv or ["nothing"]
        if name not in COMMANDS:
            raise InputError(
                f"{name} is no command: there is python -m hydrec.study {', '.join(COMMANDS)} (--help says"
                " more)"
            )
        command, what = COMMANDS[name]
        if not rest or "=" in rest[0] or (command is lint and len(rest) > 1):
            raise InputError(
                f"{name} needs one {what}: python -m hydrec.study {name} {what} (--help says more)"
            )
        return command(rest[0], **arguments(rest[1:], partial(command, rest[0])))
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    except Exception as error:
        return cli.report(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
