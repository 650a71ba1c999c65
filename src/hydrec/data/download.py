"""Downloads: a publisher's files, resumed where they broke off, checked, and in place whole or not at all.

    folder/.NAME.part           what has arrived, kept between tries and runs
    folder/.NAME.part.json      which state of the file it is, so that no other is glued to it
    folder/.NAME.part.unpacked  what an archive holds, until all of it is there
    folder/.lock                held by the process that downloads

With ``HYDREC_OFFLINE=1`` in the environment nothing is downloaded.
"""

import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from hydrec.errors import InputError, MissingData

URL = re.compile(r"https?://[^/\s]+/(?:[^\s?#]*/)?([^\s?#/]+)(?:\?\S*)?")
CHECKSUM = re.compile(r"(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})")

TIMEOUT = 10  # seconds without an answer or a byte
DELAYS = (1, 4, 16)  # seconds before each further try
STEP = 2**20  # bytes; a try that brought as many does not count
BUFFER = 2**18  # bytes read at once
BUSY = (408, 425, 429)  # HTTP: not now; so says 5xx

# what an archive may hold: files, bytes in all, and bytes for each of its own
MEMBERS, BYTES, GROWTH = 10_000, 2**36, 100

logger = logging.getLogger("hydrec")


class Source(NamedTuple):
    """A file at its publisher's.

    Attributes:
        url: where it is; the last part of the path is its name.
        checksum: ``md5:...`` or ``sha256:...`` in hexadecimal digits, or None.
        unpack: whether it is a zip archive, of which only what it holds is kept.
    """

    url: str
    checksum: str | None
    unpack: bool

    @property
    def name(self) -> str:
        """Name of the file."""
        found = URL.fullmatch(self.url)
        return unquote(found[1]) if found else ""


class _Failed(Exception):
    """Why a file cannot be had."""


class _Broken(_Failed):
    """The server answered, but not with all of the file: worth another try."""


class _Unreachable(_Failed):
    """There is no server, which another try would change only if there was one just now."""


def sources(entries: Any) -> list[Source]:
    """Turns the entries of ``dataset.download`` into sources.

    Raises:
        InputError: one is not a ``url``, a ``checksum`` and ``unpack``.
    """
    if not isinstance(entries, list):
        raise InputError(f"dataset.download={entries}: must be a list of files, [] for none")
    found = []
    for number, entry in enumerate(entries):
        key = f"dataset.download[{number}]"
        if not isinstance(entry, dict) or set(entry) != set(Source._fields):
            raise InputError(f"{key}={entry}: must have the keys {', '.join(Source._fields)}, and no other")
        source = Source(**entry)
        if not isinstance(source.url, str) or not re.fullmatch(r"[^./][^/]*", source.name):
            raise InputError(f"{key}.url={source.url}: must be http(s)://HOST/.../NAME of a file")
        if source.checksum is not None and not CHECKSUM.fullmatch(str(source.checksum)):
            raise InputError(
                f"{key}.checksum={source.checksum}: must be md5: with 32 or sha256: with 64"
                " hexadecimal digits in lower case, or null"
            )
        if type(source.unpack) is not bool:
            raise InputError(f"{key}.unpack={source.unpack}: must be true or false")
        found.append(source)
    return found


def fetch(files: list[Source], into: Path, look: Callable[[], Any]) -> None:
    """Downloads files into a folder, unless another process has done so meanwhile.

    A file that is there is left alone. Files appear in the order given, those of an archive by size, so that
    what a reader misses most, the events, comes last, and an interrupted download still counts as none.

    Args:
        files: what to get.
        into: the folder, made if need be.
        look: raises MissingData as long as the files are missing.

    Raises:
        MissingData: a file cannot be had, or not be written: the address, the folder and the reason.
    """
    file = files[0]
    try:
        if os.environ.get("HYDREC_OFFLINE", "0") not in ("", "0"):
            raise _Failed("HYDREC_OFFLINE is set")
        with _locked(into):
            try:
                look()
            except MissingData:
                for file in files:
                    _get(file, into)
    except (_Failed, OSError) as error:
        raise MissingData(
            f"{file.url}: cannot be downloaded ({_reason(error)});"
            f" get it in another way and put {'its files' if file.unpack else 'it'} into {into}"
        ) from error


def _get(file: Source, into: Path) -> None:
    if not file.unpack and (into / file.name).exists():
        return
    part = into / f".{file.name}.part"
    _transfer(file.url, part)
    _check(part, file)
    if file.unpack:
        _unpack(part, into)
    else:
        part.replace(into / file.name)
    _discard(part)
    logger.info("%s: done", file.url)


def _reason(error: BaseException | str) -> str:
    """What went wrong, in one line."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(words.split())


# The lock ---------------------------------------------------------------------------------------------------


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process, after any other; leaves no lock and no empty folder."""
    path = folder / ".lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as stack:
            lock = stack.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s: another process downloads into it; waiting", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # the holder before may have taken the file with it
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                held = stack.pop_all()
                break
    with held:
        try:
            yield
        finally:
            path.unlink()
            with suppress(OSError):  # something is in it
                folder.rmdir()


# The transfer -----------------------------------------------------------------------------------------------


