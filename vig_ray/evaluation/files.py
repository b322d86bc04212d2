"""The files of benchmarks, row by row: JSON, JSON Lines, TSV and Parquet, and images in them or beside them.

A file of another layout is told in one line that names the file, the row and the key.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.dataset.fields import image, shorten, type_name
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.opening import open_parts, open_stream
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError
from vig_ray.errors import StageError
from vig_ray.evaluation.task import Given
from vig_ray.storage import exists, join, list_files, one_line

ENDINGS = (".json", ".jsonl", ".tsv", ".parquet")


@dataclass(frozen=True)
class Record:
    """A row of a benchmark's file. `where`: the file and the row's place in it, for messages."""

    where: str
    values: dict[str, Any]

    def fault(self, what: str) -> StageError:
        """The error that says `what` of this row."""
        return StageError(f"{self.where}: {what}")

    def has(self, key: str) -> bool:
        """Whether there is a value under a key that isn't null or empty."""
        return self.values.get(key) not in (None, "", [])

    def value(self, key: str) -> Any:
        """What is under a key. Raises StageError where there is none."""
        if self.values.get(key) is None:
            there = ", ".join([name for name, value in self.values.items() if value is not None][:12])
            raise self.fault(f"no '{key}' (there are {there}); is this the file as its authors publish it?")
        return self.values[key]

    def text(self, key: str) -> str:
        """The text under a key."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.fault(f"'{key}' is {type_name(value)}, not a string")
        return value

    def name(self, key: str) -> str:
        """The text or whole number under a key, as text: an id, say."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.fault(f"'{key}' is {type_name(value)}, not a string or a whole number")
        return str(value)

    def whole(self, key: str) -> int:
        """The whole number under a key, written as a number or as text."""
        text = self.name(key).strip()
        if not text.isdecimal():
            raise self.fault(f"'{key}' is {shorten(text)}, not a whole number")
        return int(text)

    def texts(self, key: str) -> list[str]:
        """The list of texts under a key."""
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.fault(f"'{key}' is {type_name(value)}, not a list of strings")
        return value

    def one_of(self, key: str, known: Sequence[str]) -> str:
        """The text under a key, which is one of these in any case, as they are written here."""
        value = self.name(key).strip()
        for each in known:
            if value.lower() == each.lower():
                return each
        raise self.fault(f"'{key}' is {shorten(value)}; expected one of {', '.join(known)}")

    def images(self, key: str, folder: ImageFolder) -> tuple[Image, ...]:
        """The image under a key or the list of them: bytes, Hugging Face's image structs, or paths in `folder`."""
        value = self.value(key)
        try:
            found = [image(each) for each in (value if isinstance(value, list) else [value])]
            return tuple(one if one.uri is None else Image(uri=folder.resolve(one.uri)) for one in found)
        except RowError as error:
            raise self.fault(f"'{key}': {error}") from error

    def base64(self, key: str) -> tuple[Image]:
        """The image under a key whose value is its file in base64, as VLMEvalKit's TSV files have it."""
        try:
            return (image({"base64": self.text(key)}),)
        except RowError as error:
            raise self.fault(f"'{key}': {error}") from error


def marked(text: str, images: Sequence[Image]) -> str:
    """A question with its images first, each mark on a line of its own, as samples/ have it."""
    return f"{IMAGE_MARK}\n" * len(images) + text


def image_folder(given: Given) -> ImageFolder:
    """The folder that relative image paths start from: --images, else that of the data."""
    if given.images is not None:
        return ImageFolder.at(given.images)
    return ImageFolder.at(given.data if exists(given.data).name == "Directory" else _parent(given.data))


def _parent(uri: str) -> str:
    head, slash, _ = uri.rstrip("/").rpartition("/")
    return head if slash else "."


