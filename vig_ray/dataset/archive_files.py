"""Which archives an import takes images from: those that --images names, or those that lie by the data."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.inputs import DataFile, expand, is_pattern, read_rows
from vig_ray.dataset.members import SUFFIXES, ArchiveKind, archive_suffix
from vig_ray.dataset.rows import to_sample
from vig_ray.dataset.schema import RowError
from vig_ray.dataset.sharing import common_folder
from vig_ray.dataset.unpacking import is_unpacked
from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, filesystem, join, one_line, scheme_of

_WILDCARD = re.compile(r"[*?\[]")
_EXPECTED = (
    "no such folder; --images is the folder that relative image paths start from, or an archive with the images, or a "
    f"pattern of such (names that end in {', '.join(SUFFIXES)})"
)
_ROWS_LOOKED_AT = 100
_IMAGES_LOOKED_FOR = 16


@dataclass(frozen=True)
class ArchiveFile:
    """An archive, with its size and time when it was found. `folder`: where it lies below the images' own, or ""."""

    uri: str  # absolute where it is local
    kind: ArchiveKind
    folder: str
    size: int  # bytes
    mtime_ns: int | None  # nanoseconds since 1970


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
    elif is_pattern(images) or _WILDCARD.search(images):
        patterns = [absolute(each) for each in expand(images)]
    else:
        raise StageError(f"{images}: {_EXPECTED}")
    root = common_folder([_fixed_part(pattern) for pattern in patterns])
    found = {each.uri: each for pattern in patterns for each in _matching(pattern, root)}
    return list(found.values())


def archives_by(folder: str, data: Iterable[DataFile]) -> list[ArchiveFile]:
    """The archives in a folder and the folders in it, sorted, but for the data themselves and what imports unpacked."""
    taken = {file.uri for file in data}
    infos = [info for info in _listing(folder, recursive=True) if info.is_file and archive_suffix(info.path)]
    infos = [info for info in infos if not is_unpacked(info.path)]
    return [found for info in infos if (found := _archive(folder, info, folder)).uri not in taken]


def archives_at(uris: Sequence[str], folder: str) -> list[ArchiveFile]:
    """The archives at these paths or URIs, beside data in a folder. Raises StageError where one is missing."""
    root = common_folder([folder, *(uri.rpartition("/")[0] for uri in uris)])
    return [each for uri in uris for each in _matching(absolute(uri), root)]


def images_are_missing(data: DataFile, folder: ImageFolder) -> bool:
    """Whether the first rows name images by paths, and the folder lacks some of the first of these."""
    if scheme_of(folder.root) in ("http", "https"):
        return False
    wanted: dict[str, None] = {}
    try:
        for row in itertools.islice(read_rows(data), _ROWS_LOOKED_AT):
            try:
                images = to_sample(row, folder).images
            except RowError:
                continue
            inside = [image.uri for image in images if (image.uri or "").startswith(folder.root.rstrip("/") + "/")]
            wanted |= dict.fromkeys(uri for uri in inside if uri is not None)
            if len(wanted) >= _IMAGES_LOOKED_FOR:
                break
        looked_for = list(wanted)[:_IMAGES_LOOKED_FOR]
        return any(exists(uri) != pafs.FileType.File for uri in looked_for)
    except StageError:  # the import meets it, too, and then it is told
        return False


def _matching(pattern: str, root: str) -> list[ArchiveFile]:
    """The archives that a path, or a pattern with wildcards, names. Raises StageError where it names none."""
    parent = _fixed_part(pattern)
    if exists(pattern) == pafs.FileType.File:
        fs, path = filesystem(pattern)
        infos = [fs.get_file_info(path)]
        parent = pattern.rpartition("/")[0]
    else:
        infos = list(_fitting(parent or "/", pattern[len(parent) :].strip("/").split("/")))
    if not infos:
        raise StageError(f"--images {pattern}: no such file")
    for info in infos:
        if not archive_suffix(info.path):
            raise StageError(f"{info.path}: {_EXPECTED}")
    return [_archive(parent, info, root) for info in infos]


def _fixed_part(pattern: str) -> str:
    """The folder of a path, or of a pattern the longest that has no wildcard in it."""
    head = pattern[: found.start()] if (found := _WILDCARD.search(pattern)) else pattern
    return head.rpartition("/")[0]


def _fitting(folder: str, patterns: Sequence[str]) -> Iterator[Any]:
    """What a listing tells of the files below a folder whose path fits these patterns, one for each part of it."""
    deep = patterns[0] == "**"
    start = len(filesystem(folder)[1].rstrip("/")) + 1
    for info in _listing(folder, recursive=deep):
        below = info.path[start:]
        if deep or len(patterns) == 1:
            if info.is_file and _fits(below.split("/"), patterns):
                yield info
        elif not info.is_file and fnmatch.fnmatchcase(below, patterns[0]):
            yield from _fitting(join(folder, below), patterns[1:])


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _listing(folder: str, *, recursive: bool) -> list[Any]:
    fs, path = filesystem(folder)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=recursive))
    except OSError as error:
        raise StageError(f"{folder}: can't be listed: {one_line(error)}") from error
    return sorted(infos, key=lambda info: info.path)


def _archive(parent: str, info: Any, root: str) -> ArchiveFile:
    """The archive that a listing of the folder `parent` tells of, which lies in the images' folder `root`."""
    below = info.path[len(filesystem(parent or "/")[1].rstrip("/")) + 1 :]
    uri = join(parent, below)
    folder = uri.rpartition("/")[0][len(root.rstrip("/")) + 1 :]
    return ArchiveFile(uri, SUFFIXES[archive_suffix(info.path)], folder, info.size, info.mtime_ns)
