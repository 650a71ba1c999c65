"""Session graphs on MovieLens-1M: training rows a second, in batches of 2,048 histories of up to 12.

    HYDREC_DATA=FOLDER python benchmarks/graphs.py                           # ours
    HYDREC_DATA=FOLDER python benchmarks/graphs.py --peers                   # and RecBole's SR-GNN and GC-SAN
    HYDREC_DATA=FOLDER python benchmarks/graphs.py --models hgnn --seconds 10

Every prefix of each user's events but the last two is a row, for all sides. Width 64; SR-GNN, GC-SAN and FGNN
with cross-entropy over the catalogue, HGNN with BPR; GC-SAN one layer of one head, on both sides. The last
column is an epoch of `sliding_window`, windows of 12 events and a target, at the same pace. The floor is the
products that a step of the net makes, as torch counts them, over the rate of `floor.py`.
"""

import tempfile
from pathlib import Path
from typing import Any

import floor
from rows import interactions, read
from sides import OURS, Table, chosen, drive, overrides, parser, same, where

BATCH, WINDOW = 2048, 12
DATA = ["dataset=movielens", "dataset.stand_in=false", "protocol=leave_one_out", f"protocol.window={WINDOW}"]
WINDOWS = ["dataset=movielens", "dataset.stand_in=false", "protocol=sliding_window", "model=hgnn"]
OWN = {
    "HGNN": ["model=hgnn", "loss=bpr"],
    "SRGNN": ["model=srgnn", "loss=softmax"],
    "GCSAN": ["model=gcsan", "loss=softmax"],
    "FGNN": ["model=fgnn", "loss=softmax"],
}
PEERS: dict[str, dict[str, Any]] = {
    "SRGNN": {"embedding_size": 64},
    "GCSAN": {"hidden_size": 64, "inner_size": 64, "n_layers": 1, "n_heads": 1},
}
COLUMNS = (
    "rows/s", "rows/CPU s", "first step after, s", "peak MiB", "x floor", "over RecBole's", "over its SR-GNN",
    "s an epoch of windows",
)  # fmt: skip


def main() -> None:
    """Prints the table."""
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", choices=[name.lower() for name in OWN], help="all by default")
    args = options.parse_args()
    given = overrides(*DATA)
    rate = floor.rate(args.threads)
    print(f"{where(args)}, {rate / 1e9:.0f} GFLOP/s in products\n")
    asked = [model for model in OWN if args.models is None or model.lower() in args.models]
    windows = read(overrides(*WINDOWS)).feed.rows
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = interactions([*given, "model=srgnn"], Path(folder, "rows.npz"))
        for model in asked:
            for side in chosen(args, *(["recbole"] if model in PEERS else [])):
                own = (
                    {"overrides": [*given, *OWN[model]], "count": True}
                    if side == OURS
                    else {"options": PEERS[model]}
                )
                reports = drive(side, args, data=path, model=model, window=WINDOW, batch=BATCH, **own)
                if reports:
                    found[side, model] = reports[-1]
    same({" ".join(key): report for key, report in found.items()}, "interactions", "rows", "tested")
    paces = {key: report["rows"] / report["epoch_s"] for key, report in found.items()}
    table = Table("graphs", ["model", "side", *COLUMNS], args.out)
    for (side, model), report in found.items():
        pace = paces[side, model]
        against = [paces.get(("recbole", model)), paces.get(("recbole", "SRGNN"))]
        ratios = [None if other is None else pace / other for other in against]
        over = report["epoch_s"] / report["batches"] / (report["flops"] / rate) if side == OURS else None
        cells = [pace, report["rows"] / report["epoch_cpu_s"], report["first_step_s"], report["peak_mib"]]
        table.add([model, side, *cells, over, *ratios, windows / pace])


if __name__ == "__main__":
    main()
