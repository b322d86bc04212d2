"""TextVQA: questions that text in the image answers, by VQA accuracy. `--data textvqa=TextVQA_0.5.1_val.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from vig_ray.evaluation.beside import ImageFiles, rows_of
from vig_ray.evaluation.files import Record, marked, records
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.evaluation.vqa import accuracy, normalised_tokens


class TextVQA:
    """`data`: the split's JSON as its authors publish it, a folder that holds it, or Parquet with the same columns.
    `images`: the folder of the JPEGs or of train_images/, by default the data's.

    Questions are put in small letters after the first, as lmms-eval puts them.
    """

    name = "textvqa"
    source = "Singh et al., Towards VQA Models That Can Read, CVPR 2019, https://arxiv.org/abs/1904.08920"
    options: Mapping[str, str] = {
        "ocr": "text that was recognised in the image, told with the question: the authors' Rosetta JSON, or yes where "
        "the rows have ocr_tokens"
    }
    max_new_tokens = 128
    metrics_of = (Metric("accuracy", main=True),)

    def read(self, given: Given) -> Iterator[Question]:
        """Questions about one image are a unit."""
        files = ImageFiles(self.name, given)
        recognised = _recognised(given.options.get("ocr"))
        for record in rows_of(self.name, given, "TextVQA*val.json", "TextVQA*.json", under="data"):
            if not record.has("answers"):
                raise record.fault("no 'answers': those of the test split are at the challenge's server; take val")
            answers, image_id = record.texts("answers"), record.name("image_id")
            names = [f"{folder}{image_id}.jpg" for folder in ("", "train_images/", "train_val_images/train_images/")]
            image = files.of(record) if record.has("image") else files.image(record, *names)
            told = "" if recognised is None else f"\nReference OCR token: {_tokens(record, recognised, image_id)}"
            text = f"{record.text('question').capitalize()}{told}\nAnswer the question using a single word or phrase."
            yield Question(
                id=record.name("question_id"),
                prompt=marked(text, [image]),
                images=(image,),
                expected=answers,
                answer=Counter(answers).most_common(1)[0][0],
                unit=image_id,
            )

    def mark(self, question: Question, answer: Answer) -> Marks:
        """VQA accuracy against all people's answers."""
        people = [normalised_tokens(each) for each in question.expected]
        return {"score": accuracy(normalised_tokens(answer.text), people)}

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """The mean over questions."""
        return {"accuracy": mean(marks["score"], weights_N)}


def _recognised(ocr: str | None) -> Mapping[str, list[str]] | None:
    """The tokens of each image; None where they aren't told, and nothing where the rows have them."""
    if ocr is None or ocr == "yes":
        return None if ocr is None else {}
    return {record.name("image_id"): record.texts("ocr_tokens") for record in records(ocr, under="data")}


def _tokens(record: Record, recognised: Mapping[str, list[str]], image_id: str) -> str:
    if recognised and image_id not in recognised:
        raise record.fault(f"textvqa.ocr's file has no image {image_id!r}")
    return ", ".join(recognised[image_id] if recognised else record.texts("ocr_tokens"))
