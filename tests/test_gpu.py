"""What only a GPU can show; skipped where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hydrec.metrics import RankMetrics, Ranks
from hydrec.sampling import cumulative, draw, exclude, hash64, lists

ROOT = Path(__file__).parents[1]
TINY = [
    "dataset=simulated",
    "dataset.reader.shape=tiny",
    "trainer.max_epochs=2",
    "batch_size=128",
    "logger=none",
]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_random_numbers_are_the_same_bits():
    keys = torch.arange(10_000)
    assert torch.equal(hash64(3, "test", keys, 7).cpu(), hash64(3, "test", keys.cuda(), 7).cpu())


def test_draws_are_the_same_items():
    cdf = cumulative(torch.arange(50), 0.5, "exponent")
    owner, item = torch.arange(400) % 20, torch.arange(400) % 49 + 1
    rest = exclude(cdf, owner, item, 20)
    bits = hash64(1, "draws", torch.arange(20)[:, None], torch.arange(9))
    there = exclude(cdf.cuda(), owner.cuda(), item.cuda(), 20)
    found = draw(cdf.cuda(), there, torch.arange(20).cuda(), bits.cuda())
    assert torch.equal(found.cpu(), draw(cdf, rest, torch.arange(20), bits))
    settings = {"count": 5, "replace": False, "seed": 1, "purpose": "lists"}
    rows = torch.arange(20)
    assert lists(cdf, owner, item, rows, rows, **settings).shape == (20, 5)


def test_metrics_are_the_same_bits():
    ranks = Ranks(*(torch.randint(0, 9, (500,)) for _ in range(2)), torch.full((500,), 20))
    found = []
    for device in ("cpu", "cuda"):
        metrics = RankMetrics(at=[5, 10], ties="expected").to(device)
        rows = torch.arange(500, device=device)
        metrics.update(rows, rows % 7, Ranks(*(x.to(device) for x in ranks)))
        found.append({name: float(value) for name, value in metrics.compute().items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("trainer", ["gpu", "gpu_bf16"])
@pytest.mark.parametrize(
    "model", ["hgnn", "sasrec", "gru4rec", "bert4rec", "retagnn", "hstu", "mian", "dien"]
)
def test_models_train_there(tmp_path, trainer, model):
    protocol = "click_last" if model in ("mian", "dien") else "sliding_window"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            *TINY,
            f"trainer={trainer}",
            f"model={model}",
            f"protocol={protocol}",
        ],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "runs" / "single").iterdir()
    assert json.loads((run / "run.json").read_text())["device"].startswith("cuda")
