"""Writing files that nobody sees before they are whole, so that a directory can be read while a run writes into it."""

from __future__ import annotations

import os
import secrets
from typing import Any

import pyarrow.fs as pafs
from fsspec.implementations.local import LocalFileSystem

from vig_ray.storage import filesystem


def whole_files(uri: str, unfinished: str) -> tuple[pafs.FileSystem, str]:
    """Like `filesystem`, to write with: no file appears at `uri` before it is complete.

    A local file lies in the folder `unfinished`, on the same disk, until then. A store shows an object only when it is
    complete, so its own filesystem does.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        return fs, path
    return pafs.PyFileSystem(pafs.FSSpecHandler(WholeFiles(filesystem(unfinished)[1]))), path


class WholeFiles(LocalFileSystem):  # type: ignore[misc]
    """A local filesystem whose files lie in the folder `unfinished` until they are closed."""

    cachable = False

    def __init__(self, unfinished: str) -> None:
        super().__init__()
        self._unfinished = unfinished

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, **options)
        return _Unfinished(path, os.path.join(self._unfinished, f"{os.path.basename(path)}.{secrets.token_hex(4)}"))


class _Unfinished:
    """A file to write that gets its name when it is closed; one that nobody closes never does."""

    def __init__(self, path: str, until_closed: str) -> None:
        os.makedirs(os.path.dirname(until_closed), exist_ok=True)
        self._path, self._until_closed = path, until_closed
        self._file = open(until_closed, "wb")  # noqa: SIM115

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            os.replace(self._until_closed, self._path)
