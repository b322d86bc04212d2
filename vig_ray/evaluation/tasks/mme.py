"""MME: two yes/no questions an image, one with each answer, in 14 subtasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import numpy as np

from vig_ray.errors import StageError
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, read_text, records
from vig_ray.evaluation.parsing import leading_yes_no
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean, share_of_groups
from vig_ray.evaluation.yes_no import ANSWERED, SHORT, choices_of, marks_of
from vig_ray.storage import list_files

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
_ASKS_YES_NO = " Please answer yes or no."
_BESIDE = {"images", "questions_answers_YN"}  # folders of the larger subtasks, for images and for texts
_IMAGES = (".jpg", ".jpeg", ".png")


class Mme:
    """By subtask accuracy, and accuracy+ of images both of whose questions are right; their sum, 200 at most."""

    name = "mme"
    source = "Fu et al. 2023, MME, arXiv:2306.13394"
    options: Mapping[str, str] = {
        "prompt": "short (default): asks for a single word or phrase, as lmms-eval; plain: the question as it is, "
        "which asks for yes or no",
        "answered": ANSWERED,
    }
    whole_units = True
    max_new_tokens = 16
    by = "first"
    metrics_of = (
        Metric("total", percent=False, main=True),
        Metric("perception", percent=False),
        Metric("cognition", percent=False),
        Metric("unread", higher_is_better=False),
        *(Metric(subtask, percent=False) for subtask in SUBTASKS),
    )

    def read(self, given: Given) -> Iterator[Question]:
        """The questions of the folder of subtasks, or of lmms-eval's Parquet."""
        short = given.choice(self.name, "prompt", ("short", "plain")) == "short"
        choices, folder = choices_of(given, self.name), image_folder(given)
        pairs: dict[str, int] = {}
        counts: dict[str, int] = {}
        for row in _rows(given):
            subtask, image = row.one_of("category", SUBTASKS), row.name("question_id")
            unit = image if image.startswith(f"{subtask}/") else f"{subtask}/{image}"
            counts[unit] = counts.get(unit, 0) + 1
            asked = row.text("question").strip()
            images = row.images("image", folder)
            label = Record(row.where, {"answer": row.text("answer").replace(".", "")}).one_of("answer", ("yes", "no"))
            yield Question(
                id=f"{unit}/{counts[unit]}",
                prompt=marked(asked.replace(_ASKS_YES_NO, "") + SHORT if short else asked, images),
                images=images,
                expected=label,
                choices=choices,
                answer=label.capitalize(),
                group=subtask,
                unit=unit,
                more={"pair": pairs.setdefault(unit, len(pairs))},
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is right, and which subtask and image it is of."""
        marks = marks_of(leading_yes_no(answer.text), question.expected)
        places = {"subtask": float(SUBTASKS.index(question.group or "")), "pair": float(question.more["pair"])}
        return {**marks, **places}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """By subtask, and the sums over those of perception, of cognition and of both that have questions."""
        found = {}
        for number, subtask in enumerate(SUBTASKS):
            of_subtask = marks["subtask"] == number
            scores, weights = marks["score"][of_subtask], weights_N[of_subtask]
            both = share_of_groups(scores, marks["pair"][of_subtask], weights)
            found[subtask] = 100 * (mean(scores, weights) + both)
        sums = {"perception": PERCEPTION, "cognition": COGNITION, "total": SUBTASKS}
        unread = mean(1 - marks["said_yes"] - marks["said_no"], weights_N)
        return found | {name: _sum([found[each] for each in part]) for name, part in sums.items()} | {"unread": unread}


def _sum(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return sum(known) if known else float("nan")


def _rows(given: Given) -> Iterator[Record]:
    if given.data.lower().endswith(".parquet"):
        yield from records(given.data)
        return
    files = files_of(given.data, (".txt", ".parquet"))
    if all(uri.endswith(".parquet") for uri in files):
        for uri in files:
            yield from records(uri)
        return
    images = _images(image_folder(given).root)
    for uri in files:
        if not uri.endswith(".txt") or (subtask := _subtask(uri)) is None:
            continue
        stem = PurePosixPath(uri).stem
        if (subtask, stem) not in images:
            raise StageError(f"{uri}: no image {stem} with {' or '.join(_IMAGES)} in {subtask}/ or {subtask}/images/")
        yield from _questions(uri, subtask, images[subtask, stem])


def _subtask(path: str) -> str | None:
    """The subtask that a file is of, by its folder; None for other files."""
    *_, above, parent, _ = ("", "", *path.split("/"))
    name = above if parent in _BESIDE else parent
    return name if name in SUBTASKS else None


def _images(folder: str) -> dict[tuple[str, str], str]:
    """The paths of images in a folder, by their subtask and their names without ending."""
    names = [name for name in list_files(folder) if name.lower().endswith(_IMAGES)]
    return {(subtask, PurePosixPath(name).stem): name for name in names if (subtask := _subtask(name)) is not None}


def _questions(uri: str, subtask: str, image: str) -> Iterator[Record]:
    for number, line in enumerate(read_text(uri).split("\n"), 1):
        if line.strip():
            question, tab, answer = line.strip().rpartition("\t")
            where = f"{uri}, line {number}"
            if not tab:
                raise StageError(f"{where}: expected a question, a tab, and Yes or No")
            name = PurePosixPath(image).name
            values = {"question": question, "answer": answer, "category": subtask, "question_id": name, "image": image}
            yield Record(where, values)
