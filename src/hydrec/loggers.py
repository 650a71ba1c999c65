"""Mirrors of a run in W&B and TensorBoard. The run folder is the truth: one that fails is switched off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

Table = tuple[list[str], list[list[Any]]]  # column names, rows


class Wandb(WandbLogger):
    """One W&B run, in the run folder, with configuration, data identity and test table.

    Args:
        project: W&B project.
        offline: keep the run on disk; ``wandb sync RUN_FOLDER/wandb/offline-run-*`` sends it.
        tags: tags of the run.
        group: W&B group; a study's name.
        job_type: W&B job type; the model's name.
        name: shown name of the run.
        save_dir: the run folder; W&B makes ``wandb/`` in it.
    """

    def __init__(
        self,
        *,
        project: str,
        offline: bool,
        tags: list[str],
        group: str | None,
        job_type: str,
        name: str,
        save_dir: Path,
    ) -> None:
        super().__init__(
            project=project,
            offline=offline,
            tags=tags,
            group=group,
            job_type=job_type,
            name=name,
            save_dir=save_dir,
            reinit="finish_previous",
            settings={"silent": True, "console": "off"},
        )

    def log_result(self, metrics: dict[str, float], table: Table) -> None:
        """Puts the test metrics into the run's summary and the table of results beside them."""
        import wandb

        self.experiment.log({"test_table": wandb.Table(columns=[*table[0]], data=table[1])})
        self.experiment.summary.update(metrics)

    def close(self, status: str) -> None:
        """Ends the W&B run, so that the next one in this process is its own."""
        self.experiment.finish(exit_code=0 if status == "success" else 1)


class TensorBoard(TensorBoardLogger):
    """TensorBoard event files in the run folder, under ``tensorboard/``.

    Args:
        save_dir: the run folder.
    """

    def __init__(self, *, save_dir: Path, job_type: str, name: str) -> None:
        super().__init__(save_dir=save_dir, name="tensorboard", version="")

    def log_result(self, metrics: dict[str, float], table: Table) -> None:
        """Writes the table of results as Markdown text."""
        header, rows = table
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join("|" + "|".join(str(cell) for cell in line) + "|" for line in lines)
        self.experiment.add_text("test_table", text)

    def close(self, status: str) -> None:
        """Flushes the event file."""
        self.experiment.close()


class Mirror(Logger):
    """Passes everything on to a logger until that fails once; then says so and keeps quiet: the run goes on.

    Args:
        name: as in the logger configuration; used in the line that is printed.
        make: makes the logger; not called on processes other than the first.
        warn: prints a line.
    """

    def __init__(self, name: str, make: Callable[[], Any], *, warn: Callable[[str], None]) -> None:
        super().__init__()
        self._name, self._warn = name, warn
        self._logger: Any = None
        self._attempt(lambda: setattr(self, "_logger", make()))

    @rank_zero_only
    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever a mirror does must not cost the run
            self._logger = None
            self._warn(
                f"warning: logger {self._name} is off ({type(error).__name__}: {error}); "
                "the run goes on and its folder has everything"
            )

    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        if self._logger is not None:
            self._attempt(lambda: getattr(self._logger, method)(*args, **kwargs))

    @property
    def name(self) -> str:
        """The logger's name in the configuration."""
        return self._name

    @property
    def version(self) -> str:
        """Runs are told apart by their folder."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Logs metrics at a step."""
        self._pass_on("log_metrics", metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Logs the configuration."""
        self._pass_on("log_hyperparams", params)

    def log_result(self, metrics: dict[str, float], table: Table) -> None:
        """Logs the final test metrics and the table of results."""
        self._pass_on("log_result", metrics, table)

    def save(self) -> None:
        """Writes what is buffered."""
        self._pass_on("save")

    def close(self, status: str) -> None:
        """Ends the run of the logger; called once, also after an exception."""
        self._pass_on("close", status)
        self._logger = None
