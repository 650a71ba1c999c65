"""What loading costs of a SASRec training step on the CPU: seconds for batches over seconds for steps.

    HYDREC_DATA=FOLDER python benchmarks/loading.py [OVERRIDES]

MovieLens-1M (or its stand-in) by leave-one-out, window 50, width 64, 128 histories a step, cross-entropy over
the catalogue; one thread, 60 steps, as Lightning's own profiler counts them.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.profilers import SimpleProfiler

SETTING = [
    *("dataset=movielens", "protocol=leave_one_out", "protocol.window=50"),
    *("model=sasrec", "model.net.dim=64", "loss=softmax", "batch_size=128"),
]


def main(overrides: list[str]) -> None:
    """Trains for 60 steps and prints the shares."""
    torch.set_num_threads(1)
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        cfg = compose("train", [*SETTING, *overrides])
    data = instantiate(cfg.dataset, _convert_="all")
    data.prepare()
    task = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, 0)
    profiler = SimpleProfiler()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        max_steps=60,
        limit_val_batches=0,
        accelerator="cpu",
        profiler=profiler,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, data)
    durations = profiler.recorded_durations
    load = sum(durations["[_TrainingEpochLoop].train_dataloader_next"])
    step = sum(durations["run_training_batch"])
    print(
        f"{data.name}: {1000 * load / 60:.2f} ms a batch, {1000 * step / 60:.1f} ms a step: {load / step:.2%}"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
