"""Rows that a program holds, written to a file, so that they are imported as any other data.

    tables    pyarrow, polars, datasets.Dataset        OUT/data/RUN/rows.parquet
    rows      a list of dicts, pandas                  OUT/data/RUN/rows.jsonl, which may mix types as messages do
    blocks    a Ray dataset                            OUT/data/RUN/*.parquet, written by the machines that hold them

A PIL image is written as its pixels are, losslessly; what EXIF says of its file doesn't turn it. None of these packages
is imported here that isn't imported already.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.compat.ray import file_names
from vig_ray.dataset.images import MAX_FILE_BYTES, image_file
from vig_ray.errors import StageError
from vig_ray.stage import StageConfig, claim, read_stage
from vig_ray.storage import filesystem, join, one_line

NAME = "data"
"""What the keys of such rows begin with, where no name is given."""
TAKEN = (
    "a path or URI, a list of dicts, a datasets.Dataset, a pandas or polars data frame, a pyarrow table or a Ray "
    "dataset"
)
_BATCH_ROWS = 256  # a row group; rows may hold images


class _Written(StageConfig):
    """What the record of such rows says of how they came to be."""

    out: str


@dataclass(frozen=True)
class InMemory:
    """Rows and how they are written. `digest`: of what would be written; None for a Ray dataset, which says nothing.

    `write`: to a file that is open. `dataset`: a Ray dataset, in place of it.
    """

    name: str
    write: Callable[[BinaryIO], None] | None = None
    dataset: Any = None

    def digest(self) -> str | None:
        """A hash of the rows, 32 hex digits."""
        if self.write is None:
            return None
        sink = _Hashing()
        self.write(cast(BinaryIO, sink))
        return sink.hash.hexdigest()


class _Hashing(io.RawIOBase):
    """A file that only hashes what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)
        self._at = 0

    def writable(self) -> bool:
        """It is only there to be written to."""
        return True

    def write(self, data: Any) -> int:
        """Hash it."""
        size = memoryview(data).nbytes
        self.hash.update(data)
        self._at += size
        return size

    def tell(self) -> int:
        """Bytes until here."""
        return self._at


def in_memory(data: object) -> InMemory:
    """The rows that `data` holds. Raises StageError for what isn't one of TAKEN."""
    package, kind = type(data).__module__.partition(".")[0], type(data).__name__
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return _of_table(data)
    if isinstance(data, list):
        return InMemory("rows.jsonl", lambda file: _write_rows(data, file))
    if package == "pandas" and kind == "DataFrame":
        return InMemory("rows.jsonl", lambda file: _write_rows(_pandas_rows(data), file))
    if package == "polars" and kind == "DataFrame":
        return _of_table(_from_polars(data))
    if package == "datasets" and kind == "Dataset":
        return _of_hugging_face(data)
    if package == "ray" and hasattr(data, "write_parquet"):
        return InMemory("", dataset=data)
    hints = {
        "LazyFrame": "; collect() it first",
        "DatasetDict": "; choose a split, such as data['train']",
        "IterableDataset": "; a list of some of its rows, list(data.take(100)), or its path do",
        "IterableDatasetDict": "; choose a split and take a list of some of its rows, or its path",
    }
    raise StageError(f"data is a {package}.{kind}, and must be {TAKEN}{hints.get(kind, '')}")


def write_rows(rows: InMemory, out: str, digest: str | None, *, overwrite: bool) -> str:
    """Write rows to `out`/data, where they aren't there already; the path or URI of what was written.

    `digest`: that of the rows. Raises StageError where the rows of another call are there, unless `overwrite` is given.
    """
    folder = join(out, "data")
    record = read_stage(folder) or {}
    if record.get("complete") and not overwrite and (digest is None or record["identity"] != {"digest": digest}):
        there = join(folder, record["run"])
        advice = f"with data={there!r} and name={NAME!r} they are gone on with; " if digest is None else ""
        raise StageError(f"{folder}: holds the rows of an earlier call; {advice}choose another out, or overwrite=True")
    output = claim(folder, "data", {"digest": digest}, overwrite=True, resumes=False, again=digest is None)
    path = join(folder, output.run, rows.name).rstrip("/")
    if output.complete:
        return path
    config = _Written(out=out)
    output.begin(config)
    if rows.write is None:
        _write_blocks(rows.dataset, path)
    else:
        fs, target = filesystem(path)
        fs.create_dir(target.rpartition("/")[0], recursive=True)
        try:
            with fs.open_output_stream(target) as file:
                rows.write(file)
        except OSError as error:
            raise StageError(f"{path}: can't be written: {one_line(error)}") from error
    output.commit(config)
    return path


