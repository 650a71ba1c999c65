"""A training step as the table of items grows: by lazy Adam, row-wise Adagrad and dense Adam.

    python benchmarks/tables.py                    # 10 thousand to 10 million items
    python benchmarks/tables.py --items 10000 1000000 --dim 64

256 rows, each of 20 items and a candidate drawn uniformly; a table of width 32, a small MLP, one thread. Each
figure is that of a process of its own: the median CPU time of steps after five to warm up, in milliseconds
and over that of the smallest table, and the most memory the process held. CPU time, as other work on the
machine adds to the wall clock's.
"""

import argparse
import json
import subprocess
import sys

OPTIMISERS = {
    "lazy Adam": "hydrec.optim.LazyAdam",
    "row-wise Adagrad": "hydrec.optim.RowAdagrad",
    "dense Adam": "torch.optim.Adam",
}

CHILD = """
import json, resource, statistics, sys, time
import torch
from torch import nn
from hydra.utils import get_class
target, items, dim, steps, seconds = sys.argv[1], *map(int, sys.argv[2:])
lazy = target.startswith("hydrec")
torch.manual_seed(0)
torch.set_num_threads(1)
table = nn.Embedding(items, dim, sparse=lazy)
mlp = nn.Sequential(nn.Linear(2 * dim, 64), nn.ReLU(), nn.Linear(64, 1))
values = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
values |= {"table_lr": 0.05} if target.endswith("Adagrad") else {}
optimiser = get_class(target)([*table.parameters(), *mlp.parameters()], **values)
took, started = [], time.perf_counter()
while len(took) < steps + 5 and (len(took) < 10 or time.perf_counter() - started < seconds):
    ids, y = torch.randint(items, (256, 21)), torch.rand(256).round()
    before = time.process_time()
    optimiser.zero_grad()
    x = table(ids)
    logits = mlp(torch.cat([x[:, :-1].mean(1), x[:, -1]], 1)).squeeze(1)
    nn.functional.binary_cross_entropy_with_logits(logits, y).backward()
    optimiser.step()
    took.append(time.process_time() - before)
print(json.dumps({
    "ms": 1000 * statistics.median(took[5:]),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""


def measure(target: str, *numbers: int) -> dict:
    """The figures of one process."""
    command = [sys.executable, "-c", CHILD, target, *map(str, numbers)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table of all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [10_000, 100_000, 1_000_000, 10_000_000]
    parser.add_argument("--items", type=int, nargs="+", default=sizes, help="sizes of the table, ascending")
    parser.add_argument("--dim", type=int, default=32, help="width of the table")
    parser.add_argument("--steps", type=int, default=200, help="steps of each process, at most")
    parser.add_argument("--seconds", type=int, default=30, help="after which it stops; five steps at least")
    args = parser.parse_args()
    columns = "".join(f" {name}, ms | over the smallest | peak MiB |" for name in OPTIMISERS)
    print(f"| items |{columns}\n|{'---|' * (1 + 3 * len(OPTIMISERS))}")
    smallest: dict[str, float] = {}
    for items in args.items:
        cells = []
        for name, target in OPTIMISERS.items():
            found = measure(target, items, args.dim, args.steps, args.seconds)
            over = found["ms"] / smallest.setdefault(name, found["ms"])
            cells.append(f" {found['ms']:.1f} | {over:.1f} | {found['peak_mib']:,} |")
        print(f"| {items:,} |{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
