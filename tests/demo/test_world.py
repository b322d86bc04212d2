"""The demo world: its data is what it says, and its truth agrees with looking at the pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vig_ray.demo import world


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[dict]]:
    folder = tmp_path_factory.mktemp("world")
    data = json.loads(Path(world.write(str(folder), 600, seed=11)).read_text())
    truth = [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]
    return folder, data, truth


def test_it_is_llavas_format_with_its_quirks(written) -> None:
    folder, data, truth = written
    assert len(data) == len(truth) == 600
    assert {row["source"] for row in data} == set(world.KINDS)
    for row, known in zip(data, truth, strict=True):
        assert row["source"] == known["kind"]
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(row["conversations"]) // 2)
        tags = sum(turn["value"].count("<image>") for turn in row["conversations"])
        assert tags == ("image" in row) == (row["source"] != "text")
        assert len(known["decided"]) == len(row["conversations"]) // 2
    ids = Counter(row["id"] for row in data)
    assert max(ids.values()) > 1, "ids repeat, as they do in LLaVA-665K"
    images = Counter(row["image"] for row in data if "image" in row)
    assert max(images.values()) > 1, "some images serve several samples"
    sizes = {Image.open(folder / image).size for image in images}
    assert sizes == set(world.SIZES)


def test_a_seed_gives_the_same_world(tmp_path: Path, written) -> None:
    again = Path(world.write(str(tmp_path), 600, seed=11))
    assert again.read_bytes() == (written[0] / "data.json").read_bytes()
    other = Path(world.write(str(tmp_path / "other"), 600, seed=12))
    assert other.read_bytes() != again.read_bytes()


def colors_seen(path: Path) -> tuple[str, str]:
    """The color of the shape on each side, read from the pixels: dots are small, grounds are light."""
    pixels = np.asarray(Image.open(path)).astype(int)
    found = []
    for half in (pixels[:, : pixels.shape[1] * 2 // 5], pixels[:, pixels.shape[1] * 3 // 5 :]):
        counts = {name: (np.abs(half - rgb).sum(axis=2) < 30).sum() for name, rgb in world.COLORS.items()}
        found.append(max(counts, key=lambda name: counts[name]))
    return found[0], found[1]


def test_captions_tell_what_the_pictures_show(written) -> None:
    folder, data, truth = written
    pattern = re.compile(r"A (\w+) (\w+) on the left and a (\w+) (\w+) on the right\.")
    checked = Counter()
    for row, known in zip(data, truth, strict=True):
        if row["source"] not in ("caption", "partial", "mismatched"):
            continue
        answer = row["conversations"][1]["value"]
        told = pattern.match(answer)
        if not told:
            continue
        left, right = colors_seen(folder / row["image"])
        words = [answer[a:b] for a, b in known["decided"][0]]
        if row["source"] == "caption":
            assert (told[1], told[3]) == (left, right)
            assert words == list(told.groups())
        elif row["source"] == "partial":
            assert told[1] == left
            assert told[3] not in (left, right)
            assert words == [told[1], told[2], told[4]]
        else:
            assert not {told[1], told[3]} & {left, right}
            assert words == []
        checked[row["source"]] += 1
    assert min(checked[kind] for kind in ("caption", "partial", "mismatched")) >= 3


def decided(asks, scene) -> list[list[str]]:
    return [[e.answer[a:b] for a, b in e.decided] for e in world.conversation(asks, scene)]


def test_what_an_earlier_turn_told_is_not_decided_again() -> None:
    scene = world.Scene(world.Thing("green", "circle"), world.Thing("red", "square"), False, 0)
    color_of_circle = world.Ask(
        "What color is the circle?",
        lambda s: next((f"The circle is [{c}]." for c, shape in (s.left, s.right) if shape == "circle"), None),
    )
    on_the_left = world.Ask("What is on the left?", lambda s: f"A [{s.left.color}] [{s.left.shape}] is on the left.")
    assert decided([on_the_left], scene) == [["green", "circle"]]
    assert decided([color_of_circle], scene) == [["green"]]
    # Green is the circle's; whether it is on the left is still the image's to say, and then the shape is known.
    assert decided([color_of_circle, on_the_left], scene) == [["green"], ["green"]]
    assert decided([on_the_left, color_of_circle], scene) == [["green", "circle"], []]
    assert decided([on_the_left, on_the_left], scene) == [["green", "circle"], []]


def test_knowledge_and_names_are_never_decided(written) -> None:
    _, data, truth = written
    for row, known in zip(data, truth, strict=True):
        for turn, spans in zip(row["conversations"][1::2], known["decided"], strict=True):
            words = {turn["value"][a:b] for a, b in spans}
            assert words <= {*world.COLORS, *world.SHAPES, "left", "right", "Yes", "No"}
            if turn["value"] in dict(world.KNOWLEDGE).values():
                assert not words
