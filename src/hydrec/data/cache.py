"""Logs on disk: columns, memory-mapped, under a digest of the raw bytes and the reader's options.

    folder/sources.json         of each raw file: size, time of change, sha256
    folder/<digest>/00.npy ...  the columns
    folder/<digest>/meta.json   their names, sizes and checksums

Files and entries appear by rename, so an interrupted process leaves nothing that looks whole; what it does
leave is swept away a day later.
"""

import hashlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from hydrec.data.log import InteractionLog, Reader
from hydrec.errors import InputError

FORMAT = 2  # to be raised when logs are built or laid out in another way
STALE = 86400  # seconds since a draft last grew: nobody writes it any more

logger = logging.getLogger("hydrec")


class _Corrupt(OSError):
    """What is on disk is not what was written."""


def load(reader: Reader, folder: str | Path, verify: bool = False) -> InteractionLog:
    """Returns the reader's log from the cache; has it read only where the raw files or the options are new.

    Two processes may build the same entry at the same time: both get the log, and one entry stays.

    The log's fingerprint is then a sha256 of more than the log: of the names and bytes of the raw files, the
    reader's options and the fingerprint that the log has of itself. Where files lie does not count.

    Args:
        reader: where the log comes from.
        folder: home of the cache, made if need be.
        verify: hash every raw file again, not only those whose size or time of change is new.

    Raises:
        MissingData: the raw files are nowhere to be found.
        InputError: the raw files cannot be used, or ``folder`` cannot be written.
    """
    origin = [raw_files(reader, folder, verify), reader.options()]
    log = _entry(reader, Path(folder) / _digest([FORMAT, *origin])[:24])
    return replace(log, fingerprint=_digest([*origin, log.fingerprint]))


def raw_files(reader: Reader, folder: str | Path, verify: bool = False) -> list[tuple[str, str]]:
    """Returns name and sha256 of each raw file; the cache remembers them by size and time of change.

    Args:
        reader: whose files.
        folder: home of the cache, made if need be.
        verify: hash every file again.

    Raises:
        MissingData: the raw files are nowhere to be found.
        InputError: one cannot be read, or ``folder`` cannot be written.
    """
    files, sources = reader.files(), Path(folder) / "sources.json"
    try:
        known = json.loads(sources.read_text())
    except (OSError, ValueError):  # absent or damaged: what it held is found out again
        known = {}
    now: dict[str, dict[str, Any]] = {}
    for path in files:
        key, stat = str(path.resolve()), path.stat()
        now[key] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": ""}
        trusted = not verify and known.get(key, {}) | {"sha256": ""} == now[key]
        now[key]["sha256"] = known[key]["sha256"] if trusted else _sha256(path)
    if known | now != known:
        with _writing(sources.parent):
            sources.parent.mkdir(parents=True, exist_ok=True)
            draft = _beside(sources)
            draft.write_text(json.dumps(known | now, indent=1))
            draft.replace(sources)
    return [(path.name, seen["sha256"]) for path, seen in zip(files, now.values(), strict=True)]


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); mend the permissions or get it again"
        ) from error


def _entry(reader: Reader, entry: Path) -> InteractionLog:
    """Returns the log of an entry, which is built where there is none that is whole."""
    if entry.exists():
        try:
            return _read(entry, reader.name)
        except _Corrupt as reason:
            logger.warning("%s: %s; the entry is built again", entry, reason)
            with _writing(entry.parent):
                _discard(entry)
    log = reader()
    with _writing(entry.parent):
        _sweep(entry.parent)
        return _write(log, entry, reader.name)


def _read(entry: Path, name: str) -> InteractionLog:
    """Maps the columns into memory after a look at every byte; 4 GB/s, so tens of ms for 10 million rows."""
    columns = {}
    try:
        meta = json.loads((entry / "meta.json").read_text())
        for column, (file, *written) in meta["columns"].items():
            if _state(entry / file) != written:
                raise _Corrupt(f"{file} is damaged")
            columns[column] = np.asarray(np.load(entry / file, mmap_mode="r"))
        return InteractionLog.from_columns(
            name, columns, dated=meta["dated"], fingerprint=meta["fingerprint"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Corrupt(error) from error


def _write(log: InteractionLog, entry: Path, name: str) -> InteractionLog:
    """Writes a draft beside the entry and renames it; returns the log as mapped from there."""
    draft = _beside(entry)
    draft.mkdir(parents=True)
    try:
        columns = {}
        for number, (key, column) in enumerate(log.columns().items()):
            path = draft / f"{number:02d}.npy"
            np.save(path, column)
            columns[key] = [path.name, *_state(path)]
        (draft / "meta.json").write_text(
            json.dumps({"fingerprint": log.fingerprint, "dated": log.dated, "columns": columns}, indent=1)
        )
        mapped = _read(draft, name)
        try:
            draft.rename(entry)
        except OSError:
            if not entry.exists():
                raise
            # Another process was first: its entry is as good, and what is mapped stays mapped.
        return mapped
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _state(path: Path) -> list[int]:
    """Returns size and CRC-32 of a file."""
    content = np.memmap(path, np.uint8, "r")
    return [content.size, zlib.crc32(content.data)]


def _discard(entry: Path) -> None:
    """Takes an entry out of sight in one step, then deletes it."""
    trash = _beside(entry)
    with suppress(FileNotFoundError):  # another process was first
        entry.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Deletes what processes that were killed have left; drafts that may still grow stay."""
    for draft in folder.glob(f".*-{'[0-9a-f]' * 32}"):
        with suppress(OSError):  # another process was first, or it is not ours to delete
            if time.time() - draft.stat().st_mtime > STALE:
                shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}-{uuid4().hex}")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{folder}: the cache cannot be written ({reason}); set paths.cache to a folder with room"
        ) from error
