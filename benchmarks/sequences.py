"""SASRec on SASRec's file of MovieLens-1M, leave-one-out: seconds, memory, and the floor under them.

    HYDREC_DATA=FOLDER python benchmarks/sequences.py                          # ours
    HYDREC_DATA=FOLDER python benchmarks/sequences.py --peers                  # and RecBole, RecTools, RePlay
    HYDREC_DATA=FOLDER python benchmarks/sequences.py --peers rectools --steps 5

Window 50, width 64, two layers, two heads, cross-entropy over the catalogue; everything else as each side
ships it. A side trains for so many seconds after a few steps to warm up; the seconds of an epoch follow from
its steps. Ours and RecBole train on every target of every user, ours in windows of 50 targets, RecBole on a
row for each; the others on the last 50 of each user. So compare targets a second, and how many times the
floor (`floor.py`) of its own targets an epoch takes. Test is what each side ships for all users: ours has
four reference models ranked as well, RecTools and RePlay find ten items and no metric.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import floor
import numpy as np
from rows import interactions
from sides import OURS, Table, chosen, drive, overrides, parser, same, where

WINDOW, DIM, BLOCKS, HEADS, INNER = 50, 64, 2, 2, 256
SASREC = [
    "dataset=sequences", "protocol=leave_one_out", f"protocol.window={WINDOW}", "model=sasrec",
    "loss=softmax", f"model.net.dim={DIM}", f"model.net.blocks={BLOCKS}", f"model.net.heads={HEADS}",
]  # fmt: skip
PEERS: dict[str, dict[str, Any]] = {  # what is not a library's default
    "recbole": {"hidden_size": DIM, "n_layers": BLOCKS, "n_heads": HEADS},
    "rectools": {"n_factors": DIM, "n_blocks": BLOCKS, "n_heads": HEADS, "loss": "softmax"},
    "replay": {"embedding_dim": DIM, "num_blocks": BLOCKS, "num_heads": HEADS},
}
BATCHES = {OURS: (128,), "recbole": (2048, 256), "rectools": (128,), "replay": (128,)}
COLUMNS = (
    "batch", "s an epoch", "CPU s", "targets", "targets/s", "x floor", "first step after, s", "test, s",
    "peak MiB", "targets/s over the best peer's",
)  # fmt: skip


def runs(args: argparse.Namespace, path: str, given: list[str], **more: Any) -> dict[str, list[dict]]:
    """What each side and batch size reported, by their name."""
    found = {}
    for side in chosen(args, *PEERS):
        for batch in BATCHES[side]:
            own = {"overrides": given} if side == OURS else {"options": PEERS[side]}
            reports = drive(side, args, data=path, model="SASRec", window=WINDOW, batch=batch, **own, **more)
            if reports:
                found[f"{side} {batch}"] = reports
    same({name: reports[-1] for name, reports in found.items()}, "users", "interactions", "tested")
    return found


def arithmetic(report: dict[str, Any], path: str) -> float:
    """Operations of the targets of an epoch, of histories that are passed once."""
    rows = np.load(path)
    lengths = floor.pieces(rows["user"], report["targets"], WINDOW)
    items = int(rows["item"].max())
    return floor.sasrec(lengths, report["targets"], dim=DIM, blocks=BLOCKS, inner=INNER, items=items)


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("overrides", nargs="*", help="of our command line")
    args = options.parse_args()
    given = overrides(*SASREC, *args.overrides)
    rate = floor.rate(args.threads)
    print(f"{where(args)}, {rate / 1e9:.0f} GFLOP/s in products\n")
    with tempfile.TemporaryDirectory() as folder:
        path = interactions(given, Path(folder, "rows.npz"))
        found = {name: reports[-1] for name, reports in runs(args, path, given).items()}
        paces = {name: report["targets"] / report["epoch_s"] for name, report in found.items()}
        best = max((pace for name, pace in paces.items() if not name.startswith(OURS)), default=None)
        table = Table("sequences", ["SASRec", *COLUMNS], args.out)
        for name, report in found.items():
            side, batch = name.split()
            over = report["epoch_s"] / (arithmetic(report, path) / rate)
            pace, ratio = paces[name], None if best is None else paces[name] / best
            epoch = [report["epoch_s"], report["epoch_cpu_s"], report["targets"]]
            rest = [report["first_step_s"], report["test_s"], report["peak_mib"]]
            table.add([side, batch, *epoch, pace, over, *rest, ratio])


if __name__ == "__main__":
    main()
