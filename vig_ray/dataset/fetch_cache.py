"""The folder of images that were fetched from the web, which several imports may share: a file an image.

    CACHE/sha256/ab/ab34...   an image whose row gives its checksum, under that
    CACHE/url/cd/cd56...      any other, under its URL's SHA-256

A file is there whole or not at all, and is never written again, so that an import that was killed goes on with what it
has fetched. It belongs to no import: none deletes it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

import pyarrow.fs as pafs

from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, filesystem, join, one_line, write_bytes

_IN_MEMORY = 1 << 20


@dataclass(frozen=True)
class FetchOptions:
    """`cache`: a folder, a path or URI. `private`: hosts that may have addresses inside a network. `at_once`: the most
    requests to a host at a time."""

    cache: str
    private: tuple[str, ...]
    at_once: int


class FetchCache:
    """The images in one such folder, a path or URI; may be called from many threads."""

    def __init__(self, folder: str) -> None:
        self.folder = absolute(folder)
        """An absolute path where it is local."""
        self._fs, self._path = filesystem(folder)

    def uri(self, url: str, sha256: str | None) -> str:
        """Where the image at a URL lies, or will."""
        name = sha256 or hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
        return join(self.folder, "sha256" if sha256 else "url", name[:2], name)

    def holds(self, uri: str) -> bool:
        """Whether an image is there. Raises StageError where that can't be found out."""
        return bool(exists(uri) == pafs.FileType.File)

    def put(self, uri: str, file: SpooledTemporaryFile[bytes]) -> None:
        """Keep an image. Raises StageError where it can't be written."""
        file.seek(0)
        data = file.read()
        if isinstance(self._fs, pafs.LocalFileSystem):
            write_bytes(uri, data)
            return
        try:  # a store needs no folders, and making one takes several requests
            with self._fs.open_output_stream(filesystem(uri)[1], compression=None) as stream:
                stream.write(data)
        except OSError as error:
            raise StageError(f"{uri}: can't be written: {one_line(error)}") from error

    def scratch(self) -> SpooledTemporaryFile[bytes]:
        """A file for what is on its way: a large one is in this machine's temporary folder, without a name."""
        return SpooledTemporaryFile(max_size=_IN_MEMORY)
