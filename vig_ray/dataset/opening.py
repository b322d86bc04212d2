"""Opening data to be read from start to end, or in parts, wherever it lies."""

from __future__ import annotations

from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from vig_ray import hub
from vig_ray.storage import filesystem, scheme_of

_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20
"""Of a column of Parquet: each is a request, which takes a store as long as a megabyte or more."""


def open_stream(uri: str, *, unpack: bool) -> BinaryIO:
    """A file to be read once from start to end; `unpack`: what is gzipped, by its name, comes out unpacked.

    Raises OSError as the filesystem gives it, or StageError.
    """
    compression = "gzip" if unpack and uri.lower().endswith(".gz") else None
    if scheme_of(uri) != "hf":
        fs, path = filesystem(uri)
        return cast(BinaryIO, fs.open_input_stream(path, compression=compression, buffer_size=_BUFFER_BYTES))
    stream = hub.open_stream(uri)
    if compression is not None:
        stream = pa.CompressedInputStream(stream, compression)
    return cast(BinaryIO, pa.BufferedInputStream(stream, _BUFFER_BYTES))


def open_parts(uri: str, size: int | None = None) -> tuple[pa.NativeFile, int]:
    """A file of which parts are read, and how many bytes a reader of many small ones had best ask for at a time.

    `size`: in bytes, where it is known. Raises OSError as the filesystem gives it, or StageError.
    """
    if scheme_of(uri) == "hf":
        return hub.open_ranges(uri, size), _REMOTE_BUFFER_BYTES
    fs, path = filesystem(uri)
    local = isinstance(fs, pafs.LocalFileSystem)
    return fs.open_input_file(path), _BUFFER_BYTES if local else _REMOTE_BUFFER_BYTES
