"""Rows from a WebDataset shard: a tar in which neighbouring members with the same name make up one row.

`0001.jpg` with `0001.json`: the JSON is a row of any layout, and the image members, in the tar's order,
are its images. `0001.jpg` with `0001.txt`: a caption, made into a question and its answer.
"""

from __future__ import annotations

import itertools
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vig_ray.dataset.json_reader import MAX_ROW_BYTES, parse_object
from vig_ray.dataset.layouts import exchanges
from vig_ray.dataset.layouts.known import AmbiguousError, recognise
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.rows import Row
from vig_ray.dataset.schema import IMAGE_MARK, RowError
from vig_ray.dataset.strict_tar import StrictTarInfo

_IMAGE_TYPES = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp"})
CAPTION_QUESTION = f"{IMAGE_MARK}\n{exchanges.CAPTION_QUESTION}"
"""The question that a caption answers; the shard itself has none."""


def read_shard(stream: BinaryIO, layout: Layout | None = None) -> Iterator[Row]:
    """The rows of the tar in `stream`, which may be compressed. `layout`: that of --columns, for the JSON.

    Members that make no row together are a RowError. Raises tarfile.TarError or OSError where the tar is
    damaged or cut off.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
        numbers = itertools.count()
        group: _Group | None = None
        while (member := archive.next()) is not None:
            # tarfile keeps all members that it has seen, which is too much for a long stream.
            archive.members = []  # type: ignore[attr-defined]
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            # Names that begin with a dot are of file managers, not of the dataset.
            if not member.isreg() or not stem:
                continue
            key = posixpath.join(folder, stem)
            if group is None or group.key != key:
                if group is not None:
                    yield group.row(next(numbers), layout)
                group = _Group(key)
            group.add(archive, member, extension.lower())
        if group is not None:
            yield group.row(next(numbers), layout)


@dataclass
class _Group:
    """The members of one row, collected as they are read."""

    key: str
    images: list[bytes] = field(default_factory=list)
    json: bytes | None = None
    caption: bytes | None = None
    size: int = 0

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
        """Keep a member of a known kind; others, such as `.cls` or `.meta.json`, are skipped.

        A row may have several images, `0001.left.jpg` and `0001.right.jpg`, but one JSON and one caption.
        """
        is_image = extension.rpartition(".")[2] in _IMAGE_TYPES
        if not is_image and extension not in ("json", "txt"):
            return
        self.size += member.size
        file = archive.extractfile(member)
        if file is None or self.size > MAX_ROW_BYTES:
            return
        data = file.read()
        if is_image:
            self.images.append(data)
        elif extension == "json":
            self.json = data
        else:
            self.caption = data

    def row(self, number: int, layout: Layout | None) -> Row:
        """The row that these members make."""
        try:
            content = self._content()
        except RowError as error:
            return Row(number, error)
        if content is not None and (self.caption is None or layout is not None or self._says_more(content)):
            named = content if content.get("id") is not None else {**content, "id": self.key}
            return Row(number, named, tuple(self.images), layout=layout)
        return self._captioned(number)._replace(beside=content)

    def _says_more(self, content: dict[str, Any]) -> bool:
        """Whether a JSON beside a caption holds a conversation, and not only facts, as img2dataset writes them.

        So does one that holds two: that it doesn't say which is meant is the row's error.
        """
        try:
            return recognise(content, image=bool(self.images)).name != "caption"
        except AmbiguousError:
            return True
        except RowError:
            return False

    def _captioned(self, number: int) -> Row:
        if self.caption is None:
            return Row(number, RowError("UnknownFormat", f"{self.key}: neither a .json nor a .txt member"))
        try:
            text = self.caption.decode().strip()  # a text file ends in a line break, its caption doesn't
        except UnicodeDecodeError as error:
            return Row(number, RowError("UnicodeDecodeError", f"{self.key}.txt: {error}"))
        question, answer = {"role": "user", "content": CAPTION_QUESTION}, {"role": "assistant", "content": text}
        return Row(number, {"id": self.key, "messages": [question, answer]}, tuple(self.images))

    def _content(self) -> dict[str, Any] | None:
        """The row in the JSON member, if there is one."""
        if self.size > MAX_ROW_BYTES:
            raise RowError("TooLong", f"{self.key}: members of more than {MAX_ROW_BYTES >> 20} MiB together")
        if any(not data for data in self.images):
            raise RowError("BadImage", f"{self.key}: an image of 0 bytes")
        return None if self.json is None else parse_object(self.json)
