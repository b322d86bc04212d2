"""What hangs on the image: the questions of a task with another image, a blurred one, or none, `swap:TASK`.

    own             the task's main number with each question's own image
    other           with the image of another question, drawn with a seed (`vig_ray.evaluation.other_images`)
    blur            with its own image blurred as VIG does
    none            without an image, as a question of text alone
    drop other ...  how much worse than with its own
    loss            mean negative log-prob of the right answers with the own image, nats a token
    rise other ...  how much greater it is without that image

Questions without an image are left out, and so are those whose number of images no other question has. Losses are of
tasks whose questions have right answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from vig_ray.dataset.schema import IMAGE_MARK, Image, Turn
from vig_ray.evaluation.other_images import with_other_images
from vig_ray.evaluation.outcomes import Marked, other_tokens
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Task, Weights
from vig_ray.evaluation.wrapped import LeftOut, Wrapped, and_marks, asked_of, asked_way, told_of

WAYS = ("own", "other", "blur", "none")
_WITHOUT = WAYS[1:]
_FEWEST_IMAGES = 64  # that change places, however few questions are asked


class Swap(Wrapped):
    """See the module."""

    prefix = "swap"
    source = "the task's own questions with other images; the blur of Xing et al., arXiv 2503.13891, as VIG's"
    own_options: Mapping[str, str] = {
        "loss": "yes (default): the losses of right answers, too; no: the task's own number alone",
        "swap_seed": "which image goes to which question; 0 by default",
    }
    ways = len(WAYS)

    def __init__(self, inner: Task) -> None:
        super().__init__(inner)
        percent, better = self.main.percent, self.main.higher_is_better
        self.metrics_of: tuple[Metric, ...] = (
            *(Metric(way, percent, better) for way in WAYS),
            *(Metric(f"drop {way}", percent) for way in _WITHOUT),
            Metric("loss", percent=False, higher_is_better=False),
            *(Metric(f"rise {way}", percent=False) for way in _WITHOUT),
        )

    def read(self, given: Given) -> Iterator[Question]:
        """Each question with each of the four."""
        return told_of(self.name, self._read(given))

    def _read(self, given: Given) -> Iterator[Question | LeftOut]:
        losses = given.choice(self.name, "loss", ("yes", "no")) == "yes"
        seed = given.whole(self.name, "swap_seed", 0, least=0)
        # A benchmark isn't read to its end for the images of a few questions.
        most = None if given.limit is None else max(given.limit, _FEWEST_IMAGES)
        pairs = with_other_images(self.inner.read(self.inner_given(given)), seed, most_sets=most)
        for number, (question, other) in enumerate(pairs):
            if other is None:
                yield LeftOut("no other question has as many images" if question.images else "without an image")
                continue
            asks = losses and question.answer is not None and not question.passes
            for way, name in enumerate(WAYS):
                asked = asked_way(_shown(question, name, other), number, way, name)
                yield replace(asked, passes=_under(("clean",) if asks else question.passes, name))

    def mark(self, question: Question, answer: Answer) -> Marks:
        """The inner task's marks; the answer's negative log-prob and its tokens."""
        way = WAYS[int(asked_of(question)["way"])]
        passes = {"clean" if name == way else name: logp_T for name, logp_T in answer.passes.items()}
        known = passes.get("clean", np.zeros(0))
        marks = super().mark(replace(question, under="clean"), answer._replace(passes=passes))
        tokens = float(len(known)) or float("nan")
        return and_marks(marks, {"swap nll": -float(known.sum(dtype=np.float64)), "swap tokens": tokens})

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See the module."""
        marks, weights_N = self.in_all_ways(marks, weights_N)
        found = {name: self.main_of(way, marks, weights_N) for way, name in enumerate(WAYS)}
        sign = -1 if self.main.higher_is_better is False else 1
        found |= {f"drop {name}": sign * (found["own"] - found[name]) for name in _WITHOUT}
        loss = {name: _loss(marks, weights_N * (marks["way"] == way)) for way, name in enumerate(WAYS)}
        return found | {"loss": loss["own"]} | {f"rise {name}": loss[name] - loss["own"] for name in _WITHOUT}

    def told(self, marked: Mapping[str, Marked], baseline: str) -> Iterator[str]:
        """See `vig_ray.evaluation.outcomes.other_tokens`."""
        return other_tokens(self.name, marked, baseline, "swap tokens")


def _loss(marks: Columns, weights_N: Weights) -> float:
    known_N = weights_N * ~np.isnan(marks["swap tokens"])
    tokens = float(np.nansum(marks["swap tokens"] * known_N))
    return float((marks["swap nll"] * known_N).sum()) / tokens if tokens else float("nan")


def _shown(question: Question, way: str, other: tuple[Image, ...]) -> Question:
    """The question with the image of one of the ways."""
    if way == "other":
        return replace(question, images=other)
    if way == "blur":
        return replace(question, under="blur")
    if way == "own":
        return question
    before = tuple(Turn(turn.role, _text_alone(turn.text)) for turn in question.before)
    return replace(question, images=(), prompt=_text_alone(question.prompt), before=before)


def _text_alone(text: str) -> str:
    """A turn without its images, and without the line of its own that each has."""
    return text.replace(f"{IMAGE_MARK}\n", "").replace(IMAGE_MARK, "")


def _under(passes: tuple[str, ...], way: str) -> tuple[str, ...]:
    """The passes of a question that is shown so. Without its image those without an image say nothing more."""
    if way == "blur" and passes:
        return ("blur",)
    return passes[:1] if way == "none" else passes
