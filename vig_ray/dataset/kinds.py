"""Which kind of data a file holds, by its name and its first bytes; and which files of a folder are data at all."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from typing import Literal

from vig_ray.dataset.chosen import listed
from vig_ray.dataset.members import archive_suffix
from vig_ray.dataset.opening import open_stream
from vig_ray.errors import StageError
from vig_ray.storage import one_line

Kind = Literal["json", "jsonl", "parquet", "arrow", "webdataset"]
Format = Literal["auto", "json", "jsonl", "parquet", "arrow", "webdataset"]

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
    ".arrow": "arrow",
}
# Of the JSON files in a folder these are about its data, and none of it; all but the last two as `datasets` has it.
_ABOUT_THE_DATA = frozenset(
    {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
)
_RECORD = ".stage.json"  # of a stage of vig-ray
_COUNTS = "_stats.json"  # of img2dataset, of a tar
_HEAD_BYTES = 1 << 20


def suffix(name: str) -> str:
    """The suffix by which a name tells a kind; "" where it tells none."""
    return max((known for known in _SUFFIXES if name.lower().endswith(known)), key=len, default="")


def suffixes(kind: Format) -> list[str]:
    """The suffixes that files of a kind, or of any, may have."""
    return [known for known in _SUFFIXES if of_kind(known, kind)]


def stem(uri: str) -> str:
    """The last part of a path or URI, without the suffix of any known kind."""
    name = uri.rstrip("/").rpartition("/")[2]
    return name[: len(name) - len(suffix(name))]


def of_kind(name: str, kind: Format) -> bool:
    """Whether a file of this name may be of a kind, or of any."""
    named = _SUFFIXES.get(suffix(name))
    # A file called .json may hold an array or JSON Lines.
    return named is not None and (kind in ("auto", named) or (kind == "jsonl" and named == "json"))


def data_and_archives(names: Sequence[str], kind: Format) -> tuple[list[str], list[str], list[str]]:
    """Of a folder's files, those that hold rows, the archives that hold their images, each in order, and what is left
    out, in words.

    Tars beside JSON, Parquet or Arrow hold images, unless each of those files is about a tar, as img2dataset's
    `00000.parquet` and `00000_stats.json` are; by themselves they are WebDataset. Zips hold images, and so do tars
    that are compressed by anything but gzip.
    """
    rows = [name for name in names if of_kind(name, kind) and not _about_the_data(name)]
    archives = [name for name in names if archive_suffix(name) and not suffix(name)]
    tars = [name for name in names if _SUFFIXES.get(suffix(name)) == "webdataset"]
    if kind not in ("auto", "webdataset"):
        return rows, [*archives, *tars], []
    there = set(tars)
    tables = [name for name in rows if name not in there]
    if not tables or not tars:
        return rows, archives, []
    stems = {name[: len(name) - len(suffix(name))] for name in tars}
    if all(_is_about_a_tar(name, stems) for name in tables):
        return tars, archives, [f"about tars: {listed(tables)}"]
    return tables, [*archives, *tars], []


def kind_of(uri: str, kind: Format) -> Kind:
    """The kind of a file's data; one called .json is opened. Raises StageError where it can't be told."""
    if kind != "auto":
        return kind
    named = _SUFFIXES.get(suffix(uri))
    if named is None:
        raise StageError(f"{uri}: can't tell its format from its name; give it with --format")
    return _json_kind(uri) if named == "json" else named


def _about_the_data(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last in _ABOUT_THE_DATA or last.endswith(_RECORD)


def _is_about_a_tar(table: str, stems: Set[str]) -> bool:
    """Whether a table is what img2dataset writes beside a tar: its rows' Parquet, or its counts."""
    if table.endswith(_COUNTS):
        return table.removesuffix(_COUNTS) in stems
    return table.endswith(".parquet") and table.removesuffix(".parquet") in stems


def _json_kind(uri: str) -> Kind:
    """Whether a file called .json holds an array or JSON Lines, by its first bytes."""
    try:
        with open_stream(uri, unpack=True) as stream:
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
