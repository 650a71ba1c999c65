"""A training step of click models as the table of items grows: with tables touched by row, and by dense Adam.

    python benchmarks/tables.py                    # 10 thousand to 10 million items
    python benchmarks/tables.py --items 10000 1000000

256 rows, each of 20 behaviours and a candidate drawn uniformly, 10,000 users and five fields of a thousand
codes; the item's table is 32 wide, all else as conf/model has it; one thread. A step is the whole of it:
forward, backward, optimiser. Each figure is that of a process of its own: the median CPU time of steps after
five to warm up, in milliseconds and over that of the smallest table, and the most memory the process held.
CPU time, as other work on the machine adds to the wall clock's.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ADAM = "torch.optim.Adam"
LAZY = "hydrec.optim.LazyAdam"
ROWS = "hydrec.optim.RowAdagrad"
CASES = {
    "DeepFM, lazy Adam": ("deepfm", "dim", LAZY),
    "DeepFM, row-wise Adagrad": ("deepfm", "dim", ROWS),
    "DIN, lazy Adam": ("din", "item_dim", LAZY),
    "MIAN, lazy Adam": ("mian", "item_dim", LAZY),
    "DeepFM, dense Adam": ("deepfm", "dim", ADAM),
}

CHILD = """
import json, resource, statistics, sys, time
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from hydrec.batch import ClickBatch, ClickCatalog, Field
conf, model, width, target, items, steps, seconds = *sys.argv[1:5], *map(int, sys.argv[5:])
torch.set_num_threads(1)
torch.manual_seed(0)
B, T, U, CODES = 256, 20, 10_000, 1_000
overrides = ["protocol=click_last", "protocol.window=20", f"model={model}", f"model.net.{width}=32"]
with initialize_config_dir(conf, version_base="1.3"):
    cfg = compose("train", [*overrides, f"model.net.sparse={target != 'torch.optim.Adam'}"])
fields = [Field("user_id", "user", U + 2, 1)] + [
    Field(f"f{n}", "context" if n else "user", CODES, 1) for n in range(5)
]
catalog = ClickCatalog(
    n_users=U, n_items=items, fields=tuple(fields), item_fields=(),
    clicked=torch.zeros(items + 1, dtype=torch.int64), shown=torch.zeros(items + 1, dtype=torch.int64),
    item_codes=torch.zeros(items + 1, 0, dtype=torch.int64), item_weights=torch.zeros(items + 1, 0),
)
net = instantiate(cfg.model.net, _convert_="all")(catalog)
values = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
values |= {"table_lr": 0.05} if target.endswith("Adagrad") else {}
optimiser = get_class(target)(net.parameters(), **values)
sizes = torch.tensor([field.size for field in fields])
took, started = [], time.perf_counter()
while len(took) < steps + 5 and (len(took) < 10 or time.perf_counter() - started < seconds):
    users = torch.randint(1, U + 1, (B,))
    batch = ClickBatch(
        items=torch.randint(1, items + 1, (B, T)), times=torch.arange(T).expand(B, T),
        values=torch.ones(B, T), lengths=torch.full((B,), T), candidates=torch.randint(1, items + 1, (B,)),
        labels=torch.randint(2, (B,)), target_times=torch.full((B,), T), users=users,
        codes=torch.cat([users[:, None], (torch.rand(B, 5) * sizes[1:]).long()], 1),
        weights=torch.ones(B, 6), rows=torch.arange(B),
    )
    before = time.process_time()
    optimiser.zero_grad()
    logits, auxiliary = net(batch)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.float())
    (loss + auxiliary).backward()
    optimiser.step()
    took.append(time.process_time() - before)
print(json.dumps({
    "ms": 1000 * statistics.median(took[5:]),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
}))
"""


def measure(case: tuple[str, str, str], *numbers: int) -> dict:
    """The figures of one process."""
    conf = Path(__file__).resolve().parents[1] / "conf"
    command = [sys.executable, "-c", CHILD, str(conf), *case, *map(str, numbers)]
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
    for name, case in CASES.items():
        found = [measure(case, items, args.steps, args.seconds) for items in args.items]
        cells = "".join(f" {each['ms']:.1f} ms |" for each in found)
        over = " ".join(f"{each['ms'] / found[0]['ms']:.2f}" for each in found[1:])
        print(f"| {name} |{cells} {over} | {found[-1]['peak_mib']:,} |", flush=True)


if __name__ == "__main__":
    main()
