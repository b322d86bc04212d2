"""Paths that may be a folder or an object store: every path vig-ray takes goes through `filesystem`.

pyarrow's own filesystems serve local paths, `s3://`, `gs://`, `abfs://` and `hdfs://`; any other scheme is
handed to fsspec. Credentials and endpoints come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
`AWS_REGION`, ...), as the cloud's own tools read them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs

from vig_ray.errors import StageError

_ARROW_SCHEMES = frozenset({"gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case, or "" for a plain local path."""
    head, sep, _ = uri.partition("://")
    return head.lower() if sep and head.isascii() and head.replace("+", "").replace("-", "").isalnum() else ""


@functools.lru_cache(maxsize=64)
def _s3(bucket: str) -> pafs.FileSystem:
    # FileSystem.from_uri would ask Amazon for the bucket's region even when AWS_ENDPOINT_URL names another server.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = "us-east-1" if custom else pafs.resolve_s3_region(bucket)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options = {"endpoint_override": endpoint} if endpoint else {}
    return pafs.S3FileSystem(region=region, **options)


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that serves `uri` and the path to use with it.

    Raises StageError, naming the URI, where its scheme has no filesystem or the store can't be reached.
    """
    scheme = scheme_of(uri)
    try:
        if scheme == "":
            return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
        if scheme == "file":
            return pafs.LocalFileSystem(), os.path.abspath(unquote(urlsplit(uri).path))
        if scheme in ("s3", "s3a"):
            path = uri.split("://", 1)[1].rstrip("/")
            return _s3(path.split("/", 1)[0]), path
        if scheme in _ARROW_SCHEMES:
            location: tuple[pafs.FileSystem, str] = pafs.FileSystem.from_uri(uri)
            return location
        import fsspec

        fs, path = fsspec.core.url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), path
    except (OSError, ValueError, ImportError) as error:
        raise StageError(f"{uri}: can't open this location: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """An exception's message on one line, its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def join(base: str, *parts: str) -> str:
    """`base` and `parts` joined with single slashes; works for local paths and URIs alike."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A local path in full, for those who have another working directory; a URI as it is, without its last slash."""
    fs, path = filesystem(uri)
    return path if isinstance(fs, pafs.LocalFileSystem) else uri.rstrip("/")


def exists(uri: str) -> pafs.FileType:
    """What lies at `uri`: File, Directory or NotFound."""
    fs, path = filesystem(uri)
    try:
        kind: pafs.FileType = fs.get_file_info(path).type
    except OSError as error:
        raise StageError(f"{uri}: can't be reached: {one_line(error)}") from error
    return kind


def read_bytes(uri: str) -> bytes:
    """The whole file at `uri`. Raises OSError as the filesystem gives it."""
    fs, path = filesystem(uri)
    with fs.open_input_stream(path, compression=None) as stream:
        data: bytes = stream.read()
    return data


def read_range(uri: str, offset: int, size: int) -> bytes:
    """`size` bytes of the file at `uri` from `offset` on, fewer at its end, by one request where it lies in a store.

    Raises OSError as the filesystem gives it.
    """
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        with open(path, "rb", buffering=0) as local:
            return os.pread(local.fileno(), size, offset)
    handler = getattr(fs, "handler", None)
    if isinstance(handler, pafs.FSSpecHandler):
        with handler.fs.open(path, "rb", cache_type="none") as file:  # a cache would read more than is asked for
            file.seek(offset)
            found: bytes = file.read(size)
            return found
    piece: bytes = _opened(uri, fs, path).read_at(size, offset)
    return piece


_open_files: dict[str, tuple[pafs.FileSystem, Any]] = {}
_MOST_OPEN = 64


def _opened(uri: str, fs: pafs.FileSystem, path: str) -> Any:
    """The file, opened once in this process: opening one in a store is a request of its own, for its size."""
    known = _open_files.get(uri)
    if known is not None and known[0] == fs:
        return known[1]
    file = fs.open_input_file(path)
    while len(_open_files) >= _MOST_OPEN:
        with contextlib.suppress(KeyError, StopIteration):  # another thread was faster
            del _open_files[next(iter(_open_files))]
    _open_files[uri] = fs, file
    return file


def write_bytes(uri: str, data: bytes, *, by_way_of: str | None = None) -> None:
    """Write a small file whole, creating its folder; a local one appears under its name only when complete.

    `by_way_of`: a path on the same disk where a local one lies until then; by default a hidden one beside it.
    """
    fs, path = filesystem(uri)
    try:
        fs.create_dir(os.path.dirname(path), recursive=True)
        if not isinstance(fs, pafs.LocalFileSystem):  # a store shows an object only when it is complete
            with fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        folder, name = os.path.split(path)
        target = by_way_of or os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(data)
        os.replace(target, path)
    except OSError as error:
        raise StageError(f"{uri}: can't be written: {one_line(error)}") from error


def list_files(uri: str) -> list[str]:
    """All files under a folder, hidden ones too, by their names relative to it; the folder's own name, "", where it is
    a file. Raises StageError where it can't be listed."""
    fs, path = filesystem(uri)
    path = path.rstrip("/")
    try:
        if fs.get_file_info(path).is_file:
            return [""]
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    except OSError as error:
        raise StageError(f"{uri}: can't be listed: {one_line(error)}") from error
    return sorted(info.path[len(path) + 1 :] for info in infos if info.type != pafs.FileType.Directory)


def delete_tree(uri: str) -> None:
    """Delete a folder that a run made for itself, and all in it; nothing happens where there is none."""
    fs, path = filesystem(uri)
    if exists(uri).name == "Directory":
        try:
            fs.delete_dir(path)
        except OSError as error:
            if exists(uri).name == "Directory":  # else its last writer was faster
                raise StageError(f"{uri}: can't be deleted: {one_line(error)}") from error


def delete_empty_folders(parent: str, names: Iterable[str]) -> None:
    """Delete the local folders under `parent` that these files lay in and that are empty now; a store has none."""
    fs, path = filesystem(parent)
    if not isinstance(fs, pafs.LocalFileSystem):
        return
    folders = {folder for name in names for folder in _folders_of(name)}
    for folder in sorted(folders, key=len, reverse=True):
        with contextlib.suppress(OSError):  # it isn't empty, or isn't there
            os.rmdir(os.path.join(path, folder))


def _folders_of(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def check_writable(uri: str) -> None:
    """Raise StageError where a directory at `uri` could not be made or written to; makes nothing itself."""
    fs, path = filesystem(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        if not os.path.isdir(path):
            raise StageError(f"{uri}: {path} is a file, not a folder")
        if not os.access(path, os.W_OK | os.X_OK):
            raise StageError(f"{uri}: no permission to write in {path}")
        return
    if scheme_of(uri) in ("s3", "s3a"):
        bucket = path.split("/", 1)[0]
        if exists(f"s3://{bucket}").name != "Directory":
            raise StageError(f"{uri}: there is no bucket {bucket!r}, or it can't be reached with these credentials")
