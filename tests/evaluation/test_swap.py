"""Other images, blurred ones and none: who gets what, and the numbers of answers counted by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture

from tests.evaluation.asking import begun
from tests.evaluation.test_blind_faith import numbers, rows
from tests.oracle import blurred
from vig_ray.dataset.schema import SAMPLES, Image, Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import asked_for
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.other_images import with_other_images
from vig_ray.evaluation.prepare import QuestionPreparer
from vig_ray.evaluation.question import Answer, Question
from vig_ray.evaluation.questions import to_sample
from vig_ray.evaluation.task import Given
from vig_ray.evaluation.tasks import task
from vig_ray.evaluation.tasks.swap import WAYS
from vig_ray.evaluation.told import warn_once
from vig_ray.model.load import Prompts
from vig_ray.scoring.prepared import unpack

COLORS = ("red", "green", "blue", "red", "green")


def holding(number: int, images: tuple[Image, ...], **more: Any) -> Question:
    return Question(str(number), "<image>" * len(images) + "What?", images, "x", **more)


@settings(deadline=None, max_examples=60)
@given(
    contents=st.lists(st.lists(st.integers(0, 6), max_size=2), min_size=1, max_size=40),
    most=st.sampled_from([1, 9, 20, 1000]),
    most_sets=st.sampled_from([None, None, 2, 5]),
    seed=st.integers(0, 3),
)
def test_no_question_gets_an_image_of_its_own(
    contents: list[list[int]], most: int, most_sets: int | None, seed: int
) -> None:
    questions = [
        holding(number, tuple(Image(bytes=bytes([each]) * 9) for each in of_question))
        for number, of_question in enumerate(contents)
    ]
    found = list(with_other_images(questions, seed, most_bytes=most, most_sets=most_sets))
    assert [question for question, _ in found] == questions
    every = {question.images for question in questions}
    for question, other in found:
        if other is None:
            continue
        assert question.images
        assert other in every
        assert len(other) == len(question.images)
        assert not set(other) & set(question.images)
    singles = {question.images for question in questions if len(question.images) == 1}
    if len(singles) > 1 and most == 1000 and most_sets is None:  # then each has another, and each is another's
        assert {other for question, other in found if len(question.images) == 1} == singles
    assert list(with_other_images(questions, seed, most_bytes=most, most_sets=most_sets)) == found


def test_files_of_one_content_are_one_image(tmp_path: Path) -> None:
    for name, colour in (("a", 1), ("b", 1), ("c", 2), ("d", 3)):  # all of one size
        (tmp_path / name).write_bytes(bytes([colour]) * 100)
    (tmp_path / "e").write_bytes(b"longer" * 100)
    images = [Image(uri=str(tmp_path / name)) for name in "abcde"]
    images += [Image(bytes=bytes([1]) * 100), Image(uri=str(tmp_path / "gone"))]
    content = dict(zip(images, (1, 1, 2, 3, 4, 1, 5), strict=True))
    for seed in range(20):
        for question, other in with_other_images([holding(n, (image,)) for n, image in enumerate(images)], seed):
            assert other is not None
            assert content[other[0]] != content[question.images[0]]
    alike = [holding(n, (image,)) for n, image in enumerate(images[:2])]
    assert [other for _, other in with_other_images(alike, 0)] == [None, None]


def row_of(question: Question) -> dict[str, Any]:
    """A question as it lies in questions/."""
    sample, kept = to_sample(question, "swap:choices")
    return {
        "sample_key": sample.id,
        "id": sample.id,
        "source": sample.source,
        "kept": [{"name": name, "value": value} for name, value in kept.items()],
        "images": [{"uri": image.uri, "bytes": image.bytes} for image in sample.images],
        "conversation": [{"role": turn.role, "text": turn.text} for turn in sample.conversation],
    }


def asked(folder: Path, **options: str) -> tuple[Any, list[Question]]:
    data = [{"question": f"Item {n}: what color?", "answer": color} for n, color in enumerate(COLORS)]
    data += [{"question": "What color has no image?", "answer": "none", "image": []}]
    given = Given(str(rows(folder, data)), options=options)
    made = begun("swap:exact", given)
    return made, list(made.read(given))


def test_why_a_question_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    data = [{"question": f"Item {n}?", "answer": "x"} for n in range(3)]
    data += [{"question": "None?", "answer": "x", "image": []} for _ in range(2)]
    data += [{"question": "Two?", "answer": "x", "images": ["0.png", "1.png"]}]
    for row in data[-1:]:
        row["image"] = None
    given = Given(str(rows(tmp_path, data)))
    assert len(list(begun("swap:exact", given).read(given))) == 3 * 4
    assert "swap:exact: 2 questions left out: without an image" in caplog.text
    assert "swap:exact: 1 questions left out: no other question has as many images" in caplog.text
    given = Given(str(rows(tmp_path, data[3:5])))
    with pytest.raises(StageError, match="--tasks swap:exact: without an image, in any of 2 questions"):
        list(begun("swap:exact", given).read(given))
    given = Given(str(rows(tmp_path, data[3:])))
    with pytest.raises(
        StageError, match=r"--tasks swap:exact: without an image 2, no other .* images 1, of 3 questions"
    ):
        list(begun("swap:exact", given).read(given))


def test_each_question_comes_four_times(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    made, questions = asked(tmp_path)
    assert made.ways == 4
    assert "swap:exact: 1 questions left out: without an image" in caplog.text
    assert len(questions) == 4 * len(COLORS)
    own_images = {question.images for question in questions[::4]}
    for number, (own, other, blur, none) in enumerate(zip(*(questions[way::4] for way in range(4)), strict=True)):
        text = f"Item {number}: what color?"
        assert own.images[0].uri == blur.images[0].uri == str(tmp_path / f"{number}.png")
        assert own.prompt == other.prompt == blur.prompt == f"<image>\n{text}"
        assert other.images in own_images - {own.images}
        assert (none.images, none.prompt) == ((), text)
        assert [each.under for each in (own, other, blur, none)] == ["clean", "clean", "blur", "clean"]
        assert [each.passes for each in (own, other, blur, none)] == [("clean",), ("clean",), ("blur",), ("clean",)]
        assert {each.unit for each in (own, other, blur, none)} == {f"row {number}"}
    assert asked(tmp_path)[1] == questions
    assert asked(tmp_path, swap_seed="1")[1] != questions
    assert {each.passes for each in asked(tmp_path, loss="no")[1]} == {()}
    with pytest.raises(StageError, match="swap_seed=x: expected a whole number"):
        asked(tmp_path, swap_seed="x")


def test_a_limit_bounds_what_is_read_for_other_images() -> None:
    """Of 2,000 images, two questions each: no more than twice as many images as the limit, or as 64."""
    made: Any = task("swap:exact")
    read = 0

    def counted(_: Given) -> Iterator[Question]:
        nonlocal read
        for number in range(4000):
            read += 1
            yield holding(number, (Image(bytes=str(number // 2).encode()),), answer="x")

    made.inner.read = counted
    for limit, sets in ((1, 64), (200, 200)):
        read = 0
        questions = list(islice(made.read(Given("", limit=limit)), 4 * limit))
        assert read == 4 * sets + 1
        images = [int(each.images[0].bytes or b"") for each in questions[1::4]]
        assert [own != each // 2 for each, own in enumerate(images)] == [True] * limit
        assert max(images) < sets
    read = 0
    next(made.read(Given("")))
    assert read == 4000


def test_the_command_tells_tasks_its_limit(tmp_path: Path) -> None:
    given = {"model": CHECKPOINT, "tasks": "swap:exact", "data": str(tmp_path / "x.jsonl"), "out": str(tmp_path)}
    (found,) = asked_for(EvalConfig(**given, limit=7))
    assert found.given.limit == 7
    assert found.identity() == {"name": "swap:exact", "limit": 7}
    (found,) = asked_for(EvalConfig(**given))
    assert (found.given.limit, found.identity()) == (None, {"name": "swap:exact"})


def test_numbers_of_each_image(tmp_path: Path) -> None:
    made, questions = asked(tmp_path)
    right = {"own": (1, 1, 1, 0, 1), "other": (0, 1, 0, 0, 0), "blur": (0, 0, 1, 1, 0), "none": (0, 0, 0, 0, 0)}
    chance, weights = np.random.default_rng(0), np.array([2.0, 0, 1, 1, 3])
    answers, nll, tokens = [], {way: np.zeros(5) for way in WAYS}, {way: np.zeros(5) for way in WAYS}
    for place, question in enumerate(questions):
        way, number = WAYS[place % 4], place // 4
        logp_T = -chance.random(2 + number).astype(np.float32)
        nll[way][number], tokens[way][number] = -logp_T.sum(), len(logp_T)
        text = COLORS[number].upper() if right[way][number] else "mauve"
        answers.append(Answer(text, passes={question.passes[0]: logp_T}))
    for each in (np.ones(5), weights):
        found = numbers(made, questions, answers, np.repeat(each, 4))
        share = {way: float((each * right[way]).sum() / each.sum()) for way in WAYS}
        loss = {way: (each * nll[way]).sum() / (each * tokens[way]).sum() for way in WAYS}
        assert found == pytest.approx(
            {
                **share,
                **{f"drop {way}": share["own"] - share[way] for way in WAYS[1:]},
                "loss": loss["own"],
                **{f"rise {way}": loss[way] - loss["own"] for way in WAYS[1:]},
            }
        )
    made, questions = asked(tmp_path, loss="no")
    found = numbers(made, questions, [Answer("red") for _ in questions])
    assert np.isnan([value for name, value in found.items() if name.startswith(("loss", "rise"))]).all()
    assert found["own"] == 0.4


def test_losses_of_ones_own_samples_under_each_image() -> None:
    """`held-out` asks for two passes, and less is better; turns before the question lose their marks."""
    made: Any = task("swap:held-out")
    question = Question(
        "s#2", "And there?", (Image(bytes=b"1"),), "A cow.", answer="A cow.", passes=("clean", "blur"), writes=False,
        unit="s", before=(Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")),
    )  # fmt: skip
    other = Question(
        "t#1", "<image>\nWhat?", (Image(bytes=b"2"),), "B", answer="B", passes=("clean", "blur"), writes=False
    )
    made.inner.read = lambda _: iter([question, other])
    questions = list(made.read(Given("")))
    assert [each.passes for each in questions[:4]] == [("clean", "blur"), ("clean", "blur"), ("blur",), ("clean",)]
    assert [turn.text for turn in questions[3].before] == ["What?", "A cat."]
    losses = np.random.default_rng(1).random((8, 2, 3)).astype(np.float32)
    answers = [
        Answer("", passes={name: -losses[n, k] for k, name in enumerate(question.passes)})
        for n, question in enumerate(questions)
    ]
    found = numbers(made, questions, answers)
    mean = losses[:, 0].reshape(2, 4, 3).mean(axis=(0, 2))
    assert [found[way] for way in WAYS] == pytest.approx(mean)
    assert [found[f"drop {way}"] for way in WAYS[1:]] == pytest.approx(mean[1:] - mean[0])
    assert [found[f"rise {way}"] for way in WAYS[1:]] == pytest.approx(mean[1:] - mean[0])


def test_the_image_that_a_prompt_holds(tmp_path: Path, demo_formatter: Any) -> None:
    """What the model is given: the blurred image is OpenCV's, to a grey level or two, and a text alone has none."""
    chance = random.Random(4)
    data = []
    for number in range(3):
        world.draw(world.random_scene(chance), size=(96, 64)).save(tmp_path / f"{number}.png")
        data.append({"question": "What color?", "answer": "red", "choices": ["red", "blue"], "image": f"{number}.png"})
    given = Given(str(rows(tmp_path, data)))
    made = begun("swap:choices", given)
    questions = list(made.read(given))
    preparer = QuestionPreparer(
        prompts=Prompts(CHECKPOINT, "auto", None), passes=("blur", "clean"), max_image_pixels=10_000
    )
    table = pa.Table.from_pylist([row_of(question) for question in questions], schema=SAMPLES)
    for question, row in zip(questions, unpack(preparer(table)), strict=True):
        prompts = row["prompts"]
        assert len(prompts) == 3  # two choices and the right answer's log-probs
        way = WAYS[int(question.more["wrapped"]["way"])]
        for prompt in prompts:
            if way == "none":
                assert not prompt.images
                assert not prompt.image_mask.any()
                continue
            picture = Picture.open(question.images[0].uri or "").convert("RGB")
            seen = blurred(picture) if way == "blur" else picture
            expected = demo_formatter.preprocess(np.asarray(seen))["pixel_values"].astype(np.float32)
            shown = prompt.images[0].inputs["pixel_values"].astype(np.float32)
            np.testing.assert_allclose(shown, expected, atol=2.0 * (way == "blur"))
