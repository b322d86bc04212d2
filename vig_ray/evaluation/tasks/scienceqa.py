"""ScienceQA: school science with choices, a part of it with images. `--data scienceqa=FOLDER` of problems.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vig_ray.dataset.fields import shorten, type_name
from vig_ray.dataset.schema import Image
from vig_ray.errors import StageError
from vig_ray.evaluation.beside import ImageFiles, file_of, keyed, parent, parquet_of
from vig_ray.evaluation.files import Record, marked, read_json, records
from vig_ray.evaluation.parsing import lettered
from vig_ray.evaluation.question import Answer, Columns, Marks, Question
from vig_ray.evaluation.task import Given, Metric, Weights, mean
from vig_ray.storage import exists

_LETTERS = "ABCDEFGHIJ"
_SPLITS = ("test", "val", "train", "minitest", "minival", "minitrain")
_SUBSETS = ("all", "image")


class ScienceQA:
    """`data`: problems.json with pid_splits.json beside it, their folder, or Parquet with the same columns (a split's
    file). `images`: the folder of test/ or of images/, by default the data's."""

    name = "scienceqa"
    source = "Lu et al., Learn to Explain, NeurIPS 2022, https://arxiv.org/abs/2209.09513; answers as LLaVA reads them"
    options: Mapping[str, str] = {
        "split": f"of {', '.join(_SPLITS)}; test by default, of Parquet the file's own",
        "subset": "all questions, the default, or those with an image",
        "answered": "written (default): the model writes its answer; likelihood: the choices' letters compared",
    }
    max_new_tokens = 16
    by = "first"
    metrics_of = (Metric("image", main=True), Metric("accuracy"), Metric("unread", higher_is_better=False))

    def read(self, given: Given) -> Iterator[Question]:
        """Choices have letters. The group is the subject."""
        files = ImageFiles(self.name, given)
        likelihood = given.choice(self.name, "answered", ("written", "likelihood")) == "likelihood"
        subset = given.choice(self.name, "subset", _SUBSETS)
        for number, (key, record, names) in enumerate(_rows(self.name, given)):
            image = None
            if record.has("image"):
                image = files.image(record, *names) if names else files.of(record)
            elif subset == "image":
                continue
            yield _question(key or str(number), record, image, likelihood)

    def mark(self, question: Question, answer: Answer) -> Marks:
        """Whether the answer is the letter, or begins with it and a full stop."""
        letter = letter_of(answer.text.strip())
        right = float(letter == question.expected)
        return {
            "score": right,
            "image": right if question.more.get("image") else float("nan"),  # also where it is asked without
            "unread": float(letter is None),
        }

    def metrics(self, marks: Columns, weights_N: Weights) -> dict[str, float]:
        """Shares of right answers, of questions with an image and of all."""
        return {
            "image": mean(marks["image"], weights_N),
            "accuracy": mean(marks["score"], weights_N),
            "unread": mean(marks["unread"], weights_N),
        }


def letter_of(text: str) -> str | None:
    """The letter that an answer is, or begins with before a full stop, as LLaVA reads it."""
    if len(text) == 1 and text.isalpha():
        return text.upper()
    return text[0] if text[:1].isupper() and text[1:2] == "." else None


def _question(key: str, record: Record, image: Image | None, likelihood: bool) -> Question:
    choices, right = record.texts("choices"), record.value("answer")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < min(len(choices), len(_LETTERS)):
        raise record.fault(f"'answer' is {right!r}, not the place of one of {len(choices)} choices")
    hint = f"Context: {record.text('hint')}\n" if record.has("hint") else ""
    text = (
        f"{hint}{record.text('question')}\n{lettered(choices, _LETTERS)}\n"
        "Answer with the option's letter from the given choices directly."
    )
    images = () if image is None else (image,)
    return Question(
        id=key,
        prompt=marked(text, images),
        images=images,
        expected=_LETTERS[right],
        choices=tuple(_LETTERS[: len(choices)]) if likelihood else (),
        answer=_LETTERS[right],
        group=record.text("subject") if record.has("subject") else None,
        more={"image": True} if images else {},
    )


def _rows(task: str, given: Given) -> Iterator[tuple[str | None, Record, tuple[str, ...]]]:
    """The split's problems, each with its id, None in Parquet, and the names that its image's file may have."""
    if parquet := parquet_of(task, given.data, "problems.json"):
        for file in parquet:
            yield from ((None, record, ()) for record in records(file))
        return
    folder = given.data if exists(given.data).name == "Directory" else parent(given.data)
    split = given.choice(task, "split", _SPLITS)
    problems = dict(keyed(file_of(task, given.data, "problems.json")))
    for key in _ids(file_of(task, folder, "pid_splits.json"), split):
        if key not in problems:
            raise StageError(
                f"{folder}/problems.json: no problem {shorten(key, 20)}, which pid_splits.json has in {split}"
            )
        record = problems[key]
        of = record.values.get("split", split)
        image = f"{of}/{key}/{record.values.get('image')}"
        yield key, record, (image, f"images/{image}")


def _ids(splits: str, split: str) -> list[str]:
    whole = read_json(splits)
    ids = whole.get(split) if isinstance(whole, dict) else None
    if not isinstance(ids, list):
        there = ", ".join(list(whole)[:8]) if isinstance(whole, dict) else type_name(whole)
        raise StageError(f"{splits}: no split '{split}' (there are {there})")
    return [str(each) for each in ids]
