"""Seconds before anything is learnt: the help page, the first training step, and a sweep's job.

    python benchmarks/start.py
    python benchmarks/start.py --turns 1

The first step is that of `train.py` itself on the simulator, its data cached by a run before: from the start
of the process until torch tells of an optimiser step. A job of a sweep is a run of one step with its
validation and test, less what those took: run.json has the seconds. Each figure is of the fastest turn,
with the CPU seconds of that turn; imports are what importing torch and Lightning alone takes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sides import Table, where

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model=sasrec", "dataset=simulated", "protocol=leave_one_out", "loss=softmax", "trainer=cpu",
    "logger=none", "trainer.max_epochs=1", "trainer.limit_train_batches=1",
]  # fmt: skip
FIRST = """
import os, runpy, sys
def stepped(*_):
    sys.stdout.flush()
    os._exit(0)
class Hook:  # registers as soon as torch is there, and imports nothing itself
    def find_spec(self, name, path=None, target=None):
        if name == "hydrec.pipeline":
            sys.meta_path.remove(self)
            from torch.optim.optimizer import register_optimizer_step_post_hook
            register_optimizer_step_post_hook(stepped)
sys.meta_path.insert(0, Hook())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def timed(command: list[str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command.

    Raises:
        SystemExit: it failed.
    """
    before, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    took, now = time.perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)}: {run.stderr[-500:]}")
    return took, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="folder for the table as csv")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    print(f"{where(args)}\n")
    table = Table("start", ["", "s", "CPU s"], args.out)

    def least(command: list[str]) -> tuple[float, float]:
        return min(timed(command) for _ in range(args.turns))

    with tempfile.TemporaryDirectory() as folder:
        paths = [f"paths.{name}={Path(folder, name)}" for name in ("runs", "cache", "cards")]
        train = [str(ROOT / "train.py"), *SMALL, *paths]
        table.add(["`--help`", *least([str(ROOT / "train.py"), "--help"])])
        table.add(["imports of torch and Lightning", *least(["-c", "import torch, pytorch_lightning"])])
        timed(train)  # makes the cache
        table.add(["the first training step", *least(["-c", FIRST, *train, "rerun=true"])])
        beyond = []
        for turn in range(args.turns):
            name = f"turn{turn}"
            took, cpu = timed([*train, f"paths.name={name}"])
            about = json.loads(Path(folder, "runs", "single", name, "run.json").read_text())
            seconds = about["seconds"]
            beyond.append((took - seconds["fit"] - seconds["valid"] - seconds["test"], cpu))
        table.add(["a job of a sweep beyond training, validation and test", *min(beyond)])


if __name__ == "__main__":
    main()
