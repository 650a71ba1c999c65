"""hydrec's side, in the form of a peer's driver; started by `sides.py`."""

import sys
from pathlib import Path
from typing import Any

from hydrec.cli import tune

tune()  # as train.py does, before torch is there
sys.path.insert(0, str(Path(__file__).with_name("peers")))

import numpy as np  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from watch import Sequences, Watch, settings, timed  # noqa: E402

from hydrec.batch import PAD, SequenceBatch  # noqa: E402
from hydrec.tasks import Click  # noqa: E402

CONF = Path(__file__).resolve().parents[1] / "conf"


def prepared(overrides: list[str]) -> tuple[Any, Any, Any]:
    """The configuration of a command line, its data, ready, and its task."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["trainer=cpu", "logger=none", "trainer.max_epochs=-1", *overrides])
    data = instantiate(cfg.dataset, _convert_="all")
    data.prepare()
    pl.seed_everything(cfg.seed, verbose=False)
    task = instantiate(cfg.model, _convert_="all")(data.catalog, data.protocol.metrics, cfg.seed)
    return cfg, data, task


def counted(task: Any, batch: SequenceBatch) -> int:
    """Operations of the products that a training step of one batch makes, as torch counts them."""
    task.train()
    task._trainer = None  # outside of a loop there is nothing to log to
    with FlopCounterMode(display=False) as counter:
        task.training_step(batch, 0).backward()
    return counter.get_total_flops()


def main(given: dict[str, Any]) -> None:
    """Trains as train.py does, without validation and checkpoints, until the limit."""
    cfg, data, task = prepared([*given["overrides"], f"batch_size={given['batch']}"])
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    options |= {"limit_val_batches": 0}
    trainer = instantiate(cfg.trainer, _convert_="all", **options)
    loader = data.train_dataloader()
    if isinstance(task, Click):
        watch = Watch(given)
        watch.run(lambda: trainer.fit(task, loader))
        positive = int(data.split.train.label.sum())
        watch.finish(rows=data.feed.rows, batches=len(loader), positive=positive)
        return
    window = given["window"]
    rows = Sequences(given["data"])

    def score(items: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
        count = torch.from_numpy(lengths)
        real = torch.arange(window) < count[:, None]
        none = torch.zeros(len(items), window, dtype=torch.int64)
        times = none[:, :1]
        batch = SequenceBatch(
            items=torch.from_numpy(items), times=none, values=real.float(), lengths=count,
            targets=times + 1, target_times=times, users=times[:, 0], rows=times[:, 0],
        )  # fmt: skip
        task.net.eval()
        state, _ = task.net.encode(batch)
        scores = task.net.score(type(state)(*(x[:, 0] for x in state)), torch.arange(1, data.log.n_items + 1))
        task.net.train()
        return scores

    watch = Watch(given, lambda: rows.quality(score, window))
    watch.run(lambda: trainer.fit(task, loader))
    targets = sum(
        int((data.feed.train(part).targets != PAD).sum())
        for part in np.array_split(np.arange(data.feed.rows), -(-data.feed.rows // 4096))
    )
    judge = instantiate(cfg.trainer, _convert_="all", **options)
    tested = timed(lambda: judge.test(task, data, verbose=False))
    facts = rows.facts | ({"flops": counted(task, next(iter(loader)))} if given.get("count") else {})
    watch.finish(rows=data.feed.rows, batches=len(loader), targets=targets, test_s=tested, **facts)


if __name__ == "__main__":
    main(settings())
