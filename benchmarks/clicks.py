"""A training step of each click model beside one of DIN, as MIAN's table of seconds has it.

    python benchmarks/clicks.py                    # batches of 1,024 rows
    python benchmarks/clicks.py --rows 128

Rows of `click_step.py` with 4,000 items, models as conf/model has them, dense Adam. Each figure is that of a
process of its own: the median CPU time of a step; CPU time, as other work on the machine adds to the wall
clock's.
"""

import argparse

from tables import measure

MODELS = (
    "din",
    "lr",
    "fm",
    "wide_deep",
    "deepfm",
    "dcn",
    "dcn_v2",
    "finalmlp",
    "bst",
    "mian",
    "dien",
    "xdeepfm",
)
PAPER = {"din": "1.00", "mian": "1.18", "dien": "1.30"}  # 3,143, 3,700 and 4,073 s an epoch


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024, help="of a batch")
    parser.add_argument("--steps", type=int, default=40, help="of each process, at most")
    parser.add_argument("--seconds", type=int, default=30, help="after which it stops; five steps at least")
    args = parser.parse_args()
    print("| model | a step | over DIN's | in MIAN's paper | parameters |\n|---|---|---|---|---|")
    base = 0.0
    for model in MODELS:
        found = measure(model, "torch.optim.Adam", 4_000, args.rows, args.steps, args.seconds)
        base = base or found["ms"]
        cells = f"{found['ms']:.1f} ms | {found['ms'] / base:.2f} | {PAPER.get(model, '')}"
        print(f"| `{model}` | {cells} | {found['parameters']:,} |", flush=True)


if __name__ == "__main__":
    main()
