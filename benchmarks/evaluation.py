"""Full ranking beside the bare arithmetic: the matrix product of all scores, and counting who is above.

    python benchmarks/evaluation.py                                # 6,040 users x 3,416; 100,000 x 1,000,000
    python benchmarks/evaluation.py --cases sasrec --turns 5
    python benchmarks/evaluation.py --cases large --sample 256 --mib 512

The task of a test ranks batches of 512 random histories of up to 12 events, by SASRec's scores, by HGNN's,
whose products are five to a candidate and a softmax over them, and in the large case by SASRec's again. The
net has read the histories beforehand. Memory for scores: in the large case so many MiB, for them and for the
counting, else the model's ``chunk``. The products are cut alike. Of the large case a sample of users is
ranked, and the seconds of all users follow. Each figure is the least of several turns.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rows import CONF
from sides import Table, where

from hydrec import cli
from hydrec.batch import Catalog, EvalCandidates, SequenceBatch

sys.path.insert(0, str(Path(__file__).with_name("peers")))
from watch import peak_memory

WINDOW, BATCH = 12, 512
CASES = {"sasrec": (6_040, 3_416), "hgnn": (6_040, 3_416), "large": (100_000, 1_000_000)}
VECTORS = {"hgnn": 5}  # that each score is made of
COLUMNS = (
    "users", "items", "ranked", "s", "s of all", "CPU s", "product, s", "CPU s", "product and count, s",
    "x product", "x product, CPU", "x both", "peak MiB",
)  # fmt: skip


def built(model: str, items: int, chunk: int | None) -> Any:
    """The task of a model, for a catalogue of so many items of which nothing is known."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        choice = ["protocol=leave_one_out", f"protocol.window={WINDOW}", f"model={model}"]
        cfg = compose("train", [*choice, *([] if chunk is None else [f"model.chunk={chunk}"])])
    none = torch.zeros(1, dtype=torch.int64)
    counts = torch.ones(items + 1, dtype=torch.int64)
    catalog = Catalog(1, items, none + 1, none + 1, none, none.float(), counts)
    metrics = instantiate(cfg.protocol.metrics, _convert_="all")
    return instantiate(cfg.model, _convert_="all")(catalog, metrics, 0).eval()


def batches(users: int, items: int) -> Iterator[SequenceBatch]:
    """Random histories, each with a target."""
    for first in range(0, users, BATCH):
        rows = torch.arange(first, min(first + BATCH, users))
        lengths = torch.randint(1, WINDOW + 1, rows.shape)
        real = torch.arange(WINDOW) < lengths[:, None]
        days = 86_400 * torch.arange(WINDOW) * real
        yield SequenceBatch(
            items=torch.randint(1, items + 1, real.shape) * real, times=days, values=real.float(),
            lengths=lengths, targets=torch.randint(1, items + 1, (len(rows), 1)),
            target_times=86_400 * lengths[:, None], users=torch.ones_like(rows), rows=rows,
        )  # fmt: skip


class Read:
    """A net that has read its histories."""

    def __init__(self, net: Any, some: list[SequenceBatch]) -> None:
        self.score = net.score
        self.read = {id(batch): net.encode(batch) for batch in some}

    def encode(self, batch: SequenceBatch) -> Any:
        """What the net made of it."""
        return self.read[id(batch)]


def least(work: Callable[[], Any], turns: int) -> np.ndarray:
    """Wall-clock and CPU seconds, each of the fastest turn."""
    took = []
    for _ in range(turns):
        before = np.array([time.perf_counter(), time.process_time()])
        work()
        took.append([time.perf_counter(), time.process_time()] - before)
    return np.min(took, 0)


def products(users: int, vectors: int, items: torch.Tensor, chunk: int, count: bool) -> None:
    """Multiplies vectors of all users with those of all items, a chunk of scores at a time.

    Of several vectors, a softmax over their products belongs to the arithmetic. With ``count``, the scores
    above and like a number of each row are counted: it is one score for each item.
    """
    state = torch.randn(min(users, BATCH) * vectors, items.shape[1])
    for first in range(0, users, BATCH):
        rows = min(users - first, BATCH)
        some = max(1, min(rows, chunk // len(items)))
        width = min(len(items), chunk // some)
        for start in range(0, rows, some):
            part = state[start * vectors : min(rows, start + some) * vectors]
            for left in range(0, len(items), width):
                scores = part @ items[left : left + width].T
                if vectors > 1:
                    torch.softmax(scores.view(-1, vectors, scores.shape[1]), dim=1)
                if count:
                    own = scores[::vectors, :1]
                    flags = torch.empty_like(scores[::vectors])
                    for compare in (torch.gt, torch.eq):
                        compare(scores[::vectors], own, out=flags).sum(1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--sample", type=int, default=1024, help="users of the large case that are ranked")
    parser.add_argument("--mib", type=int, default=1024, help="for scores and counting in the large case")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="folder for the table as csv")
    args = parser.parse_args()
    cli.tune()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{where(args)}\n")
    table = Table("evaluation", ["scores", *COLUMNS], args.out)
    everything = EvalCandidates(None, None)
    for name in args.cases:
        users, items = CASES[name]
        large = name == "large"
        ranked = min(users, args.sample) if large else users
        task = built("sasrec" if large else name, items, args.mib * 2**17 if large else None)
        some = list(batches(ranked, items))
        vectors = VECTORS.get(name, 1)

        with torch.inference_mode():
            net = Read(task.net, some)

            def whole(task: Any = task, net: Read = net, some: list[SequenceBatch] = some) -> None:
                for batch in some:
                    task.ranks(net, batch, everything)

            ranking = least(whole, args.turns)
            of_items = torch.randn(items, 64)
            bare, both = (
                least(partial(products, ranked, vectors, of_items, task.chunk, count), args.turns)
                for count in (False, True)
            )
        (wall, cpu), (alone, alone_cpu) = ranking.tolist(), bare.tolist()
        cells = [users, items, ranked, wall, wall * users / ranked, cpu, alone, alone_cpu, float(both[0])]
        table.add([name, *cells, wall / alone, cpu / alone_cpu, wall / float(both[0]), peak_memory()])


if __name__ == "__main__":
    main()
