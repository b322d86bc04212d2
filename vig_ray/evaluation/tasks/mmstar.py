"""MMStar: questions with options that can't be answered without the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vig_ray.dataset.schema import Image
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, records
from vig_ray.evaluation.parsing import option_letter
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

CATEGORIES = (
    *("coarse perception", "fine-grained perception", "instance reasoning", "logical reasoning"),
    *("science & technology", "math"),
)
_ASKS_LETTER = "\nAnswer with the option's letter from the given choices directly"
_LETTERS = ("A", "B", "C", "D")


class MmStar:
    """Accuracy by category: the mean of those of its finer categories, and the mean of all of these."""

    name = "mmstar"
    source = "Chen et al. 2024, Are We on the Right Way for Evaluating Large Vision-Language Models?, arXiv:2403.20330"
    options: Mapping[str, str] = {
        "answered": "written (default): the model writes its answer; likelihood: the letters A to D compared",
    }
    max_new_tokens = 128
    by = "first"
    metrics_of = (
        Metric("average", main=True),
        *(Metric(category) for category in CATEGORIES),
        Metric("unread", higher_is_better=False),
    )

    def read(self, given: Given) -> Iterator[Question]:
        """The questions of the authors' Parquet, or of VLMEvalKit's TSV."""
        likelihood = given.choice(self.name, "answered", ("written", "likelihood")) == "likelihood"
        folder = image_folder(given)
        finer: dict[str, int] = {}
        for uri in files_of(given.data, (".parquet", ".tsv")):
            for row in records(uri):
                category, fine = row.one_of("category", CATEGORIES), row.text("l2_category")
                images: tuple[Image, ...] = row.base64("image") if uri.endswith(".tsv") else row.images("image", folder)
                letter = row.one_of("answer", _LETTERS)
                yield Question(
                    id=row.name("index"),
                    prompt=marked(_asked(row), images),
                    images=images,
                    expected=letter,
                    choices=_LETTERS if likelihood else (),
                    answer=letter,
                    group=category,
                    more={"finer": finer.setdefault(fine, len(finer))},
                )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer names the right option."""
        letter = option_letter(answer.text, _LETTERS)
        return {
            "score": float(letter == question.expected),
            "unread": float(letter is None),
            "category": float(CATEGORIES.index(question.group or "")),
            "finer": float(question.more["finer"]),
        }

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Means of the finer categories' accuracies."""
        found = {"average": _of_finer(marks, weights_N), "unread": mean(marks["unread"], weights_N)}
        for number, category in enumerate(CATEGORIES):
            found[category] = _of_finer(marks, weights_N * (marks["category"] == number))
        return found


def _of_finer(marks: Columns, weights_N: Weights) -> float:
    scores_F = np.array([mean(marks["score"], weights_N * (marks["finer"] == n)) for n in np.unique(marks["finer"])])
    return mean(scores_F, np.ones_like(scores_F))


def _asked(row: Record) -> str:
    """The question, its options where they have columns of their own, and that a letter is asked for."""
    options = [f"{letter}. {row.values[letter]}\n" for letter in _LETTERS if row.has(letter)]
    if not options:
        return row.text("question").strip() + _ASKS_LETTER
    question = row.text("question").replace("<image 1>", "")
    return f"{question}\nOptions:\n{''.join(options)}{_ASKS_LETTER}"
