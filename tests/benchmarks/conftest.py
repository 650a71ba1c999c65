"""The scripts under benchmarks/, started as a reader of their results would start them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
for folder in (BENCHMARKS, BENCHMARKS / "peers"):
    sys.path.insert(0, str(folder))


@pytest.fixture
def script():
    """Runs a script with some arguments on one thread; returns the rows of its first table, by column."""

    def run(name: str, *arguments: str) -> list[dict[str, str]]:
        command = [sys.executable, str(BENCHMARKS / name), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]

    return run


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data; skips where there is none."""
    folder = os.environ.get("HYDREC_DATA")
    if folder is None:
        pytest.skip("HYDREC_DATA is not set")
    return Path(folder)
