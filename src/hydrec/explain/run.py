"""A finished run, opened again from its folder: its configuration, data and trained task; and its W&B run."""

from pathlib import Path
from typing import Any

import polars as pl
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from hydrec.callbacks import read_checkpoint
from hydrec.data.module import LogData
from hydrec.errors import InputError
from hydrec.runs import RunFolder
from hydrec.tasks import Click, NextItem


class FinishedRun:
    """What a run left.

    Args:
        path: its folder.

    Raises:
        InputError: it is no run folder, or of a run that is not finished.

    Attributes:
        folder: the folder.
        cfg: the configuration, resolved.
        about: ``run.json``.
        net_class: the class of its net.
    """

    def __init__(self, path: str) -> None:
        self.folder = RunFolder(Path(path))
        try:
            self.cfg: Any = OmegaConf.load(self.folder.path / "config.yaml")
        except OSError as error:
            raise InputError(
                f"run={path} is no run folder: config.yaml cannot be read ({error.strerror}); give one"
                " such as runs/single/NAME"
            ) from error
        about = self.folder.read("run.json")
        if about is None or self.folder.read("metrics.json") is None:
            raise InputError(f"run={path} is not finished: its command, given again, continues it")
        self.about: dict[str, Any] = about
        self.net_class: type = get_class(self.cfg.model.net._target_)

    def load(self) -> tuple[LogData, NextItem | Click]:
        """The data, prepared, and the task with the weights that were tested.

        Raises:
            InputError: the data are other than those of the run, or the checkpoint is of another net.
        """
        data: LogData = instantiate(self.cfg.dataset, _convert_="all")
        data.prepare()
        then, now = self.about["dataset"]["fingerprint"], data.log.fingerprint
        if then != now:
            raise InputError(
                f"{self.folder.path} was run on other data (fingerprint {then[:12]}, now {now[:12]}): set"
                " HYDREC_DATA to the folder of those files"
            )
        task: NextItem | Click = instantiate(self.cfg.model, _convert_="all")(
            data.catalog, data.protocol.metrics, self.cfg.seed
        )
        checkpoint = self.folder.best if self.cfg.fit else Path(self.cfg.ckpt_path)
        try:
            task.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
        except RuntimeError as error:  # torch's, of names and shapes
            raise InputError(
                f"{checkpoint} does not fit the net that these sources of hydrec make: use those of the run"
            ) from error
        return data, task.eval()

    def tested(self) -> pl.DataFrame:
        """``test.parquet``: what the run left of its test."""
        return pl.read_parquet(self.folder.path / "test.parquet")

    def wandb_id(self) -> str:
        """The id of the W&B run of this run, the last one where it was continued.

        Raises:
            InputError: it has none.
        """
        begun = [path.name.rsplit("-", 2)[1:] for path in self.folder.path.glob("wandb/*run-*-*")]
        if not begun or "wandb" not in (self.cfg.logger or {}):
            raise InputError(f"wandb=true: {self.folder.path} has no W&B run; leave it out")
        return max(begun)[1]  # by the time in the name

    def mirror(self, images: dict[str, Path], tables: dict[str, pl.DataFrame]) -> None:
        """Adds pictures (files) and tables, by name, to the W&B run of this run, offline if that was.

        Raises:
            InputError: it has none.
        """
        import wandb

        own = self.cfg.logger.wandb
        again = wandb.init(
            id=self.wandb_id(),
            resume="allow",
            mode="offline" if own.offline else "online",
            project=own.project,
            group=own.group,
            tags=own.tags,
            job_type=self.cfg.names.model,
            name=self.folder.path.name,
            dir=self.folder.path,
            settings=wandb.Settings(silent=True, console="off"),
        )
        shown: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in images.items()}
        for name, frame in tables.items():
            shown[name] = wandb.Table(columns=[*frame.columns], data=frame.rows())
        again.log(shown)
        again.finish()
