"""Raw files: where they lie, and what is in them, block by block, or one line that says what is wrong.

A file is read in blocks of whole lines, so memory does not grow with it; a block is parsed in one step, and
only where that fails is it looked at line by line, to name the first that is wrong. Text is UTF-8.
"""

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from hydrec.errors import InputError

BLOCK = 2**26  # bytes read at once
MARK = b"\xef\xbb\xbf"  # of byte order
BOMB = 200, 2**30  # a gzip file may not grow more than so many times once it has given so many bytes

# A string of Python or JSON: what is in between lands in one of two groups
STRING = r"""[ub]?'((?:[^'\\]|\\.)*)'|[ub]?"((?:[^"\\]|\\.)*)\""""
# Bytes that stand for what must not be mistaken: a file that has them is refused
MARKS = OPEN, CLOSE, SLASH, OTHER = "\x01\x02\x03\x04"
JOINED = "\x1f"  # for separators of several bytes, and between the values of a Parquet list

# A character of several bytes in UTF-8; in Latin-1 a letter before signs that do not follow one
WIDE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


class Block(NamedTuple):
    """Some whole lines of a file.

    Attributes:
        line: number of the first, from 1.
        content: the lines in UTF-8, the last without its end.
    """

    line: int
    content: bytes

    def lines(self) -> pl.Series:
        """The lines one by one, without a carriage return at the end."""
        return pl.Series("lines", [self.content.decode()]).str.split("\n").explode().str.strip_suffix("\r")


# Where files lie --------------------------------------------------------------------------------------------


def places(folder: str, root: str) -> list[Path]:
    """Where a data set's folder may be: in ``$HYDREC_DATA``, then in ``root``."""
    return [Path(each) / folder for each in (os.environ.get("HYDREC_DATA"), root) if each]


def plain_or_gz(path: Path) -> Path | None:
    """The file, or else the same with ``.gz``, or else nothing."""
    return next((each for each in (path, Path(f"{path}.gz")) if each.is_file()), None)


# Lines ------------------------------------------------------------------------------------------------------


def blocks(
    path: Path,
    mend: str,
    *,
    header: int = 0,
    cut: bool = False,
    size: int = BLOCK,
    marks: str = "",
    latin: bool = False,
) -> Iterator[Block]:
    """Yields the lines of a text file, plain or gzipped, without byte order mark and blank lines at the end.

    Args:
        path: the file.
        mend: the remedy that closes a message.
        header: lines to leave out at the beginning.
        cut: whether the last line may have no end; where a publisher's never does, one that is missing tells
            that the file was cut off, perhaps inside of a number.
        size: bytes read at once; a line, and a run of blank lines, must be shorter.
        marks: ASCII characters, besides NUL, that the file must not have, since to its reader they stand for
            something else.
        latin: whether the file may be Latin-1. Then all its characters beyond ASCII are, or none is.

    Raises:
        InputError: the file cannot be read or unpacked, is no text, is cut off, or has no lines.
    """
    line, rest, empty = 1, b"", True
    for chunk in _chunks(path, mend, size):
        for mark in f"\0{marks}".encode():
            if (at := chunk.find(mark)) >= 0:
                number = line + (rest + chunk).count(b"\n", 0, len(rest) + at)
                what = f"a byte {mark:#04x}, which is no text" if mark else "a NUL byte, as in UTF-16 text"
                raise InputError(f"{path}:{number}: {what}; save it as UTF-8, or {mend}")
        rest += chunk
        end = rest.rfind(b"\n")
        full = len(rest[: end + 1].rstrip(b" \r\n"))  # blank lines wait for a line after them
        if not full and len(rest) > size:
            what = "a line" if end < 0 else "blank lines"
            raise InputError(f"{path}:{line}: {what} of more than {size:,} bytes; {mend}")
        if not full:
            continue
        end = rest.index(b"\n", full)  # not at once: blanks may belong to a field
        content, rest = rest[:end].removesuffix(b"\r"), rest[end + 1 :]
        block = _without_header(Block(line, content), header)
        line += content.count(b"\n") + 1
        if block.content:
            empty = False
            yield _utf8(path, block, mend, latin)
        del content, block
    content = rest.rstrip(b" \r\n")
    if content and not cut:
        line += content.count(b"\n")
        raise InputError(f"{path}:{line}: the last line has no end, so it may be cut off; {mend}")
    last = _without_header(Block(line, content), header)
    if last.content:
        yield _utf8(path, last, mend, latin)
    elif empty:
        raise InputError(f"{path}: empty; {mend}")


def _utf8(path: Path, block: Block, mend: str, latin: bool) -> Block:
    if block.content.isascii():
        return block
    try:
        block.content.decode()
    except UnicodeDecodeError as wrong:
        if latin and not WIDE.search(block.content):
            return block._replace(content=block.content.decode("latin-1").encode())
        line = block.line + block.content.count(b"\n", 0, wrong.start)
        raise InputError(f"{path}:{line}: not UTF-8; save the file as UTF-8, or {mend}") from wrong
    if (at := (b"\n" + block.content).find(b"\n" + MARK)) >= 0:
        line = block.line + block.content.count(b"\n", 0, at)
        raise InputError(f"{path}:{line}: a byte order mark, as where two files were joined; {mend}")
    return block


