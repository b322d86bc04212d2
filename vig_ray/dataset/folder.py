"""All that lies in a folder, at any depth: of a disk, of a bucket or of a dataset of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from vig_ray import hub
from vig_ray.dataset.unpacking import is_unpacked
from vig_ray.errors import StageError
from vig_ray.stage import RECORD_SUFFIX
from vig_ray.storage import filesystem, join, one_line, read_bytes, scheme_of


@dataclass(frozen=True)
class Folder:
    """A folder's files, sorted by their paths in it. `root`: absolute where it is local, else a URI."""

    root: str
    infos: Mapping[str, Any]

    def uri(self, name: str) -> str:
        """The path or URI of a file in it."""
        return join(self.root, name)

    def text(self, name: str) -> str | None:
        """The content of a small file in it; None where it has no such file. Raises StageError."""
        if name not in self.infos:
            return None
        try:
            with hub.explained_if_of_hub(self.uri(name)):
                return read_bytes(self.uri(name)).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise StageError(f"{self.uri(name)}: can't be read: {one_line(error)}") from error

    @property
    def visible(self) -> list[str]:
        """Names without a part that begins with `.` or `_`, of what isn't in an output of vig-ray."""
        outputs = tuple(name.removesuffix(RECORD_SUFFIX) + "/" for name in self.infos if name.endswith(RECORD_SUFFIX))
        return [
            name
            for name in self.infos
            if not name.startswith(outputs)
            and not is_unpacked(f"/{name}")
            and not any(part.startswith((".", "_")) for part in name.split("/"))
        ]


def list_folder(uri: str) -> Folder:
    """List a folder. Raises StageError."""
    fs, path = filesystem(uri)
    root = path if scheme_of(uri) in ("", "file") else uri.rstrip("/")
    try:
        with hub.explained_if_of_hub(uri):
            infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise StageError(f"{uri}: can't be listed: {one_line(error)}") from error
    start = len(path.rstrip("/")) + 1
    return Folder(root, {info.path[start:]: info for info in sorted(infos, key=lambda info: info.path) if info.is_file})
