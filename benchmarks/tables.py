"""A training step of click models as the table of items grows: with tables touched by row, and by dense Adam.

    python benchmarks/tables.py                    # 10 thousand to 10 million items
    python benchmarks/tables.py --items 10000 1000000

256 rows of `click_step.py`; the item's table is 32 wide, all else as conf/model has it. Each figure is that
of a process of its own: the median CPU time of a step, in milliseconds and over that of the smallest table,
and the most memory the process held. CPU time, as other work on the machine adds to the wall clock's.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROWS = 256
CASES = {
    "DeepFM, lazy Adam": ("deepfm", "hydrec.optim.LazyAdam", "dim"),
    "DeepFM, row-wise Adagrad": ("deepfm", "hydrec.optim.RowAdagrad", "dim"),
    "DIN, lazy Adam": ("din", "hydrec.optim.LazyAdam", "item_dim"),
    "MIAN, lazy Adam": ("mian", "hydrec.optim.LazyAdam", "item_dim"),
    "DeepFM, dense Adam": ("deepfm", "torch.optim.Adam", "dim"),
}


def measure(model: str, optimiser: str, *numbers: int, overrides: tuple[str, ...] = ()) -> dict:
    """The figures of one process."""
    script = Path(__file__).with_name("click_step.py")
    command = [sys.executable, str(script), model, optimiser, *map(str, numbers), *overrides]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table of all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="sizes of the table, ascending")
    parser.add_argument("--steps", type=int, default=200, help="steps of each process, at most")
    parser.add_argument("--seconds", type=int, default=30, help="after which it stops; five steps at least")
    args = parser.parse_args()
    print(f"| |{''.join(f' {items:,} items |' for items in args.items)} over the smallest | peak MiB |")
    print("|---" * (3 + len(args.items)) + "|")
    for name, (model, optimiser, width) in CASES.items():
        found = [
            measure(
                model,
                optimiser,
                items,
                ROWS,
                args.steps,
                args.seconds,
                overrides=(f"model.net.{width}=32",),
            )
            for items in args.items
        ]
        cells = "".join(f" {each['ms']:.1f} ms |" for each in found)
        over = " ".join(f"{each['ms'] / found[0]['ms']:.2f}" for each in found[1:])
        print(f"| {name} |{cells} {over} | {found[-1]['peak_mib']:,} |", flush=True)


if __name__ == "__main__":
    main()
