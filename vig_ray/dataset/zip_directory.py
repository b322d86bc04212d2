"""The directory of a zip, read in pieces: zipfile holds all of it in memory, half a kilobyte a member.

In a store it takes three requests and one more for each 8 MiB of directory, and nothing else of the file is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from vig_ray.dataset.archived import DamagedArchiveError, zip_name
from vig_ray.storage import read_range

# The signature, how many entries there are, the directory's bytes and offset, the length of the comment.
_END = struct.Struct("<4s6xHLLH")
_END_64 = struct.Struct("<4s28xQQQ")
_LOCATOR_64 = struct.Struct("<4s16x")
_MOST_COMMENT = (1 << 16) - 1
# The signature, flags, method, compressed and full size, lengths of name, extra fields and comment, offset.
_ENTRY = struct.Struct("<4s4xHH8xLLHHH8xL")
_IN_EXTRA = 0xFFFFFFFF  # instead of a number that needs 64 bits
_ZIP64 = 1
_PIECE_BYTES = 8 << 20


class Entry(NamedTuple):
    """What the directory says of one file: `offset` is that of its own header, `packed` the bytes after that."""

    name: str
    flags: int
    method: int
    offset: int
    packed: int


class _Directory(NamedTuple):
    start: int
    size: int
    entries: int
    before: int  # bytes that were put before the zip, which its offsets don't know of


def read_directory(uri: str, size: int) -> Iterator[Entry]:
    """The files, not the folders, in a zip of `size` bytes.

    Raises DamagedArchiveError where it isn't a zip or is cut off, OSError where it can't be read.
    """
    directory = _directory(uri, size)
    held, read, entries = b"", 0, 0
    while read < directory.size:
        piece = read_range(uri, directory.start + read, min(_PIECE_BYTES, directory.size - read))
        if not piece:
            raise DamagedArchiveError("its directory is cut off")
        read += len(piece)
        held += piece
        place = 0
        while (past := _past_entry(held, place)) is not None:
            entry = _entry(held, place, directory.before)
            entries += 1
            if entry is not None:
                yield entry
            place = past
        held = held[place:]
    if held or entries % (1 << 16) != directory.entries % (1 << 16):
        raise DamagedArchiveError(f"its directory has {entries} entries where {directory.entries} are announced")


def _directory(uri: str, size: int) -> _Directory:
    wanted = min(size, _LOCATOR_64.size + _END_64.size + _END.size + _MOST_COMMENT)
    tail = read_range(uri, size - wanted, wanted)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise DamagedArchiveError("it isn't a zip, or its end, where the directory is, is missing")
    _, entries, length, offset, _ = _END.unpack_from(tail, at)
    at_64 = at - _LOCATOR_64.size - _END_64.size
    if at_64 >= 0 and tail[at - _LOCATOR_64.size :].startswith(b"PK\6\7"):
        signature, entries, length, offset = _END_64.unpack_from(tail, at_64)
        if signature != b"PK\6\6":
            raise DamagedArchiveError("the end of its directory isn't where it should be")
        at = at_64
    past = size - wanted + at
    before = past - length - offset
    if before < 0:
        raise DamagedArchiveError("its directory isn't where it should be; the file is cut off, or one part of several")
    return _Directory(past - length, length, entries, before)


def _past_entry(held: bytes, place: int) -> int | None:
    """Where the entry at `place` ends; None where not all of it is there. Raises DamagedArchiveError."""
    if len(held) - place < _ENTRY.size:
        return None
    fields = _ENTRY.unpack_from(held, place)
    if fields[0] != b"PK\1\2":
        raise DamagedArchiveError("its directory is damaged")
    past = place + _ENTRY.size + sum(fields[5:8])
    return past if past <= len(held) else None


def _entry(held: bytes, place: int, before: int) -> Entry | None:
    """The entry at `place`; None for a folder."""
    _, flags, method, packed, full, name_bytes, extra_bytes, _, offset = _ENTRY.unpack_from(held, place)
    place += _ENTRY.size
    name = held[place : place + name_bytes]
    if name.endswith(b"/"):
        return None
    if _IN_EXTRA in (packed, full, offset):
        packed, offset = _in_extra(held[place + name_bytes : place + name_bytes + extra_bytes], packed, full, offset)
    return Entry(zip_name(name), flags, method, before + offset, packed)


def _in_extra(extra: bytes, packed: int, full: int, offset: int) -> tuple[int, int]:
    """The compressed size and the offset with what the extra fields say of those that need 64 bits."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _ZIP64 and len(extra) >= 4 + length:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            try:
                _ = next(numbers) if full == _IN_EXTRA else full  # it comes first
                packed = next(numbers) if packed == _IN_EXTRA else packed
                offset = next(numbers) if offset == _IN_EXTRA else offset
            except StopIteration:
                break
            return packed, offset
        extra = extra[4 + length :]
    raise DamagedArchiveError("a size of more than 32 bits is missing in its directory")
