"""A training step of SASRec as the catalogue grows: softmax over all items, and over some that are drawn.

    python benchmarks/vocabulary.py --out FOLDER                   # a thousand to a million items
    python benchmarks/vocabulary.py --items 1000 10000000 --losses sampled_softmax --steps 5

Random histories, 128 of 50 events and as many targets, width 64; each figure is that of a process of its own:
the median seconds of a step, wall-clock and CPU, with Adam over the whole table, what the step held above the
parameters and Adam's moments of them, and all that the process held. Scores of all items are made in parts of
the model's ``chunk``; `sampled_softmax` draws 256 for each target. Writes vocabulary.csv, .svg and .png into
the folder of ``--out``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sides import Table, where

ROWS, WINDOW = 128, 50
LOSSES = ("softmax", "sampled_softmax")
COLUMNS = ("items", "s a step", "CPU s", "targets/s", "above the parameters, MiB", "peak MiB")


def child(items: int, loss: str, given: dict[str, Any]) -> None:
    """Takes the steps and prints what they cost."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from rows import CONF

    from hydrec.batch import Catalog, SequenceBatch

    sys.path.insert(0, str(Path(__file__).with_name("peers")))
    from watch import peak_memory

    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choice = ["protocol=leave_one_out", f"protocol.window={WINDOW}", "model=sasrec", f"loss={loss}"]
        cfg = compose("train", choice)
    none = torch.zeros(1, dtype=torch.int64)
    counts = torch.ones(items + 1, dtype=torch.int64)
    counts[0] = 0
    catalog = Catalog(1, items, none + 1, none + 1, none, none.float(), counts)
    metrics = instantiate(cfg.protocol.metrics, _convert_="all")
    task = instantiate(cfg.model, _convert_="all")(catalog, metrics, 0)
    optimiser = task.configure_optimizers()
    took: list[tuple[float, float]] = []
    started = time.perf_counter()
    while len(took) < given["steps"] + 1 and (
        len(took) < 3 or time.perf_counter() - started < given["seconds"]
    ):
        drawn = torch.randint(1, items + 1, (ROWS, WINDOW + 1))
        zero = torch.zeros(ROWS, WINDOW, dtype=torch.int64)
        batch = SequenceBatch(
            items=drawn[:, :-1], times=zero, values=zero.float(), lengths=torch.full((ROWS,), WINDOW),
            targets=drawn[:, 1:], target_times=zero, users=torch.ones(ROWS, dtype=torch.int64),
            rows=WINDOW * (torch.arange(ROWS) + len(took) * ROWS + 1),
        )  # fmt: skip
        before = time.perf_counter(), time.process_time()
        optimiser.zero_grad()
        task.training_step(batch, 0).backward()
        optimiser.step()
        took.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    held = 4 * 4 * sum(p.numel() for p in task.parameters()) >> 20  # with gradients and moments
    wall, cpu = (statistics.median(column) for column in zip(*took[1:], strict=True))
    peak = peak_memory()
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "above_mib": peak - held, "peak_mib": peak}))


def plot(found: dict[str, dict[int, dict[str, float]]], out: Path) -> None:
    """Draws seconds and memory against the size of the catalogue."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    for pane, key, label in zip(panes, ("wall_s", "peak_mib"), ("seconds a step", "peak MiB"), strict=True):
        for loss, sizes in found.items():
            pane.plot(list(sizes), [report[key] for report in sizes.values()], marker="o", label=loss)
        pane.set(xscale="log", yscale="log", xlabel="items", ylabel=label)
    panes[0].legend()
    for kind in ("svg", "png"):
        figure.savefig(out / f"vocabulary.{kind}")


def main() -> None:
    """Prints the table of all sizes and draws the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--steps", type=int, default=10, help="of each process, at most")
    parser.add_argument("--seconds", type=float, default=60, help="after which it stops; two steps at least")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="folder for the table as csv, and the plot")
    args = parser.parse_args()
    print(f"{where(args)}\n")
    table = Table("vocabulary", ["loss", *COLUMNS], args.out)
    given = json.dumps({"threads": args.threads, "steps": args.steps, "seconds": args.seconds})
    found: dict[str, dict[int, dict[str, float]]] = {}
    for loss in args.losses:
        for items in args.items:
            command = [sys.executable, __file__, "--child", str(items), loss, given]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                tail = run.stderr[-500:] or "no message, as where memory ran out"
                print(f"{loss}, {items:,} items: {run.returncode}: {tail}", file=sys.stderr)
                break
            report = json.loads(run.stdout.splitlines()[-1])
            found.setdefault(loss, {})[items] = report
            pace = ROWS * WINDOW / report["wall_s"]
            cells = [report["wall_s"], report["cpu_s"], pace, report["above_mib"], report["peak_mib"]]
            table.add([loss, items, *cells])
    if args.out is not None and found:
        plot(found, args.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]))
    else:
        main()
