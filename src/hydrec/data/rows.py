"""Rows of a text file or of Parquet, some at a time, of only the columns that are asked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl

from hydrec.data import raw
from hydrec.data.raw import JOINED
from hydrec.errors import InputError

KEY = "dataset.reader"
MEND = "mend the file"
BLOCK = 2**24  # bytes of text read at once
SLICE = 2**22  # rows of Parquet read at once


class Text:
    """Rows of fields, plain or gzipped; a quoted field may hold separators, line ends and quotes, doubled.

    The parser takes rows with too few or too many fields, and quotes in the middle of one, for good; so it is
    given only what was found to be whole rows.

    Args:
        path: the file.
        separator: of fields, one or more bytes.
        quote: one byte, or None where quotes mean nothing.
        header: whether the first row has the names; else they are the numbers from 1.

    Attributes:
        names: of the columns, in order.

    Raises:
        InputError: the file cannot be read, or begins with no row.
    """

    def __init__(self, path: Path, *, separator: str, quote: str | None, header: bool) -> None:
        self.path, self.separator, self.quote = path, separator, quote
        self.mark = separator if len(separator.encode()) == 1 else JOINED  # the parser takes one byte
        self.marks = JOINED if separator != JOINED else ""  # JOINED stands for ends of values as well
        block = next(raw.blocks(path, MEND, cut=True, size=2**20, marks=self.marks))
        block = raw.Block(1, self._marked(block.content))
        fields, _, starts = self._rows(block)
        if not len(fields):
            raise self._unclosed(1)
        self.names = [str(number) for number in range(1, fields[0] + 1)]
        self.header = 0  # lines
        if header:
            first = raw.Block(1, block.content[: starts[1]])
            self.names = [name or "" for name in self._parse(first, range(len(self.names))).row(0)]
            self.header = first.content.count(b"\n")

    def place(self, line: int) -> str:
        """The path, and the line in which a row begins."""
        return f"{self.path}:{line}"

    def frames(self, columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        """Yields columns, by new name -> name, as text, and ``line`` for `place`.

        Raises:
            InputError: the file, or a row, cannot be used.
        """
        places = {new: self.names.index(name) for new, name in columns.items()}
        rest = b""
        for block in raw.blocks(self.path, MEND, header=self.header, cut=True, size=BLOCK, marks=self.marks):
            block = raw.Block(block.line - rest.count(b"\n"), rest + self._marked(block.content))
            fields, lines, starts = self._rows(block)
            end = starts[-1]
            for row in np.flatnonzero(fields != len(self.names))[:1]:
                what = f"{fields[row]} instead of {len(self.names)} fields"
                raise InputError(f"{self.place(lines[row])}: {what}; {MEND}")
            if end:
                whole = raw.Block(block.line, block.content[:end])
                frame = self._parse(whole, sorted(set(places.values())))
                if self.mark != self.separator:  # inside of quotes
                    frame = frame.with_columns(
                        pl.all().str.replace_all(self.mark, self.separator, literal=True)
                    )
                kept = {new: pl.col(str(place)) for new, place in places.items()}
                yield frame.select(pl.Series("line", lines, pl.UInt32), **kept)
            rest = block.content[end:]
            if len(rest) > raw.BLOCK:
                break
        if rest:
            raise self._unclosed(block.line + block.content.count(b"\n", 0, end))

    def _marked(self, content: bytes) -> bytes:
        """Ends the last line, and makes the separator one byte."""
        if self.mark != self.separator:
            content = content.replace(self.separator.encode(), self.mark.encode())
        return content + b"\n"

    def _rows(self, block: raw.Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds the rows that end in a block: fields, line and first byte of each, and the byte after all."""
        text = np.frombuffer(block.content, np.uint8)
        newlines, marks, quotes = (
            np.flatnonzero(text == ord(each)) if each else np.empty(0, np.int64)
            for each in ("\n", self.mark, self.quote)
        )
        if len(quotes):
            beside = [ord("\n"), ord(self.mark), text[quotes[0]]]
            opens, closes = quotes[::2], quotes[1::2]
            astray = np.append(
                opens[~np.isin(text[opens - 1], beside)],
                closes[~np.isin(text[closes + 1], [*beside, ord("\r")])],
            )
            if len(astray):
                line = block.line + np.searchsorted(newlines, astray.min())
                raise InputError(
                    f"{self.place(line)}: a quote in the middle of a field; {MEND},"
                    f" or set {KEY}.quote=null if quotes mean nothing"
                )
        ends, marks = (places[np.searchsorted(quotes, places) % 2 == 0] for places in (newlines, marks))
        for mark in marks[text[marks - 1] == ord("\r")][:1]:  # which the parser would drop
            line = block.line + np.searchsorted(newlines, mark)
            raise InputError(f"{self.place(line)}: a carriage return in the middle of a line; {MEND}")
        fields = np.diff(np.searchsorted(marks, ends), prepend=0) + 1
        starts = np.append(0, ends + 1)
        return fields, block.line + np.searchsorted(newlines, starts[:-1]), starts

    def _parse(self, block: raw.Block, places: Sequence[int]) -> pl.DataFrame:
        try:
            return pl.read_csv(
                block.content,
                has_header=False,
                schema={str(place): pl.String for place in range(len(self.names))},
                columns=places,
                separator=self.mark,
                quote_char=self.quote,
                encoding="utf8",
            )
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"{self.place(block.line)}: cannot be parsed ({_reason(error)}); {MEND}"
            ) from error

    def _unclosed(self, line: int) -> InputError:
        return InputError(
            f"{self.place(line)}: a quote that is never closed; {MEND},"
            f" or set {KEY}.quote=null if quotes mean nothing"
        )


class Parquet:
    """Rows of a Parquet file.

    Args:
        path: the file.

    Attributes:
        names: of the columns, in order.

    Raises:
        InputError: it cannot be read, or is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading():
            self.scan = pl.scan_parquet(path)
            self.kinds = self.scan.collect_schema()
            self.height = self.scan.select(pl.len()).collect().item()
        self.names = self.kinds.names()
        if not self.height:
            raise InputError(f"{path}: empty; {MEND}")

    def place(self, line: int) -> str:
        """The path, and the number of a row from 1."""
        return f"{self.path}: row {line}"

    def frames(self, columns: Mapping[str, str]) -> Iterator[pl.DataFrame]:
        """Yields columns, by new name -> name, as numbers, times or else text, and ``line`` for `place`.

        Raises:
            InputError: the file, or a column, cannot be read.
        """
        plain = {new: self._plain(name) for new, name in columns.items()}
        for start in range(0, self.height, SLICE):
            with self._reading():
                frame = self.scan.slice(start, SLICE).select(**plain).collect()
            yield frame.with_row_index("line", start + 1)

    def _plain(self, name: str) -> pl.Expr:
        kind, column = self.kinds[name], pl.col(name)
        if isinstance(kind, pl.List | pl.Array):
            return column.cast(pl.List(pl.String)).list.join(JOINED)
        number_or_time = kind.is_numeric() or isinstance(kind, pl.Date | pl.Datetime)
        return column if number_or_time else column.cast(pl.String)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise InputError(f"{self.path}: cannot be read ({_reason(error)}); {MEND}") from error


def _reason(error: Exception) -> str:
    """The first line of a message."""
    return str(error).partition("\n")[0]
