"""A finished run, opened again from its folder: its configuration, data and trained task; and its W&B run."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hydra.utils import get_class, instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from hydrec.callbacks import read_checkpoint, say
from hydrec.data.module import LogData
from hydrec.data.page import drawn
from hydrec.errors import InputError
from hydrec.runs import RunFolder, write_atomically
from hydrec.tasks import Click, NextItem

GENRES = ("genres", "categories", "category")  # what readers call it
SHOWN = 10_000  # rows of a table that W&B gets, at most: it shows no more


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
        model: what it calls its model.
        title: what the run is, for a figure or a table.
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
        self.model: str = self.cfg.names.model
        self.title = (
            f"{about['dataset']['name']}, {self.cfg.names.protocol}, {self.model}, seed {self.cfg.seed}"
        )

    @property
    def net_class(self) -> type:
        """The class of its net."""
        return get_class(self.cfg.model.net._target_)

    def data(self) -> LogData:
        """The data, prepared.

        Raises:
            InputError: they are other than those of the run.
        """
        data: LogData = instantiate(self.cfg.dataset, _convert_="all")
        data.prepare()
        then, now = self.about["dataset"]["fingerprint"], data.log.fingerprint
        if then != now:
            raise InputError(
                f"{self.folder.path} was run on other data (fingerprint {then[:12]}, now {now[:12]}): set"
                " HYDREC_DATA to the folder of those files"
            )
        return data

    def load(self) -> tuple[LogData, Any]:
        """The data, prepared, and the task (`NextItem` or `Click`) with the weights that were tested.

        Raises:
            InputError: the data are other than those of the run, or the checkpoint is of another net.
        """
        data = self.data()
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

    def need_ranking(self, command: str) -> None:
        """Stops what makes no sense for a model of clicks.

        Raises:
            InputError: the run is of one.
        """
        if get_class(self.cfg.model._target_) is not NextItem:
            raise InputError(
                f"{self.folder.path} is of {self.model}, a model of clicks: {command} explains models that"
                " rank items"
            )

    def need_same_test(self, other: "FinishedRun") -> None:
        """Stops a comparison of what cannot be compared.

        Raises:
            InputError: the runs were tested on other data, or under another protocol; names it.
        """
        for what, mine, theirs in (
            ("data (fingerprint)", *(run.about["dataset"]["fingerprint"][:12] for run in (self, other))),
            ("protocol (digest)", *(run.about["protocol_digest"][:12] for run in (self, other))),
        ):
            if mine != theirs:
                raise InputError(
                    f"{self.folder.path} and {other.folder.path} differ in their {what}, {mine} and {theirs}:"
                    " only runs with the same test can be compared"
                )

    def items(self) -> pl.DataFrame:
        """Each item's ``item`` (its number), ``raw`` id, ``title`` and ``genres``, a list of words.

        The title is the raw id where the data have none. Genres are the first of ``GENRES`` that items have
        as a feature, else their first feature; none are known where they have no feature.
        """
        found = pl.read_parquet(self.folder.path / "catalog.parquet")
        words = [name for name, kind in found.schema.items() if kind == pl.List(pl.String)]
        genres = next((name for name in (*GENRES, *words) if name in words), None)
        known = pl.lit([], pl.List(pl.String)) if genres is None else pl.col(genres)
        title = pl.col("title").replace("", None) if "title" in found.columns else pl.lit(None)
        return found.select(
            "item",
            "raw",
            title=pl.coalesce(title, "raw"),
            genres=known.list.filter(~pl.element().is_in(["", "unknown"])),
        )

    def tested(self) -> pl.DataFrame:
        """``test.parquet``: what the run left of its test."""
        return pl.read_parquet(self.folder.path / "test.parquet")

    def leave(
        self,
        command: str,
        out: str,
        tables: dict[str, pl.DataFrame],
        pages: dict[str, Figure],
        *,
        wandb: bool,
    ) -> None:
        """Writes tables (csv) and pages (svg, png) by name, mirrors them if asked, and says where they are.

        Args:
            command: what made them.
            out: the folder; "" for ``explain/COMMAND`` in the run's.
            tables: to write; lists of words are joined.
            pages: to write.
            wandb: whether they go to the run's W&B run as well.
        """
        folder = Path(out) if out else self.folder.path / "explain" / command
        tables = {name: _flat(frame) for name, frame in tables.items()}
        for name, frame in tables.items():
            write_atomically(folder / f"{name}.csv", frame.write_csv())
        for name, page in pages.items():
            for form in ("svg", "png"):
                write_atomically(folder / f"{name}.{form}", drawn(page, form))
        if wandb:
            self.mirror(
                {f"explain/{name}": folder / f"{name}.png" for name in pages},
                {f"explain/{name}_table": frame[evenly(len(frame), SHOWN)] for name, frame in tables.items()},
            )
        say(f"tables and figures are in {folder}")

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


def evenly(n: int, most: int) -> np.ndarray:
    """Positions of all of n rows, or of ``most`` of them evenly from the first to the last.

    >>> len(evenly(7, 200)), evenly(1000, 200)[[0, 1, -1]].tolist()
    (7, [0, 5, 999])
    """
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists of words as one text each: csv has no lists."""
    return frame.with_columns(pl.col(pl.List(pl.String)).list.join(", "))