def _transfer(url: str, part: Path) -> None:
    """Fetches what the part lacks, in several tries if need be."""
    delays, reached = iter(DELAYS), False
    while True:
        before = _size(part)
        try:
            return _try(url, part)
        except (_Broken, _Unreachable) as error:
            reached = reached or isinstance(error, _Broken)
            if not reached:
                raise
            if _size(part) >= before + STEP:
                delays = iter(DELAYS)
            delay = next(delays, None)
            if delay is None:
                raise
            logger.info("%s: %s; tries again in %s s", url, error, delay)
            time.sleep(delay)


def _try(url: str, part: Path) -> None:
    known = _known(part)
    have = _size(part) if known.get("url") == url else 0
    if have and have == known.get("size"):
        return
    headers = {"User-Agent": "hydrec"}
    if have and known.get("state"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["state"]}
    with _answer(Request(url, headers=headers), part) as response:
        state, size = _state(response)
        if response.status != 206:
            _discard(part)
            have = 0
            _note(part).write_text(json.dumps({"url": url, "state": state, "size": size}))
        elif (
            not response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            or state not in (None, known.get("state"))
            or size != known.get("size")
        ):
            _discard(part)
            raise _Broken("the rest is of another file")
        amount = f"{size / 1e6:,.1f} MB" if size else "of unknown size"
        since = f", continued at {have / 1e6:,.1f} MB" if have else ""
        logger.info("downloading %s (%s%s) into %s", url, amount, since, part.parent)
        with part.open("ab") as file, _bar(have, size) as advance:
            for chunk in _chunks(response):
                file.write(chunk)
                advance(len(chunk))
            os.fsync(file.fileno())
    if size is not None and _size(part) < size:
        raise _Broken(f"broke off after {_size(part):,} of {size:,} bytes")


def _answer(request: Request, part: Path) -> http.client.HTTPResponse:
    """Asks; only an answer with a file in it comes back."""
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == 416:  # there is no such rest
            _discard(part)
        if error.code in (416, *BUSY) or error.code >= 500:
            raise _Broken(reason) from error
        raise _Failed(reason) from error
    except URLError as error:
        raise _Unreachable(_reason(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error
    if response.headers.get_content_type() == "text/html":
        response.close()
        raise _Failed("the server answers with a web page")
    return response


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read1(BUFFER):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _state(response: http.client.HTTPResponse) -> tuple[str | None, int | None]:
    """What tells this state of the file from others, where the server says so, and its size in bytes."""
    headers = response.headers
    tag = headers.get("ETag", "")
    state = tag if tag.startswith('"') else headers.get("Last-Modified")  # weak tags do not vouch for bytes
    if response.status == 206:
        size = headers.get("Content-Range", "").rpartition("/")[2]
    else:
        size = headers.get("Content-Length", "")
    return state, int(size) if size.isdecimal() else None


def _known(part: Path) -> dict[str, Any]:
    try:
        return json.loads(_note(part).read_text())
    except (OSError, ValueError):  # absent or damaged: the part is of unknown origin
        return {}


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


@contextmanager
def _bar(have: int, size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=size, completed=have)
        yield lambda count: progress.advance(task, count)


# What has arrived -------------------------------------------------------------------------------------------


def _check(part: Path, source: Source) -> None:
    """Compares the digest with the one that is pinned; a wrong file is deleted."""
    algorithm, _, expected = (source.checksum or "sha256:").partition(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if source.checksum is None:
        logger.info("%s: no checksum is known; its sha256 is %s", source.url, found)
    elif found != expected:
        _discard(part)
        raise _Failed(f"its {algorithm} is {found} instead of {expected}; it was deleted")


def _unpack(archive: Path, into: Path) -> None:
    """Puts the files of an archive into a folder, without the folders that the archive has them in."""
    draft = archive.with_name(f"{archive.name}.unpacked")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        with zipfile.ZipFile(archive) as zipped:
            for name, member in _members(zipped, archive.stat().st_size).items():
                with zipped.open(member) as packed, (draft / name).open("xb") as file:
                    shutil.copyfileobj(packed, file)
                    os.fsync(file.fileno())
        for path in sorted(draft.iterdir(), key=_size):
            path.replace(into / path.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, _Failed) as error:
        _discard(archive)
        raise _Failed(f"the archive cannot be unpacked: {error}; it was deleted") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _members(zipped: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by their name, without hidden ones; what no publisher packs is refused."""
    found: dict[str, zipfile.ZipInfo] = {}
    for member in zipped.infolist():
        path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise _Failed(f"{member.filename!r} is outside of it")
        if member.is_dir() or path.name.startswith("."):
            continue
        if kind not in (0, stat.S_IFREG):
            raise _Failed(f"{member.filename!r} is no regular file")
        if path.name.casefold() in {name.casefold() for name in found}:
            raise _Failed(f"two files are called {path.name!r}")
        found[path.name] = member
    # a member ends where its declared size does
    total = sum(member.file_size for member in found.values())
    if len(found) > MEMBERS or total > min(BYTES, GROWTH * size):
        raise _Failed(f"it holds {len(found):,} files of {total:,} bytes")
    if not found:
        raise _Failed("it holds no files")
    return found
