"""Images that stay in their archives: the URI that says where one's bytes lie, and reading just these.

    /data/train2017.zip#zip=1234+5678/train2017/000000000009.jpg
    s3://bucket/shard_0.tar#bytes=1536+5678/a/b.png

`bytes=OFFSET+SIZE`: these bytes of the archive are the member's (tar). `zip=OFFSET+SIZE`: the member's own header is at
the offset and so many bytes of it, stored or deflated, come after. A zip's directory doesn't tell how long that header
is, so it is read together with the data. The member's name is for people, and to see that it is still the same file.
"""

from __future__ import annotations

import posixpath
import re
import struct
import zlib
from typing import Literal, NamedTuple, cast

from vig_ray.storage import read_range

Way = Literal["bytes", "zip"]

_URI = re.compile(r"(.+?)#(bytes|zip)=(\d+)\+(\d+)/(.*)", re.DOTALL)
_LOCAL_HEADER = struct.Struct("<4s2xHH4xL8xHH")  # signature, flags, method, CRC, lengths of the name and extra fields
_EXTRA_BYTES = 64  # of extra fields, read in the hope that there aren't more: Info-ZIP writes 28
_STORED, _DEFLATED = 0, 8
_CRC_FOLLOWS = 1 << 3


class DamagedArchiveError(Exception):
    """What an archive holds isn't what it says, or what its directory said when it was read."""


class TooLargeError(Exception):
    """A member of an archive has more bytes than are allowed."""


class Archived(NamedTuple):
    """A file inside an archive: where its bytes are, and its name there."""

    archive: str
    way: Way
    offset: int
    size: int
    member: str

    @property
    def uri(self) -> str:
        """What stands in samples/ for it."""
        return f"{self.archive}#{self.way}={self.offset}+{self.size}/{self.member}"


def archived(uri: str) -> Archived | None:
    """The file inside an archive that a URI means; None for any other URI."""
    found = _URI.fullmatch(uri) if "#" in uri else None
    if found is None:
        return None
    archive, way, offset, size, member = found.groups()
    return Archived(archive, cast(Way, way), int(offset), int(size), member)


def plain_name(name: str) -> str:
    """A member's name as a path that is compared with those in rows: `./a//b.jpg` is `a/b.jpg`."""
    return posixpath.normpath(name).lstrip("/")


def zip_name(name: bytes) -> str:
    """The name that a zip holds. It should say whether that is UTF-8 and often doesn't; else it is code page 437."""
    try:
        return plain_name(name.decode())
    except UnicodeDecodeError:
        return plain_name(name.decode("cp437"))


def read_archived(file: Archived, most: int) -> bytes:
    """The file's bytes.

    Raises TooLargeError for more than `most` bytes, DamagedArchiveError, and OSError as the filesystem gives it.
    """
    if file.size > most:
        raise TooLargeError(f"{file.size} bytes, and {most} are allowed")
    if file.way == "zip":
        return _from_zip(file, most)
    data = read_range(file.archive, file.offset, file.size)
    if len(data) < file.size:
        raise DamagedArchiveError("the archive is cut off")
    return data


def _from_zip(file: Archived, most: int) -> bytes:
    name_bytes = len(file.member.encode("utf-8", "surrogatepass"))
    head = read_range(file.archive, file.offset, _LOCAL_HEADER.size + name_bytes + _EXTRA_BYTES + file.size)
    if len(head) < _LOCAL_HEADER.size:
        raise DamagedArchiveError("the archive is cut off")
    signature, flags, method, crc, name_bytes, extra_bytes = _LOCAL_HEADER.unpack_from(head)
    name = head[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_bytes]
    if signature != b"PK\3\4" or zip_name(name) != file.member:
        raise DamagedArchiveError("another file lies there: the archive isn't the one that was imported; import again")
    start = _LOCAL_HEADER.size + name_bytes + extra_bytes
    data = head[start : start + file.size]
    if len(data) < file.size:
        data = read_range(file.archive, file.offset + start, file.size)
    if len(data) < file.size:
        raise DamagedArchiveError("the archive is cut off")
    content = data if method == _STORED else _inflated(data, most)
    if not flags & _CRC_FOLLOWS and zlib.crc32(content) != crc:
        raise DamagedArchiveError("its checksum in the archive is another one")
    return content


def _inflated(data: bytes, most: int) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        content = inflate.decompress(data, most + 1)
    except zlib.error as error:
        raise DamagedArchiveError(str(error)) from error
    if len(content) > most:
        raise TooLargeError(f"more than {most} bytes when inflated, which is the most allowed")
    if not inflate.eof:
        raise DamagedArchiveError("its compressed data is cut off")
    return content
