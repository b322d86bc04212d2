"""VQAv2: open questions about COCO's images, by VQA accuracy. `--data vqav2=FOLDER` of its two JSON files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vig_ray.dataset.fields import type_name
from vig_ray.dataset.schema import Image
from vig_ray.errors import StageError
from vig_ray.evaluation.beside import ImageFiles, file_of, parent, parquet_of
from vig_ray.evaluation.files import Record, marked, read_json, records
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.evaluation.vqa import accuracy, normalised
from vig_ray.storage import exists


class VQAv2:
    """`data`: v2_OpenEnded_mscoco_val2014_questions.json with v2_mscoco_val2014_annotations.json beside it, the folder
    of both, or Parquet that has both in its columns. `images`: the folder of the JPEGs or of val2014/, by default the
    data's.

    Both the answer and people's are always normalised, as lmms-eval does; the authors' evaluation leaves people's as
    they are where all ten are the same.
    """

    name = "vqav2"
    source = "Goyal et al., Making the V in VQA Matter, CVPR 2017, https://arxiv.org/abs/1612.00837"
    options: Mapping[str, str] = {}
    max_new_tokens = 16
    metrics_of = (Metric("accuracy", main=True), Metric("yes/no"), Metric("number"), Metric("other"))

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one image are a unit; the group is the answer's type."""
        files = ImageFiles(self.name, given)
        for record, annotation, names in _rows(self.name, given):
            image = files.image(record, *names) if names else files.of(record)
            yield _question(record, annotation, image)

    def mark(self, question: Question, answer: Answer) -> Marks:
        """VQA accuracy against all people's answers."""
        people = [normalised(each) for each in question.expected]
        score = accuracy(normalised(answer.text), people)
        return {"score": score} | {kind: score if question.group == kind else float("nan") for kind in _KINDS}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Means over questions, of all and of each type of answer."""
        return {"accuracy": mean(marks["score"], weights_N)} | {kind: mean(marks[kind], weights_N) for kind in _KINDS}


_KINDS = ("yes/no", "number", "other")


def _question(record: Record, annotation: Record, image: Image) -> Question:
    answers = annotation.value("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(each, Mapping) for each in answers):
        raise annotation.fault(f"'answers' is {type_name(answers)}, not a list of objects")
    return Question(
        id=record.name("question_id"),
        prompt=marked(f"{record.text('question')}\nAnswer the question using a single word or phrase.", [image]),
        images=(image,),
        expected=[Record(annotation.where, dict(each)).text("answer") for each in answers],
        answer=annotation.text("multiple_choice_answer"),
        group=annotation.one_of("answer_type", _KINDS),
        unit=record.name("image_id"),
    )


def _rows(task: str, given: Given) -> Iterator[tuple[Record, Record, tuple[str, ...]]]:
    """Each question with its annotation, and the names that its image's file may have; none where it is in the row."""
    if parquet := parquet_of(task, given.data, "*questions.json"):
        for file in parquet:
            yield from ((record, record, ()) for record in records(file))
        return
    folder = given.data if exists(given.data).name == "Directory" else parent(given.data)
    questions = file_of(task, given.data, "*questions.json")
    split = _split(questions)
    annotations = _by_question(file_of(task, folder, f"*{split}_annotations.json"))
    for record in records(questions, under="questions"):
        annotation = annotations.get(record.name("question_id"))
        if annotation is None:
            raise record.fault(f"the annotations have no question {record.name('question_id')}; are they of {split}?")
        image = f"COCO_{split}_{record.whole('image_id'):012d}.jpg"
        yield record, annotation, (image, f"{split}/{image}")


def _split(questions: str) -> str:
    """The split that a file of questions says it is of."""
    whole: Any = read_json(questions)
    split = whole.get("data_subtype") if isinstance(whole, dict) else None
    if not isinstance(split, str):
        raise StageError(f"{questions}: no 'data_subtype'; is this the file as its authors publish it?")
    return "test2015" if split.startswith("test") else split


def _by_question(annotations: str) -> dict[str, Record]:
    return {record.name("question_id"): record for record in records(annotations, under="annotations")}
