"""A conversation as a processor takes it: content lists, with images at their marks; and what none of them takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.prompt import Pixels, PromptError, PromptImage


def messages_of(
    conversation: Sequence[Turn], answers: Sequence[str], pictures: Sequence[Image.Image] | None = None
) -> list[dict[str, Any]]:
    """The conversation as content lists, its assistant turns replaced by `answers`; with `pictures` at its marks."""
    remaining = iter(answers)
    images = iter(pictures or ())
    messages = []
    for turn in conversation:
        text = next(remaining) if turn.role == "assistant" else turn.text
        parts: list[dict[str, Any]] = []
        for index, piece in enumerate(text.split(IMAGE_MARK)):
            if index:
                parts.append({"type": "image"} if pictures is None else {"type": "image", "image": next(images)})
            if piece:
                parts.append({"type": "text", "text": piece})
        messages.append({"role": turn.role, "content": parts})
    return messages


def answers_of(conversation: Sequence[Turn]) -> list[str]:
    """The assistant's texts. Raises PromptError where there is none, or one can't be trained on."""
    answers = [turn.text for turn in conversation if turn.role == "assistant"]
    if not answers:
        raise PromptError("NoAnswer", "no assistant turn")
    for index, answer in enumerate(answers):
        if not answer.strip():
            raise PromptError("EmptyAnswer", f"assistant turn {index}: no text")
        if IMAGE_MARK in answer:
            raise PromptError("ImageInAnswer", f"assistant turn {index}: {IMAGE_MARK} in its text")
    return answers


def check_marks(conversation: Sequence[Turn], images: Sequence[PromptImage]) -> None:
    """Raise PromptError where there aren't as many images as marks."""
    marks = sum(turn.text.count(IMAGE_MARK) for turn in conversation)
    if marks != len(images):
        raise PromptError("ImageCount", f"{marks} {IMAGE_MARK} in the conversation, and {len(images)} images")


def check_sides(pixels: Pixels) -> None:
    """Raise PromptError for a height of 1 or 3, which some processors take for the colours' dimension."""
    height, width = pixels.shape[:2]
    if height in (1, 3):
        raise PromptError("TooSmall", f"an image of {width}x{height} pixels, which may be taken for its colours")
