"""What tasks have in common whose answers a judge marks: who the judge is, what it is asked, what stays in the row.

The judge's prompts are the benchmarks' own. Their wording is read from their authors' files where the command names
them; without, the judge is asked for the same things in vig-ray's words.
"""

from __future__ import annotations

import ast
import functools
import logging
from collections.abc import Sequence

from vig_ray.errors import StageError
from vig_ray.evaluation.files import read_text
from vig_ray.evaluation.judge import Judge, JudgeOptions, JudgePrompt, default_cache
from vig_ray.evaluation.question import Answer, Marks, Question
from vig_ray.evaluation.task import Given

log = logging.getLogger(__name__)

JUDGE_OPTIONS = {
    "judge": "address of an OpenAI-compatible API",
    "judge_model": "the judge's name there",
    "judge_cache": "folder that keeps what it says; by default $VIG_RAY_CACHE/judge, on each machine",
}
"""Options of every judged task."""
Verdict = tuple[float, ...]


class JudgedMarks(dict[str, float]):
    """Marks that a judge gave. `asked`: what it was asked; `replied`: what it said."""

    def __init__(self, marks: Marks, asked: str, replied: str) -> None:
        super().__init__(marks)
        self.asked, self.replied = asked, replied


class Judged:
    """The part of a task that asks a judge.

    A task says what the judge is asked (`asked`), what its reply says (`verdict`) and what that is worth (`worth`).
    """

    name: str
    at_once = 8
    """Threads that wait for the judge at a time."""
    _judge: Judge | None = None

    def begin(self, given: Given) -> None:
        """Know the judge, in each process that marks; it isn't asked yet. Raises StageError."""
        self._judge = None if "judge" not in given.options else judge_of(given)

    def check(self, given: Given) -> None:
        """Before anything runs, once: raises StageError where no judge is named, or it can't be asked."""
        if "judge" not in given.options:
            raise StageError(
                f"--tasks {self.name}: a judge marks its answers; --judge URL --judge-model NAME says which"
            )
        judge_of(given).check()

    def mark(self, question: Question, answer: Answer) -> JudgedMarks:
        """What the judge says of an answer. Raises JudgeError, and StageError where the judge is down."""
        if self._judge is None:
            raise StageError(
                f"--tasks {self.name}: a judge marks its answers; --judge URL --judge-model NAME says which"
            )
        prompt = self.asked(question, answer)
        verdict, reply = self._judge.verdict(prompt, self.verdict)
        return JudgedMarks(self.worth(question, verdict), prompt.text, reply)

    def asked(self, question: Question, answer: Answer) -> JudgePrompt:
        """What the judge is asked about an answer."""
        raise NotImplementedError

    def verdict(self, reply: str) -> Verdict | None:
        """The numbers that a reply gives; None where it doesn't give them clearly."""
        raise NotImplementedError

    def worth(self, question: Question, verdict: Verdict) -> Marks:
        """The marks of a verdict."""
        raise NotImplementedError


@functools.lru_cache(maxsize=16)
def _one_judge(options: JudgeOptions) -> Judge:
    return Judge(options)


def judge_of(given: Given) -> Judge:
    """The judge that a command names: one object in a process, whatever task asks it."""
    model = given.options.get("judge_model")
    if not model:
        raise StageError("--judge: --judge-model says which of its models is asked")
    cache = given.options.get("judge_cache") or default_cache()
    return _one_judge(JudgeOptions(given.options["judge"], model, cache))


def words(task: str, given: Given, option: str, whose: str, own: str, names: Sequence[str]) -> str:
    """The words that a judge is asked in: those of the file that an option names, else `own`.

    A Python file is read, not run: the text is what one of `names` is set to. `whose`: the authors' file, for the log.
    Raises StageError where the text isn't there.
    """
    path = given.options.get(option)
    if path is None:
        log.info(
            "%s: the judge is asked in vig-ray's own words; --task-options %s.%s=FILE asks in those of %s",
            *(task, task, option, whose),
        )
        return own
    text = read_text(path)
    return _assigned(path, text, names) if path.lower().endswith(".py") else text


def _assigned(path: str, source: str, names: Sequence[str]) -> str:
    """The text that a Python source sets one of these names to."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError) as error:
        raise StageError(f"{path}: can't be read as Python: {error}") from error
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if targets & set(names):
                return node.value.value
    raise StageError(
        f"{path}: sets none of {', '.join(names)} to a text; name the authors' file, or one of the text alone"
    )
