"""Blind faith in text: what is left of a model's accuracy when a text contradicts the image, `blind-faith:TASK`.

Deng et al., Words or Vision: Do Vision-Language Models Have Blind Faith in Text?, CVPR 2025, arXiv:2503.02199; VIG's
Figure 5. Each question is asked as it is, and with a text before it that says something false.

    base       the task's main number of the questions as they are
    corrupted  of the same with the false text
    norm       corrupted / base
    followed   share of the questions with the false text that are answered as it says, where that is known

The text states a false answer (`vig_ray.evaluation.corruption`), in `template`; or `texts` is a file with one for each
question, as the paper's authors publish theirs of VQAv2 and DocVQA (github.com/d-ailin/blind-faith-in-text,
`contradict_stat.jsonl`): rows with `question_id` (or `id`), `response` (or `text`; of a list the first), and with
`changed_ans` (or `answer`), the false answer, where it is known. Questions that the file doesn't have are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.errors import StageError
from vig_ray.evaluation.corruption import Pool, bare_question, false_answer, stated
from vig_ray.evaluation.files import Record, files_of, records
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Task, Weights, mean
from vig_ray.evaluation.text import begins, checked_answer, same
from vig_ray.evaluation.wrapped import LeftOut, Wrapped, and_marks, asked_of, asked_way, told_of

BASE, CORRUPTED = 0, 1
TEMPLATE = "A description of the image says: {text}\n{prompt}"
_PLACES = re.compile(r"\{(\w+)\}")
_LEADING_MARKS = re.compile(rf"(?:\s*{re.escape(IMAGE_MARK)})*\s*")


class _Told(NamedTuple):
    """What a question is told: the text, and the false answer where it is known."""

    text: str
    answer: str | None


class BlindFaith(Wrapped):
    """See the module."""

    prefix = "blind-faith"
    source = "Deng et al., Words or Vision, CVPR 2025, https://arxiv.org/abs/2503.02199; VIG, Figure 5"
    own_options: Mapping[str, str] = {
        "template": "the user's turn with the false text: {prompt} is the task's, {text} the false statement, "
        "{question} and {answer} what it is made of; by default 'A description of the image says: {text}' and the "
        "prompt below",
        "texts": "file of one false text a question, in place of those made of other answers",
        "likelihood": "no (default): answered as the task has it; yes: the log-probs of the right and the false answer "
        "are compared, by token",
        "faith_seed": "which false answers are taken; 0 by default",
    }
    ways = 2

    def __init__(self, inner: Task) -> None:
        super().__init__(inner)
        better = self.main.higher_is_better
        self.metrics_of: tuple[Metric, ...] = (
            Metric("base", self.main.percent, better),
            Metric("corrupted", self.main.percent, better),
            Metric("norm", higher_is_better=better),
            Metric("followed", higher_is_better=False),
        )

    def begin(self, given: Given) -> None:
        """Check the options."""
        super().begin(given)
        if self._by_likelihood(given):
            self.by = getattr(self.inner, "by", "token")
        self._template(given)

    def read(self, given: Given) -> Iterator[Question]:
        """Each question as it is, and with a false text."""
        if "judge" in self.inner.options or not getattr(self.inner, "right_answers", True):
            raise StageError(f"--tasks {self.name}: {self.inner.name} has no answers that are right by themselves")
        return told_of(self.name, self._read(given))

    def _read(self, given: Given) -> Iterator[Question | LeftOut]:
        template, likelihood = self._template(given), self._by_likelihood(given)
        inner_given = self.inner_given(given)
        seed = given.whole(self.name, "faith_seed", 0, least=0)
        texts = _texts(given.options["texts"]) if "texts" in given.options else None
        pool = Pool(self.inner.name, self.inner.read(inner_given)) if texts is None else None
        for number, question in enumerate(self.inner.read(inner_given)):
            told = self._made(question, pool, seed) if pool is not None else (texts or {}).get(question.id)
            if told is None:
                yield LeftOut("no false answer is there" if texts is None else "the file has no text for them")
                continue
            paired = likelihood and not question.choices
            asked = self._pair(question, told) if paired else question
            also = {"false": told.answer, "paired": paired}
            yield asked_way(asked, number, BASE, "base", also=also)
            said = _filled(template, question, told)
            yield asked_way(replace(asked, prompt=said), number, CORRUPTED, "corrupted", also=also)

    def _made(self, question: Question, pool: Pool, seed: int) -> _Told | None:
        found = false_answer(self.inner, question, pool, seed)
        return found and _Told(stated(bare_question(question.prompt), found.stated), found.answer)

    def _pair(self, question: Question, told: _Told) -> Question:
        """The question with its right and its false answer to choose from, in the order of the alphabet."""
        if told.answer is None or question.answer is None or same(told.answer, question.answer):
            raise StageError(
                f"--task-options {self.name}.likelihood=yes: question {question.id!r} has no right and false answer to "
                "compare"
            )
        return replace(question, choices=tuple(sorted((question.answer, told.answer))))

    def mark(self, question: Question, answer: Answer) -> Marks:
        """The inner task's marks, and whether the answer is the false one."""
        asked = asked_of(question)
        if asked["paired"]:  # the inner task is told what was chosen, as if it had been written
            question, answer = replace(question, choices=()), Answer(answer.text)
        followed = float("nan")
        if asked["way"] == CORRUPTED and asked["false"] is not None:
            followed = float(begins(answer.text, asked["false"]))
        return and_marks(super().mark(question, answer), {"followed": followed})

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See the module."""
        marks, weights_N = self.in_all_ways(marks, weights_N)
        base, corrupted = (self.main_of(way, marks, weights_N) for way in (BASE, CORRUPTED))
        norm = corrupted / base if base else float("nan")
        return {"base": base, "corrupted": corrupted, "norm": norm, "followed": mean(marks["followed"], weights_N)}

    def _by_likelihood(self, given: Given) -> bool:
        return given.choice(self.name, "likelihood", ("no", "yes")) == "yes"

    def _template(self, given: Given) -> str:
        """The template, its \\n as newlines. Raises StageError for one that says nothing, or names something else."""
        template = given.options.get("template", TEMPLATE).replace("\\n", "\n")
        names = set(_PLACES.findall(template))
        wrong = sorted(names - {"prompt", "text", "question", "answer"})
        if wrong or not names & {"text", "answer"}:
            what = f"{{{wrong[0]}}} is none of its places" if wrong else "neither {text} nor {answer} is in it"
            raise StageError(f"--task-options {self.name}.template={template!r}: {what}")
        if "answer" in names and "texts" in given.options:
            raise StageError(
                f"--task-options {self.name}.template={template!r}: of a file's texts {{text}} alone is known"
            )
        return template if "prompt" in names else f"{template}\n{{prompt}}"


def _filled(template: str, question: Question, told: _Told) -> str:
    """The user's turn: its images where they were, the template after those in front."""
    marks = _LEADING_MARKS.match(question.prompt)
    front = marks[0] if marks and IMAGE_MARK in marks[0] else ""
    places = {
        "prompt": question.prompt[len(front) :],
        "text": told.text,
        "question": bare_question(question.prompt),
        "answer": told.answer or "",
    }
    return front + _PLACES.sub(lambda place: places[place[1]], template)


def _texts(uri: str) -> dict[str, _Told]:
    """The texts of a file, by the ids of questions. Raises StageError."""
    found: dict[str, _Told] = {}
    for file in files_of(uri):
        for record in records(file):
            key = record.name("question_id" if record.has("question_id") else "id")
            text = _first(record, "response" if record.has("response") else "text")
            named = next((name for name in ("changed_ans", "answer") if record.has(name)), None)
            false = named and checked_answer(record, named, _first(record, named))
            found[key] = _Told(text, false)
    return found


def _first(record: Record, key: str) -> str:
    """The text under a key, the first of a list."""
    value = record.value(key)
    text = value[0] if isinstance(value, list) and value else value
    if not isinstance(text, str):
        raise record.fault(f"'{key}' is no text")
    return text
