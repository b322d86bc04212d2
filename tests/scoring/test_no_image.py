"""`no-image`: which positions go, and that all that is known of the others moves with them."""

from __future__ import annotations

import numpy as np
import pytest

from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.reference import make_reference

FEATURE, ROW = 900, 901  # an image's features, and what its processor puts between rows of them


def prompt(tokens: str) -> Prompt:
    """Of a line such as "t t i r i t a a": text, image features, row separators, answers. One image."""
    kinds = tokens.split()
    ids = np.array([{"i": FEATURE, "r": ROW}.get(kind, place) for place, kind in enumerate(kinds)], dtype=np.int32)
    answers = np.array([place for place, kind in enumerate(kinds) if kind == "a"], dtype=np.int32)
    features = [place for place, kind in enumerate(kinds) if kind == "i"]
    spans = np.array([(features[0], features[-1] + 1)], dtype=np.int32) if features else np.zeros((0, 2), np.int32)
    images = (PromptImage("x", lambda: np.zeros((4, 4, 3), np.uint8), lambda p: {}),) if features else ()
    chars = np.stack([np.arange(len(answers)), np.arange(len(answers)) + 1], axis=1).astype(np.int32)
    turns = np.arange(len(answers), dtype=np.int32) // 2
    return Prompt(ids, answers, turns, ids == FEATURE, spans, images, chars, truncated=3, note="n")


@pytest.mark.parametrize(
    ("given", "left", "answers"),
    [
        ("t i i r i i t a a t a", [0, 6, 7, 8, 9, 10], [2, 3, 5]),
        ("t i a a", [0, 2, 3], [1, 2]),  # predicted by what stands before the image
        ("t t a a", [0, 1, 2, 3], [2, 3]),
        ("i i t a", [2, 3], [1]),
    ],
)
def test_text_moves_up(given: str, left: list[int], answers: list[int]) -> None:
    clean = prompt(given)
    text = make_reference("no-image", formatter=None).without_image(clean)  # type: ignore[arg-type]
    assert text.token_ids.tolist() == clean.token_ids[left].tolist()
    assert text.answer_positions.tolist() == answers
    assert text.answer_ids.tolist() == clean.answer_ids.tolist()
    assert (text.token_ids.dtype, text.answer_positions.dtype) == (np.int32, np.int32)
    assert not text.image_mask.any()
    assert len(text.image_mask) == len(text.token_ids) == text.length
    assert text.image_spans.shape == (0, 2)
    assert text.images == ()
    assert not text.hide_images
    for name in ("turns", "answer_chars", "truncated", "note"):
        assert getattr(text, name) is getattr(clean, name)


def test_an_answer_that_nothing_predicts_is_an_error() -> None:
    without = make_reference("no-image", formatter=None).without_image  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="NoImage: nothing but an image stands before an answer"):
        without(prompt("i i a a"))
    with pytest.raises(PromptError, match="NoImage: an answer token lies inside an image"):
        without(prompt("t i a i t"))
