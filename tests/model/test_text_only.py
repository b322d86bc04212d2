"""Documents of a text-only model, against the tokenizer by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests import tiny_models
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.prompt import PromptError
from vig_ray.model.text_only import TextOnly, text_formatter

TURNS = [
    Turn("user", "<image>\nWhat is it? "),
    Turn("assistant", "A red circle."),
    Turn("user", "And 红色?"),
    Turn("assistant", ""),
    Turn("user", "So?"),
    Turn("assistant", "Où? 😀"),
]


@pytest.fixture(scope="module")
def demo() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def test_answers_alone_follow_each_other(demo: Any) -> None:
    prompt = TextOnly(demo, max_length=100).prompt(TURNS)
    first, last = (ids_of(demo, TURNS[place].text) for place in (1, 5))
    assert prompt.token_ids.tolist() == [demo.bos_token_id, *first, demo.eos_token_id, *last, demo.eos_token_id]
    assert prompt.answer_positions.tolist() == list(range(1, len(prompt.token_ids)))
    assert prompt.turns.tolist() == [0] * (len(first) + 1) + [2] * (len(last) + 1)
    assert (prompt.images, prompt.image_mask.any(), prompt.image_spans.shape) == ((), False, (0, 2))


def test_questions_are_seen_without_their_images(demo: Any) -> None:
    prompt = TextOnly(demo, context="conversation", max_length=100).prompt(TURNS)
    expected, answers = [demo.bos_token_id], []
    for turn in TURNS:
        if turn.role == "user":
            expected += ids_of(demo, turn.text.replace("<image>", "").strip() + "\n")
        elif turn.text:
            said = [*ids_of(demo, turn.text), demo.eos_token_id]
            answers += list(range(len(expected), len(expected) + len(said)))
            expected += said
    assert prompt.token_ids.tolist() == expected
    assert prompt.answer_positions.tolist() == answers
    question = TextOnly(demo, context="conversation", max_length=100).question(TURNS[:-1])
    assert question.token_ids.tolist() == expected[: len(expected) - len(said)]
    assert len(question.answer_positions) == 0


def test_characters_are_those_of_the_turn(demo: Any) -> None:
    prompt = TextOnly(demo, context="conversation", max_length=100).prompt(TURNS)
    for number, text in ((0, TURNS[1].text), (2, TURNS[5].text)):
        chars = prompt.answer_chars[prompt.turns == number].tolist()
        assert chars[-1] == [len(text), len(text)]
        covered = {place for first, past in chars for place in range(first, past)}
        assert covered >= {place for place, sign in enumerate(text) if sign != " "}


def test_without_a_bos_the_end_of_a_text_begins_the_next() -> None:
    tokenizer = tiny_models.byte_level(["<|end|>"], eos="<|end|>")
    prompt = TextOnly(tokenizer, max_length=100).prompt(TURNS[:2])
    assert prompt.token_ids.tolist() == [tokenizer.eos_token_id, *ids_of(tokenizer, "A red circle."),
                                         tokenizer.eos_token_id]  # fmt: skip


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([Turn("user", "What?")], "NoAnswer: no assistant turn with an answer"),
        ([Turn("assistant", "")], "NoAnswer"),
        (
            [Turn("user", "?"), Turn("assistant", "See <image>.")],
            "ImageInAnswer: assistant turn 0: <image>",
        ),
    ],
)
def test_what_has_no_document_says_why(demo: Any, turns: list[Turn], told: str) -> None:
    with pytest.raises(PromptError, match=told):
        TextOnly(demo, max_length=100).prompt(turns)


def test_a_checkpoint_is_told_by_its_config(demo: Any, tmp_path: Path) -> None:
    folder = tiny_models.write_language_model(str(tmp_path / "lm"), demo)
    assert text_formatter(folder).max_length == 1024
    assert text_formatter(folder, "conversation", 64).max_length == 64
    assert text_formatter(folder).identity() != text_formatter(folder, "conversation").identity()
    with pytest.raises(StageError, match="a 'llava' model takes images; --model needs a language model"):
        text_formatter(CHECKPOINT, option="--model")
    with pytest.raises(StageError, match="no such folder; --reference-model takes a checkpoint's folder or a hub id"):
        text_formatter(str(tmp_path / "gone"))
    nameless = tiny_models.byte_level([], eos="<|end|>")
    nameless.eos_token = None
    with pytest.raises(StageError, match="names no end of text"):
        TextOnly(nameless, max_length=9)
