"""POPE's reading, scores worked by hand on 60 questions, and its three samplings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.evaluation import published_a as published
from tests.evaluation.asking import answered, read
from vig_ray.evaluation.yes_no import SHORT

# 20 questions a sampling, those with yes and those with no in turn, and what a model might answer to them.
LABELS = ["yes", "no"] * 10
ANSWERS = {
    # Nine of ten objects found, one imagined.
    "random": [
        *("Yes", "No", "yes, there is a dog.", "No, there is no dog.", "Yes. It is not far away.", "no"),
        *("Yes, two", "There is not a cup", "The image has one", "No", "Yes", "Yes, it is near the cat.", "Yes"),
        *("No", "There is no such thing", "No", "Yes", "No", "Yes", "No."),
    ],
    # Eight found, two imagined.
    "popular": [
        *("Yes", "Yes", "Yes", "No", "No", "No", "Yes", "No", "Yes", "I see a chair", "Yes", "No, not one"),
        *("I do not see it", "No", "Yes", "No", "Yes", "No", "Yes", "No"),
    ],
    # Nine found, three imagined.
    "adversarial": [
        *("Yes", "Yes", "Yes", "No", "Yes", "Yes", "Yes", "No", "Yes", "Yes", "Yes", "No"),
        *("No", "No", "Yes", "No", "Yes", "No", "Yes", "No"),
    ],
}
BY_HAND = {
    **{"random accuracy": 18 / 20, "random precision": 9 / 10, "random recall": 9 / 10, "random f1": 0.9},
    **{"popular accuracy": 16 / 20, "popular precision": 8 / 10, "popular recall": 8 / 10, "popular f1": 0.8},
    **{"adversarial accuracy": 16 / 20, "adversarial precision": 9 / 12, "adversarial recall": 9 / 10},
    **{"adversarial f1": 2 * 9 / (12 + 10), "random yes": 10 / 20, "popular yes": 10 / 20, "adversarial yes": 12 / 20},
    **{"accuracy": 50 / 60, "precision": 26 / 32, "recall": 26 / 30, "f1": 2 * 26 / (32 + 30), "yes": 32 / 60},
    **{"mean f1": (0.9 + 0.8 + 9 / 11) / 3, "unread": 0.0},
}


def test_sixty_questions_by_hand(tmp_path: Path) -> None:
    for sampling in ANSWERS:
        published.as_lines(tmp_path / f"coco_pope_{sampling}.json", published.pope_rows(LABELS))
    task, questions = read("pope", tmp_path)
    assert len(questions) == 60
    found = answered(task, questions, [answer for sampling in sorted(ANSWERS) for answer in ANSWERS[sampling]])
    assert found == pytest.approx(BY_HAND)

    first = questions[0]
    assert (first.id, first.group, first.expected, first.answer) == ("adversarial/1", "adversarial", "yes", "Yes")
    assert first.prompt == "<image>\nIs there a thing0 in the image?" + SHORT
    assert first.images[0].uri == str(tmp_path / "COCO_val2014_000000000000.jpg") == first.unit

    exact, same = read("pope", tmp_path, **{"rules": "lmms-eval"})
    found = answered(exact, same, ["Yes", "No", "No.", "Perhaps"] * 15)
    # Every second question has the label yes: those answered "Yes" and, not understood, "No.".
    assert (found["accuracy"], found["precision"], found["recall"], found["unread"]) == (0.5, 1.0, 1.0, 0.5)


def test_other_layouts(tmp_path: Path) -> None:
    """LLaVA's files ask for a single word already; the hub's Parquet has bytes and a column for the sampling."""
    rows = [row | {"text": row["text"] + SHORT} for row in published.pope_rows(LABELS)]
    lines = published.as_lines(tmp_path / "popular.jsonl", rows)
    _, questions = read("pope", lines)
    assert questions[3].prompt == "<image>\nIs there a thing3 in the image?" + SHORT
    table = [
        {
            **{"id": str(number), "question_id": str(number // 3), "question": "Is there an apple in the image?"},
            **{"answer": "no", "image_source": "COCO_1", "image": published.struct(number)},
            "category": ("adversarial", "popular", "random")[number % 3],
        }
        for number in range(6)
    ]
    published.as_parquet(tmp_path / "hub/test-00000-of-00001.parquet", table)
    _, questions = read("pope", tmp_path / "hub", answered="likelihood", prompt="plain")
    assert [question.id for question in questions[:4]] == ["adversarial/0", "popular/0", "random/0", "adversarial/1"]
    assert questions[1].prompt == "<image>\nIs there an apple in the image?"
    assert (questions[1].choices, questions[1].unit) == (("Yes", "No"), "COCO_1")
    assert questions[1].images[0].bytes == published.picture(1)


IMAGES = {
    "1.jpg": ["person", "dog", "car"],
    "2.jpg": ["person", "dog", "apple", "dog"],
    "3.jpg": ["person", "car", "bus"],
    "4.jpg": ["person", "apple", "car"],
    "5.jpg": ["cup", "bus", "person"],
    "6.jpg": ["cup", "person"],  # too few objects
    "7.jpg": ["zebra", "person", "dog"],
}
NAMES = ["person", "dog", "car", "apple", "bus", "cup", "zebra", "kite"]


def sampled(folder: Path, **options: str) -> Mapping[tuple[str, str], list[tuple[str, str]]]:
    """The objects that are asked for and their labels, in order, by sampling and image."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    _, questions = read("pope", folder / "instances_val.json", prompt="plain", **options)
    for question in questions:
        image = Path(str(question.images[0].uri)).name
        words = question.prompt.removeprefix("<image>\nIs there ").removesuffix(" in the image?")
        article, _, name = words.partition(" ")
        assert article == ("an" if name == "apple" else "a")
        found.setdefault((str(question.group), image), []).append((name, question.expected))
    return found


