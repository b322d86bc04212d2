"""The CPU stage: questions to prompts. Images are decoded, blurred and resized here.

A question that can't be prepared keeps its place, with `error` set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import pyarrow as pa

from vig_ray.dataset.images import ImageError
from vig_ray.dataset.schema import Turn
from vig_ray.evaluation.likelihood import of_choice
from vig_ray.evaluation.question import Question
from vig_ray.evaluation.questions import from_row
from vig_ray.evaluation.schema import PREPARED
from vig_ray.model.load import Prompts, load_formatter
from vig_ray.model.prompt import Formatter, Prompt, PromptError, PromptImage
from vig_ray.scoring.prepare import made_by, make_passes, shared_image, with_arrays
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.schema import groups_of
from vig_ray.storage import one_line

GROUPS = groups_of(PREPARED)
"""What is handed to the engines: a row is a group of questions."""


class QuestionPreparer:
    """A Ray Data callable: a block of questions/ to one row of `GROUPS`, which holds every question of the block.

    `passes`: names of those that any question asks for.
    """

    def __init__(self, *, prompts: Prompts, passes: Sequence[Any], max_image_pixels: int) -> None:
        cv2.setNumThreads(1)  # Ray runs one of these a core
        self._formatter: Formatter = load_formatter(*prompts)
        self._passes = dict(zip(passes, make_passes(passes, self._formatter), strict=True))
        self._max_pixels = max_image_pixels

    def __call__(self, questions: pa.Table) -> pa.Table:
        """Prepare a block; questions that name the same image share its decoding."""
        shared: dict[str, PromptImage] = {}
        return pack([self._row(row, shared) for row in questions.to_pylist()], GROUPS)

    def _row(self, row: Mapping[str, Any], shared: dict[str, PromptImage]) -> dict[str, Any]:
        images = [{"uri": image["uri"], "bytes": None} for image in row["images"] or ()]
        out: dict[str, Any] = {**row, "images": images, "prompts": None}
        try:
            pictures = [
                shared_image(image, shared, self._formatter, max_pixels=self._max_pixels)
                for image in row["images"] or ()
            ]
            prompts = tuple(self._prompts(from_row(row), pictures))
            for picture in pictures:
                picture.release()
        except (ImageError, PromptError) as error:
            return out | {"error": str(error)}
        except Exception as error:  # a processor or template that fails on one row must not end the job
            return out | {"error": f"{type(error).__name__}: {one_line(error)}"[:500]}
        return out | {"prompts": prompts}

    def _prompts(self, question: Question, images: Sequence[PromptImage]) -> Iterator[Prompt | PromptError]:
        """What is run of a question, in the order of `PREPARED`. Raises PromptError and ImageError."""
        asked = [*question.before, Turn("user", question.prompt)]
        if question.choices:
            for choice in question.choices:
                answered = self._fits(self._formatter.prompt([*asked, Turn("assistant", choice)], images))
                yield with_arrays(of_choice(answered))
        elif question.writes:
            yield with_arrays(self._fits(self._formatter.question(asked, images)))
        if question.passes:
            answered = self._fits(self._formatter.prompt([*asked, Turn("assistant", question.answer or "")], images))
            for name in passes_of(question):
                yield made_by(self._passes[name], answered)

    def _fits(self, prompt: Prompt) -> Prompt:
        if len(prompt.token_ids) > self._formatter.max_length:
            raise PromptError(
                "TooLong", f"{len(prompt.token_ids)} tokens, and the limit is {self._formatter.max_length}"
            )
        return prompt


def passes_of(question: Question) -> tuple[str, ...]:
    """Those that a question is run under: without an image there is nothing to leave out."""
    return question.passes if question.images else tuple(name for name in question.passes if name == "clean")
