"""What lies beside a benchmark's questions: files of a known name, objects by their keys, images in one of several
folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import pyarrow.fs as pafs

from vig_ray.dataset.fields import shorten, type_name
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.schema import Image, RowError
from vig_ray.errors import StageError
from vig_ray.evaluation.files import Record, image_folder, read_json, records
from vig_ray.evaluation.task import Given
from vig_ray.storage import exists, filesystem, join, list_files, one_line


def file_of(task: str, folder: str, *patterns: str) -> str:
    """The one file right in a folder whose name fits the first of the patterns that any fits; `folder` itself where it
    is a file. Raises StageError, which names what was looked for, where there is none or several."""
    kind = exists(folder).name
    if kind == "NotFound":
        raise StageError(f"{folder}: no such file or folder")
    if kind == "File":
        return folder
    names = names_in(folder)
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name.lower(), pattern.lower())]
        if len(found) > 1:
            raise StageError(
                f"{folder}: several files called {pattern} ({', '.join(found[:4])}); name one, --data {task}="
            )
        if found:
            return join(folder, found[0])
    raise StageError(f"{folder}: no file here is called {' or '.join(patterns)}; --data {task}= names what holds it")


def names_in(folder: str) -> list[str]:
    """The files right in a folder, hidden ones aside. Raises StageError where it can't be listed."""
    fs, path = filesystem(folder)
    try:
        infos = fs.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise StageError(f"{folder}: can't be listed: {one_line(error)}") from error
    return sorted(
        info.base_name for info in infos if info.type == pafs.FileType.File and not info.base_name.startswith(".")
    )


def parent(uri: str) -> str:
    """The folder that a file lies in."""
    head, slash, _ = uri.rstrip("/").rpartition("/")
    return head if slash else "."


def keyed(uri: str) -> Iterator[tuple[str, Record]]:
    """The objects of a JSON object, by their keys. Raises StageError where the file is no such thing."""
    whole = read_json(uri)
    if not isinstance(whole, dict):
        raise StageError(f"{uri}: {type_name(whole)}, not an object of questions by their ids")
    for key, value in whole.items():
        where = f"{uri}, key {shorten(key, 40)}"
        if not isinstance(value, dict):
            raise StageError(f"{where}: {type_name(value)}, not an object")
        yield key, Record(where, value)


def rows_of(task: str, given: Given, *patterns: str, under: str | None = None) -> Iterator[Record]:
    """The rows of a file, or of the one in a folder that has a pattern's name; else of Parquet files (`parquet_of`).

    `under`: the key of the rows where a JSON file holds an object. Raises StageError.
    """
    for file in parquet_of(task, given.data, *patterns) or [file_of(task, given.data, *patterns)]:
        yield from records(file, under)


def parquet_of(task: str, data: str, *patterns: str) -> list[str]:
    """The Parquet files that `data` means: itself, those of a name such as validation-*.parquet, or those below a
    folder that has no file of any of the patterns' names. None where it means a file of another kind.

    Raises StageError where there are none, and where those below a folder are of several splits, as the hub names them.
    """
    if data.lower().endswith(".parquet"):
        files = [data] if "*" not in data else _named(data)
        if not files:
            raise StageError(f"{data}: no such files")
        return files
    if exists(data).name != "Directory":
        return []
    names = [name.lower() for name in names_in(data)]
    if any(fnmatchcase(name, pattern.lower()) for name in names for pattern in patterns):
        return []
    files = [join(data, name) for name in list_files(data) if name.lower().endswith(".parquet")]
    splits = sorted({file.rpartition("/")[2].partition("-")[0] for file in files})
    if len(splits) > 1:
        several = ", ".join(splits[:6])
        raise StageError(
            f"{data}: Parquet files of several splits, {several}; --data {task}=.../NAME-*.parquet takes one"
        )
    if not files:
        raise StageError(
            f"{data}: no file of {task} is here, and no Parquet files; --data {task}= names what holds them"
        )
    return files


def _named(pattern: str) -> list[str]:
    folder, name = parent(pattern), pattern.rpartition("/")[2]
    return [join(folder, each) for each in names_in(folder) if fnmatchcase(each, name)]


class ImageFiles:
    """Images of a task by their paths, which authors' archives unpack to several places.

    Which of several paths an image has is found at the first one, and holds for all: so a folder is asked for one file,
    and one that is missing later is the error of its row.
    """

    def __init__(self, task: str, given: Given, folder: ImageFolder | None = None) -> None:
        self._task = task
        self._folder = folder or image_folder(given)
        self._place: int | None = None

    def of(self, record: Record, key: str = "image") -> Image:
        """The image under a key: bytes, an image struct, or a path, of which the folders may be gone. Raises
        StageError."""
        value = record.value(key)
        if isinstance(value, str):
            return self.image(record, value, value.rpartition("/")[2])
        images = record.images(key, self._folder)
        if len(images) != 1:
            raise record.fault(f"'{key}' has {len(images)} images, not one")
        return images[0]

    def image(self, record: Record, *paths: str) -> Image:
        """The image at one of these paths. Raises StageError, which names the record, where the first image is at none
        of them and where one leads out of the folder."""
        try:
            found = [self._folder.resolve(path) for path in paths]
        except RowError as error:
            raise record.fault(str(error)) from error
        if self._place is None or self._place >= len(found):
            self._place = self._first(record, found)
        return Image(uri=found[self._place])

    def _first(self, record: Record, found: Sequence[str]) -> int:
        for place, uri in enumerate(found):
            if exists(uri).name == "File":
                return place
        there = " or ".join(dict.fromkeys(found))
        raise record.fault(f"its image isn't there, {there}; --images {self._task}=FOLDER says where images are")
