"""Rows of questions of one's own, as `choices` and `exact` read them: question, images, group and id by these names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.schema import IMAGE_MARK, Image
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, records
from vig_ray.evaluation.task import Given


@dataclass(frozen=True)
class UserRow(Record):
    """A row, its number among all rows, from 0, and the folder that relative image paths start from."""

    number: int
    folder: ImageFolder

    def asked(self, question: str | None = None) -> dict[str, Any]:
        """What a `Question` takes of it: id, prompt, images, group. `question`: in place of the row's own.

        A row without an id is called "row 7", so that it is no other row whose own id is 7.

        Raises StageError where it has none, or its marks and images don't fit.
        """
        images = self._images()
        text = self.text("question") if question is None else question
        marks = text.count(IMAGE_MARK)
        if marks not in (0, len(images)):
            raise self.fault(f"{marks} {IMAGE_MARK} marks in 'question', and {len(images)} images")
        return {
            "id": self.name("id") if self.has("id") else f"row {self.number}",
            "prompt": text if marks else marked(text, images),
            "images": images,
            "group": self.name("group") if self.has("group") else None,
        }

    def _images(self) -> tuple[Image, ...]:
        named = [key for key in ("image", "images") if self.has(key)]
        if len(named) == 2:
            raise self.fault("both 'image' and 'images'; leave one out")
        return self.images(named[0], self.folder) if named else ()


def user_rows(given: Given) -> Iterator[UserRow]:
    """The rows of a file, or of a folder's files. Raises StageError."""
    folder = image_folder(given)
    number = 0
    for uri in files_of(given.data):
        for record in records(uri):
            yield UserRow(record.where, record.values, number, folder)
            number += 1
