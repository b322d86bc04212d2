"""Which files a dataset consists of, and the reader for each.

`data` names one file, a folder of files of one kind, or files by a brace pattern (`shard-{000000..000012}.tar`).
"""

from __future__ import annotations

import itertools
import json
import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.fs as pafs

from vig_ray.dataset.json_reader import read_array, read_lines
from vig_ray.dataset.keep import Keep
from vig_ray.dataset.parquet_reader import parquet_columns, read_parquet
from vig_ray.dataset.rows import Row
from vig_ray.dataset.webdataset_reader import read_shard
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, join, one_line, scheme_of

Kind = Literal["json", "jsonl", "parquet", "webdataset"]
Format = Literal["auto", "json", "jsonl", "parquet", "webdataset"]

_SUFFIXES: dict[str, Kind] = {
    ".json": "json",
    ".json.gz": "json",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_HEAD_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 20
_KEEP_NOTHING = Keep()


@dataclass(frozen=True)
class DataFile:
    """One file of a dataset, with its size and time when the files were listed."""

    uri: str  # absolute where it is local
    kind: Kind
    size: int | None  # bytes
    mtime_ns: int | None  # nanoseconds since 1970

    @property
    def stem(self) -> str:
        """The file's name without the suffix of its kind."""
        return stem(self.uri)


def stem(uri: str) -> str:
    """The last part of a path or URI, without the suffix of any known kind."""
    name = uri.rstrip("/").rpartition("/")[2]
    suffix = _suffix(name)
    return name[: len(name) - len(suffix)] if suffix else name


def dataset_name(data: str) -> str:
    """The name of a file or folder without its suffix; for a pattern, its name without the braces."""
    for part in reversed(filesystem(data)[1].split("/")):
        name = _BRACES.sub("", stem(part)).strip("-_.") if is_pattern(part) else stem(part)
        if name:
            return name
    return "data"


def is_pattern(data: str) -> bool:
    """Whether `data` names its files by braces."""
    return _BRACES.search(data) is not None


def find_files(data: str, kind: Format) -> list[DataFile]:
    """The files that `data` names, sorted by name (a pattern's in its own order).

    Raises StageError where one is missing, where a folder holds none or several kinds, or a kind isn't known.
    """
    if is_pattern(data):
        infos = [(uri, _info(uri)) for uri in expand(data)]
    else:
        info = _info(data)
        infos = _listing(data, kind) if info.type == pafs.FileType.Directory else [(data, info)]
    files = []
    for uri, info in infos:
        if info.type != pafs.FileType.File:
            raise StageError(f"{uri}: not a file; a pattern must name files")
        path = filesystem(uri)[1] if scheme_of(uri) in ("", "file") else uri
        files.append(DataFile(path, _kind(path, kind), info.size, info.mtime_ns))
    kinds = Counter(file.kind for file in files)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(kinds.items()))
        raise StageError(f"{data}: files of several kinds ({listed}); choose one with --format")
    stems = Counter(file.stem for file in files)
    twice = next((name for name, count in stems.items() if count > 1), None)
    if twice is not None:
        raise StageError(
            f"{data}: two files are called {twice}, so their rows would share keys; import them separately"
        )
    return files


