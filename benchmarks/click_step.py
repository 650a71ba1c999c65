"""Training steps of a click model on random batches, in this process: what `tables.py` and `clicks.py` start.

    python benchmarks/click_step.py MODEL OPTIMISER ITEMS ROWS STEPS SECONDS [OVERRIDES ...]

Each row has 20 behaviours and a candidate drawn uniformly from so many items; 10,000 users, five fields of a
thousand codes; one thread. Prints the median CPU time of a step, forward, backward and optimiser, after five
to warm up, the most memory that the process held, and the number of parameters.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from torch.nn.functional import binary_cross_entropy_with_logits

from hydrec.batch import ClickBatch, ClickCatalog, Field

CONF = Path(__file__).resolve().parents[1] / "conf"
WINDOW, USERS, CODES = 20, 10_000, 1_000
ADAM = "torch.optim.Adam"


def catalogue(items: int) -> ClickCatalog:
    """Items without fields."""
    fields = [Field(f"f{n}", "context" if n else "user", CODES, 1) for n in range(5)]
    none = torch.zeros(items + 1, dtype=torch.int64)
    return ClickCatalog(
        n_users=USERS,
        n_items=items,
        fields=(Field("user_id", "user", USERS + 2, 1), *fields),
        item_fields=(),
        clicked=none,
        shown=none,
        item_codes=none[:, None][:, :0],
        item_weights=torch.zeros(items + 1, 0),
    )


def batch(rows: int, items: int) -> ClickBatch:
    """Random rows, all histories whole."""
    users = torch.randint(1, USERS + 1, (rows,))
    return ClickBatch(
        items=torch.randint(1, items + 1, (rows, WINDOW)),
        times=torch.arange(WINDOW).expand(rows, WINDOW),
        values=torch.ones(rows, WINDOW),
        lengths=torch.full((rows,), WINDOW),
        candidates=torch.randint(1, items + 1, (rows,)),
        labels=torch.randint(2, (rows,)),
        target_times=torch.full((rows,), WINDOW),
        users=users,
        codes=torch.cat([users[:, None], torch.randint(CODES, (rows, 5))], 1),
        weights=torch.ones(rows, 6),
        rows=torch.arange(rows),
    )


def main(model: str, target: str, items: int, rows: int, steps: int, seconds: int, *overrides: str) -> None:
    """Takes the steps; at least five are measured."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = ["protocol=click_last", f"protocol.window={WINDOW}", f"model={model}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*given, f"model.net.sparse={target != ADAM}"])
    net = instantiate(cfg.model.net, _convert_="all")(catalogue(items))
    values = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    values |= {"table_lr": 0.05} if target.endswith("Adagrad") else {}
    values |= {"fused": True} if target == ADAM else {}  # as the task makes it
    optimiser = get_class(target)(net.parameters(), **values)
    took, started = [], time.perf_counter()
    while len(took) < steps + 5 and (len(took) < 10 or time.perf_counter() - started < seconds):
        some = batch(rows, items)
        before = time.process_time()
        optimiser.zero_grad()
        logits, auxiliary = net(some)
        (binary_cross_entropy_with_logits(logits, some.labels.float()) + auxiliary).backward()
        optimiser.step()
        took.append(time.process_time() - before)
    found = {
        "ms": 1000 * statistics.median(took[5:]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    name, optimiser, *rest = sys.argv[1:]
    main(name, optimiser, *map(int, rest[:4]), *rest[4:])
