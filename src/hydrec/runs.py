"""The run folder: its name, its lock, and writing into it so that nothing is ever half-written."""

import contextlib
import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hydrec.errors import InputError

# What says where, how loudly or whether to run, but not what is run.
NOT_IN_DIGEST = ("paths", "logger", "launcher", "rerun", "verify")


def digest(config: dict[str, Any]) -> str:
    """Names a resolved configuration: 10 hexadecimal digits over all of it but ``NOT_IN_DIGEST``."""
    kept = {key: value for key, value in config.items() if key not in NOT_IN_DIGEST}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes a file whole or not at all: a temporary neighbour, flushed to disk, then renamed.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"cannot write {path}: {error.strerror}; free the disk or choose another folder"
        ) from error


def hold(folder: Path) -> IO[str] | None:
    """Takes a folder for this process: the file that holds it until it is closed, however the process ends.

    Returns:
        The file, or ``None`` where another process has the folder.

    Raises:
        InputError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise InputError(
            f"cannot write into {folder}: {error.strerror}; choose another paths.runs"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), (folder / ".lock").stat()):
            return file
    except OSError:  # held by another, or moved away just now
        pass
    file.close()
    return None


def release(folder: Path) -> None:
    """Removes a folder that this process holds if nothing was written into it."""
    with contextlib.suppress(OSError):  # gone already, by `set_aside`
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


class RunFolder:
    """One run's files. Only the process of rank 0 writes; every process may read.

    Args:
        path: the folder; made on `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last(self) -> Path:
        """Checkpoint of the last finished epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def best(self) -> Path:
        """Checkpoint that is tested."""
        return self.path / "checkpoints" / "best.ckpt"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or ``None`` where there is none."""
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(
                f"{self.path / name} is not JSON ({error}); move the folder away or give rerun=true"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; the lock goes with the process, however it ends.

        A folder into which nothing was written is removed again.

        Raises:
            InputError: another process runs in this folder, or it cannot be made.
        """
        file = hold(self.path)
        if file is None:
            raise InputError(f"{self.path} is in use by another process; wait for it or stop it")
        with file:
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
            try:
                yield
            finally:
                release(self.path)

    def set_aside(self) -> None:
        """Renames the folder to the first free ``NAME.old1``, ``NAME.old2``...: a repeated run loses nothing.

        Raises:
            InputError: another process runs in the folder.
        """
        if not self.path.exists():
            return
        with self.locked():
            number = 1
            while (old := self.path.with_name(f"{self.path.name}.old{number}")).exists():
                number += 1
            self.path.rename(old)

    def write(self, name: str, content: bytes | str) -> None:
        """Writes one file of the folder, whole or not at all."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a dictionary as indented JSON."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write_csv(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Writes rows as CSV; the columns are all keys in the order they first appear."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(name, text.getvalue())
