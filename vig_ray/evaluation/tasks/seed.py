"""SEED-Bench: questions with four options in 12 dimensions, of images and of frames of videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.schema import Image
from vig_ray.evaluation.files import Record, files_of, image_folder, marked, records
from vig_ray.evaluation.parsing import first_letter, lettered
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean

DIMENSIONS = (
    *("scene understanding", "instance identity", "instance attributes", "instance location", "instances counting"),
    *("spatial relation", "instance interaction", "visual reasoning", "text understanding", "action recognition"),
    *("action prediction", "procedure understanding"),
)
_OPTIONS = ("choice_a", "choice_b", "choice_c", "choice_d")
_LETTERS = ("A", "B", "C", "D")
_ASKS_LETTER = "\nAnswer with the option's letter from the given choices directly."
_ANSWERED = ("written", "letters", "texts")


class Seed:
    """Accuracy over all questions, over those of images, of videos, and by dimension."""

    name = "seed"
    source = "Li et al. 2023, SEED-Bench, arXiv:2307.16125"
    options: Mapping[str, str] = {
        "answered": "written (default): the model writes a letter, the first character counts; letters: A to D "
        "compared by likelihood; texts: the options' texts compared, by token, as the authors do",
    }
    max_new_tokens = 16
    by = "first"
    metrics_of = (
        Metric("all", main=True),
        Metric("image"),
        Metric("video"),
        Metric("unread", higher_is_better=False),
        *(Metric(dimension) for dimension in DIMENSIONS),
    )

    def begin(self, given: Given) -> None:
        """Texts are compared by token: they are of different lengths."""
        self._answered = given.choice(self.name, "answered", _ANSWERED)
        self.by = "token" if self._answered == "texts" else "first"

    def read(self, given: Given) -> Iterator[Question]:
        """The questions of images in SEED-Bench.json, or all of lmms-eval's Parquet, whose videos are frames."""
        folder = image_folder(given)
        for uri in files_of(given.data, (".json", ".parquet")):
            for row in records(uri, under="questions"):
                kind = row.one_of("data_type", ("image", "video"))
                if row.has("image"):
                    images = row.images("image", folder)
                elif kind == "video":  # a file of video, of which nobody says which frames are shown
                    continue
                else:
                    images = _beside(row, folder)
                yield self._question(row, kind, images)

    def _question(self, row: Record, kind: str, images: tuple[Image, ...]) -> Question:
        options = tuple(row.name(key) for key in _OPTIONS)
        letter = row.one_of("answer", _LETTERS)
        asked = f"{row.text('question')}\n{lettered(options)}{_ASKS_LETTER}"
        if self._answered == "texts":
            asked = f"{row.text('question')} Answer :"
        choices = {"written": (), "letters": _LETTERS, "texts": options}[self._answered]
        number = row.whole("question_type_id") - 1
        return Question(
            id=row.name("question_id"),
            prompt=marked(asked, images),
            images=images,
            expected=letter,
            choices=choices,
            answer=options[_LETTERS.index(letter)] if self._answered == "texts" else letter,
            group=DIMENSIONS[number] if 0 <= number < len(DIMENSIONS) else None,
            unit=row.name("data_id") if row.has("data_id") else None,
            more={"video": kind == "video"},
        )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is the right letter, or the right option's text where these are compared."""
        if self._answered == "texts":
            letter: str | None = _LETTERS[question.choices.index(answer.text)]
        else:
            letter = first_letter(answer.text, _LETTERS)
        return {
            "score": float(letter == question.expected),
            "unread": float(letter is None),
            "video": float(question.more["video"]),
            "dimension": float(DIMENSIONS.index(question.group)) if question.group in DIMENSIONS else float("nan"),
        }

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Accuracies."""
        score, video = marks["score"], marks["video"]
        parts = {"all": weights_N, "image": weights_N * (video == 0), "video": weights_N * (video == 1)}
        parts |= {name: weights_N * (marks["dimension"] == number) for number, name in enumerate(DIMENSIONS)}
        return {name: mean(score, weights) for name, weights in parts.items()} | {
            "unread": mean(marks["unread"], weights_N)
        }


def _beside(row: Record, folder: ImageFolder) -> tuple[Image, ...]:
    """The image of a row of the authors' JSON, which names it without an ending, as its file is."""
    return Record(row.where, {"data_id": row.name("data_id")}).images("data_id", folder)
