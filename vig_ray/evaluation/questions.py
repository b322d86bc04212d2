"""Questions as rows of samples/, and back.

    OUT/evaluation/questions/TASK/            an ordinary samples/ directory: the conversation is all before the answer
    OUT/evaluation/questions/TASK.stage.json  its record, with a digest of what was read

What a sample has no column for is in `kept`, as JSON. A task's questions are read at every start, so that another file,
or another version of the same, is noticed whatever its name and time are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from vig_ray.dataset.schema import IMAGE_MARK, Image, Sample, Turn
from vig_ray.dataset.writer import Parts, SampleWriter
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import QUESTIONS, Asked
from vig_ray.evaluation.question import Question
from vig_ray.stage import StageConfig, claim
from vig_ray.storage import join, one_line
from vig_ray.tables.kept import kept_values

STAGE = "eval"
_OF_SAMPLE = {"id", "prompt", "before", "images"}  # the rest of a question is kept
_TUPLES = {"choices", "passes"}
_DEFAULTS = {field.name: field.default for field in fields(Question)} | {"more": {}}
_ROWS_A_FILE = 10_000
_BYTES_A_FILE = 128 << 20


class Read(NamedTuple):
    """A task's questions as they were read. `directory`: where their rows are; `identity`: what tells them from others.
    `number`: of questions. `writes`, `scores`: whether any is answered by writing, and whether any by log-probs.
    `passes`: that are asked for. `attends`: whether any asks for shares of attention.
    """

    directory: str
    identity: dict[str, Any]
    number: int
    writes: bool
    scores: bool
    passes: frozenset[str]
    attends: bool


def questions_of(asked: Asked) -> Iterator[Question]:
    """The questions that a task is asked for: to the end of the unit that its limit lies in. Raises StageError where
    its reading fails, or one is no question."""
    made = asked.begun()
    most = asked.given.limit and asked.given.limit * int(getattr(made, "ways", 1))
    count, unit = 0, None
    try:
        for question in made.read(asked.given):
            if most is not None and count >= most and (unit is None or question.unit != unit):
                return
            _check(asked.name, question)
            count, unit = count + 1, question.unit
            yield question
    except StageError:
        raise
    except Exception as error:  # a file of another layout than the task's author thought of
        what = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise StageError(f"{asked.given.data}: can't be read as the data of {asked.name} ({what})") from error


def _check(name: str, question: Question) -> None:
    where = f"{name}, question {question.id!r}"
    marks = question.prompt.count(IMAGE_MARK) + sum(turn.text.count(IMAGE_MARK) for turn in question.before)
    if marks != len(question.images):
        raise StageError(f"{where}: {marks} {IMAGE_MARK} marks, and {len(question.images)} images")
    try:
        " ".join([question.id, question.prompt, *(turn.text for turn in question.before)]).encode()
    except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair, UTF-8 can't
        raise StageError(f"{where}: {one_line(error)}") from error
    if question.passes and question.answer is None:
        raise StageError(f"{where}: log-probs of its answer are asked for, and it has none")
    if not (question.writes or question.choices or question.passes):
        raise StageError(f"{where}: asks for nothing")
    if question.attention and (question.choices or not (question.writes or question.passes[:1] == ("clean",))):
        raise StageError(f"{where}: attention is asked for of no answer that is written or known")
    if len(question.choices) == 1:
        raise StageError(f"{where}: one choice alone is no choice")


def survey(out: str, asked: Asked) -> Read:
    """Read a task's questions once, and write nothing. Raises StageError."""
    digest, count, ids = hashlib.blake2b(digest_size=16), 0, set[str]()
    writes = scores = attends = False
    passes: set[str] = set()
    for question in questions_of(asked):
        if question.id in ids:
            raise StageError(
                f"{asked.given.data}: {asked.name} has question {question.id!r} twice; where several files hold the "
                "same questions, name the one"
            )
        ids.add(question.id)
        count += 1
        writes |= question.writes and not question.choices
        scores |= bool(question.choices or question.passes)
        passes |= {*question.passes, *({question.under} - {"clean"})}
        attends |= question.attention is not None
        sample, kept = to_sample(question, asked.name)
        for image in sample.images:
            digest.update(image.bytes or (image.uri or "").encode(errors="replace"))
        said = [sample.id, [list(turn) for turn in sample.conversation], kept]
        digest.update(json.dumps(said, sort_keys=True).encode())
    if not count:
        raise StageError(f"{asked.given.data}: no question of {asked.name}")
    identity = asked.identity() | {"questions": digest.hexdigest()}
    return Read(join(out, QUESTIONS, asked.name), identity, count, writes, scores, frozenset(passes), attends)


def write(read: Read, asked: Asked, config: StageConfig, *, overwrite: bool) -> None:
    """Write a task's questions, where they aren't there already. Raises StageError."""
    output = claim(read.directory, STAGE, read.identity, overwrite=overwrite, resumes=False)
    if output.complete:
        return
    output.begin(config)
    parts = Parts(
        read.directory,
        prefix=f"{output.run}-",
        unfinished=output.work,
        rows_per_file=_ROWS_A_FILE,
        max_bytes_per_file=_BYTES_A_FILE,
    )
    with parts, SampleWriter(parts) as writer:
        for number, question in enumerate(questions_of(asked)):
            sample, kept = to_sample(question, asked.name)
            writer.sample(f"{asked.name}/{number:010d}", sample, kept)
    output.commit(config, counts={"read": read.number})


def to_sample(question: Question, task: str) -> tuple[Sample, dict[str, str]]:
    """A question as a sample, and what is kept of it as JSON text by name: all that isn't as a question has it by
    default. Raises StageError where that is no JSON."""
    conversation = (*question.before, Turn("user", question.prompt))
    kept = {}
    for field in fields(Question):
        value = getattr(question, field.name)
        if field.name not in _OF_SAMPLE and value is not None and value != _DEFAULTS[field.name]:
            try:
                kept[field.name] = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False)
                kept[field.name].encode()
            except (TypeError, ValueError) as error:
                raise StageError(f"{task}, question {question.id!r}: {field.name}: {one_line(error)}") from error
    return Sample(question.id, task, question.images, conversation), kept


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def from_row(row: Mapping[str, Any]) -> Question:
    """The question of a row of questions/."""
    *before, (_, prompt) = [(turn["role"], turn["text"]) for turn in row["conversation"]]
    kept: dict[str, Any] = kept_values(row["kept"])
    given: dict[str, Any] = {name: tuple(value) if name in _TUPLES else value for name, value in kept.items()}
    return Question(
        id=row["id"],
        prompt=prompt,
        images=tuple(Image(image["uri"], image["bytes"]) for image in row["images"] or ()),
        before=tuple(Turn(*turn) for turn in before),
        **{"expected": None, **given},
    )
