"""Which image a sample is of, as 64 bits, and how many samples share theirs with another.

The hash is of the image's path below a root, of its place in an archive, or of its bytes, so it is the same wherever a
dataset lies. Two images may have one hash (2.7 % that there are any at 1e9 images): their samples would be taken for
those of one image, which changes no sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

from vig_ray.dataset.archived import archived
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, list_files, one_line
from vig_ray.whole_files import whole_files

Hashes = npt.NDArray[np.uint64]

_HASH_KEY = "vig-ray's images"  # 16 characters, as pandas wants them
_SORTED_AT_ONCE = 1 << 25  # hashes, of 8 bytes
_READ_AT_ONCE = 1 << 20


def image_hashes(table: pa.Table, roots: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.bool_]]:
    """The hash of each row's first image, uint64 [rows], and whether the row has one, bool [rows].

    `roots`: folders that paths are taken to start from, where they lie below one of them.
    """
    lists = table["images"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    has_image = lengths > 0
    first = lists.flatten().take(pa.array((np.cumsum(lengths) - lengths)[has_image]))
    below = [root.rstrip("/") + "/" for root in roots]
    images: npt.NDArray[np.object_] = np.empty(len(first), dtype=object)
    images[:] = [
        data if uri is None else _name(uri, below)
        for uri, data in zip(first.field("uri").to_pylist(), first.field("bytes").to_pylist(), strict=True)
    ]
    hashes = np.zeros(len(lengths), dtype=np.uint64)
    hashes[has_image] = hash_array(images, hash_key=_HASH_KEY, categorize=False)
    return hashes, has_image


def _name(uri: str, roots: Sequence[str]) -> str:
    """What tells an image apart, wherever its dataset lies."""
    inside = archived(uri)
    if inside is not None:
        return uri[len(inside.archive) :]
    return next((uri[len(root) :] for root in roots if uri.startswith(root)), uri)


class HashFile:
    """A file of the image hashes of tables, 8 bytes a row that has an image; for use in a `with` statement.

    Seen at `uri` only when it is whole; a local one lies in the folder `unfinished` until then. Raises StageError where
    it can't be written.
    """

    def __init__(self, uri: str, unfinished: str, roots: Sequence[str]) -> None:
        self._uri, self._roots = uri, roots
        self._fs, self._path = whole_files(uri, unfinished)
        self._stream: Any = None

    def __enter__(self) -> HashFile:
        try:
            self._fs.create_dir(self._path.rpartition("/")[0], recursive=True)
            self._stream = self._fs.open_output_stream(self._path, compression=None)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
        except OSError as failure:
            raise self._unwritable(failure) from failure

    def add(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        hashes, has_image = image_hashes(table, self._roots)
        try:
            self._stream.write(hashes[has_image].astype("<u8").tobytes())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StageError:
        return StageError(f"{self._uri}: can't be written to: {one_line(error)}")


def count_sharing(folder: str, count: int) -> int:
    """How many of the `count` hashes in the files of a folder are there more than once.

    As many hashes as fit are sorted at a time, so that memory is bounded; for more the files are read several times.
    Raises StageError where the files hold another number of hashes.
    """
    scans = -(-count // _SORTED_AT_ONCE)
    sharing = seen = 0
    for scan in range(scans):
        parts = [block[block % np.uint64(scans) == np.uint64(scan)] for block in _blocks(folder)]
        hashes: Hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
        del parts
        hashes.sort()
        seen += len(hashes)
        like_the_next = np.append(hashes[1:] == hashes[:-1], [False])[: len(hashes)]
        sharing += int((like_the_next | np.roll(like_the_next, 1)).sum())
    if seen != count:
        raise StageError(f"{folder}: {seen:,} hashes of images where {count:,} were written; import again")
    return sharing


def _blocks(folder: str) -> Iterator[Hashes]:
    fs, path = filesystem(folder)
    for name in list_files(folder):
        with fs.open_input_stream(f"{path}/{name}", compression=None) as stream:
            while data := stream.read(8 * _READ_AT_ONCE):
                yield np.frombuffer(data, dtype="<u8")


def order_to_write(asked: str, *, sharing: int, imported: int, embedded: int) -> tuple[bool, str]:
    """Whether samples are to be ordered by image, and why, in words.

    `asked`: auto, image or as-is. `sharing`, `embedded`: how many of the `imported` samples share their image with
    another, and have images in the data itself.
    """
    share = f"{sharing:,} of {imported:,} samples share their image with another"
    if asked == "as-is" or not sharing:
        return False, share
    if asked == "image":
        return True, share
    if sharing * LEAST_SHARE < imported:
        return False, f"{share}, less than {100 // LEAST_SHARE} %"
    if embedded:
        return False, f"{share}, and {embedded:,} hold their images in the data, which is costly to move"
    return True, share


LEAST_SHARE = 20
"""One sample in so many must share its image for `auto` to order by image."""


def common_folder(folders: Sequence[str]) -> str:
    """The longest folder that all these lie in or are; "" where there is none."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return "/".join(common)
