"""What the comparisons share: rows for all sides, a process for each, the options, and tables.

Our side runs in this environment; a peer in its own, made by `peers/environments.py`, which has a driver in
`peers/`. A side that cannot run is a line on stderr, and no row.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OURS = "hydrec"
PEERS = ("recbole", "rectools", "replay", "deepctr", "fuxictr")


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options of a comparison; a script adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--peers", nargs="*", choices=PEERS, help="drives these as well, all without a name")
    made.add_argument(
        "--root", type=Path, default=HERE.parent / ".peers", help="folder of their environments"
    )
    made.add_argument("--steps", type=int, default=defaults.get("steps", 10**9), help="counted, at most")
    made.add_argument("--seconds", type=float, default=defaults.get("seconds", 60.0), help="of each, at most")
    made.add_argument("--warmup", type=int, default=3, help="steps before those that are counted")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="folder for the table as csv, and plots")
    return made


def chosen(args: argparse.Namespace, *able: str) -> list[str]:
    """The sides of a comparison: ours, and of the peers that are able those that are asked for."""
    asked = () if args.peers is None else args.peers or PEERS
    return [OURS, *(peer for peer in able if peer in asked)]


def drive(side: str, args: argparse.Namespace, **settings: Any) -> list[dict[str, Any]]:
    """Runs a side to its end; returns what it reported, the pace last, or nothing where it failed."""
    own = side == OURS
    python = Path(sys.executable) if own else args.root / side / "bin" / "python"
    script = HERE / "ours.py" if own else HERE / "peers" / f"on_{side}.py"
    if not python.exists():
        print(f"{side}: no environment in {args.root}; peers/environments.py makes it", file=sys.stderr)
        return []
    limits = {key: getattr(args, key) for key in ("steps", "seconds", "warmup", "threads", "seed")}
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "found.jsonl")
        given = json.dumps({**limits, "out": str(out), "started": time.time(), **settings})
        run = subprocess.run(
            [python, script, given], cwd=folder, env=environment, capture_output=True, text=True
        )
        if run.returncode:
            print(f"{side} failed:\n{run.stderr[-2000:]}", file=sys.stderr)
            return []
        return [json.loads(line) for line in out.read_text().splitlines()]


def overrides(*choices: str) -> list[str]:
    """Choices of our command line, with the folders of this repository."""
    return [f"paths.cache={HERE.parent / 'cache'}", f"paths.data={HERE.parent / 'data'}", *choices]


def same(found: dict[str, dict[str, Any]], *facts: str) -> None:
    """Stops where sides did not see the same rows.

    Raises:
        SystemExit: names what differs.
    """
    for fact in facts:
        values = {side: report[fact] for side, report in found.items()}
        if len(set(values.values())) > 1:
            raise SystemExit(f"the sides did not see the same rows: {fact} {values}")


class Table:
    """A table that is printed as Markdown row by row, and written as csv.

    Args:
        name: of the csv file.
        columns: of the table.
        out: folder of the csv; none for no file.
    """

    def __init__(self, name: str, columns: Sequence[str], out: Path | None) -> None:
        self.path = None if out is None else out / f"{name}.csv"
        self.rows: list[list[str]] = [list(columns)]
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def add(self, cells: Iterable[Any]) -> None:
        """Adds a row."""
        row = [number(cell) for cell in cells]
        self.rows.append(row)
        print(f"| {' | '.join(row)} |", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerows(self.rows)


def number(value: Any) -> str:
    """A cell: three digits of a fraction, thousands apart, nothing for ``None``."""
    if value is None:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 or isinstance(value, int) else f"{value:.3g}"


def where(args: argparse.Namespace) -> str:
    """A line on the machine and what else runs on it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{time.strftime('%Y-%m-%d')}, {args.threads} threads, {cpu}, load {load}"
