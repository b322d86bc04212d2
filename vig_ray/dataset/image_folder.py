"""The location of a row's images: relative paths start from one folder and may not leave it.

Where there are archives, paths mean their members first: see `vig_ray.dataset.member_lookup`.

A dataset is other people's data. A path in it must not make a job read any file of the machine and a model describe
it, so a path outside the images folder is refused. Symbolic links inside the folder are the user's own and are
followed.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote

import pyarrow.fs as pafs

from vig_ray.dataset.archived import archived
from vig_ray.dataset.fields import shorten
from vig_ray.dataset.schema import RowError
from vig_ray.storage import exists, filesystem, join, scheme_of

# Schemes of URIs that a row may hold. Others could lead back to the machine's own files, as fsspec's `local://` and its
# chains such as `simplecache::file://` do.
_REMOTE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hdfs", "viewfs", "hf", "http", "https"})
# Stores whose object names are plain text; for any other, a name in a URI is quoted.
_PLAIN_NAMES = frozenset({"", "s3", "s3a", "az", "hf"})


class Images(Protocol):
    """Images by their paths in rows."""

    def find(self, path: str) -> str | None:
        """The URI of the image at a relative path; None where there is none. Raises RowError where it can't be told."""

    def missing(self, path: str) -> RowError:
        """What to say of an image that isn't there."""


@dataclass(frozen=True)
class ImageFolder:
    """The folder that relative image paths start from: an absolute local path, or a URI.

    `archives`: those whose members are images of the folder as well. `holds_files`: whether it may also hold images
    outside of them.
    """

    root: str
    archives: Images | None = None
    holds_files: bool = True

    @classmethod
    def at(cls, location: str) -> ImageFolder:
        """The folder at a path or URI; a local one is made absolute."""
        if scheme_of(location) in ("", "file"):
            return cls(filesystem(location)[1])
        return cls(location.rstrip("/"))

    def resolve(self, uri: str) -> str:
        """The full path or URI of an image, normalised. Raises RowError for one outside the folder or archives."""
        if archived(uri) is not None:
            raise RowError("ImagePath", f"{shorten(uri)}: names bytes of an archive, which only vig-ray itself does")
        scheme = scheme_of(uri)
        if scheme in _REMOTE and "::" not in uri:
            return uri
        if scheme == "file":
            uri = "/" + unquote(uri.split("://", 1)[1]).partition("/")[2]
        elif scheme:
            known = ", ".join(sorted(_REMOTE))
            raise RowError("ImagePath", f"{shorten(uri)}: this kind of URI is not read; expected a path or {known}")
        root_scheme = scheme_of(self.root)
        if not root_scheme:
            path = os.path.normpath(os.path.join(self.root, uri))
            if path.startswith(self.root.rstrip("/") + "/"):
                return self._found(path[len(self.root.rstrip("/")) + 1 :], path)
        else:
            path = posixpath.normpath(uri)
            if path not in (".", "..") and not path.startswith(("/", "../")):
                return self._found(path, join(self.root, path if root_scheme in _PLAIN_NAMES else quote(path)))
        raise RowError(
            "ImagePath",
            f"{shorten(uri)} lies outside the images folder {self.root}; pass --images with a folder that holds it",
        )

    def _found(self, path: str, full: str) -> str:
        """Where the image at a path below the folder is: in an archive, or at its full path. Raises RowError."""
        if self.archives is None:
            return full
        inside = self.archives.find(path)
        if inside is None and not (self.holds_files and exists(full) == pafs.FileType.File):
            raise self.archives.missing(path)
        return inside or full
