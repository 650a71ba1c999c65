"""NDCG@10 of SASRec against training seconds, and the seconds to a level; on the rows of `sequences.py`.

    HYDREC_DATA=FOLDER python benchmarks/time_to_quality.py --seconds 600 --peers --out FOLDER
    HYDREC_DATA=FOLDER python benchmarks/time_to_quality.py --level 0.05 --seconds 60 batch_size=256

A side trains for so many seconds; its judgements cost it none. All are judged alike, on the last item of each
user among all items, the history not masked. Each side has its own defaults, as in `sequences.py`; what
follows the options is ours to choose. The plateau is the test's value where that of the validation is best.
Writes time_to_quality.csv, -.svg and -.png into the folder of ``--out``.
"""

import tempfile
from pathlib import Path
from typing import Any

from rows import interactions
from sequences import SASREC, runs
from sides import Table, number, overrides, parser, where

COLUMNS = ("trained, s", "steps", "best test", "plateau", "s to the level", "over the best peer's")


def reached(curve: list[dict[str, Any]], level: float) -> float | None:
    """Training seconds of the first judgement of at least ``level`` on the test part."""
    return next((point["trained_s"] for point in curve if point["test"] >= level), None)


def plot(curves: dict[str, list[dict[str, Any]]], level: float, out: Path) -> None:
    """Draws the curves into time_to_quality.svg and .png."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot([p["trained_s"] for p in curve], [p["test"] for p in curve], marker=".", label=name)
    axes.axhline(level, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="training seconds", ylabel="NDCG@10", title="SASRec, MovieLens-1M")
    axes.legend()
    for kind in ("svg", "png"):
        figure.savefig(out / f"time_to_quality.{kind}")


def main() -> None:
    """Prints the table and draws the plot."""
    options = parser(__doc__, seconds=600.0)
    options.add_argument("--level", type=float, default=0.076, help="of NDCG@10 to reach")
    options.add_argument("--every", type=float, default=5.0, help="seconds to the first judgement")
    options.add_argument("overrides", nargs="*", help="of our command line")
    args = options.parse_args()
    given = overrides(*SASREC, *args.overrides)
    print(f"{where(args)}\n")
    with tempfile.TemporaryDirectory() as folder:
        found = runs(args, interactions(given, Path(folder, "rows.npz")), given, every=args.every)
    curves = {name: reports[:-1] for name, reports in found.items() if reports[:-1]}
    times = {name: reached(curve, args.level) for name, curve in curves.items()}
    peers = [time for name, time in times.items() if time is not None and not name.startswith("hydrec")]
    table = Table("time_to_quality", [f"SASRec, level {number(args.level)}", *COLUMNS], args.out)
    for name, curve in curves.items():
        last, settled = curve[-1], max(curve, key=lambda point: point["valid"])
        seconds = times[name]
        ratio = seconds / min(peers) if seconds is not None and peers else None
        best = max(point["test"] for point in curve)
        table.add([name, last["trained_s"], last["step"], best, settled["test"], seconds, ratio])
    if args.out is not None and curves:
        curve_table = Table("time_to_quality_curves", ["side", "trained, s", "test", "valid"], args.out)
        for name, curve in curves.items():
            for point in curve:
                curve_table.add([name, point["trained_s"], point["test"], point["valid"]])
        plot(curves, args.level, args.out)


if __name__ == "__main__":
    main()
