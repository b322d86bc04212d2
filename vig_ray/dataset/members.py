"""What lies in an archive and where: the members of zips by their directory, those of tars by their headers."""

from __future__ import annotations

import enum
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import pyarrow.fs as pafs

from vig_ray.dataset.archived import plain_name
from vig_ray.dataset.strict_tar import StrictTarInfo
from vig_ray.dataset.zip_directory import read_directory
from vig_ray.storage import filesystem

ArchiveKind = Literal["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]

SUFFIXES: dict[str, ArchiveKind] = {
    ".zip": "zip",
    ".tar": "tar",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2",
    ".tbz2": "tar.bz2",
    ".tar.xz": "tar.xz",
    ".txz": "tar.xz",
    ".tar.zst": "tar.zst",
    ".tzst": "tar.zst",
}
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif",
)  # fmt: skip
MAX_MEMBER_BYTES = (1 << 32) - 1
"""The most that an index can say of a member's size; far more than an image may have."""

_STREAM_BYTES = 4 << 20
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


class Place(enum.IntEnum):
    """How a member's bytes lie in its archive, or why they can't be read from there."""

    BYTES = 0
    ZIP = 1
    ENCRYPTED = 2
    OTHER_METHOD = 3
    LINK = 4
    SPARSE = 5
    TOO_LARGE = 6


class Member(NamedTuple):
    """A file in an archive: its name, as `plain_name` has it, and where it lies, as `Archived` says it."""

    name: str
    place: Place
    offset: int
    size: int


def archive_suffix(name: str) -> str:
    """The suffix that tells an archive's kind, "" where `name` has none."""
    return max((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), key=len, default="")


def is_named_like_an_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def members(uri: str, kind: ArchiveKind, size: int) -> Iterator[Member]:
    """The members of a zip, or of a tar that isn't compressed, at `uri` with `size` bytes. In a store a zip's directory
    is read, and of a tar everything.

    Raises DamagedArchiveError, tarfile.TarError or OSError where it is damaged or cut off.
    """
    found = _in_zip(uri, size) if kind == "zip" else _in_tar(uri)
    for member in found:
        # Beside each file of a Mac's archive lies one of that folder, with what only a Mac knows of it.
        if not member.name.startswith("__MACOSX/"):
            yield member if member.size <= MAX_MEMBER_BYTES else member._replace(place=Place.TOO_LARGE, size=0)


def _in_zip(uri: str, size: int) -> Iterator[Member]:
    for name, flags, method, offset, packed in read_directory(uri, size):
        if flags & _ENCRYPTED:
            place = Place.ENCRYPTED
        else:
            place = Place.ZIP if method in (_STORED, _DEFLATED) else Place.OTHER_METHOD
        yield Member(name, place, offset, packed)


def _in_tar(uri: str) -> Iterator[Member]:
    fs, path = filesystem(uri)
    # A disk skips what lies between two headers; a store would take a request for each.
    seek = isinstance(fs, pafs.LocalFileSystem)
    with fs.open_input_file(path) if seek else _stream(fs, path) as stream:
        yield from (tar_member(each) for each in _tar_headers(cast(BinaryIO, stream), seek=seek))


def _stream(fs: pafs.FileSystem, path: str) -> Any:
    return fs.open_input_stream(path, compression=None, buffer_size=_STREAM_BYTES)


def _tar_headers(stream: BinaryIO, *, seek: bool) -> Iterator[tarfile.TarInfo]:
    """The headers of a tar's files and links, not of its folders. Raises tarfile.TarError or OSError."""
    with tarfile.open(fileobj=stream, mode="r:" if seek else "r|", tarinfo=StrictTarInfo) as archive:
        while (header := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
            if header.isreg() or header.issym() or header.islnk():
                yield header


def tar_member(header: tarfile.TarInfo) -> Member:
    """The member that a tar's header tells of."""
    place = Place.BYTES if header.isreg() else Place.LINK
    if header.issparse():
        place = Place.SPARSE
    return Member(plain_name(header.name), place, header.offset_data, header.size)
