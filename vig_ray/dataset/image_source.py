"""Where the images of an import are: in folders, in archives, or in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vig_ray.dataset.archive_files import ArchiveFile, archives_at, archives_by, images_are_missing, named_archives
from vig_ray.dataset.archives import index_archives
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.image_order import Spread
from vig_ray.dataset.inputs import DataFile
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.member_lookup import ImageArchives
from vig_ray.dataset.unpacking import UNPACKED_FOLDER
from vig_ray.stage import Claim
from vig_ray.storage import absolute, join, scheme_of

_FILES_ASKED = 8  # whether their images are missing


@dataclass(frozen=True)
class ImageSource:
    """`folder`: that relative image paths start from, None where it is each data file's own. `archives`: in which
    images are looked for, those of each dataset by its rows. `pattern`: what names these, None where they were found.
    `members`: theirs, once they are known.
    """

    folder: ImageFolder | None
    archives: tuple[ArchiveFile, ...]
    pattern: str | None
    members: ImageArchives | None = None

    def of(self, file: DataFile) -> ImageFolder:
        """The images that relative paths in a file mean."""
        folder = self.folder or folder_of(file)
        if self.members is None or not any(each.holds(file.dataset) for each in self.archives):
            return folder
        named = self.folder is not None or self.pattern is not None
        members = self.members.among(file.dataset, None if named else folder.root)
        return replace(folder, archives=members, holds_files=self.pattern is None)

    def identity(self) -> dict[str, Any]:
        """What of it decides the samples; of a mere folder what earlier versions wrote."""
        images = self.pattern or (self.folder and self.folder.root)
        found = [{"path": each.uri, "size": each.size, "mtime_ns": each.mtime_ns} for each in self.archives]
        return {"images": images, **({"archives": found} if found else {})}

    def scanned(self, output: Claim, spread: Spread | None) -> ImageSource:
        """The same, with the members of all archives known; what is compressed is unpacked beside `output`."""
        if not self.archives:
            return self
        members = index_archives(
            self.archives,
            join(output.work, "archives"),
            join(output.directory.rpartition("/")[0], UNPACKED_FOLDER),
            output.run,
            spread or (lambda work: (each() for each in work)),
        )
        return replace(self, members=members)


def find_images(
    images: str | None, datasets: Sequence[tuple[Sequence[DataFile], Sequence[str] | None]], layout: Layout | None
) -> ImageSource:
    """What `--images` names, or, where it names no archives and the first rows' images are missing in their folder,
    that folder with the archives in it. `datasets`: of each its files and the archives beside them, None where these
    weren't looked for. `layout`: of --columns.

    Where the first file names no images, the next ones say whether they are missing; where none of these does, archives
    that were found are used.

    Raises StageError where nothing is there that `images` names.
    """
    named = None if images is None else named_archives(images)
    if images is not None and named is not None:
        return ImageSource(None, tuple(named), absolute(images))
    given = None if images is None else ImageFolder.at(images)
    found: dict[str, ArchiveFile] = {}
    for files, beside in datasets:
        if given is None and beside is None and scheme_of(files[0].uri) not in ("", "file"):
            # In a store a listing costs less than reading rows.
            beside = [each.uri for each in _beside(files, None)]
        if given is None and beside is not None and not beside:
            continue
        seen = (images_are_missing(file, given or folder_of(file), layout) for file in files[:_FILES_ASKED])
        missing = next((each for each in seen if each is not None), None)
        if missing is False or (missing is None and (given is not None or beside is None)):
            continue
        if given is not None:
            found |= {each.uri: each for each in archives_by(given.root)}
            continue
        for each in _beside(files, beside):
            whose = (*found[each.uri].datasets, files[0].dataset) if each.uri in found else (files[0].dataset,)
            found[each.uri] = replace(found.get(each.uri, each), datasets=whose)
    return ImageSource(given, tuple(found.values()), None)


def _beside(files: Sequence[DataFile], archives: Sequence[str] | None) -> list[ArchiveFile]:
    """The archives that were found beside a dataset's files, else all in these files' folders; each once."""
    if archives is not None:
        return archives_at(archives, folder_of(files[0]).root)
    folders = dict.fromkeys(folder_of(file).root for file in files)
    return list({each.uri: each for folder in folders for each in archives_by(folder)}.values())


def folder_of(file: DataFile) -> ImageFolder:
    """The folder that a data file lies in."""
    return ImageFolder.at(file.uri.rpartition("/")[0] or "/")
