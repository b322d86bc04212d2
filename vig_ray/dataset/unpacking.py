"""Images out of a compressed tar, which can only be read from its beginning: into tars that aren't compressed.

The archive is read once, in order. What comes of it lies in files of bounded size, `FOLDER/PREFIX00000.tar` and so on,
whose members can be read one by one; what isn't an image stays behind.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, cast

from vig_ray.dataset.images import MAX_FILE_BYTES, is_image_file
from vig_ray.dataset.members import ArchiveKind, Member, Place, is_named_like_an_image, tar_member
from vig_ray.dataset.strict_tar import StrictTarInfo
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, join, one_line
from vig_ray.whole_files import whole_files

_CODECS = {"tar.gz": "gzip", "tar.bz2": "bz2", "tar.zst": "zstd"}
_STREAM_BYTES = 4 << 20
_FILE_BYTES = 1 << 30
_HEAD_BYTES = 16
UNPACKED_FOLDER = "unpacked"
"""The folder beside samples/ that an import unpacks to."""
_WRITTEN = re.compile(rf"/{UNPACKED_FOLDER}/[0-9a-f]{{8}}-\d{{6}}-\d{{5}}\.tar$")


class UnpackedTars:
    """Writes `PREFIX00000.tar`, `PREFIX00001.tar`, ... into a folder, for use in a `with` statement.

    A file is full at `_FILE_BYTES` bytes; until it is closed it lies in the local folder `unfinished`. Raises
    StageError where it can't be written to.
    """

    def __init__(self, folder: str, *, prefix: str, unfinished: str) -> None:
        self._folder, self._prefix, self._unfinished = folder, prefix, unfinished
        self._stream: Any = None
        self._tar: tarfile.TarFile | None = None
        self.uris: list[str] = []
        """The files that have been begun."""

    def __enter__(self) -> UnpackedTars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, header: tarfile.TarInfo, data: BinaryIO) -> int:
        """Write a file of `header.size` bytes; the offset of its bytes in the last of `uris`."""
        plain = tarfile.TarInfo(header.name)
        plain.size = header.size
        tar = self._open()
        try:
            tar.addfile(plain, data)
        except OSError as error:
            raise StageError(f"{self.uris[-1]}: can't be written: {one_line(error)}") from error
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has written
        return tar.offset - -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def _open(self) -> tarfile.TarFile:
        if self._tar is not None and self._tar.offset >= _FILE_BYTES:
            self._close()
        if self._tar is None:
            uri = join(self._folder, f"{self._prefix}{len(self.uris):05d}.tar")
            fs, path = whole_files(uri, self._unfinished)
            try:
                fs.create_dir(path.rpartition("/")[0], recursive=True)
                self._stream = fs.open_output_stream(path, compression=None, buffer_size=_STREAM_BYTES)
            except OSError as error:
                raise StageError(f"{uri}: can't be written: {one_line(error)}") from error
            self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
            self.uris.append(uri)
        return self._tar

    def _close(self) -> None:
        if self._tar is None:
            return
        try:
            self._tar.close()
            self._stream.close()
        except OSError as error:
            raise StageError(f"{self.uris[-1]}: can't be written: {one_line(error)}") from error
        finally:
            self._tar = None


def is_unpacked(path: str) -> bool:
    """Whether a file is called as those that imports write."""
    return _WRITTEN.search(path) is not None


def unpack(uri: str, kind: ArchiveKind, into: UnpackedTars) -> Iterator[tuple[int, Member]]:
    """The members of a compressed tar, each image written `into` others, with its place there and that one's number.

    Members that aren't images are left out. Raises tarfile.TarError, OSError, EOFError or lzma.LZMAError where the
    archive is damaged or cut off.
    """
    with _inflated(uri, kind) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictTarInfo) as archive:
        while (header := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
            member = tar_member(header)
            if header.issym() or header.islnk():
                yield 0, member
            elif header.isreg():
                yield from _unpacked(archive, header, member, into)


def _unpacked(
    archive: tarfile.TarFile, header: tarfile.TarInfo, member: Member, into: UnpackedTars
) -> Iterator[tuple[int, Member]]:
    file = archive.extractfile(header)
    if file is None:
        return
    if header.size > MAX_FILE_BYTES:
        yield 0, member._replace(place=Place.TOO_LARGE, size=0)
        return
    head = file.read(_HEAD_BYTES)
    if not is_image_file(head) and not is_named_like_an_image(member.name):
        return
    offset = into.add(header, cast(BinaryIO, _After(head, file)))
    yield len(into.uris) - 1, Member(member.name, Place.BYTES, offset, header.size)


class _After:
    """A stream of which some bytes have been read already; a tar's can't be set back. Raises tarfile.ReadError."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def read(self, size: int) -> bytes:
        first = self._head.read(size)
        try:
            return first + cast(bytes, self._rest.read(size - len(first))) if len(first) < size else first
        except OSError as error:  # not to be taken for one of the file that is written
            raise tarfile.ReadError(one_line(error)) from error


@contextmanager
def _inflated(uri: str, kind: ArchiveKind) -> Iterator[BinaryIO]:
    """The bytes of a compressed file, as a stream. tarfile's own ends where several such files were joined."""
    fs, path = filesystem(uri)
    with fs.open_input_stream(path, compression=_CODECS.get(kind), buffer_size=_STREAM_BYTES) as stream:
        if kind == "tar.xz":
            with lzma.open(stream) as inflated:
                yield cast(BinaryIO, inflated)
        else:
            yield cast(BinaryIO, stream)
