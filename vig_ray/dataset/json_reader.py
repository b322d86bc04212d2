"""Rows from JSON, streamed: one array of any size, or JSON Lines.

The array is read through a window that holds little more than one row, with Python's own parser. The streaming
parsers built on yajl don't do: at half a surrogate pair they either stop or silently put "?" in its place, and a bad
row must neither end the file nor be taken for a good one.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, BinaryIO, cast

from vig_ray.dataset.fields import shorten, type_name
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.rows import Row
from vig_ray.dataset.schema import RowError
from vig_ray.errors import StageError

CHUNK_BYTES = 1 << 20
MAX_ROW_BYTES = 128 << 20
"""The longest row that is read, which bounds memory where a file isn't what its name says."""

# Whole numbers of any length: Python's int refuses to parse more than 4300 digits.
_DECODER = json.JSONDecoder(parse_int=Decimal)
_SPACE = re.compile(r"[ \t\r\n]*")
# In a text that is cut off, the parser may report an error up to this many characters before the cut, as inside
# "\\uXXXX" or "-Infinity".
_CUT_MARGIN = 16


def read_array(stream: BinaryIO, name: str, layout: Layout | None = None) -> Iterator[Row]:
    """The elements of the JSON array in `stream`; one that isn't an object, or isn't UTF-8, is a RowError.

    `layout`: that of --columns. Raises StageError where the array's own syntax is broken, since the rows after that
    can't be found.
    """
    window = _Window(stream)
    if window.peek() != "[":
        raise StageError(f"{name}: not a JSON array; give an array of rows, or JSON Lines with --format jsonl")
    window.at += 1
    number, after = 0, window.peek()
    if after == "]":
        window.at += 1
    while after != "]":
        try:
            content = window.value()
        except (ValueError, RecursionError) as error:
            raise StageError(_broken(name, number, error, window)) from error
        known = content if isinstance(content, (dict, RowError)) else _not_an_object(content)
        yield Row(number, known, layout=layout)
        number += 1
        after = window.peek()
        if after not in ("]", ","):
            where = window.excerpt() if after else "the end of the file"
            raise StageError(_broken(name, number, f"expected ',' or ']' and found {where}", window))
        window.at += 1
    if window.peek():
        raise StageError(
            f"{name}: more text after the array's end ({number} rows): {window.excerpt()}; make it one array"
        )


def read_lines(stream: BinaryIO, number: int = 0, layout: Layout | None = None) -> Iterator[Row]:
    """The objects of JSON Lines; a line that isn't one is a RowError. Blank lines give no row, but are counted.

    `number`: of the first line in `stream`. `layout`: that of --columns.
    """
    lines = io.BufferedReader(cast(io.RawIOBase, stream), CHUNK_BYTES)
    while line := lines.readline(MAX_ROW_BYTES):
        if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
            while (rest := lines.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Row(number, RowError("TooLong", f"a line of more than {MAX_ROW_BYTES >> 20} MiB"))
        else:
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield Row(number, _parse_line(line), layout=layout)
        number += 1


def line_ranges(stream: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Parts of JSON Lines of whole lines and about `size` bytes: each its first line's number, first byte, and the one
    past its last."""
    line = start = at = ends = 0
    while data := bytes(stream.read(CHUNK_BYTES)):
        at += len(data)
        if at - start >= size and (last := data.rfind(b"\n")) >= 0:
            stop = at - len(data) + last + 1
            ends += data.count(b"\n")
            yield line, start, stop
            line, start = ends, stop
        else:
            ends += data.count(b"\n")
    if at > start:
        yield line, start, at


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises RowError."""
    try:
        text = data.decode()
        content = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise RowError("UnicodeDecodeError", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RowError("JSONDecodeError", str(error)) from error
    if not isinstance(content, dict):
        raise _not_an_object(content)
    return content


def _parse_line(line: bytes) -> dict[str, Any] | RowError:
    try:
        return parse_object(line)
    except RowError as error:
        return error


def _not_an_object(content: object) -> RowError:
    return RowError("NotAnObject", f"the row is {type_name(content)}, not an object")


def _broken(name: str, number: int, error: Exception | str, window: _Window) -> str:
    cause = error
    if isinstance(error, json.JSONDecodeError):
        cause = f"{error.msg} at {shorten(error.doc[error.pos : error.pos + 40])}"
    elif isinstance(error, RecursionError):
        cause = "nested too deeply"
    return (
        f"{name}: broken JSON after {number} rows, near character {window.dropped + window.at}: {cause}; the rows "
        f"after it can't be read: mend the file, or write it as JSON Lines, where one bad row spoils no other"
    )


class _Window:
    """The part of a JSON text that is being read.

    Bytes that aren't UTF-8 become lone surrogates (Python's "surrogateescape"). JSON's own escapes can't put these into
    the raw text, so they show which row has broken bytes, and the parser can go on after it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.text = ""
        self.at = 0  # next character of `text`
        self.dropped = 0  # characters of the file that came before `text`
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._ended = False
        self._grow(CHUNK_BYTES)
        self.at += self.text.startswith("\ufeff")

    def excerpt(self) -> str:
        """The next characters, for a message."""
        return shorten(self.text[self.at : self.at + 40])

    def peek(self) -> str:
        """The next character that isn't white space; "" at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if self._ended:
                return ""
            self._grow(CHUNK_BYTES)

    def value(self) -> Any:
        """The next value, or a RowError for one with broken bytes. Raises ValueError, RecursionError on bad syntax."""
        self.peek()
        while True:
            # A value that ends where the window ends may go on after it: 12|34.
            try:
                content, end = _DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self._ended:
                    break
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - _CUT_MARGIN
                if self._ended or not cut:
                    raise
            size = len(self.text) - self.at
            if size > MAX_ROW_BYTES:
                raise ValueError(f"a row of more than {MAX_ROW_BYTES >> 20} MiB, or one that doesn't end")
            # Doubling keeps the work for a long row in proportion to its length.
            self._grow(max(CHUNK_BYTES, size))
        raw = self.text[self.at : end]
        self.at = end
        try:
            raw.encode("utf-8", "surrogateescape").decode()
        except UnicodeDecodeError as error:
            return RowError("UnicodeDecodeError", str(error))
        return content

    def _grow(self, size: int) -> None:
        data = self._stream.read(size)
        self._ended = not data
        self.dropped += self.at
        self.text = self.text[self.at :] + self._decode(bytes(data), final=not data)
        self.at = 0
