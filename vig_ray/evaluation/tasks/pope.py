"""POPE: is there such an object in the image?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vig_ray.errors import StageError
from vig_ray.evaluation.coco import read_instances
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, records
from vig_ray.evaluation.parsing import exactly_yes_no, first_sentence_yes_no
from vig_ray.evaluation.probing import SAMPLINGS, probes
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.evaluation.yes_no import ANSWERED, SHORT, choices_of, counts_of, marks_of, suffixed

_COUNTS = ("accuracy", "precision", "recall", "f1", "yes")
_RULES = ("authors", "lmms-eval")


def _metric(count: str, before: str = "", *, main: bool = False) -> Metric:
    """One of the counts; of the share of yes neither more nor less is better."""
    return Metric(f"{before}{count}", higher_is_better=None if count == "yes" else True, main=main)


class Pope:
    """Of POPE's files or made anew from objects of images; 3 questions with yes and 3 with no an image and sampling."""

    name = "pope"
    source = "Li et al. 2023, Evaluating Object Hallucination in Large Vision-Language Models, arXiv:2305.10355"
    options: Mapping[str, str] = {
        "rules": "authors (default): no where the first sentence has no or not, else yes; lmms-eval: only an answer "
        "that is yes or no and nothing else",
        "answered": ANSWERED,
        "prompt": "short (default): asks for a single word or phrase; plain: the question alone",
        "num_images": "made from objects: how many images, 500 by default",
        "per_image": "made from objects: questions with yes an image, and as many with no; 3 by default",
        "seed": "made from objects: of the images and of random objects, 0 by default",
    }
    max_new_tokens = 128
    by = "first"
    metrics_of = (
        *(_metric(name, main=name == "f1") for name in _COUNTS),
        Metric("mean f1"),
        Metric("unread", higher_is_better=False),
        *(_metric(name, f"{sampling} ") for sampling in SAMPLINGS for name in _COUNTS),
    )

    def begin(self, given: Given) -> None:
        """Check the options and keep the rule by which answers are read."""
        self._rules = given.choice(self.name, "rules", _RULES)

    def read(self, given: Given) -> Iterator[Question]:
        """The questions of JSON Lines or Parquet, or made from a file of objects; `vig_ray.evaluation.task`."""
        suffix = {"short": SHORT, "plain": ""}[given.choice(self.name, "prompt", ("short", "plain"))]
        choices, folder = choices_of(given, self.name), image_folder(given)
        for sampling, number, row in _rows(given):
            asked = row.text("text" if row.has("text") else "question").strip()
            label = row.one_of("label" if row.has("label") else "answer", ("yes", "no"))
            images = row.images("image", folder)
            yield Question(
                id=f"{sampling}/{number}",
                prompt=marked(suffixed(asked, suffix), images),
                images=images,
                expected=label,
                choices=choices,
                answer=label.capitalize(),
                group=sampling,
                unit=images[0].uri or row.values.get("image_source") or asked,
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is the label, and what it says."""
        read = first_sentence_yes_no if self._rules == "authors" else exactly_yes_no
        marks = marks_of(read(answer.text), question.expected)
        return {**marks, "sampling": float(SAMPLINGS.index(question.group or ""))}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Each count over all questions, and over those of each sampling."""
        found = _counts(marks, weights_N)
        for number, sampling in enumerate(SAMPLINGS):
            of_sampling = weights_N * (marks["sampling"] == number)
            found |= {f"{sampling} {name}": value for name, value in _counts(marks, of_sampling).items()}
        f1_S = np.array([found[f"{sampling} f1"] for sampling in SAMPLINGS])
        found["mean f1"] = mean(f1_S, np.ones_like(f1_S))
        found["unread"] = mean(1 - marks["said_yes"] - marks["said_no"], weights_N)
        return found


def _counts(marks: Columns, weights_N: Weights) -> dict[str, float]:
    counts = counts_of(marks, weights_N, "yes", unread_is_missed=False)
    return counts._asdict() | {"yes": mean(marks["said_yes"], weights_N)}


def _rows(given: Given) -> Iterator[tuple[str, str, Record]]:
    """The rows of all files, each with its sampling and its number in that."""
    files = files_of(given.data)
    objects = _objects(files[0]) if len(files) == 1 else None
    if objects is not None:
        yield from _made(given, files[0], objects)
        return
    sets: dict[str, str] = {}
    for uri in files:
        for row in records(uri):
            sampling = row.one_of("category", SAMPLINGS) if row.has("category") else _told_by_name(uri)
            of_set = "" if uri.lower().endswith(".parquet") else uri
            if sets.setdefault(sampling, of_set) != of_set:
                other = sets[sampling] or "a Parquet file"
                raise StageError(f"{uri}: {other} has the {sampling} sampling, too; give the files of one set alone")
            yield sampling, row.name("question_id"), row


def _told_by_name(uri: str) -> str:
    name = uri.rpartition("/")[2].lower()
    for sampling in SAMPLINGS:
        if sampling in name:
            return sampling
    raise StageError(f"{uri}: the file's name has none of {', '.join(SAMPLINGS)}, by which POPE's samplings are told")


def _objects(uri: str) -> dict[str, tuple[str, ...]] | None:
    """The objects of images by their files, of COCO's instances or of what POPE's authors call segmentations; None
    where a file holds questions."""
    if uri.rpartition("/")[2].startswith("instances") and uri.lower().endswith(".json"):
        coco = read_instances(uri)
        return {coco.files[image]: objects for image, objects in coco.objects.items()}
    if uri.lower().endswith(".parquet"):
        return None
    rows = records(uri)
    first = next(rows, None)
    if first is None or not first.has("image") or "objects" not in first.values:
        return None
    return {row.text("image"): tuple(dict.fromkeys(row.texts("objects"))) for row in (first, *rows)}


def _made(given: Given, uri: str, objects: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, str, Record]]:
    num_images, per_image = given.whole("pope", "num_images", 500), given.whole("pope", "per_image", 3)
    try:
        for probe in probes(objects, num_images, per_image, given.whole("pope", "seed", 0, least=0)):
            article = "an" if probe.object[0] in "aeiou" else "a"
            row = {"image": probe.image, "text": f"Is there {article} {probe.object} in the image?"}
            label = "yes" if probe.shown else "no"
            yield probe.sampling, str(probe.number), Record(f"{uri}, {probe.image}", {**row, "label": label})
    except StageError as error:
        raise StageError(f"{uri}: {error}") from error