def _without_header(block: Block, header: int) -> Block:
    line, content = block
    while line <= header:
        _, _, content = content.partition(b"\n")
        line += 1
    return Block(line, content)


def _chunks(path: Path, mend: str, size: int) -> Iterator[bytes]:
    try:
        packed = path.stat().st_size
        file: IO[bytes]
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:  # type: ignore[assignment]
            total, chunk = 0, file.read(size).removeprefix(MARK)
            while chunk:
                total += len(chunk)
                if total > BOMB[1] and total > BOMB[0] * packed:
                    raise InputError(f"{path}: unpacks to more than {BOMB[0]} times its size; {mend}")
                yield chunk
                chunk = file.read(size)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); {mend}") from error


def first_line(path: Path, mend: str) -> str:
    """The first line of a file, without its end."""
    return next(blocks(path, mend, cut=True, size=2**20)).lines()[0]


def expect_header(path: Path, form: str, mend: str) -> None:
    """Refuses a file whose first line is not ``form``."""
    found = first_line(path, mend).strip()
    if found != form:
        raise InputError(f"{path}:1: the header is '{found[:200]}', not '{form}'; {mend}")


# Delimited text ---------------------------------------------------------------------------------------------


def delimited(
    path: Path,
    schema: Mapping[str, pl.DataType | type[pl.DataType]],
    *,
    separator: str,
    form: str,
    mend: str,
    header: int = 0,
) -> pl.DataFrame:
    """Reads a file of separated fields without quotes, whose rows all have every field.

    Args:
        path: the file.
        schema: the fields in order. Numbers must be finite and 0 or more, text must not be empty.
        separator: of the fields, of one or more bytes.
        form: what a line looks like, for messages.
        mend: the remedy that closes a message.
        header: lines to leave out at the beginning.

    Returns:
        The columns of ``schema`` in the order of the file.

    Raises:
        InputError: the file, or a line, cannot be used.
    """
    frames = []
    single, marks = (separator, "") if len(separator) == 1 else (JOINED, JOINED)  # the parser takes one byte
    for block in blocks(path, mend, header=header, marks=marks):
        content = block.content
        if single != separator:
            content = content.replace(separator.encode(), single.encode())
        if (at := content.find(f"\r{single}".encode())) >= 0:  # which the parser would drop
            line = block.line + content.count(b"\n", 0, at)
            raise InputError(f"{path}:{line}: a carriage return in the middle of a line; {mend}")
        try:
            frame = pl.read_csv(
                content, has_header=False, schema=schema, separator=single, quote_char=None, encoding="utf8"
            )
            usable = all(frame.select(_usable(name, kind).all() for name, kind in schema.items()).row(0))
        except pl.exceptions.PolarsError:
            usable = False
        if not usable:
            raise _first_wrong(path, block, schema, separator, form, mend)
        frames.append(frame)
    return pl.concat(frames, rechunk=True)


def _usable(name: str, kind: object) -> pl.Expr:
    field = pl.col(name)
    usable = field != "" if kind == pl.String else field.is_finite() & (field >= 0)
    return usable.fill_null(False)


def _first_wrong(
    path: Path, block: Block, schema: Mapping, separator: str, form: str, mend: str
) -> InputError:
    """Says which line is the first that is wrong, and what is wrong with it."""
    lines = block.lines()
    cells = pl.DataFrame({"cells": lines.str.split(separator)})
    count = pl.col("cells").list.len()
    tests = [pl.when(count != len(schema)).then(pl.format("{} instead of {} fields", count, len(schema)))]
    for place, (name, kind) in enumerate(schema.items()):
        cell = pl.col("cells").list.get(place, null_on_oob=True)
        shown = cell.str.replace_all("\r", "\\r", literal=True)
        what = "text" if kind == pl.String else "a number of 0 or more"
        if kind in (pl.Int64, pl.Int32):
            what = "a whole number of 0 or more"
        value = cell.cast(kind, strict=False).alias(name)
        usable = value != "" if kind == pl.String else value.is_finite() & (value >= 0)
        tests.append(pl.when(~usable.fill_null(False)).then(pl.format(f"{name} '{{}}' is not {what}", shown)))
    row, wrong = cells.select(pl.coalesce(tests)).with_row_index().drop_nulls().row(0)
    return InputError(f"{path}:{block.line + row}: {wrong} (a line is {form}); {mend}")


# Records ----------------------------------------------------------------------------------------------------


