"""What happens around an epoch: checkpoints that resume exactly, early stopping, and ``history.csv``."""

import io
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only

from hydrec.errors import InputError
from hydrec.runs import RunFolder, write_atomically


@rank_zero_only
def say(line: str) -> None:
    """Prints a line once, whatever the number of processes."""
    print(line, flush=True)


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints that are whole or absent, and plain enough to load with ``weights_only=True``.

    Lightning's own go through the temporary directory; from there to another disk is a copy, which a
    kill cuts short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Serialises in memory, then writes by rename."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Loads a checkpoint without unpickling code.

        Raises:
            InputError: the file is absent or not a checkpoint.
        """
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        InputError: the file is absent or not a checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"ckpt_path={path}: no such file; a run has checkpoints/best.ckpt") from error
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError and more, by where the damage is
        raise InputError(
            f"{path} is not a checkpoint ({type(error).__name__}); give another, or delete it if it is the"
            " last.ckpt of a run that is to continue"
        ) from error


def checkpoints(folder: RunFolder, *, monitor: str, mode: str) -> list[pl.Callback]:
    """Keeps ``best.ckpt`` by the monitored value, then ``last.ckpt`` of every finished epoch."""
    common: dict[str, Any] = {"dirpath": folder.best.parent, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename=folder.best.stem, monitor=monitor, mode=mode, **common),
        ModelCheckpoint(filename=folder.last.stem, save_on_train_epoch_end=True, **common),
    ]


class Patience(EarlyStopping):
    """Early stopping after so many steps, which a resumed run remembers: one that had stopped trains no more.

    On few data an epoch is few steps, and many models rank by popularity at first: without ``min_steps`` they
    would be stopped there. ``Trainer(min_steps=...)`` holds a stop back, but never takes it back.

    Args:
        monitor: the metric that must gain.
        mode: ``max`` or ``min``.
        patience: validations without a gain.
        min_steps: of the optimiser, before which nothing stops.
    """

    def __init__(self, monitor: str, *, mode: str, patience: int, min_steps: int) -> None:
        super().__init__(monitor, mode=mode, patience=patience)
        self.min_steps = min_steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after the states of callback and trainer are restored."""
        trainer.should_stop = self.wait_count >= self.patience and trainer.global_step >= self.min_steps

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the epoch, where each is validated."""
        super().on_train_epoch_end(trainer, pl_module)
        self._hold(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts the validation, where not each epoch has one."""
        super().on_validation_end(trainer, pl_module)
        self._hold(trainer)

    def _hold(self, trainer: pl.Trainer) -> None:
        if trainer.global_step < self.min_steps:
            trainer.should_stop = False


class History(pl.Callback):
    """Writes ``history.csv``: per epoch, cumulative steps, losses, validation metrics, a net's ``scalars()``.

    The rows travel in the checkpoint, so a resumed run writes the file that the uninterrupted run writes.
    Wall-clock seconds are kept apart for that reason.

    Args:
        folder: where the file goes.
        monitor: the metric that chooses the epoch.
        echo: also prints a line per epoch (where no progress bar is drawn).
    """

    def __init__(self, folder: RunFolder, *, monitor: str, echo: bool) -> None:
        self.folder, self.monitor, self.echo = folder, monitor, echo
        self.rows: list[dict[str, Any]] = []
        self.seconds = self.validating = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of an epoch."""
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock of a validation."""
        self.began = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops it."""
        self.validating += time.perf_counter() - self.began

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the epoch's row.

        Raises:
            InputError: the training loss is not finite.
        """
        task: Any = pl_module
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {name: float(mean) for name, mean in task.losses.means(trainer).items()}
        if not math.isfinite(row["train/loss"]):
            raise InputError(
                f"epoch {trainer.current_epoch}: the training loss is not finite; lower model.optimiser.lr "
                "or set trainer.gradient_clip_val"
            )
        row |= {k: v for k, v in task.results.items() if k.startswith("valid/")}
        if hasattr(task.net, "scalars"):
            row |= task.net.scalars()
        self.rows.append(row)
        self.seconds += time.perf_counter() - self.started
        if trainer.is_global_zero:
            self.folder.write_csv("history.csv", self.rows)
        if self.echo:
            say(
                f"epoch {row['epoch']:3d}  loss {row['train/loss']:.4f}  {self.monitor} "
                f"{row.get(self.monitor, math.nan):.4f}  {self.seconds / len(self.rows):.1f} s an epoch"
            )

    def state_dict(self) -> dict[str, Any]:
        """Rows and seconds, for the checkpoint."""
        return {"rows": self.rows, "seconds": self.seconds, "validating": self.validating}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes rows and seconds from the checkpoint."""
        self.rows, self.seconds = list(state_dict["rows"]), state_dict["seconds"]
        self.validating = state_dict["validating"]


class Identity(pl.Callback):
    """Writes what a checkpoint is, and what it was trained on, into it.

    Args:
        data: name, fingerprint and sizes of the dataset, its split, model and seed, plain JSON values.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def state_dict(self) -> dict[str, Any]:
        """The identity, for the checkpoint."""
        return self.data

    def weights(self, path: str | Path) -> dict[str, Any]:
        """The state dict of a checkpoint of this model that was trained on this part of this data.

        Raises:
            InputError: it is not a checkpoint, or is of another: names the first field that differs.
        """
        checkpoint = read_checkpoint(path)
        found = checkpoint.get("callbacks", {}).get(self.state_key, {})
        for field, value in self.data.items():
            if found.get(field) != value:
                raise InputError(
                    f"{path} is of another run: its {field} is {found.get(field)}, here it is {value};"
                    " give the options of its run (config.yaml beside it)"
                )
        return checkpoint["state_dict"]
