"""``python -m hydrec.export run=FOLDER out=FOLDER``: a trained model as a file that needs no hydrec."""

import sys

from hydrec import commands

HELP = """\
Writes the model of a run as one file that needs no hydrec: from histories to the scores of all items; of a
click model, from showings to the logits of clicks.

  python -m hydrec.export run=FOLDER out=FOLDER                  scorer.pt2, for torch.export.load
  python -m hydrec.export run=FOLDER out=FOLDER format=onnx      scorer.onnx, for onnxruntime

  run=FOLDER         a finished run, such as runs/single/NAME
  out=FOLDER         where the scorer goes, with scorer.json, what it takes and gives, and items.csv, the
                     numbers of the items; of a click model also fields.parquet and users.parquet, by which
                     values become codes as scorer.json says
  histories=FILE     what the scorer is tried on, as for python -m hydrec.recommend; else the test part of the
                     run, whose data are found as in train.py
  showings=FILE      of a click model, the rows that it is tried on, as for python -m hydrec.recommend score,
                     with these histories, if any
  rows=256           histories or showings tried, at most

Nothing is written unless the scores are those of the original to 1e-5 of the largest. A model that cannot be
exported says why. Exit status: 0 done, 1 failed, 2 something you can mend, 130 interrupted.
"""


def export(
    *,
    run: str,
    out: str,
    format: str = "torch",
    histories: str | None = None,
    showings: str | None = None,
    rows: int = 256,
) -> None:
    """Writes the scorer of a run."""
    from hydrec import scorer  # torch takes seconds to import

    scorer.export(run, out, format, histories, showings, rows)


if __name__ == "__main__":
    sys.exit(commands.answer(sys.argv[1:], {"": export}, HELP))
