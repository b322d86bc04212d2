"""Conversations by turns: LLaVA's and ShareGPT's `from` with `value`, chat messages' `role` with `content`.

`{"conversations": [{"from": "human", "value": ...}], "image": ...}`, `{"messages": [{"role": "user", "content": ...}],
"images": [...]}`, or TRL's `prompt` and `completion` lists of messages, one after the other. Each turn is told by
itself, since some sets (LLaVA-OneVision-1.5) mix the two, with nulls under the other's keys. A text holds `<image>`
where an image goes; or it is a list of parts: `{"type": "text", "text": ...}` and `{"type": "image"}`. An image is in
its part, or else the next one of the row's `images` (or `image`).
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
    structs,
    type_name,
    with_system,
)
from vig_ray.dataset.schema import IMAGE_MARK, Image, RowError, Sample, Turn

_IMAGE_TYPES = ("image", "image_url")
_OTHER_TYPES = {"video": "Video", "video_url": "Video", "audio": "Audio", "audio_url": "Audio", "input_audio": "Audio"}


def parse(row: Mapping[str, Any], *keys: str) -> Sample:
    """The sample in a row whose turns lie under `keys`, one list after the other; "messages" without any.

    Texts are kept unchanged. An image part becomes `<image>` in its place, and text parts are joined with nothing
    between them. Images without a mark come last, so that the numbers of marks and images can be compared. Raises
    RowError.
    """
    unused = iter(row_images(row))
    images: list[Image] = []
    turns: list[Turn] = []
    for key in keys or ("messages",):
        for turn in structs(row.get(key), key, "turn"):
            turns.append(_turn(turn, len(turns), images, unused))
    images.extend(unused)
    used = tuple(images)
    return Sample(identifier(row), source(row, used), used, with_system(row, tuple(turns)))


def _turn(turn: Mapping[str, Any], number: int, images: list[Image], unused: Iterator[Image]) -> Turn:
    """One turn. Appends the images that it uses to `images`, from its parts or from `unused`."""
    name, key, other = turn.get("from"), "value", "content"
    if name is None:
        name, key, other = turn.get("role"), "content", "value"
        if name is None:
            raise RowError(
                "BadConversation", f"turn {number} has neither 'from' with 'value' nor 'role' with 'content'"
            )
    elif turn.get("role") is not None and turn.get("content") is not None:
        raise RowError("BadConversation", f"turn {number} has both 'from' and 'role'; keep one of the two")
    content = turn.get(key)
    if content is None and turn.get(other) is not None:
        content, key = turn[other], other
    if isinstance(content, str):
        if IMAGE_MARK in content:
            _take(content.count(IMAGE_MARK), images, unused)
        return Turn(role(name, number), content)
    if content is None or not isinstance(content, list | dict):
        expected = "a string" if key == "value" else "a string or a list"
        raise RowError("BadConversation", f"turn {number}: '{key}' is {type_name(content)}, not {expected}")
    return Turn(role(name, number), _parts(content, number, key, images, unused))


def _parts(content: object, number: int, key: str, images: list[Image], unused: Iterator[Image]) -> str:
    """The text of the parts of one message."""
    where = f"turn {number}"
    texts = []
    for part in structs(content, key, f"{where}: part"):
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
        elif isinstance(kind, str) and kind in _OTHER_TYPES:
            raise RowError(_OTHER_TYPES[kind], f"{where}: a part of type '{kind}'; only images are looked at")
        else:
            given = shorten(kind) if isinstance(kind, str) else type_name(kind)
            raise RowError("BadConversation", f"{where}: a part of type {given}; expected 'text' or 'image'")
    return "".join(texts)


def _take(count: int, images: list[Image], unused: Iterator[Image]) -> None:
    for _, image in zip(range(count), unused, strict=False):
        images.append(image)