def files_of(data: str, endings: Iterable[str] = ENDINGS) -> list[str]:
    """The files of a task: the one given, or those of the folder given with these endings, by name, hidden ones aside.

    Raises StageError where there is none.
    """
    kind, wanted = exists(data).name, tuple(endings)
    if kind == "NotFound":
        raise StageError(f"{data}: no such file or folder")
    if kind == "File":
        return [data]
    names = [name for name in list_files(data) if name.lower().endswith(wanted) and not _hidden(name)]
    if not names:
        raise StageError(f"{data}: no file in this folder ends with {' or '.join(wanted)}")
    return [join(data, name) for name in names]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def records(uri: str, under: str | None = None) -> Iterator[Record]:
    """The rows of a file, by its ending. `under`: the key of the rows where a JSON file holds an object.

    A file that ends with .json may hold JSON Lines. Raises StageError for a file that can't be read so.
    """
    ending = uri.lower().rpartition(".")[2]
    try:
        if ending == "parquet":
            yield from _parquet(uri)
        elif ending == "tsv":
            yield from _tsv(uri)
        elif ending in ("json", "jsonl"):
            yield from _json(uri, under)
        else:
            raise StageError(f"{uri}: expected a file that ends with {', '.join(ENDINGS)}")
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{uri}: can't be read: {one_line(error)}") from error


def read_text(uri: str) -> str:
    """A file's text, without a byte order mark. Raises StageError."""
    try:
        with open_stream(uri, unpack=True) as stream:
            return bytes(stream.read()).decode("utf-8-sig")
    except OSError as error:
        raise StageError(f"{uri}: can't be read: {one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise StageError(f"{uri}: not UTF-8: {error}") from error


def read_json(uri: str, **parser: Any) -> Any:
    """The JSON of a whole file. `parser`: as json.loads takes it. Raises StageError."""
    try:
        return json.loads(read_text(uri), **parser)
    except (ValueError, RecursionError) as error:
        raise StageError(f"{uri}: not JSON: {error}") from error


def _json(uri: str, under: str | None) -> Iterator[Record]:
    text = read_text(uri)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.lstrip().startswith("{"):
            raise StageError(f"{uri}: not JSON: {error}") from error
        whole = None
    if isinstance(whole, dict) and under is not None and under in whole:
        whole = whole[under]
    if isinstance(whole, list):
        yield from (_record(f"{uri}, entry {number}", row) for number, row in enumerate(whole, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise StageError(f"{uri}, line {number}: not JSON: {error}") from error
            yield _record(f"{uri}, line {number}", row)


def _record(where: str, row: object) -> Record:
    if not isinstance(row, dict):
        raise StageError(f"{where}: {type_name(row)}, not an object")
    return Record(where, row)


def _tsv(uri: str) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # an image in base64 is a field
    with open_stream(uri, unpack=True) as stream:
        lines = io.TextIOWrapper(io.BufferedReader(cast(io.RawIOBase, stream)), "utf-8-sig", newline="")
        reader = csv.reader(lines, delimiter="\t")
        try:
            header = next(reader, None)
            if header is None:
                raise StageError(f"{uri}: an empty file")
            number = 0
            for number, row in enumerate(reader, 1):
                if len(row) != len(header):
                    raise StageError(f"{uri}, row {number}: {len(row)} columns, and the header has {len(header)}")
                # A table of text has nothing else for a value that is missing.
                values = {key: cell or None for key, cell in zip(header, row, strict=True)}
                yield Record(f"{uri}, row {number}", values)
            if not number:
                raise StageError(f"{uri}: one line alone; expected TSV, a header and a row a line below it")
        except (UnicodeDecodeError, csv.Error) as error:
            raise StageError(f"{uri}: can't be read as TSV: {error}") from error


def _parquet(uri: str) -> Iterator[Record]:
    source, buffer_size = open_parts(uri)
    with source, pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer_size) as file:
        number = 0
        for batch in file.iter_batches(64, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{uri}, row {number}", row)
