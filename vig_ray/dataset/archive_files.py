"""Which archives an import takes images from: those that --images names, or those that lie by the data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.inputs import DataFile, read_rows
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.members import SUFFIXES, ArchiveKind, archive_suffix
from vig_ray.dataset.patterns import expand, fixed_folder, has_braces, has_wildcards, matches, uri_below
from vig_ray.dataset.rows import to_sample
from vig_ray.dataset.schema import RowError
from vig_ray.dataset.sharing import common_folder
from vig_ray.dataset.unpacking import is_unpacked
from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, filesystem, one_line, scheme_of

_EXPECTED = (
    "no such folder; --images is the folder that relative image paths start from, or an archive with the images, or a "
    f"pattern of such (names that end in {', '.join(SUFFIXES)})"
)
_ROWS_LOOKED_AT = 100
_TEXTS_LOOKED_AT = 10_000  # rows, as long as none has an image
_IMAGES_LOOKED_FOR = 16


@dataclass(frozen=True)
class ArchiveFile:
    """An archive, with its size and time when it was found. `folder`: where it lies below the images' own, or "".
    `datasets`: whose images it holds, by the numbers of their `--data`; () for all.
    """

    uri: str  # absolute where it is local
    kind: ArchiveKind
    folder: str
    size: int  # bytes
    mtime_ns: int | None  # nanoseconds since 1970
    datasets: tuple[int, ...] = ()

    def holds(self, dataset: int) -> bool:
        """Whether images of a dataset are looked for in it."""
        return not self.datasets or dataset in self.datasets


def named_archives(images: str) -> list[ArchiveFile] | None:
    """The archives that --images names: one, or several by a pattern with braces, `*`, `?`, `[]` or `**` for folders in
    folders; sorted. None where it names a folder.

    Raises StageError where nothing is there, a pattern matches nothing, or something that is no archive.
    """
    if scheme_of(images) in ("http", "https"):
        if archive_suffix(images):
            raise StageError(f"--images {images}: archives aren't read over http; copy it to a disk or a store")
        return None  # a web server needn't answer for a folder
    kind = exists(images)
    if kind == pafs.FileType.Directory:
        return None
    if kind == pafs.FileType.File:
        patterns = [absolute(images)]
    elif has_braces(images) or has_wildcards(images):
        patterns = [absolute(each) for each in expand(images)]
    else:
        raise StageError(f"{images}: {_EXPECTED}")
    root = common_folder([_fixed(pattern) for pattern in patterns])
    found = {each.uri: each for pattern in patterns for each in _matching(pattern, root)}
    return list(found.values())


def _fixed(pattern: str) -> str:
    """The folder of a path, or of a pattern the longest that has no wildcard in it."""
    return fixed_folder(pattern) if has_wildcards(pattern) else pattern.rpartition("/")[0]


def archives_by(folder: str) -> list[ArchiveFile]:
    """The archives in a folder and the folders in it, sorted, but for what imports unpacked."""
    fs, path = filesystem(folder)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise StageError(f"{folder}: can't be listed: {one_line(error)}") from error
    found = [info for info in infos if info.is_file and archive_suffix(info.path) and not is_unpacked(info.path)]
    return [
        _archive(uri_below(folder, path, info.path), info, folder) for info in sorted(found, key=lambda info: info.path)
    ]


def archives_at(uris: Sequence[str], folder: str) -> list[ArchiveFile]:
    """The archives at these paths or URIs, beside data in a folder. Raises StageError where one is missing."""
    root = common_folder([folder, *(uri.rpartition("/")[0] for uri in uris)])
    return [each for uri in uris for each in _matching(absolute(uri), root)]


def images_are_missing(data: DataFile, folder: ImageFolder, layout: Layout | None) -> bool | None:
    """Whether the folder lacks some of the first images that the first rows name by paths; None where they name none.

    Of rows without any image, more are looked at.
    """
    if scheme_of(folder.root) in ("http", "https"):
        return False
    if data.kind == "webdataset":
        return None
    wanted: dict[str, None] = {}
    any_image = False
    try:
        for number, row in enumerate(itertools.islice(read_rows(data, layout), _TEXTS_LOOKED_AT)):
            if any_image and number >= _ROWS_LOOKED_AT:
                break
            try:
                images = to_sample(row, folder)[0].images
            except RowError:
                continue
            if any(image.bytes is not None for image in images):
                break  # the data holds them itself
            any_image = any_image or bool(images)
            inside = [image.uri for image in images if (image.uri or "").startswith(folder.root.rstrip("/") + "/")]
            wanted |= dict.fromkeys(uri for uri in inside if uri is not None)
            if len(wanted) >= _IMAGES_LOOKED_FOR:
                break
        looked_for = list(wanted)[:_IMAGES_LOOKED_FOR]
        return any(exists(uri) != pafs.FileType.File for uri in looked_for) if looked_for else None
    except StageError:  # the import meets it, too, and then it is told
        return False


def _matching(pattern: str, root: str) -> list[ArchiveFile]:
    """The archives that a path, or a pattern with wildcards, names. Raises StageError where it names none."""
    fs, path = filesystem(pattern)
    try:
        info = fs.get_file_info(path)
        if info.is_file:
            found = {pattern: info}
        else:
            infos = matches(fs, path) if has_wildcards(path) else []
            folder = fixed_folder(pattern) if infos else ""
            start = filesystem(folder)[1]
            found = {uri_below(folder, start, each.path): each for each in infos if not is_unpacked(each.path)}
    except OSError as error:
        raise StageError(f"--images {pattern}: can't be listed: {one_line(error)}") from error
    if not found:
        raise StageError(f"--images {pattern}: no such file")
    for uri in found:
        if not archive_suffix(uri):
            raise StageError(f"{uri}: {_EXPECTED}")
    return [_archive(uri, info, root) for uri, info in found.items()]


def _archive(uri: str, info: Any, root: str) -> ArchiveFile:
    """The archive that a listing tells of, which lies in the images' folder `root`."""
    folder = uri.rpartition("/")[0][len(root.rstrip("/")) + 1 :]
    return ArchiveFile(uri, SUFFIXES[archive_suffix(info.path)], folder, info.size, info.mtime_ns)
