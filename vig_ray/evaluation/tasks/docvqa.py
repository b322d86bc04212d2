"""DocVQA: questions about scanned documents, by ANLS. `--data docvqa=val_v1.0.json` (or val_v1.0_withQT.json)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vig_ray.evaluation.beside import ImageFiles, rows_of
from vig_ray.evaluation.files import Record, marked
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

_THRESHOLD = 0.5


class DocVQA:
    """`data`: the split's JSON as its authors publish it, a folder that holds it, or Parquet with the same columns.
    `images`: the folder of documents/, by default the data's.

    ANLS is computed as the challenge's own evaluation does. `accuracy` is exact match with one of the answers, case and
    spacing aside; the VIG paper reports an accuracy without saying which.
    """

    name = "docvqa"
    source = (
        "Mathew et al., DocVQA, WACV 2021, https://arxiv.org/abs/2007.00398; ANLS: Biten et al., Scene Text Visual "
        "Question Answering, ICCV 2019, https://arxiv.org/abs/1905.13648"
    )
    options: Mapping[str, str] = {}
    max_new_tokens = 32
    metrics_of = (Metric("anls", main=True), Metric("accuracy"))

    def read(self, given: Given) -> Iterator[Question]:
        """Questions of one page are a unit."""
        files = ImageFiles(self.name, given)
        for record in rows_of(self.name, given, "val*.json", "*.json", under="data"):
            if not record.has("answers"):
                raise record.fault("no 'answers': those of the test split are at the challenge's server; take val")
            answers = record.texts("answers")
            image = files.of(record)
            yield Question(
                id=record.name("questionId"),
                prompt=marked(
                    f"{record.text('question')}\nAnswer the question using a single word or phrase.", [image]
                ),
                images=(image,),
                expected=answers,
                answer=answers[0],
                group=record.texts("question_types")[0] if record.has("question_types") else None,
                unit=_page(record),
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """ANLS as `score`, and whether the answer is one of those expected."""
        text = answer.text.strip()
        exact = any(_collapsed(text) == _collapsed(each) for each in question.expected)
        return {"score": anls(text, question.expected), "exact": float(exact)}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Means over questions."""
        return {"anls": mean(marks["score"], weights_N), "accuracy": mean(marks["exact"], weights_N)}


def _page(record: Record) -> str | None:
    parts: list[Any] = [record.values.get(key) for key in ("ucsf_document_id", "ucsf_document_page_no")]
    if None not in parts:
        return "/".join(str(part) for part in parts)
    path = record.values.get("image")
    return path if isinstance(path, str) else None


def anls(text: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one question: 1 - distance / length to the nearest answer, 0 where
    that is below a half.

    As the challenge's evaluation has it, case and spacing don't count in the distance, and the length is that of the
    longer text as it was written.
    """
    nearest = min(_normalised_distance(text, each) for each in answers)
    return 1 - nearest if 1 - nearest >= _THRESHOLD else 0.0


def _normalised_distance(text: str, answer: str) -> float:
    length = max(len(answer.upper()), len(text.upper()))
    return levenshtein(_collapsed(answer), _collapsed(text)) / length if length else 0.0


def _collapsed(text: str) -> str:
    return " ".join(text.lower().split())


def levenshtein(first: str, second: str) -> int:
    """The fewest characters inserted, deleted or replaced that make one text of another."""
    row = list(range(len(second) + 1))
    for done, character in enumerate(first, 1):
        diagonal, row[0] = row[0], done
        for place, other in enumerate(second, 1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (character != other))
    return row[-1]
