"""From a row of any layout to a checked sample."""

from __future__ import annotations

from typing import Any, NamedTuple

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.layouts.known import ALL, recognise
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.marks import check_marks, check_media, put_marks, text_of
from vig_ray.dataset.schema import Image, RowError, Sample


class Row(NamedTuple):
    """One row as it was read."""

    number: int  # place in its file, from 0
    content: dict[str, Any] | RowError
    members: tuple[bytes, ...] = ()  # image files found beside the row (WebDataset); they replace its own images
    layout: Layout | None = None  # where it is known already; otherwise the row's own keys tell it, among those
    among: tuple[str, ...] = ALL  # that are named here
    beside: dict[str, Any] | None = None  # what else is known of the row, of which columns can be kept


def to_sample(row: Row, folder: ImageFolder) -> tuple[Sample, bool]:
    """The checked sample of a row, with full image paths; and whether its images had to be given their marks.

    Raises RowError.
    """
    content = row.content
    if isinstance(content, RowError):
        raise content
    check_media(content)
    layout = row.layout or recognise(content, image=bool(row.members), among=row.among)
    sample = layout.parse(content)
    if row.members:
        sample = sample._replace(images=tuple([Image(bytes=data) for data in row.members]))
    elif any(image.uri is not None for image in sample.images):
        sample = sample._replace(images=tuple([_resolved(image, folder) for image in sample.images]))
    sample, marked = put_marks(sample)
    check(sample)
    return sample, marked


def check(sample: Sample) -> None:
    """Raise RowError where a sample can't be stored, has no answer to score, or not as many `<image>` as images."""
    _check_text(sample)
    if not any(turn.role == "assistant" for turn in sample.conversation):
        raise RowError("NoAnswer", "no assistant turn")
    check_marks(sample)


def _resolved(image: Image, folder: ImageFolder) -> Image:
    return image if image.uri is None else image._replace(uri=folder.resolve(image.uri))


def _check_text(sample: Sample) -> None:
    """Raise RowError where a text can't be stored: JSON can hold half a surrogate pair, UTF-8 can't."""
    uris = [image.uri or "" for image in sample.images]
    try:
        " ".join([text_of(sample), sample.id or "", sample.source or "", *uris]).encode()
    except UnicodeEncodeError:
        texts = [("id", sample.id), ("source", sample.source)]
        texts += [(f"image {index}", image.uri) for index, image in enumerate(sample.images)]
        texts += [(f"turn {index}", turn.text) for index, turn in enumerate(sample.conversation)]
        for where, text in texts:
            try:
                (text or "").encode()
            except UnicodeEncodeError as error:
                raise RowError("UnicodeEncodeError", f"{where}: {error}") from error
