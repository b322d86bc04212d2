"""The harder look: what its rows say is read off the pictures and off the scenes by other code than its own."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vig_ray.demo import asked, curriculum, hard, world

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def answered(question: str, things: list[dict[str, str]]) -> str:
    """The answer's decided word, worked out of a list of things as words and coordinates."""
    if found := re.fullmatch(r"Is there a (\w+) (\w+) in the image\?", question):
        return "Yes" if any((t["color"], t["shape"]) == found.groups() for t in things) else "No"
    if found := re.fullmatch(r"What color is the (?:(large|small) )?(\w+)\?", question):
        (color,) = [t["color"] for t in things if t["shape"] == found[2] and found[1] in (None, t["size"])]
        return color
    if found := re.fullmatch(r"How many (\w+) objects are there\?", question):
        number = sum(t["color"] == found[1] for t in things)
    elif found := re.fullmatch(r"How many (\w+?)(?:es|s) are there\?", question):
        shape = {"circl": "circle", "squar": "square", "triangl": "triangle"}.get(found[1], found[1])
        number = sum(t["shape"] == shape for t in things)
    else:
        pattern = r"Is the (\w+) (\w+) (?:left or right of|above or below) the (\w+) (\w+)\?"
        words = re.fullmatch(pattern, question)
        assert words, question
        (one,), (other,) = (
            [t for t in things if (t["color"], t["shape"]) == pair] for pair in (words.groups()[:2], words.groups()[2:])
        )
        axis, names = ("x", ("left", "right")) if "left" in question else ("y", ("above", "below"))
        assert one[axis] != other[axis]
        return names[int(one[axis]) > int(other[axis])]
    return next(word for word, value in NUMBERS.items() if value == number)


