"""SASRec's training beside the floor under it: on long histories, at two widths, and on short ones.

    HYDREC_DATA=FOLDER python benchmarks/arithmetic.py
    HYDREC_DATA=FOLDER python benchmarks/arithmetic.py --cases office --steps 20

Leave-one-out, two layers of two heads, cross-entropy over the catalogue, batches of 128 histories. The floor
(`floor.py`) counts real events and targets: what padding costs is in the last column but not in the floor.
"""

import tempfile
from pathlib import Path

import floor
import numpy as np
from rows import interactions
from sides import OURS, Table, drive, overrides, parser, where

BATCH, BLOCKS = 128, 2
CASES = {  # data, window, width
    "ml-1m-64": ("sequences", 200, 64),
    "ml-1m-256": ("sequences", 200, 256),
    "office": ("amazon_office", 50, 64),
}
COLUMNS = ("mean length", "s an epoch", "CPU s", "targets/s", "GFLOP an epoch", "x floor")


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = options.parse_args()
    rate = floor.rate(args.threads)
    print(f"{where(args)}, {rate / 1e9:.0f} GFLOP/s in products\n")
    table = Table("arithmetic", ["SASRec", *COLUMNS], args.out)
    for name in args.cases:
        data, window, dim = CASES[name]
        inner = 4 * dim
        net = [f"model.net.dim={dim}", f"model.net.inner={inner}", f"model.net.blocks={BLOCKS}"]
        choice = [f"dataset={data}", "protocol=leave_one_out", f"protocol.window={window}", "model=sasrec"]
        given = overrides(*choice, *net, "loss=softmax")
        with tempfile.TemporaryDirectory() as folder:
            path = interactions(given, Path(folder, "rows.npz"))
            reports = drive(OURS, args, data=path, window=window, batch=BATCH, overrides=given)
            if not reports:
                continue
            rows, found = np.load(path), reports[-1]
        lengths = floor.pieces(rows["user"], found["targets"], window)
        items = int(rows["item"].max())
        work = floor.sasrec(lengths, found["targets"], dim=dim, blocks=BLOCKS, inner=inner, items=items)
        pace = found["targets"] / found["epoch_s"]
        cells = [lengths.mean(), found["epoch_s"], found["epoch_cpu_s"], pace, work / 1e9]
        table.add([name, *map(float, cells), found["epoch_s"] / (work / rate)])


if __name__ == "__main__":
    main()
