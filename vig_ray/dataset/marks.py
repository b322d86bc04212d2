"""`<image>` marks: put where a set has none, counted against the images; and what else than images a row may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vig_ray.dataset.fields import OTHER_MEDIA
from vig_ray.dataset.schema import IMAGE_MARK, RowError, Sample, Turn

_OTHER_MARKS = {"<video>": "Video", "<audio>": "Audio"}


def put_marks(sample: Sample) -> tuple[Sample, bool]:
    """The sample with its images first in its first user turn, where no turn says where they go; and whether it is so.

    Each is a mark and a newline before the text, as LLaVA's rows have it. So TRL (`prepare_multimodal_messages`) and
    ms-swift place them, too.
    """
    turns = sample.conversation
    if not sample.images or IMAGE_MARK in text_of(sample):
        return sample, False
    for index, turn in enumerate(turns):
        if turn.role == "user":
            marked = Turn(turn.role, f"{IMAGE_MARK}\n" * len(sample.images) + turn.text)
            return sample._replace(conversation=(*turns[:index], marked, *turns[index + 1 :])), True
    return sample, False


def check_marks(sample: Sample) -> None:
    """Raise RowError for marks and images that nobody can bring together, and for marks of videos and sounds.

    LLaVA takes several marks in a turn for one, and trains a mark in an answer; so a single image passes here with any
    number in one turn, and other models' formatters refuse what isn't one mark an image.
    """
    text, images = text_of(sample), len(sample.images)
    marks = text.count(IMAGE_MARK)
    if marks != images and (images != 1 or sum(IMAGE_MARK in turn.text for turn in sample.conversation) != 1):
        raise RowError("ImageCount", f"{marks} {IMAGE_MARK} in the conversation, {images} images in the row")
    for mark, kind in _OTHER_MARKS.items():
        if mark in text:
            for index, turn in enumerate(sample.conversation):
                if turn.role == "user" and mark in turn.text:
                    raise RowError(kind, f"turn {index} has a {mark} mark; only images are looked at")


def text_of(sample: Sample) -> str:
    """All that a sample's turns say, with a space between, which no mark holds."""
    return " ".join([turn.text for turn in sample.conversation])


def check_media(row: Mapping[str, Any]) -> None:
    """Raise RowError where a row holds a video or sound."""
    for key, kind in OTHER_MEDIA.items():
        if row.get(key):
            raise RowError(kind, f"something under '{key}'; only images are looked at")
