"""``python -m hydrec.explain COMMAND run=FOLDER``: what a trained model does, from its run folder.

A command is a function of ``COMMANDS``; its arguments are the keys that it takes.
"""

import sys
from collections.abc import Callable

from hydrec.commands import answer

HELP = """\
Explains a trained model from the folder of its run: tables (csv) and figures (svg, png).

  python -m hydrec.explain gim run=FOLDER
      what MIAN weighs: its parts, behaviours and fields, over the whole test part, by activity (length of the
      history) and by recency
  python -m hydrec.explain factors run=FOLDER [other=FOLDER] [user=ID]
      what HGNN's factors hold: one user's history, and statistics of the whole test part beside those of
      shuffled factors; other=FOLDER is an HGNN to compare, such as one without the entropy term (hgnn_ent)
  python -m hydrec.explain lambda runs=FOLDER [baseline=sasrec] [metric=ndcg@10]
      what IA-SASRec's lambdas became, by layer, seed and step, and beside what the model gains over the
      baseline; FOLDER is one run, or has runs in it
  python -m hydrec.explain attention run=FOLDER [user=ID]
      where a sequential model that attends looks in one user's history, by layer and head: its last position,
      RetaGNN's positions on average, and FGNN's readout of the whole history
  python -m hydrec.explain user run=FOLDER [others=FOLDER,FOLDER] [user=ID] [k=10]
      one user's history, what the models recommend first, and the place of the true next item
  python -m hydrec.explain errors run=FOLDER [other=FOLDER] [k=10]
      hit rate by length of history, popularity, recency, genre, and repeated or new items

  run=FOLDER     a finished run, such as runs/single/NAME
  user=ID        raw id of a user with a test case, whose last is shown; else the first of the test part
  out=FOLDER     where the files go; else into explain/COMMAND in the run's folder
  wandb=true     also adds figures and tables to the run's W&B run

Intervals are of 95 %, over users, who are drawn with replacement; the trained net stays the same. Models
stand beside each other only if they were tested on the same data under the same protocol.

The data are found as in train.py (HYDREC_DATA=FOLDER says where raw files lie); other data than those of the
run are refused. Exit status: 0 done, 1 failed, 2 something you can mend, 130 interrupted.
"""

# torch and matplotlib take seconds to import: not before a command is known to be right


def gim(*, run: str, out: str = "", wandb: bool = False) -> None:
    """MIAN's weights."""
    from hydrec.explain.gim import explain

    explain(run, out, wandb=wandb)


def factors(*, run: str, other: str = "", user: str = "", out: str = "", wandb: bool = False) -> None:
    """HGNN's factors."""
    from hydrec.explain.factors import explain

    explain(run, other, user, out, wandb=wandb)


def lambdas(
    *, runs: str, baseline: str = "sasrec", metric: str = "ndcg@10", out: str = "", wandb: bool = False
) -> None:
    """IA-SASRec's lambdas."""
    from hydrec.explain.lambdas import explain

    explain(runs, baseline, metric, out, wandb=wandb)


def attention(*, run: str, user: str = "", out: str = "", wandb: bool = False) -> None:
    """Attention over a history."""
    from hydrec.explain.attention import explain

    explain(run, user, out, wandb=wandb)


def user(
    *, run: str, others: str = "", user: str = "", k: int = 10, out: str = "", wandb: bool = False
) -> None:
    """One user, by several models."""
    from hydrec.explain.user import explain

    explain(run, others, user, k, out, wandb=wandb)


def errors(*, run: str, other: str = "", k: int = 10, out: str = "", wandb: bool = False) -> None:
    """Where a model is weak."""
    from hydrec.explain.errors import explain

    explain(run, other, k, out, wandb=wandb)


COMMANDS: dict[str, Callable[..., None]] = {
    "gim": gim,
    "factors": factors,
    "lambda": lambdas,
    "attention": attention,
    "user": user,
    "errors": errors,
}


if __name__ == "__main__":
    sys.exit(answer(sys.argv[1:], COMMANDS, HELP))