def test_samplings(tmp_path: Path) -> None:
    published.as_json(tmp_path / "instances_val.json", published.coco(IMAGES, NAMES))
    found = sampled(tmp_path, num_images="6")
    assert len(found) == 18
    for (_, image), asked in found.items():
        assert [label for _, label in asked] == ["yes", "no"] * 3
        assert [name for name, label in asked if label == "yes"] == list(dict.fromkeys(IMAGES[image]))[:3]
        absent = [name for name, label in asked if label == "no"]
        assert len(set(absent)) == 3
        assert not set(absent) & set(IMAGES[image])
    absent = {key: [name for name, label in asked if label == "no"] for key, asked in found.items()}
    # Six persons, three dogs and cars, two apples and buses, a cup and a zebra. No kite is in any image.
    assert set(absent["popular", "1.jpg"][:2]) == {"apple", "bus"}
    assert absent["popular", "2.jpg"][:2] == ["car", "bus"]
    assert set(absent["popular", "5.jpg"][:2]) == {"dog", "car"}
    assert absent["popular", "5.jpg"][2] == "apple"
    assert {absent["popular", image][2] for image in ("1.jpg", "2.jpg", "3.jpg")} <= {"cup", "zebra", "apple"}
    # 2: a person is with three cars; a dog with them, with an apple and with a zebra; an apple with nothing else that
    # is left, so that a bus or a cup comes at random.
    assert absent["adversarial", "2.jpg"][:2] == ["car", "zebra"]
    assert absent["adversarial", "2.jpg"][2] in ("bus", "cup")
    # 3: a person is most often with a dog, a car with an apple or a dog, and a bus with nothing that is left.
    assert absent["adversarial", "3.jpg"][:2] == ["dog", "apple"]

    assert found == sampled(tmp_path, num_images="6")
    assert found != sampled(tmp_path, num_images="6", seed="3")
    one = sampled(tmp_path, num_images="2", per_image="1", seed="7")
    assert {image for _, image in one} == set(Random(7).sample(list(IMAGES), 2))


def test_weights_are_repetitions(tmp_path: Path) -> None:
    for sampling in ANSWERS:
        published.as_lines(tmp_path / f"{sampling}.json", published.pope_rows(LABELS))
    task, questions = read("pope", tmp_path)
    answers = [answer for sampling in sorted(ANSWERS) for answer in ANSWERS[sampling]]
    times = np.random.default_rng(0).integers(0, 4, len(questions))
    repeated = [number for number, count in enumerate(times) for _ in range(count)]
    assert answered(task, questions, answers, times) == pytest.approx(
        answered(task, [questions[n] for n in repeated], [answers[n] for n in repeated])
    )
