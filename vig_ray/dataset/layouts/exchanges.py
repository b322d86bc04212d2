"""Questions with their answers in columns of their own: VQA sets, The Cauldron's pairs, captions, trainers' columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from vig_ray.dataset.fields import SOURCE_KEYS, identifier, row_images, source, structs, type_name, with_system
from vig_ray.dataset.schema import RowError, Sample, Turn

CAPTION_QUESTION = "Describe the image."
"""The question that a caption answers, where the set has none."""
CHOICES = ("choices", "options")
"""Columns of what an answer is chosen from."""


def pairs(row: Mapping[str, Any], key: str = "texts") -> Sample:
    """The sample in a row whose pairs of `user` and `assistant`, under `key`, are one conversation.

    So The Cauldron and FineVision have it. Pairs that agree on a `source` give the sample its own, where the row has
    none.
    """
    turns: list[Turn] = []
    sources: set[object] = set()
    for number, pair in enumerate(structs(row.get(key), key, "pair")):
        asked, answered = pair.get("user"), pair.get("assistant")
        if not isinstance(asked, str) or not isinstance(answered, str):
            name, given = ("assistant", answered) if isinstance(asked, str) else ("user", asked)
            raise RowError("BadConversation", f"pair {number}: '{name}' is {type_name(given)}, not a string")
        turns += (Turn("user", asked), Turn("assistant", answered))
        named = pair.get("source")
        sources.add(named if isinstance(named, str) else None)
    sample = _sample(row, turns)
    if len(sources) == 1 and sources != {None} and not any(row.get(key) for key in SOURCE_KEYS):
        return sample._replace(source=str(sources.pop()) or None)
    return sample


def question(row: Mapping[str, Any], asked: str = "question", answered: str = "answer") -> Sample:
    """The sample in a row with a question and an answer, several answers to it, or as many answers as questions.

    Raises RowError, also where the answer is to be chosen among options that the question may not show.
    """
    for key in CHOICES:
        if row.get(key):
            raise RowError(
                "MultipleChoice",
                f"the options lie under a key of their own, '{key}', where the question doesn't show them; write them "
                f"into it, or take question and answer as they are with --columns question={asked},answer={answered}",
            )
    return conversation_of(row, asked, row.get(asked), answered, row.get(answered))


def conversation_of(row: Mapping[str, Any], asked: str, questions: Any, answered: str, answers: Any) -> Sample:
    """The sample of a row whose questions and answers are these; `asked` and `answered` name them in messages."""
    if not isinstance(questions, list):
        return exchange(row, [(_text(questions, asked), one_answer(answers, answered))])
    if not isinstance(answers, list) or len(answers) != len(questions):
        given = f"{len(answers)}" if isinstance(answers, list) else type_name(answers)
        raise RowError("BadConversation", f"{len(questions)} questions under '{asked}', and {given} under '{answered}'")
    return exchange(row, [(_text(q, asked), one_answer(a, answered)) for q, a in zip(questions, answers, strict=True)])


def one_answer(value: object, key: str) -> str:
    """The answer in a text, or of several the most frequent one, the first of those that are equally so.

    That is VQAv2's own rule for `multiple_choice_answer`. The answers are texts, or objects with their text under
    `answer`. Raises RowError.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = structs(value, key, "answer")
    if not isinstance(value, list):
        raise RowError("BadAnswer", f"'{key}' is {type_name(value)}, not a string or a list of answers")
    texts: list[str] = []
    for index, each in enumerate(value):
        text = each.get("answer") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise RowError("BadAnswer", f"answer {index} of '{key}' is {type_name(text)}, not a string")
        texts.append(text)
    if not texts:
        raise RowError("NoAnswer", f"'{key}' is an empty list")
    counts = Counter(texts)
    return max(counts, key=counts.__getitem__)  # the first of several, in the order of the list


def instruction(row: Mapping[str, Any]) -> Sample:
    """The sample in a row of Alpaca's columns: the question is `instruction` and `input`, a line each."""
    lines = [_text(row.get("instruction"), "instruction"), _text(row.get("input") or "", "input")]
    asked = "\n".join(line for line in lines if line)
    return exchange(row, [*_history(row), (asked, _text(row.get("output"), "output"))])


def query(row: Mapping[str, Any]) -> Sample:
    """The sample in a row of ms-swift's columns: `query`, `response`, and the `history` before them."""
    asked, answered = _text(row.get("query"), "query"), one_answer(row.get("response"), "response")
    return exchange(row, [*_history(row), (asked, answered)])


def caption(row: Mapping[str, Any], key: str = "caption") -> Sample:
    """The sample in a row with a caption, as the answer to CAPTION_QUESTION."""
    return exchange(row, [(CAPTION_QUESTION, one_answer(row.get(key), key))])


def exchange(row: Mapping[str, Any], told: Iterable[tuple[str, str]]) -> Sample:
    """The sample of these questions and answers, with the row's images, id, source and system prompt."""
    return _sample(
        row, [Turn(role, text) for pair in told for role, text in zip(("user", "assistant"), pair, strict=True)]
    )


def as_text(value: object) -> object:
    """A number as its text, also inside of a list; anything else as it is."""
    if isinstance(value, list):
        return [as_text(each) for each in value]
    is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
    return str(value) if is_number else value


def _sample(row: Mapping[str, Any], turns: list[Turn]) -> Sample:
    images = row_images(row)
    return Sample(identifier(row), source(row, images), images, with_system(row, tuple(turns)))


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise RowError("BadConversation", f"'{key}' is {type_name(value)}, not a string")
    return value


def _history(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("BadConversation", f"'history' is {type_name(history)}, not a list of pairs")
    told = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("BadConversation", f"'history' {index} is not a pair of a question and its answer")
        told.append((_text(pair[0], f"history {index}"), _text(pair[1], f"history {index}")))
    return told
