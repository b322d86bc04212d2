"""ChartQA: questions about charts, by relaxed accuracy. `--data "chartqa=ChartQA Dataset/test"`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vig_ray.errors import StageError
from vig_ray.evaluation.beside import ImageFiles, file_of
from vig_ray.evaluation.files import marked, records
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.storage import exists

_KINDS = ("human", "augmented")
_TOLERANCE = 0.05


class ChartQA:
    """`data`: the split's folder, with test_human.json, test_augmented.json and png/, or one of the two files.
    `images`: the folder of the charts or of png/, by default the data's."""

    name = "chartqa"
    source = "Masry et al., ChartQA, Findings of ACL 2022, https://arxiv.org/abs/2203.10244, end of section 5.1"
    options: Mapping[str, str] = {}
    max_new_tokens = 16
    metrics_of = (Metric("relaxed", main=True), Metric("human"), Metric("augmented"))

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one chart are a unit; the group is who wrote them."""
        files = ImageFiles(self.name, given)
        for kind, file in _files(self.name, given.data):
            for number, record in enumerate(records(file)):
                chart = record.text("imgname")
                image = files.image(record, f"png/{chart}", chart)
                label = record.name("label")
                yield Question(
                    id=f"{kind}/{number}",
                    prompt=marked(f"{record.text('query')}\nAnswer the question with a single word.", [image]),
                    images=(image,),
                    expected=label,
                    answer=label,
                    group=kind,
                    unit=chart,
                )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is the expected one, or a number within a twentieth of it."""
        score = float(relaxed(answer.text.strip(), question.expected))
        return {"score": score} | {kind: score if question.group == kind else float("nan") for kind in _KINDS}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Shares of right answers, of all questions and of each kind."""
        return {"relaxed": mean(marks["score"], weights_N)} | {kind: mean(marks[kind], weights_N) for kind in _KINDS}


def _files(task: str, data: str) -> list[tuple[str, str]]:
    """The files of questions, each with who wrote them."""
    if exists(data).name != "Directory":
        file_of(task, data)
        kinds = [kind for kind in _KINDS if kind in data.rpartition("/")[2]]
        if len(kinds) != 1:
            raise StageError(f"{data}: the file's name says neither human nor augmented; name the folder of both")
        return [(kinds[0], data)]
    return [(kind, file_of(task, data, f"test_{kind}.json", f"*_{kind}.json")) for kind in _KINDS]


def relaxed(text: str, expected: str) -> bool:
    """Whether an answer is right: of two numbers it may be off by a twentieth, of anything else the same but for case.

    "12%" is the number 0.12. An expected 0 is compared as text, as Qwen-VL's evaluation and lmms-eval have it.
    """
    found, number = _number(text), _number(expected)
    if found is not None and number:
        return abs(found - number) / abs(number) <= _TOLERANCE
    return text.lower() == expected.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
