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
from vig_ray.dataset.patterns import expand, fixed_folder, has_braces, has_wildcards, matches
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
    return [_archive(info, folder) for info in sorted(found, key=lambda info: info.path)]


def archives_at(uris: Sequence[str], folder: str) -> list[ArchiveFile]:
    """The archives at these paths or URIs, beside data in a folder. Raises StageError where one is missing."""
    root = common_folder([folder, *(uri.rpartition("/")[0] for uri in uris)])
    return [each for uri in uris for each in _matching(absolute(uri), root)]


def images_are_missing(data: DataFile, folder: ImageFolder, layout: Layout | None) -> bool:
    """Whether the first rows name images by paths, and the folder lacks some of the first of these."""
    if scheme_of(folder.root) in ("http", "https"):
        return False
    wanted: dict[str, None] = {}
    try:
        for row in itertools.islice(read_rows(data, layout), _ROWS_LOOKED_AT):
            try:
                images = to_sample(row, folder)[0].images
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
    fs, path = filesystem(pattern)
    try:
        info = fs.get_file_info(path)
        infos = [info] if info.is_file else matches(fs, path) if has_wildcards(path) else []
    except OSError as error:
        raise StageError(f"--images {pattern}: can't be listed: {one_line(error)}") from error
    if not infos:
        raise StageError(f"--images {pattern}: no such file")
    for info in infos:
        if not archive_suffix(info.path):
            raise StageError(f"{info.path}: {_EXPECTED}")
    scheme = scheme_of(pattern)
    return [_archive(info, root, scheme if scheme != "file" else "") for info in infos]


def _archive(info: Any, root: str, scheme: str | None = None) -> ArchiveFile:
    """The archive that a listing tells of, which lies in the images' folder `root`."""
    scheme = scheme_of(root) if scheme is None else scheme
    uri = f"{scheme}://{info.path}" if scheme else info.path
    folder = uri.rpartition("/")[0][len(root.rstrip("/")) + 1 :]
    return ArchiveFile(uri, SUFFIXES[archive_suffix(info.path)], folder, info.size, info.mtime_ns)
