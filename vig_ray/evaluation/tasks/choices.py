"""Multiple choice of one's own, by likelihood or by the letter that the model writes.

A row of a JSON, JSON Lines or Parquet file:

    {"question": "What color is the circle?", "image": "images/1.png", "choices": ["red", "blue"], "answer": 0}

`answer`: the number of the right choice from 0, its letter (A is the first) or its text. `image`: a path, bytes, a
list of them, or none. `id` and `group` may be there. The question is asked as it is written, with its images before it
unless it has `<image>` marks.

By likelihood each choice is what the assistant might say, and is compared with the others as a whole, by token and by
character (`vig_ray.evaluation.likelihood`). With `choices.by=letter` the choices are listed below the question, A, B
and so on, with LLaVA-1.5's sentence for such questions, and the model writes.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from vig_ray.dataset.fields import shorten
from vig_ray.evaluation.likelihood import By, Choice, likeliest
from vig_ray.evaluation.parsing import lettered, option_letter
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.evaluation.user_rows import UserRow, user_rows

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
_LETTERS = string.ascii_uppercase
_LIKELIHOODS: tuple[By, ...] = ("sum", "token", "character")
_COMPARED = ("token", "sum", "character", "letter")


class Choices:
    """See the module."""

    name = "choices"
    source = "multiple choice of one's own"
    options: Mapping[str, str] = {
        "by": "what decides: the choice with the greatest log-prob by token (default), sum or character, or the letter "
        "that the model writes"
    }
    max_new_tokens = 16
    metrics_of = (Metric("accuracy", main=True), Metric("by sum"), Metric("by token"), Metric("by character"))
    by = "token"

    def begin(self, given: Given) -> None:
        """See `Task`."""
        way = given.choice(self.name, "by", _COMPARED)
        self.by = "token" if way == "letter" else way

    def read(self, given: Given) -> Iterator[Question]:
        """See `Task.read`."""
        letters = given.choice(self.name, "by", _COMPARED) == "letter"
        for row in user_rows(given):
            choices = row.texts("choices")
            if not 2 <= len(choices) <= len(_LETTERS):
                raise row.fault(f"{len(choices)} choices; there must be 2 to {len(_LETTERS)}")
            if len(set(choices)) < len(choices):
                raise row.fault("two choices are the same")
            right = _right(row, choices)
            if letters:
                asked = row.asked(f"{row.text('question')}\n{lettered(choices)}\n{LETTER_PROMPT}")
                yield Question(**asked, expected=choices[right], answer=_LETTERS[right], more={"choices": choices})
            else:
                asked = row.asked()
                yield Question(**asked, expected=choices[right], answer=choices[right], choices=tuple(choices))

    def mark(self, question: Question, answer: Answer) -> Marks:
        """See `Task.mark`."""
        if not question.choices:
            texts = question.more["choices"]
            letter = option_letter(answer.text, _LETTERS[: len(texts)])
            right = letter is not None and texts[_LETTERS.index(letter)] == question.expected
            return {"score": float(right)} | dict.fromkeys(_LIKELIHOODS, float("nan"))
        told = zip(question.choices, answer.logprobs, answer.first, answer.num_tokens, strict=True)
        choices = [Choice(*each) for each in told]
        right_by: dict[str, float] = {
            by: float(choices[likeliest(choices, by)].text == question.expected) for by in _LIKELIHOODS
        }
        return {"score": right_by[self.by], **right_by}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See `Task.metrics`."""
        by = {f"by {name}": mean(marks[name], weights_N) for name in _LIKELIHOODS}
        return {"accuracy": mean(marks["score"], weights_N), **by}


def _right(row: UserRow, choices: list[str]) -> int:
    """The place of the right choice. Raises StageError."""
    answer = row.value("answer")
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(choices):
            raise row.fault(f"'answer' is {answer}; the choices have the numbers 0 to {len(choices) - 1}")
        return answer
    text = row.text("answer")
    if text in choices:
        return choices.index(text)
    letters = _LETTERS[: len(choices)]
    if len(text.strip()) == 1 and text.strip() in letters:
        return letters.index(text.strip())
    raise row.fault(f"'answer' is {shorten(text)}, which is no choice, and no letter from A to {letters[-1]}")
