"""A study on a real Ray of this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_study_runs_to_its_report(tmp_path):
    pytest.importorskip("ray")
    few = ["study.models=[sasrec]", "study.references=[]", "study.search.trials=1", "study.search.epochs=1"]
    paths = [f"paths.{name}={tmp_path / name}" for name in ("runs", "cache", "cards")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), "study=smoke", "launcher=ray", *few, *paths],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # Ray keeps quiet
    assert all(
        line.startswith(("smoke:", "data-", "simulated-", "trials/", "the report is "))
        for line in done.stdout.splitlines()
    )
    jobs = json.loads((tmp_path / "runs" / "smoke" / "ledger.json").read_text())["jobs"].values()
    assert [(job["state"], job["starts"]) for job in jobs] == [("finished", 1)] * 4