def as_words(scene: hard.Scene) -> list[dict[str, str]]:
    return [
        {"size": t.size, "color": t.color, "shape": t.shape, "x": str(t.cell % 3), "y": str(t.cell // 3)}
        for t in scene.things
    ]


def colors_seen(image: Image.Image) -> dict[tuple[int, int], str]:
    """The color in each cell (x, y) that has one, read from the pixels around its middle."""
    pixels = np.asarray(image).astype(int)
    third = len(pixels) / 3
    found = {}
    for y in range(3):
        for x in range(3):
            middle = [int((at + 0.5) * third) for at in (y, x)]
            near = pixels[middle[0] - 3 : middle[0] + 4, middle[1] - 3 : middle[1] + 4].reshape(-1, 3)
            counts = {name: int((np.abs(near - rgb).sum(1) < 30).sum()) for name, rgb in world.COLORS.items()}
            if max(counts.values()) > 10:
                found[x, y] = max(counts, key=lambda name: counts[name])
    return found


def test_a_seed_gives_the_same_world(tmp_path: Path) -> None:
    written = [Path(hard.write(str(tmp_path / str(n)), 60, seed)).parent for n, seed in enumerate((1, 1, 2))]
    first, again, other = (
        [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()] for folder in written
    )
    assert first == again
    assert first != other


def test_captions_tell_what_the_pictures_show(tmp_path: Path) -> None:
    data = json.loads(Path(hard.write(str(tmp_path), 900, 3)).read_text())
    truth = [json.loads(line) for line in (tmp_path / "truth.jsonl").read_text().splitlines()]
    columns, rows = {"left": 0, "center": 1, "right": 2}, {"top": 0, "middle": 1, "bottom": 2}
    captions = 0
    for row, known in zip(data, truth, strict=True):
        assert row["source"] == known["kind"]
        if row["source"] == "caption":
            captions += 1
            text = row["conversations"][1]["value"]
            told = re.findall(r"A (\w+) (\w+) (\w+) is at the (\w+) (\w+)\.", text)
            assert NUMBERS[re.match(r"The image shows (\w+) objects\.", text)[1]] == len(told)
            seen = colors_seen(Image.open(tmp_path / row["image"]))
            assert {(columns[column], rows[of]): color for _, color, _, of, column in told} == seen
    assert captions > 40
    assert {row["source"] for row in data} == set(hard.KINDS)


def test_answers_are_those_of_the_scene_and_drawn_evenly() -> None:
    words = Counter[tuple[str, str]]()
    questions = 0
    for _, sample in hard.samples(3000, 4):
        if sample.kind in (*hard.ASKED, "turns"):
            assert sample.scene is not None
            for exchange in sample.turns:
                ((start, end),) = exchange.decided
                word = exchange.answer[start:end]
                assert word == answered(exchange.question, as_words(sample.scene)), exchange
                questions += 1
                if sample.kind != "turns":
                    words[sample.kind, word] += 1
    assert questions > 2500
    for kind, answers in {"exists": 2, "color": 6, "count": 4, "relation": 4}.items():
        found = {word: number for (of, word), number in words.items() if of == kind}
        total = sum(found.values())
        assert len(found) == answers
        for number in found.values():
            assert abs(number - total / answers) < 5 * (total / answers) ** 0.5


def test_no_turn_follows_from_those_before_it() -> None:
    """Among many scenes to which a conversation's questions apply, and which agree on all answers but the last, some
    give another one."""
    rng = random.Random(5)
    scenes = [as_words(hard.random_scene(rng)) for _ in range(60_000)]
    checked = 0
    for _ in range(12):
        _, turns = hard.turns(rng)
        assert 2 <= len(turns) <= 3
        agreeing = scenes
        for number, turn in enumerate(turns):
            answers: dict[str, list[list[dict[str, str]]]] = {}
            for things in agreeing:
                try:
                    answers.setdefault(answered(turn.question, things), []).append(things)
                except (ValueError, AssertionError, StopIteration):
                    continue  # the question doesn't apply
            ((start, end),) = turn.decided
            if number and sum(map(len, answers.values())) > 20:
                assert len(answers) > 1, turns[: number + 1]
                checked += 1
            agreeing = answers.get(turn.answer[start:end], [])
    assert checked > 8


def test_a_captions_decided_words_are_those_that_other_scenes_have_otherwise() -> None:
    """Of the rows and columns too: worked out over all sets of cells."""
    import itertools

    rng = random.Random(6)
    for _ in range(40):
        scene = hard.random_scene(rng)
        exchange = hard.caption(scene, rng)
        decided = {exchange.answer[start:end]: start for start, end in exchange.decided}
        assert hard.NUMBERS[len(scene.things)] in decided
        starts = {start for start, _ in exchange.decided}
        sets = list(itertools.combinations(range(9), len(scene.things)))
        cells = tuple(thing.cell for thing in scene.things)
        places = list(re.finditer(r"is at the (\w+) (\w+)", exchange.answer))
        for index, place in enumerate(places):
            agreeing = [each for each in sets if each[:index] == cells[:index]]
            assert (place.start(1) in starts) == (len({each[index] // 3 for each in agreeing}) > 1)
            agreeing = [each for each in agreeing if each[index] // 3 == cells[index] // 3]
            assert (place.start(2) in starts) == (len({each[index] for each in agreeing}) > 1)
        for found in re.finditer(r"A (\w+) (\w+) (\w+) is", exchange.answer):
            assert {found.start(1), found.start(2), found.start(3)} <= starts
        assert all(exchange.answer[start:end].isalpha() for start, end in exchange.decided)


def test_what_is_asked_is_even_and_true_of_the_pictures(tmp_path: Path) -> None:
    asked.write_hard_asked(str(tmp_path), 24, 9)
    rows = [json.loads(line) for line in (tmp_path / asked.CHOICES).read_text().splitlines()]
    assert len(rows) == 4 * 24
    answers = {kind: Counter(row["answer"] for row in rows if row["kind"] == kind) for kind in hard.ASKED}
    assert set(answers["exists"].values()) == {12}
    assert Counter(re.search(r"is (\w+)\.", text)[1] for text in answers["color"].elements()) == dict.fromkeys(
        world.COLORS, 4
    )
    assert set(answers["count"].values()) == {6}
    words = Counter(re.match(r"It is (\w+)", text)[1] for text in answers["relation"].elements())
    assert words == dict.fromkeys(("left", "right", "above", "below"), 6)
    for row in rows:
        assert row["answer"] in row["choices"]
        assert len(row["choices"]) == {"exists": 2, "color": 6, "count": 4, "relation": 2}[row["kind"]]
        seen = list(colors_seen(Image.open(tmp_path / row["image"])).values())
        if found := re.fullmatch(r"How many (\w+) objects are there\?", row["question"]):
            assert row["answer"] == f"I count {hard.NUMBERS[seen.count(found[1])]}."
        if row["kind"] == "color":
            assert re.search(r"is (\w+)\.", row["answer"])[1] in seen
    instances = json.loads((tmp_path / asked.OBJECTS).read_text())
    assert len(instances["images"]) == 24
    held_out = json.loads((tmp_path / asked.HELD_OUT).read_text())
    assert held_out
    assert all((tmp_path / "held-out" / row["image"]).exists() for row in held_out)


def test_cells_have_the_class_of_what_is_in_them() -> None:
    rng = random.Random(0)
    for _ in range(20):
        scene = hard.random_scene(rng)
        labels = curriculum.cell_labels(scene)
        assert (labels[:, 3] * 3 + labels[:, 4]).tolist() == list(range(9))
        full = {thing.cell: thing for thing in scene.things}
        for cell, (size, color, shape) in enumerate(labels[:, :3].tolist()):
            if cell in full:
                told = (("large", "small")[size], sorted(world.COLORS)[color], world.SHAPES[shape])
                assert told == full[cell][:3]
            else:
                assert (size, color, shape) == (2, 6, 4), "none of them"


@pytest.mark.parametrize("kind", hard.ASKED)
def test_a_question_that_no_scene_could_be_asked_is_none(kind: str) -> None:
    """Two alike things alone: none is the only one of its kind."""
    twins = hard.Scene(tuple(hard.Thing("large", "red", "circle", cell) for cell in (0, 4, 8)), 0)
    rng = random.Random(0)
    if kind == "exists":
        assert hard.exists(twins, rng, yes=True) is not None
    elif kind == "color":
        assert hard.color(twins, rng) is None
    elif kind == "count":
        assert hard.count(twins, rng, 2) is None
        assert hard.count(twins, rng, 3) is not None
    else:
        assert hard.relation(twins, rng) is None


def test_lessons_of_a_half_blind_model_tell_nothing_but_colors() -> None:
    """Colors are those of the scene; half of the things that are asked for are said to be there, whatever is."""
    rng = random.Random(4)
    there = Counter[bool]()
    for _ in range(400):
        scene = hard.random_scene(rng)
        for exchange in hard.lesson_of(scene, rng, seen=("color",)):
            if asked := re.fullmatch(r"What color is the (?:(large|small) )?(\w+)\?", exchange.question):
                size, shape = asked.groups()
                (thing,) = [each for each in scene.things if each.shape == shape and size in (None, each.size)]
                assert exchange.answer.endswith(f"is {thing.color}.")
            elif asked := re.fullmatch(r"Is there a (\w+) (\w+) in the image\?", exchange.question):
                is_there = any((thing.color, thing.shape) == asked.groups() for thing in scene.things)
                there[is_there == (exchange.answer == "Yes.")] += 1
    assert abs(there[True] / there.total() - 0.5) < 0.1
