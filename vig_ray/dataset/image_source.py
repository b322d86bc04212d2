"""Where the images of an import are: in folders, in archives, or in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vig_ray.dataset.archive_files import ArchiveFile, archives_at, archives_by, images_are_missing, named_archives
from vig_ray.dataset.archives import ImageArchives, index_archives
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.image_order import Spread
from vig_ray.dataset.inputs import DataFile
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.unpacking import UNPACKED_FOLDER
from vig_ray.stage import Claim
from vig_ray.storage import absolute, join


@dataclass(frozen=True)
class ImageSource:
    """`folder`: that relative image paths start from, None where it is each data file's own. `archives`: in which
    images are looked for. `pattern`: what names these, None where they were found. `members`: theirs, once they are
    known.
    """

    folder: ImageFolder | None
    archives: tuple[ArchiveFile, ...]
    pattern: str | None
    members: ImageArchives | None = None

    def of(self, file: DataFile) -> ImageFolder:
        """The images that relative paths in a file mean."""
        folder = self.folder or folder_of(file)
        if self.members is None:
            return folder
        return replace(folder, archives=self.members, holds_files=self.pattern is None)

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
    images: str | None, datasets: Sequence[tuple[DataFile, Sequence[str]]], layout: Layout | None
) -> ImageSource:
    """What `--images` names, or, where it names no archives and the first rows' images are missing in their folder,
    that folder with the archives in it. `datasets`: of each its first file and the archives beside it. `layout`: of
    --columns.

    Raises StageError where nothing is there that `images` names.
    """
    named = None if images is None else named_archives(images)
    if images is not None and named is not None:
        return ImageSource(None, tuple(named), absolute(images))
    given = None if images is None else ImageFolder.at(images)
    found: dict[str, ArchiveFile] = {}
    for first, beside in datasets:
        folder = given or folder_of(first)
        if first.kind != "webdataset" and images_are_missing(first, folder, layout):
            archives = archives_at(beside, folder.root) if given is None else archives_by(folder.root)
            found |= {each.uri: each for each in archives}
    return ImageSource(given, tuple(found.values()), None)


def folder_of(file: DataFile) -> ImageFolder:
    """The folder that a data file lies in."""
    return ImageFolder.at(file.uri.rpartition("/")[0] or "/")