def _of_table(table: pa.Table) -> InMemory:
    if not table.num_rows:
        raise StageError("data holds no rows")
    return InMemory(
        "rows.parquet", lambda file: _write_tables(table.schema, table.to_batches(max_chunksize=_BATCH_ROWS), file)
    )


def _from_polars(frame: Any) -> pa.Table:
    objects = [name for name, kind in frame.schema.items() if str(kind) == "Object"]
    if objects:  # Arrow would get their addresses
        raise StageError(f"data: column {objects[0]!r} holds Python objects; give the rows, data.to_dicts()")
    return frame.to_arrow()


def _of_hugging_face(dataset: Any) -> InMemory:
    if dataset.format["type"] == "custom":
        raise StageError("data has a transform, which is made as rows are read; data.map(...) makes it for good")
    if not len(dataset):
        raise StageError("data holds no rows")
    plain = dataset.with_format("arrow")  # all columns, images as the bytes of their files
    images = [name for name, feature in dataset.features.items() if _holds_images(feature)]

    def write(file: BinaryIO) -> None:
        tables = (_with_files(table, images) for table in plain.iter(batch_size=_BATCH_ROWS))
        first = next(tables)
        _write_tables(first.schema, (table for some in ([first], tables) for table in some), file)

    return InMemory("rows.parquet", write)


def _holds_images(feature: Any) -> bool:
    """Whether a column of a datasets.Dataset holds images, or lists of them."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return type(inner).__name__ == "Image"


def _with_files(table: pa.Table, images: list[str]) -> pa.Table:
    """The same with the bytes of image files that a dataset only names, as it does where it was made of files: it reads
    them wherever they are. What can't be read stays as it is, for its row to say."""

    def with_file(image: Any) -> Any:
        if isinstance(image, list):
            return [with_file(each) for each in image]
        path = None if image is None or image["bytes"] is not None else image["path"]
        if path is None or not os.path.isfile(path) or os.path.getsize(path) > MAX_FILE_BYTES:
            return image
        with open(path, "rb") as file:
            return {**image, "bytes": file.read()}

    for name in images:
        number = table.schema.get_field_index(name)
        held = [with_file(image) for image in table[name].to_pylist()]
        table = table.set_column(number, table.schema.field(number), pa.array(held, table.schema.field(number).type))
    return table


def _write_tables(schema: pa.Schema, tables: Iterable[pa.Table | pa.RecordBatch], file: BinaryIO) -> None:
    try:
        # Texts and images seldom repeat, and a dictionary would have to be held whole.
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            for table in tables:
                if isinstance(table, pa.RecordBatch):
                    table = pa.Table.from_batches([table])
                writer.write_table(table, row_group_size=_BATCH_ROWS)
    except pa.ArrowException as error:
        raise StageError(f"data can't be written as Parquet: {one_line(error)[:300]}") from error


def _write_blocks(dataset: Any, folder: str) -> None:
    fs, path = filesystem(folder)
    fs.create_dir(path, recursive=True)
    dataset.write_parquet(path, filesystem=fs, filename_provider=file_names("rows"))


def _pandas_rows(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pandas frame, what it calls missing as None."""
    for start in range(0, len(frame), _BATCH_ROWS):
        for row in frame.iloc[start : start + _BATCH_ROWS].to_dict("records"):
            yield {str(name): None if _missing(value) else value for name, value in row.items()}


def _missing(value: Any) -> bool:
    return (isinstance(value, float) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


def _write_rows(rows: Iterable[Any], file: BinaryIO) -> None:
    """One JSON value a line: what isn't a dict is a bad row to whoever reads it, as in a file."""
    number = 0
    for row in rows:
        try:
            line = json.dumps(row, default=_as_json)
        except (TypeError, ValueError, RecursionError) as error:
            raise StageError(f"row {number} of data can't be written: {one_line(error)}") from error
        file.write(line.encode() + b"\n")
        number += 1
    if not number:
        raise StageError("data holds no rows")


def _as_json(value: Any) -> Any:
    """What JSON has no word for. Raises TypeError for what no row needs."""
    if isinstance(value, PIL.Image.Image):
        return {"base64": base64.b64encode(image_file(value)).decode()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.ndim == 1:  # how pandas holds lists that it read from Parquet
            return value.tolist()
        raise TypeError("it holds an array of numbers; an image of them is PIL.Image.fromarray(array)")
    if _missing(value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if type(value).__module__.partition(".")[0] in ("pathlib", "uuid", "decimal"):
        return str(value)
    raise TypeError(f"it holds a {type(value).__module__}.{type(value).__name__}")
