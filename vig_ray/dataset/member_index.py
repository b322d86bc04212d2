"""The members of all archives of an import, found by their names: too many for a dict of strings.

Names are kept as hashes of 128 bits, sorted, in two files that every process of a machine maps into memory: `keys`, the
first half of each hash, and `entries`, the other half and where the member lies. That is 33 bytes a member. Two names
of the same hash would be taken for one: of 1e9 names there are any with a probability of 1e-21.

Sorting takes as many at a time as fit in memory, and reads what the archives' scans have left once for each time.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs

from vig_ray.dataset.members import Member
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, join, one_line

_HALVES = [("key", "<u8"), ("rest", "<u8")]
_WHERE = [("offset", "<u8"), ("size", "<u4"), ("archive", "<u4"), ("place", "u1")]
_SCANNED = np.dtype([*_HALVES, *_WHERE])
_ENTRY = np.dtype([_HALVES[1], *_WHERE])
_KEY = np.dtype("<u8")
_AT_ONCE = 1 << 23  # members that are sorted at a time, of 33 bytes, three times
_WRITTEN_AT_ONCE = 1 << 16
_COPIED_AT_ONCE = 16 << 20

Records = npt.NDArray[np.void]


class Found(NamedTuple):
    """Where a member of some name lies: in which archive, and there as `Member` says it."""

    archive: int
    place: int
    offset: int
    size: int


def write_scan(uri: str, found: Iterable[tuple[int, Member]]) -> int:
    """Write members, each with the number of the file that it lies in, to a file of records; how many there are.

    Raises StageError where it can't be written.
    """
    count = 0
    fs, path = filesystem(uri)
    with _writing(uri):
        fs.create_dir(path.rpartition("/")[0], recursive=True)
        stream = fs.open_output_stream(path, compression=None)
    try:
        for records in _records(found):  # what goes wrong here is the archive's
            count += len(records)
            with _writing(uri):
                stream.write(records.tobytes())
    finally:
        with _writing(uri):
            stream.close()
    return count


@contextmanager
def _writing(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StageError(f"{uri}: can't be written: {one_line(error)}") from error


def _records(found: Iterable[tuple[int, Member]]) -> Iterator[Records]:
    batch: list[tuple[int, Member]] = []
    for each in found:
        batch.append(each)
        if len(batch) == _WRITTEN_AT_ONCE:
            yield _as_records(batch)
            batch = []
    if batch:
        yield _as_records(batch)


def _as_records(batch: Sequence[tuple[int, Member]]) -> Records:
    hashes = np.frombuffer(b"".join(_hash(member.name) for _, member in batch), dtype=_KEY).reshape(-1, 2)
    records = np.zeros(len(batch), dtype=_SCANNED)
    records["key"], records["rest"] = hashes.T
    records["offset"] = [member.offset for _, member in batch]
    records["size"] = [member.size for _, member in batch]
    records["archive"] = [archive for archive, _ in batch]
    records["place"] = [member.place for _, member in batch]
    return records


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def write_index(folder: str, scans: Sequence[tuple[str, int, int]]) -> None:
    """Write the index of what these scans found: for each its file, how many members that holds, and what is added to
    its archives' numbers. Raises StageError where a file can't be read or written, or holds another number.
    """
    total = sum(count for _, count, _ in scans)
    rounds = max(1, -(-total // _AT_ONCE))
    bounds = [(1 << 64) * number // rounds for number in range(rounds + 1)]
    seen = 0
    fs, path = filesystem(folder)
    try:
        fs.create_dir(path, recursive=True)
        with (
            fs.open_output_stream(f"{path}/keys", compression=None) as keys,
            fs.open_output_stream(f"{path}/entries", compression=None) as entries,
        ):
            for first, past in itertools.pairwise(bounds):
                records = _between(scans, first, past)
                seen += len(records)
                order = np.argsort(records["key"], kind="stable")
                keys.write(records["key"][order].tobytes())
                for start in range(0, len(order), _WRITTEN_AT_ONCE):
                    some = records[order[start : start + _WRITTEN_AT_ONCE]]
                    entries.write(some[list(_ENTRY.names or ())].astype(_ENTRY).tobytes())
    except OSError as error:
        raise StageError(f"{folder}: can't be written: {one_line(error)}") from error
    if seen != total:
        raise StageError(f"{folder}: {seen:,} members of archives where {total:,} were written; import again")


def _between(scans: Sequence[tuple[str, int, int]], first: int, past: int) -> Records:
    """The records whose key is from `first` on and below `past`."""
    parts: list[Records] = [np.zeros(0, dtype=_SCANNED)]
    for uri, _, added in scans:
        fs, path = filesystem(uri)
        with fs.open_input_stream(path, compression=None) as stream:
            while data := stream.read(_WRITTEN_AT_ONCE * _SCANNED.itemsize):
                records = np.frombuffer(data, dtype=_SCANNED)
                inside = records["key"] >= np.uint64(first)
                if past < 1 << 64:
                    inside &= records["key"] < np.uint64(past)
                chosen = records[inside]  # a copy
                chosen["archive"] += np.uint32(added)
                parts.append(chosen)
    return np.concatenate(parts)


class MemberIndex:
    """Looks members up by their names in an index that `write_index` has written; from many threads, if need be.

    Raises StageError where the index can't be read.
    """

    def __init__(self, folder: str) -> None:
        self._keys: npt.NDArray[np.uint64] = _mapped(join(folder, "keys"), _KEY)
        self._entries: Records = _mapped(join(folder, "entries"), _ENTRY)

    def find(self, name: str) -> list[Found]:
        """All members of that name; a name may come several times in an archive, and in several archives."""
        digest = _hash(name)
        key, rest = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        found = []
        while place < len(self._keys) and int(self._keys[place]) == key:
            entry = self._entries[place]
            if int(entry["rest"]) == rest:
                found.append(
                    Found(int(entry["archive"]), int(entry["place"]), int(entry["offset"]), int(entry["size"]))
                )
            place += 1
        return found


@functools.lru_cache(maxsize=2)
def open_index(folder: str) -> MemberIndex:
    """The index in a folder, opened once in a process."""
    return MemberIndex(folder)


def _mapped(uri: str, dtype: np.dtype[Any]) -> Any:
    """A file of records as an array in memory that is read only where it is looked at; one in a store is copied to this
    machine before, where nothing remains of it when the process ends."""
    fs, path = filesystem(uri)
    try:
        if isinstance(fs, pafs.LocalFileSystem):
            return _map(path, dtype)
        with fs.open_input_stream(path, compression=None) as stream, tempfile.NamedTemporaryFile() as copy:
            while data := stream.read(_COPIED_AT_ONCE):
                copy.write(data)
            copy.flush()
            return _map(copy.name, dtype)  # it stays while it is mapped, without its name
    except OSError as error:
        raise StageError(f"{uri}: the index of the images' archives can't be read: {one_line(error)}") from error


def _map(path: str, dtype: np.dtype[Any]) -> Any:
    if not os.path.getsize(path):  # which can't be mapped
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")
