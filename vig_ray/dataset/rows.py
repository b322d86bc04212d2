"""From a row of any format to a checked sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vig_ray.dataset import llava, messages
from vig_ray.dataset.fields import shorten
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Sample

COLUMNS = (
    "id",
    "source",
    "dataset",
    "data_source",
    "image",
    "images",
    "system",
    "conversations",
    "messages",
    "prompt",
    "completion",
)
"""All keys that some format reads, so that a reader of columns can leave out the others."""

EXPECTED = "'conversations', 'messages', or 'prompt' with 'completion'"
"""What a row must have to fit a format, as messages say it."""


class Row(NamedTuple):
    """One row as it was read."""

    number: int  # place in its file, from 0
    content: dict[str, Any] | RowError
    members: tuple[bytes, ...] = ()  # image files found beside the row (WebDataset); they replace its own images


def fits(keys: Mapping[str, Any]) -> bool:
    """Whether a row with these keys, those with null left out, fits one of the formats."""
    return "conversations" in keys or "messages" in keys or ("prompt" in keys and "completion" in keys)


def to_sample(row: Row, folder: ImageFolder) -> Sample:
    """The checked sample of a row, with full image paths. Raises RowError."""
    if isinstance(row.content, RowError):
        raise row.content
    sample = _parse(row.content)
    if row.members:
        images = tuple(Image(bytes=data) for data in row.members)
    else:
        images = tuple(i._replace(uri=folder.resolve(i.uri)) if i.uri is not None else i for i in sample.images)
    sample = sample._replace(images=images)
    check(sample)
    return sample


def check(sample: Sample) -> None:
    """Raise RowError where a sample can't be stored, has no answer to score, or not as many `<image>` as images."""
    _check_text(sample)
    _check_conversation(sample)


def _parse(row: dict[str, Any]) -> Sample:
    """The sample in a row. The row's own keys tell its format, so that a file may mix formats."""
    # A table that mixes formats has nulls under the keys of the others.
    present = {key: value for key, value in row.items() if value is not None}
    if not fits(present):
        keys = ", ".join(shorten(str(key), 40) for key in list(present)[:20]) or "none"
        raise RowError("UnknownFormat", f"the row's keys ({keys}) fit no format; expected {EXPECTED}")
    keys_of_turns = [key for key in ("conversations", "messages") if key in present]
    if len(keys_of_turns) == 2:
        raise RowError("UnknownFormat", "both 'conversations' and 'messages'; keep one of the two")
    if not keys_of_turns:
        return messages.parse(present, "prompt", "completion")
    key = keys_of_turns[0]
    turns = present[key]
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(first, dict) and first.get("from") is not None:
        return llava.parse(present, key)
    if isinstance(first, dict) and first.get("role") is None:
        raise RowError("BadConversation", "turn 0 has neither 'from' with 'value' nor 'role' with 'content'")
    return messages.parse(present, key)


def _check_text(sample: Sample) -> None:
    """Raise RowError where a text can't be stored: JSON can hold half a surrogate pair, UTF-8 can't."""
    texts = [("id", sample.id), ("source", sample.source)]
    texts += [(f"image {index}", image.uri) for index, image in enumerate(sample.images)]
    texts += [(f"turn {index}", turn.text) for index, turn in enumerate(sample.conversation)]
    for where, text in texts:
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise RowError("UnicodeEncodeError", f"{where}: {error}") from error


def _check_conversation(sample: Sample) -> None:
    """Raise RowError for a conversation without an answer, or with `<image>` and images that nobody can bring together.

    LLaVA takes several marks in a turn for one, an image without a mark for none, and trains a mark in an answer; so a
    single image passes here, and other models' formatters refuse what isn't one mark an image.
    """
    if not any(turn.role == "assistant" for turn in sample.conversation):
        raise RowError("NoAnswer", "no assistant turn")
    counts = [turn.text.count(IMAGE_MARK) for turn in sample.conversation]
    marks, turns, images = sum(counts), sum(count > 0 for count in counts), len(sample.images)
    if marks != images and (images != 1 or turns > 1):
        raise RowError("ImageCount", f"{marks} {IMAGE_MARK} in the conversation, {images} images in the row")
