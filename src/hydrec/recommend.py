"""``python -m hydrec.recommend [score] run=FOLDER ...``: uses a trained model, from its folder alone."""

import io
import sys
from pathlib import Path

import polars as pl

from hydrec import commands
from hydrec.errors import InputError
from hydrec.runs import write_atomically

HELP = """\
Uses a trained model from the folder of its run: no raw data, no configuration.

  python -m hydrec.recommend run=FOLDER histories=FILE out=FILE      the best items for each history
  python -m hydrec.recommend score run=FOLDER rows=FILE out=FILE     probabilities of clicks, by click models

  run=FOLDER           a finished run, such as runs/single/NAME
  histories=FILE       events: columns user, item, time (seconds since 1970; not needed where the data of
                       the run have no times) and value, if the model reads intensities. Raw ids; users may be
                       new, events of unknown items are left out and counted. A FILE is .csv, .tsv or .parquet
  out=FILE             where the table goes

  k=20                 items of a user, at most
  mask_history=true    no item of the history is recommended; false: any; else as in the run's test
  candidates=FILE      a column item: nothing else is recommended
  now=TIME             when the recommendation is asked for, of models that read it (HGNN): seconds since
                       1970, an ISO date, or a column of the histories; else the time of the last event
  batch_size=512       histories or rows read at once; changes speed and memory, results by rounding only

score reads of each row user, item, time and the fields of the model by their names. Fields of users that
training knew, and derived ones (since_last, hour ...), may be left out. histories=FILE are the events up to
the rows, without these; where the run's data have labels, a column label says which were clicks.

In Python: hydrec.load("runs/single/NAME").recommend("histories.csv", k=20), and .score(...); both take polars
frames as well.

Exit status: 0 done, 1 failed, 2 something you can mend, 130 interrupted.
"""


def recommend(
    *,
    run: str,
    histories: str,
    out: str,
    k: int = 20,
    mask_history: bool | None = None,
    candidates: str | None = None,
    now: str | None = None,
    batch_size: int | None = None,
) -> None:
    """Writes the best items for each history."""
    from hydrec.loaded import LoadedRun  # torch takes seconds to import

    to = _writable(out)
    found = LoadedRun(run).recommend(
        histories, k=k, mask_history=mask_history, candidates=candidates, now=now, batch_size=batch_size
    )
    _write(found, to)
    print(f"{out} has {len(found):,} items for {found['user'].n_unique():,} users")


def score(
    *, run: str, rows: str, out: str, histories: str | None = None, batch_size: int | None = None
) -> None:
    """Writes the probability of a click for each row."""
    from hydrec.loaded import LoadedRun

    to = _writable(out)
    found = LoadedRun(run).score(rows, histories=histories, batch_size=batch_size)
    _write(found, to)
    print(f"{out} has the probabilities of {len(found):,} rows")


def _writable(out: str) -> Path:
    if Path(out).suffix not in (".csv", ".tsv", ".parquet"):
        raise InputError(f"out={out}: must be a .csv, .tsv or .parquet file")
    return Path(out)


def _write(frame: pl.DataFrame, path: Path) -> None:
    buffer = io.BytesIO()
    if path.suffix == ".parquet":
        frame.write_parquet(buffer)
    else:
        frame.write_csv(buffer, separator="," if path.suffix == ".csv" else "\t")
    write_atomically(path, buffer.getvalue())


if __name__ == "__main__":
    sys.exit(commands.answer(sys.argv[1:], {"": recommend, "score": score}, HELP))