def records(
    path: Path, fields: Mapping[str, pl.DataType | type[pl.DataType]], mend: str
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Reads a file with one dictionary a line, of JSON or as Python prints it; nothing is evaluated.

    Args:
        path: the file.
        fields: the keys to read, at the top, with their types, which may nest (``pl.List(pl.Struct(...))``);
            numbers are best read as ``pl.String``, since as a number true is 1 and text no field. A key that
            a line lacks is null there; other keys are skipped.
        mend: the remedy that closes a message.

    Yields:
        The number of a block's first line, and its lines as a frame, one row each.

    Raises:
        InputError: the file, or a line, cannot be used.
    """
    kind = pl.Struct(dict(fields))
    for block in blocks(path, mend, cut=True, marks="".join(MARKS)):  # half a dictionary is none
        lines = block.lines()
        if not (lines[0] or "").startswith('{"'):
            lines = as_json(lines)
        frame = _decoded(lines, kind)
        if frame is None:
            row = _first_undecodable(lines, kind)
            raise InputError(
                f"{path}:{block.line + row}: not a dictionary with the fields {', '.join(fields)}"
                f" ({block.lines()[row][:60]!r} ...); {mend}"
            )
        for row in _repeated(lines, frame).arg_true()[:1]:
            raise InputError(f"{path}:{block.line + row}: one of {', '.join(fields)} comes twice; {mend}")
        yield block.line, frame


def require(path: Path, rows: pl.DataFrame, field: str, usable: pl.Expr, what: str, mend: str) -> None:
    """Refuses the first of the rows, which have their ``line``, whose field is not usable; null is none."""
    wrong = rows.filter(~usable.fill_null(False)).head(1)
    if len(wrong):
        found = str(wrong[field][0])[:60]
        raise InputError(f"{path}:{wrong['line'][0]}: {field} {found!r} is not {what}; {mend}")


def _repeated(lines: pl.Series, frame: pl.DataFrame) -> pl.Series:
    """Whether a line has a key again, of which the decoder would take the first, and Python the last."""
    most = {name: pl.lit(1) for name in frame.columns}
    for name, kind in frame.schema.items():
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
            most |= {field.name: pl.col(name).list.len().fill_null(0) for field in kind.inner.fields}
    # what is in text does not count: its quotes are escaped
    keys = [lines.str.count_matches(f'"{key}"\\s*:').alias(f"keys {key}") for key in most]
    often = [pl.col(f"keys {key}") > times for key, times in most.items()]
    return frame.with_columns(keys).select(pl.any_horizontal(often)).to_series()


def _decoded(lines: pl.Series, kind: pl.Struct) -> pl.DataFrame | None:
    """The lines as rows, or nothing where one is no dictionary."""
    # the parser sees the lines as one array: a blank one would vanish, and `{}, {}` count twice
    if not lines.str.contains(r"^\s*\{.*\}\s*$").all():
        return None
    try:
        rows = lines.str.json_decode(kind)
    except pl.exceptions.PolarsError:
        return None
    return rows.struct.unnest() if len(rows) == len(lines) else None


def _first_undecodable(lines: pl.Series, kind: pl.Struct) -> int:
    low, high = 0, len(lines)  # the lines before low can be decoded, those before high cannot
    while high - low > 1:
        middle = (low + high) // 2
        if _decoded(lines[low:middle], kind) is None:
            high = middle
        else:
            low = middle
    return low


def as_json(lines: pl.Series) -> pl.Series:
    r"""Turns dictionaries as Python 2 or 3 prints them into JSON, text only; what is neither stays broken.

    >>> printed = str({"id": "7", "ok": True, "it": "don't", "of": [None, 'a"b', "\xe9"]})
    >>> as_json(pl.Series([printed]))[0]
    '{"id": "7", "ok": true, "it": "don\'t", "of": [null, "a\\"b", "é"]}'
    """
    text = lines.str.replace_all(STRING, f"{OPEN}${{1}}${{2}}{CLOSE}")
    for python, json in (("True", "true"), ("False", "false"), ("None", "null")):
        # strings are matched to be passed over: what is marked without being one is the word
        text = text.str.replace_all(rf"({OPEN}[^{CLOSE}]*{CLOSE})|\b{python}\b", f"${{1}}{OTHER}")
        text = text.str.replace_all(f"{CLOSE}{OTHER}", CLOSE, literal=True)
        text = text.str.replace_all(OTHER, json, literal=True)
    text = text.str.replace_all("\\\\", SLASH, literal=True)
    text = text.str.replace_all("\\'", "'", literal=True).str.replace_all('\\"', '"', literal=True)
    text = text.str.replace_all('"', '\\"', literal=True).str.replace_all(r"\\x([0-9a-fA-F]{2})", r"\u00${1}")
    wide = text.str.extract_all(r"\\U[0-9a-fA-F]{8}").explode().drop_nulls().unique().to_list()
    if wide:
        text = text.str.replace_many(wide, [_character(each) for each in wide])
    text = text.str.replace_all(SLASH, "\\\\", literal=True)
    return text.str.replace_all(OPEN, '"', literal=True).str.replace_all(CLOSE, '"', literal=True)


def _character(escape: str) -> str:
    number = int(escape[2:], 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\N{REPLACEMENT CHARACTER}"
