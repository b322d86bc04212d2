"""MMBench: choices, with CircularEval. `--data mmbench=MMBench_DEV_EN.tsv` (or mmbench_dev_20230712.tsv)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from vig_ray.dataset.fields import shorten
from vig_ray.dataset.schema import Image
from vig_ray.evaluation.beside import ImageFiles, rows_of
from vig_ray.evaluation.files import Record, marked
from vig_ray.evaluation.parsing import option_letter
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, share_of_groups
from vig_ray.evaluation.told import warn_once

_LETTERS = "ABCDE"
_COPIES_FROM = 1_000_000  # a copy of question 17 with its options moved on is 1000017, the next 2000017
_PROMPTS = ("lmms-eval", "llava")
_COPIES = ("file", "make", "none")
# What may stand before and after a letter: "B." or "(B)", in the order in which they are looked for.
_AROUND = (
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
)


class MMBench:
    """`data`: a split's TSV as its authors publish it, with images in base64, or Parquet with the same columns.

    CircularEval asks a question once for each of its options, which move on by one place each time, and counts it as
    right where all answers are. The copies are in most of the files; `circular` makes them where they aren't. No judge
    is asked: an answer that names no option is wrong.
    """

    name = "mmbench"
    source = "Liu et al., MMBench, ECCV 2024, https://arxiv.org/abs/2307.06281, section 4"
    options: Mapping[str, str] = {
        "circular": "copies with options moved on: those of the file, the default, make where there are none, or none",
        "prompt": "lmms-eval, the default, or llava, which has neither 'There are several options:' nor an empty line",
        "answered": "written (default): the model writes its answer; likelihood: the options' letters compared",
    }
    whole_units = True
    max_new_tokens = 128
    by = "first"
    metrics_of = (Metric("circular", main=True), Metric("vanilla"), Metric("unread", higher_is_better=False))

    def read(self, given: Given) -> Iterator[Question]:
        """A question and after it its copies, which are a unit; the group is the category."""
        copies = given.choice(self.name, "circular", _COPIES)
        prompt = given.choice(self.name, "prompt", _PROMPTS)
        likelihood = given.choice(self.name, "answered", ("written", "likelihood")) == "likelihood"
        files = ImageFiles(self.name, given)
        rows = [_row(record) for record in rows_of(self.name, given, "*.tsv")]
        by_index = {row.index: row for row in rows}
        of_question: dict[int, list[_Row]] = {}
        for row in rows:
            of_question.setdefault(row.index % _COPIES_FROM, []).append(row)
        alone = sum(len(found) == 1 for found in of_question.values())
        if alone and copies == "file":
            warn_once(
                f"{given.data}: {alone:,} of {len(of_question):,} questions of {self.name} have no copies with their "
                f"options moved on, and no number 'circular'; --task-options {self.name}.circular=make makes them"
            )
        for number, found in of_question.items():
            found.sort(key=lambda row: row.index)
            if copies == "none":
                found = [row for row in found if row.index < _COPIES_FROM]
            elif copies == "make" and len(found) == 1:
                found = list(found[0].moved())
            for row in found:
                question = _question(row, number, _image(row, by_index, files), prompt)
                if len(found) == 1:
                    question = replace(question, more={**question.more, "alone": True})
                yield replace(question, choices=tuple(row.options)) if likelihood else question

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer names the right option. `question`: the number of the question that it is a copy of, NaN
        where there are no copies."""
        options: Mapping[str, str] = question.more["options"]
        text = answer.text.strip()
        letter = named(text, options) or option_letter(text, sorted(options))
        right = float(letter == question.expected)
        number = question.more["number"]
        first = right if question.more["index"] == number else float("nan")
        group = float("nan") if question.more.get("alone") else float(number)
        return {"score": right, "question": group, "first": first, "unread": float(letter is None)}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Shares of questions that are right in all copies, of those that have any, and as they stand in the file."""
        circular = share_of_groups(marks["score"], marks["question"], weights_N)
        return {
            "circular": circular,
            "vanilla": mean(marks["first"], weights_N),
            "unread": mean(marks["unread"], weights_N),
        }


@dataclass(frozen=True)
class _Row:
    """A row of the file. `options`: texts by their letters."""

    record: Record
    index: int
    options: Mapping[str, str]
    answer: str

    def moved(self) -> Iterator[_Row]:
        """The row, and its copies with the options moved on by one place, by two, ..."""
        letters, texts = list(self.options), list(self.options.values())
        place = letters.index(self.answer)
        for by in range(len(texts)):
            moved = dict(zip(letters, texts[by:] + texts[:by], strict=True))
            yield _Row(self.record, self.index + by * _COPIES_FROM, moved, letters[(place - by) % len(texts)])


def _row(record: Record) -> _Row:
    options = {letter: text for letter in _LETTERS if (text := _text(record, letter)) is not None}
    if len(options) < 2:
        raise record.fault(f"{len(options)} options; expected two or more under A, B, ...")
    answer = _text(record, "answer")
    if answer is None:
        raise record.fault("no 'answer': those of the test split are at the benchmark's server; take dev")
    if answer not in options:
        raise record.fault(f"'answer' is {shorten(answer)}, not one of {', '.join(options)}")
    return _Row(record, record.whole("index"), options, answer)


def _text(record: Record, key: str) -> str | None:
    """What is under a key, as text; None where it is missing, for which the files have several forms."""
    value = record.values.get(key)
    text = "" if value is None else str(value)
    return None if text.lower() in ("", "nan") else text


def _question(row: _Row, number: int, image: Image, prompt: str) -> Question:
    record, hint = row.record, _text(row.record, "hint")
    options = "\n".join(f"{letter}. {text}" for letter, text in row.options.items())
    asked = "Answer with the option's letter from the given choices directly."
    if prompt == "llava":
        text = "\n".join([*([hint] if hint else []), record.text("question"), options, asked])
    else:
        before = f"{hint} " if hint else ""
        text = f"{before}{record.text('question')} There are several options:\n{options}\n\n{asked}"
    return Question(
        id=str(row.index),
        prompt=marked(text, [image]),
        images=(image,),
        expected=row.answer,
        answer=row.answer,
        group=_text(record, "category"),
        unit=str(number),
        more={"options": dict(row.options), "number": number, "index": row.index},
    )


def _image(row: _Row, by_index: Mapping[int, _Row], files: ImageFiles) -> Image:
    """A row's image; some files have it once, and at copies the index of the row that has it."""
    record = row.record
    value = record.value("image")
    if not isinstance(value, str):
        return files.of(record)
    if len(value) <= 16 and value.isdecimal():
        other = by_index.get(int(value))
        if other is None or other.record is record:
            raise record.fault(f"its image is that of row {value}, which isn't there")
        record = other.record
    return record.base64("image")[0]


def named(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names by its letter, or by its text where that of no other option is in it.

    The rule of VLMEvalKit, with which the authors score; a letter A among more than three words isn't taken for one.
    """
    words = [word.strip() for word in text.split()]
    alone = [letter for letter in _LETTERS if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for before, after in _AROUND:
        found = [letter for letter in _LETTERS if f"{before}{letter}{after}" in words]
        if len(found) == 1:
            return found[0]
    lower = text.lower()
    inside = [letter for letter, option in options.items() if letter in "ABCD" and option.lower() in lower]
    return inside[0] if len(inside) == 1 else None
