"""GQA: compositional questions about scenes, by exact match. `--data gqa=testdev_balanced_questions.json`."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from vig_ray.evaluation.beside import ImageFiles, file_of, keyed
from vig_ray.evaluation.files import Record, marked
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class GQA:
    """`data`: the split's questions as its authors publish them, or a folder with one such file. `images`: the folder
    of the JPEGs or of images/, by default the data's.

    Case and punctuation don't count, as in lmms-eval; LLaVA drops full stops at the end only.
    """

    name = "gqa"
    source = "Hudson and Manning, GQA, CVPR 2019, https://arxiv.org/abs/1902.09506"
    options: Mapping[str, str] = {}
    max_new_tokens = 16
    metrics_of = (Metric("accuracy", main=True),)

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one image are a unit; the group is the question's structural type."""
        files = ImageFiles(self.name, given)
        for key, record in keyed(file_of(self.name, given.data, "testdev_balanced_questions.json", "*questions.json")):
            image_id = record.name("imageId")
            image = files.image(record, f"{image_id}.jpg", f"images/{image_id}.jpg")
            answer = record.text("answer")
            yield Question(
                id=key,
                prompt=marked(
                    f"{record.text('question')}\nAnswer the question using a single word or phrase.", [image]
                ),
                images=(image,),
                expected=answer,
                answer=answer,
                group=_structure(record),
                unit=image_id,
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is the expected one."""
        return {"score": float(_plain(answer.text.strip()) == _plain(question.expected))}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """The share of right answers."""
        return {"accuracy": mean(marks["score"], weights_N)}


def _structure(record: Record) -> str | None:
    types = record.values.get("types")
    structure = types.get("structural") if isinstance(types, dict) else None
    return structure if isinstance(structure, str) else None


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
