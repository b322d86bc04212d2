"""False answers, and false statements made of them: what a text that contradicts the image says.

A false answer is another answer of the same kind: of a question with options another option, of yes or no the other
one, of two words with "or" between them the other word, of any other question an answer that the data has to another
question of its kind (the same group and first words, else the same first words, else the first word, else any; numbers
for numbers). It is one that the task itself gives nothing for.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.errors import StageError
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.task import Task
from vig_ray.evaluation.text import normalised, same

_TRIES = 50
_OPTION = re.compile(r"^\(?([A-Z])[.):]\)? +(.+)$", re.MULTILINE)
_NUMBER = re.compile(r"[\d.,]*\d[%\d.,]*|zero|one|two|three|four|five|six|seven|eight|nine|ten")
_EITHER = re.compile(r"([\w-]+),? or (?:an? |the )?([\w-]+)")
_YES_NO = ("yes", "no")
Kind = tuple[str, ...]


class FalseAnswer(NamedTuple):
    """A false answer: as the model would say it, and as it is stated; the two differ for an option's letter."""

    answer: str
    stated: str


class Pool:
    """The answers of a task's questions by kind. Raises StageError where one has no right answer."""

    def __init__(self, name: str, questions: Iterable[Question]) -> None:
        counted: dict[Kind, Counter[str]] = {}
        for question in questions:
            if not _options(question):
                for kind in _kinds(question, right := _right(name, question)):
                    counted.setdefault(kind, Counter())[right] += 1
        self._answers = {
            kind: (list(answers), list(itertools.accumulate(answers.values()))) for kind, answers in counted.items()
        }

    def candidates(self, question: Question, right: str, chance: random.Random) -> Iterator[str]:
        """Other answers of its kind, as often as the data has them, from the narrowest kind on."""
        for kind in _kinds(question, right):
            answers, up_to = self._answers.get(kind, ([], []))
            yield from dict.fromkeys(chance.choices(answers, cum_weights=up_to, k=_TRIES) if answers else ())


def false_answer(task: Task, question: Question, pool: Pool, seed: int) -> FalseAnswer | None:
    """A false answer to a question, the same at every reading; None where there is none. Raises StageError where the
    task can't mark one."""
    right, chance = _right(task.name, question), random.Random(f"{seed} {question.id}")
    options = _options(question)
    if options:
        others = [each for each in options if each != right]
        candidates: Iterable[str] = chance.sample(others, len(others))
    elif (yes_no := normalised(right)) in _YES_NO:
        candidates = ["No" if yes_no == "yes" else "Yes"]
    else:
        candidates = itertools.chain(_alternative(question, right), pool.candidates(question, right, chance))
    for candidate in candidates:
        # Where nothing is left of one without punctuation, every answer would begin with it.
        if normalised(candidate) and not same(candidate, right) and _worth(task, question, candidate) == 0:
            return FalseAnswer(candidate, options.get(candidate, candidate))
    return None


def _right(name: str, question: Question) -> str:
    if question.answer is None:
        raise StageError(f"--tasks {name}: question {question.id!r} has no right answer of which a false one is made")
    return question.answer


def _options(question: Question) -> Mapping[str, str]:
    """The answers among which a question lets choose, each with the text it stands for; none for an open question."""
    if question.choices:
        return {choice: choice for choice in question.choices}
    listed = dict(_OPTION.findall(question.prompt))
    return listed if len(listed) > 1 and question.answer in listed else {}


def _alternative(question: Question, right: str) -> Iterator[str]:
    """The other of two words that a question lets choose from, as in "Is it solid or patterned?"."""
    for words in _EITHER.findall(bare_question(question.prompt)):
        if any(same(word, right) for word in words):
            yield from (word for word in words if not same(word, right))


def _worth(task: Task, question: Question, answer: str) -> float:
    told = [float(choice == answer) for choice in question.choices]
    counts = [1] * len(told)
    try:
        return task.mark(question, Answer(answer, tuple(told), tuple(counts), first=tuple(told)))["score"]
    except StageError:
        raise
    except Exception as error:  # a task whose marks are of something else than what is answered
        raise StageError(f"--tasks {task.name}: its answers aren't right or wrong by themselves") from error


def _kinds(question: Question, right: str) -> list[Kind]:
    """Kinds of answers from narrow to wide."""
    said = normalised(right)
    what = "number" if _NUMBER.fullmatch(said) else "yes/no" if said in _YES_NO else "text"
    words = normalised(bare_question(question.prompt)).split()[:2]
    return [(what, question.group or "", *words), (what, *words), (what, *words[:1]), (what,)]


def bare_question(prompt: str) -> str:
    """The question itself: without images, and what comes before and after its sentence."""
    lines = [line.strip() for line in prompt.replace(IMAGE_MARK, " ").splitlines() if line.strip()]
    asking = next((line for line in lines if "?" in line), lines[0] if lines else "")
    sentence = asking[: asking.index("?") + 1] if "?" in asking else asking
    return re.split(r"(?<=[.!]) +(?=[A-Z])", sentence)[-1]


_IN_IMAGE = r"(?: in (?:the|this) (?:image|picture|photo))?"
_THERE = re.compile(rf"(?P<be>is|are) there (?P<some>an?|any|some|the) (?P<what>.+?){_IN_IMAGE}", re.IGNORECASE)
_OPEN = {
    re.compile(r"what colou?r (?P<be>is|are) (?P<what>.+)", re.IGNORECASE): "{what} {be} {answer}",
    re.compile(r"where (?P<be>is|are) (?P<what>.+)", re.IGNORECASE): "{what} {be} {answer}",
    re.compile(
        rf"how many (?P<what>.+?) (?P<be>are) (?:there|visible|shown){_IN_IMAGE}", re.IGNORECASE
    ): "there {be} {answer} {what}",
}


def stated(question: str, answer: str) -> str:
    """The answer to a question as a statement: in the question's own words where its form is known, such as "What
    color is the cup?", else "The answer to ... is ..."."""
    asked, said = question.strip().rstrip("?").strip(), normalised(answer)
    there = _THERE.fullmatch(asked)
    if there and said in _YES_NO:
        some = "no" if said == "no" else "some" if there["some"].lower() == "any" else there["some"]
        return _sentence(f"there {there['be'].lower()} {some} {there['what']}")
    for form, statement in _OPEN.items():
        found = form.fullmatch(asked)
        if found:
            be, what = found["be"].lower(), found["what"]
            return _sentence(statement.format(be=be, what=what, answer=answer.strip().rstrip(".")))
    return f'The answer to "{question.strip()}" is "{answer.strip()}".'


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
