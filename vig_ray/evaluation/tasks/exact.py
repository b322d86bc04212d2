"""Questions of one's own with short answers: whether the model's answer is one of those expected, or says one.

A row of a JSON, JSON Lines, TSV or Parquet file:

    {"question": "What color is the circle?", "image": "images/1.png", "answer": "red", "group": "color", "id": "q1"}

`answer`: a text, or a list of texts any of which is right. `image`: a path, bytes, or a list of them, or none; TSV has
no lists. `id` and `group` may be there. The question is asked as it is written, with its images before it unless it has
`<image>` marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.evaluation.text import checked_answer, same, says
from vig_ray.evaluation.user_rows import user_rows


class Exact:
    """See the module."""

    name = "exact"
    source = "questions of one's own; answers compared without case, repeated spaces and punctuation around them"
    options: Mapping[str, str] = {}
    max_new_tokens = 32
    metrics_of = (Metric("exact", main=True), Metric("contains"))

    def read(self, given: Given) -> Iterator[Question]:
        """See `Task.read`."""
        for row in user_rows(given):
            expected = row.texts("answer") if isinstance(row.value("answer"), list) else [row.name("answer")]
            if not expected:
                raise row.fault("'answer' is an empty list")
            for each in expected:
                checked_answer(row, "answer", each)
            yield Question(**row.asked(), expected=expected, answer=expected[0])

    def mark(self, question: Question, answer: Answer) -> Marks:
        """See `Task.mark`."""
        return {
            "score": float(any(same(answer.text, each) for each in question.expected)),
            "contains": float(any(says(answer.text, each) for each in question.expected)),
        }

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """See `Task.metrics`."""
        return {"exact": mean(marks["score"], weights_N), "contains": mean(marks["contains"], weights_N)}
