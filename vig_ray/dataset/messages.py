"""Chat-message rows, as TRL, LLaMA-Factory, ms-swift and the OpenAI API write them.

`{"messages": [{"role": "user", "content": ...}], "images": [...]}`, or TRL's `prompt` and `completion` lists of
messages, one after the other. `content` is a string, with `<image>` where an image goes, or a list of parts:
`{"type": "text", "text": ...}` and `{"type": "image"}`. An image is in its part, or else the next one of the
row's `images` (or `image`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vig_ray.dataset.fields import (
    identifier,
    inner_image,
    role,
    row_images,
    shorten,
    source,
    turn_list,
    type_name,
    with_system,
)
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Sample, Turn

_IMAGE_TYPES = ("image", "image_url")


def parse(row: Mapping[str, Any], *keys: str) -> Sample:
    """The sample in a row whose turns, under `keys` one after the other, have `role` and `content`.

    An image part becomes `<image>` in its place, and text parts are joined with nothing between them. Images without a
    mark come last, so that the numbers of marks and images can be compared. Raises RowError.
    """
    unused = iter(row_images(row))
    images: list[Image] = []
    turns: list[Turn] = []
    for key in keys or ("messages",):
        for turn in turn_list(row.get(key), key):
            where = f"turn {len(turns)}"
            turns.append(Turn(role(turn.get("role"), where), _text(turn.get("content"), where, images, unused)))
    images.extend(unused)
    used = tuple(images)
    return Sample(identifier(row), source(row, used), used, with_system(row, tuple(turns)))


def _text(content: object, where: str, images: list[Image], unused: Iterator[Image]) -> str:
    """The text of one message. Appends the images it uses to `images`, from its parts or from `unused`."""
    if isinstance(content, str):
        _take(content.count(IMAGE_MARK), images, unused)
        return content
    if not isinstance(content, list):
        raise RowError("BadConversation", f"{where}: 'content' is {type_name(content)}, not a string or a list")
    texts = []
    for part in content:
        if not isinstance(part, dict):
            raise RowError("BadConversation", f"{where}: a part of 'content' is {type_name(part)}, not an object")
        kind = part.get("type")
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise RowError("BadConversation", f"{where}: a part's 'text' is {type_name(text)}, not a string")
            _take(text.count(IMAGE_MARK), images, unused)
            texts.append(text)
        elif kind in _IMAGE_TYPES:
            image = inner_image(part)
            if image is None:
                _take(1, images, unused)
            else:
                images.append(image)
            texts.append(IMAGE_MARK)
        else:
            given = shorten(kind) if isinstance(kind, str) else type_name(kind)
            raise RowError("BadConversation", f"{where}: a part of type {given}; expected 'text' or 'image'")
    return "".join(texts)


def _take(count: int, images: list[Image], unused: Iterator[Image]) -> None:
    for _, image in zip(range(count), unused, strict=False):
        images.append(image)
