"""HallusionBench: the same yes/no question of a figure, of a changed one, and of none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vig_ray.dataset.schema import Image
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, records
from vig_ray.evaluation.parsing import contained_yes_no
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, share_of_groups
from vig_ray.evaluation.yes_no import ANSWERED, SHORT, choices_of, marks_of, suffixed

_OF_QUESTION = ("category", "subcategory", "set_id", "question_id")
_OF_FIGURE = ("category", "subcategory", "set_id", "figure_id")


class HallusionBench:
    """Answers by a rule, without a judge: yes where "yes" occurs in them, else no."""

    name = "hallusionbench"
    source = "Guan et al. 2024, HallusionBench, arXiv:2310.14566"
    options: Mapping[str, str] = {
        "questions": "figures (default): those with a figure, as lmms-eval and VLMEvalKit ask; all: those without one, "
        "too, where an answer that is neither yes nor no is right, as the authors have it",
        "answered": ANSWERED,
        "prompt": "plain (default): the question alone; short: asks for a single word or phrase",
    }
    whole_units = True
    max_new_tokens = 128
    by = "first"
    metrics_of = (Metric("aAcc", main=True), Metric("qAcc"), Metric("fAcc"), Metric("yes", higher_is_better=None))

    def read(self, given: Given) -> Iterator[Question]:
        """The questions of HallusionBench.json, or of lmms-eval's Parquet."""
        suffix = {"plain": "", "short": SHORT}[given.choice(self.name, "prompt", ("plain", "short"))]
        everything = given.choice(self.name, "questions", ("figures", "all")) == "all"
        choices, folder = choices_of(given, self.name), image_folder(given)
        pairs: dict[tuple[str, ...], int] = {}
        figures: dict[tuple[str, ...], int] = {}
        for uri in files_of(given.data, (".json", ".parquet")):
            for row in records(uri):
                key = "filename" if "image" not in row.values else "image"
                images = row.images(key, folder) if row.has(key) else ()
                told = key == "filename" or row.has("visual_input")  # a Parquet may say it by its null alone
                if not images and told and row.name("visual_input") != "0":
                    raise row.fault(f"no '{key}', and its visual_input isn't 0, which stands for no figure")
                if not (images or everything):
                    continue
                pair, figure = _key(row, _OF_QUESTION), _key(row, _OF_FIGURE)
                more = {"pair": pairs.setdefault(pair, len(pairs))}
                if images:  # without a figure there is none to be consistent about
                    more["figure"] = figures.setdefault(figure, len(figures))
                yield _question(row, suffix, images, choices, more)

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is right, and which question and figure it is of."""
        said = contained_yes_no(answer.text)
        if said is None and "figure" not in question.more:
            return {**marks_of(None, question.expected), "score": 1.0, **_groups(question)}
        return {**marks_of("yes" if said == "yes" else "no", question.expected), **_groups(question)}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Accuracy by answer, and the shares of questions and of figures all of whose answers are right."""
        return {
            "aAcc": mean(marks["score"], weights_N),
            "qAcc": share_of_groups(marks["score"], marks["pair"], weights_N),
            "fAcc": share_of_groups(marks["score"], marks["figure"], weights_N),
            "yes": mean(marks["said_yes"], weights_N),
        }


def _groups(question: Question) -> dict[str, float]:
    return {name: float(question.more.get(name, np.nan)) for name in ("pair", "figure")}


def _key(row: Record, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(row.name(name) for name in names)


def _question(
    row: Record, suffix: str, images: tuple[Image, ...], choices: tuple[str, ...], more: dict[str, int]
) -> Question:
    label = {"0": "no", "1": "yes"}[row.one_of("gt_answer", ("0", "1"))]
    category, subcategory, of_set, question = _key(row, _OF_QUESTION)
    return Question(
        id="/".join((category, subcategory, of_set, row.name("figure_id"), question)),
        prompt=marked(suffixed(row.text("question"), suffix), images),
        images=images,
        expected=label,
        choices=choices,
        answer=label.capitalize(),
        group=f"{category}/{subcategory}",
        unit=f"{category}/{subcategory}/{of_set}",  # neither a pair nor a figure reaches across sets
        more=more,
    )
