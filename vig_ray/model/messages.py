"""A conversation as transformers' content lists, and what is refused of one before any template sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.prompt import Pixels, PromptError, PromptImage


def as_messages(
    conversation: Sequence[Turn], answers: Sequence[str], pictures: Sequence[Image.Image] | None = None
) -> list[dict[str, Any]]:
    """The conversation as content lists, its assistant turns replaced by `answers`; with `pictures` at its marks."""
    remaining = iter(answers)
    images = iter(pictures or ())
    made = []
    for turn in conversation:
        text = next(remaining) if turn.role == "assistant" else turn.text
        parts: list[dict[str, Any]] = []
        for index, piece in enumerate(text.split(IMAGE_MARK)):
            if index:
                parts.append({"type": "image"} if pictures is None else {"type": "image", "image": next(images)})
            if piece:
                parts.append({"type": "text", "text": piece})
        made.append({"role": turn.role, "content": parts})
    return made


def placed(text: str, start: int, answer: str) -> tuple[int, int]:
    """Where an answer's first character is, or would be, in a rendered text, and its length up to its last there.

    A template that trims turns has put only the inner part at `start`.
    """
    if text.startswith(answer, start):
        return start, len(answer)
    return start - (len(answer) - len(answer.lstrip())), len(answer.rstrip())


def answers_of(conversation: Sequence[Turn]) -> list[str]:
    """The assistant's texts. Raises PromptError where there is none, or one that can't be."""
    answers = earlier_answers(conversation)
    if not answers:
        raise PromptError("NoAnswer", "no assistant turn")
    return answers


def earlier_answers(conversation: Sequence[Turn]) -> list[str]:
    """The assistant's texts, of which there may be none. Raises PromptError for one that can't be."""
    answers = [turn.text for turn in conversation if turn.role == "assistant"]
    for index, answer in enumerate(answers):
        if not answer.strip():
            raise PromptError("EmptyAnswer", f"assistant turn {index}: no text")
        if IMAGE_MARK in answer:
            raise PromptError("ImageInAnswer", f"assistant turn {index}: {IMAGE_MARK} in its text")
    return answers


def check_question(conversation: Sequence[Turn]) -> None:
    """Raise PromptError where a conversation doesn't end with a question."""
    if not conversation:
        raise PromptError("Question", "no turn, and so nothing to answer")
    if conversation[-1].role != "user":
        raise PromptError("Question", f"the last turn is by {conversation[-1].role}; an answer follows a user's turn")


def check_marks(conversation: Sequence[Turn], images: Sequence[PromptImage]) -> None:
    """Raise PromptError where there isn't a mark for each image."""
    marks = sum(turn.text.count(IMAGE_MARK) for turn in conversation)
    if marks != len(images):
        raise PromptError("ImageCount", f"{marks} {IMAGE_MARK} in the conversation, and {len(images)} images")


def check_sides(pixels: Pixels) -> None:
    """Some processors take a height of 1 or 3 for the colours' dimension. Raises PromptError."""
    height, width = pixels.shape[:2]
    if height in (1, 3):
        raise PromptError("TooSmall", f"an image of {width}x{height} pixels, which may be taken for its colours")