def expand(pattern: str) -> list[str]:
    """The names that a brace pattern stands for: `{000..012}` counts with leading zeros, `{a,b}` lists."""
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, ...
    choices = [_choices(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def read_rows(file: DataFile, keep: Keep = _KEEP_NOTHING) -> Iterator[Row]:
    """The rows of a file, streamed, with what is to be kept of them; bad ones are RowErrors.

    Raises StageError where the rest can't be read.
    """
    rows = 0
    try:
        for row in _reader(file, keep):
            yield row
            rows += 1
    except FileNotFoundError as error:
        raise StageError(
            f"{file.uri}: not on the machine that reads it; on a cluster every path must be on storage that all of its "
            "machines share"
        ) from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, pa.ArrowException) as error:
        raise StageError(
            f"{file.uri}: can't be read on after {rows} rows ({type(error).__name__}: {one_line(error)}); "
            f"the file is damaged or cut off: fetch it again"
        ) from error


def columns_of(file: DataFile) -> dict[str, Any]:
    """The columns of a Parquet file by their names, an object's with those inside. Raises StageError."""
    try:
        return parquet_columns(file.uri)
    except (OSError, pa.ArrowException) as error:
        raise StageError(f"{file.uri}: can't be read: {one_line(error)}") from error


def _reader(file: DataFile, keep: Keep) -> Iterator[Row]:
    if file.kind == "parquet":
        yield from read_parquet(file.uri, keep)
        return
    with _open(file.uri, unpack=file.kind != "webdataset") as stream:
        if file.kind == "json":
            yield from read_array(stream, file.uri)
        elif file.kind == "jsonl":
            yield from read_lines(stream)
        else:
            yield from read_shard(stream)


def _open(uri: str, *, unpack: bool) -> BinaryIO:
    fs, path = filesystem(uri)
    compression = "gzip" if unpack and uri.lower().endswith(".gz") else None
    return cast(BinaryIO, fs.open_input_stream(path, compression=compression, buffer_size=_BUFFER_BYTES))


def _info(uri: str) -> Any:
    fs, path = filesystem(uri)
    try:
        info = fs.get_file_info(path)
    except OSError as error:
        raise StageError(f"{uri}: can't be reached: {one_line(error)}") from error
    if info.type == pafs.FileType.NotFound:
        raise StageError(f"{uri}: no such file")
    return info


def _listing(folder: str, kind: Format) -> list[tuple[str, Any]]:
    fs, path = filesystem(folder)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise StageError(f"{folder}: can't be listed: {one_line(error)}") from error
    files = [info for info in infos if info.type == pafs.FileType.File and not info.base_name.startswith((".", "_"))]
    known = [info for info in files if _of_kind(info.base_name, kind)]
    if not known:
        wanted = sorted(suffix for suffix in _SUFFIXES if _of_kind(suffix, kind))
        raise StageError(f"{folder}: none of its {len(files)} files ends in {', '.join(wanted)}")
    known.sort(key=lambda info: info.base_name)
    return [(join(folder, info.base_name), info) for info in known]


def _suffix(name: str) -> str:
    return max((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), key=len, default="")


def _of_kind(name: str, kind: Format) -> bool:
    named = _SUFFIXES.get(_suffix(name))
    # A file called .json may hold an array or JSON Lines.
    return named is not None and (kind in ("auto", named) or (kind == "jsonl" and named == "json"))


def _kind(uri: str, kind: Format) -> Kind:
    if kind != "auto":
        return kind
    named = _SUFFIXES.get(_suffix(uri))
    if named is None:
        raise StageError(f"{uri}: can't tell its format from its name; give it with --format")
    return _json_kind(uri) if named == "json" else named


def _json_kind(uri: str) -> Kind:
    """Whether a file called .json holds an array or JSON Lines, by its first bytes."""
    try:
        with _open(uri, unpack=True) as stream:
            head = bytes(stream.read(_HEAD_BYTES))
    except OSError as error:
        raise StageError(f"{uri}: can't be read: {one_line(error)}") from error
    text = head.decode("utf-8-sig", "replace").lstrip()
    if text.startswith("["):
        return "json"
    if not text:
        raise StageError(f"{uri}: no rows: the file is empty")
    line, newline, _ = text.partition("\n")
    if not text.startswith("{") or (newline and not _is_json(line)):
        raise StageError(
            f"{uri}: begins with neither a JSON array nor one object a line; give an array of rows at the top level, "
            f"or JSON Lines (with --format jsonl if its first line is broken)"
        )
    return "jsonl"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _choices(inside: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
