"""Knobs of the demo world: the data is as it was without them, and each does to a share of it what it says."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.command import call, refused
from vig_ray.demo import asked, hard, world
from vig_ray.demo.knobs import TEMPLATES, Knobs, weights
from vig_ray.errors import StageError

BEFORE = {
    "write": "e91105ca53c6fe27565f52d953f10483fd60e3c194f9867f5818209e6d5e1aa4",
    "write_samples": "544111f07c3952dda57b4ba193ca0c7cf4042128c04228728d760d7dac725176",
    "write_asked": "69e7e02b79f3159ccf4cd632e1e435a7c5708ce6cece3f47fa76af5583c4f310",
}
"""SHA-256 of what 643a022, the last commit without knobs, writes: names and bytes of files, pixels of images."""
WRITES: dict[str, Callable[..., str]] = {"first": world.write, "training": asked.write_samples, "hard": hard.write}


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "nature.jsonl":
            found.update(str(path.relative_to(folder)).encode())
            pixels = path.suffix == ".png"  # a PNG's bytes are its library's
            found.update(np.asarray(Image.open(path)).tobytes() if pixels else path.read_bytes())
    return found.hexdigest()


@pytest.mark.parametrize("of", BEFORE)
def test_without_knobs_the_data_is_what_it_was(of: str, tmp_path: Path) -> None:
    if of == "write":
        world.write(str(tmp_path), 200, 7)
    elif of == "write_samples":
        asked.write_samples(str(tmp_path), 200, 7)
    else:
        asked.write_asked(str(tmp_path), 12, 7)
    assert digest(tmp_path) == BEFORE[of]


class Written:
    """Rows of data.json with their nature, truth and pixels."""

    def __init__(self, folder: Path, write: Callable[..., str], count: int, seed: int, knobs: Knobs) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = json.loads(Path(write(str(folder), count, seed, knobs)).read_text())
        self.nature, self.truth = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for name in ("nature.jsonl", "truth.jsonl")
        )
        assert len(self.rows) == len(self.nature) == len(self.truth) == count

    def said(self, row: int) -> list[str]:
        return [turn["value"].replace("<image>", "").strip() for turn in self.rows[row]["conversations"]]

    def pixels(self, row: int) -> bytes | None:
        image = self.rows[row].get("image")
        return image and Image.open(self.folder / image).tobytes()


def within(found: int, of: int, share: float) -> bool:
    """Whether a count is within five standard deviations of the binomial."""
    return abs(found - of * share) <= 5 * math.sqrt(of * share * (1 - share))


@pytest.mark.parametrize("look", WRITES)
def test_mismatched_rows_have_another_ones_image_and_the_rest_stays(look: str, tmp_path: Path) -> None:
    clean = Written(tmp_path / "clean", WRITES[look], 500, 3, Knobs())
    noisy = Written(tmp_path / "noisy", WRITES[look], 500, 3, Knobs(mismatched=0.3))
    moved = [row for row in range(500) if noisy.rows[row].get("image") != clean.rows[row].get("image")]
    assert within(len(moved), sum("image" in row for row in clean.rows), 0.3)
    images = {row["image"] for row in clean.rows if "image" in row}
    for row in range(500):
        assert noisy.said(row) == clean.said(row)
        if row in moved:
            assert noisy.nature[row]["mismatched"]
            assert noisy.rows[row]["image"] in images
            assert noisy.pixels(row) != clean.pixels(row)
            if look != "training":  # whose questions after a thing are not in truth.jsonl
                assert not any(noisy.truth[row]["decided"])
        else:
            assert noisy.nature[row] == clean.nature[row]
            assert noisy.pixels(row) == clean.pixels(row)
            assert clean.nature[row]["mismatched"] == (clean.rows[row]["source"] == "mismatched")


@pytest.mark.parametrize("look", WRITES)
def test_redundant_rows_say_the_same_of_nearly_the_same_picture(look: str, tmp_path: Path) -> None:
    clean = Written(tmp_path / "clean", WRITES[look], 500, 4, Knobs())
    copied = Written(tmp_path / "copied", WRITES[look], 500, 4, Knobs(redundant=0.5))
    assert not any(known["template"] is not None for known in clean.nature)
    of_template: dict[int, list[int]] = {}
    for row, known in enumerate(copied.nature):
        if known["template"] is None:
            assert (copied.pixels(row), look == "training" or copied.said(row)) == (
                clean.pixels(row),
                look == "training" or clean.said(row),
            )
        else:
            of_template.setdefault(known["template"], []).append(row)
    assert within(sum(map(len, of_template.values())), 500, 0.5)
    assert set(of_template) == set(range(TEMPLATES))
    drawn_anew = 0
    for rows in of_template.values():
        assert len({tuple(copied.said(row)) for row in rows}) == 1
        pictures = {copied.pixels(row) for row in rows}
        assert len(pictures) in (1, len(rows))
        drawn_anew += None not in pictures and len(pictures) > 1
    assert drawn_anew > TEMPLATES / 2


@pytest.mark.parametrize("look", WRITES)
@pytest.mark.parametrize("visual", [0.0, 0.5, 1.0])
def test_visual_is_the_share_of_samples_that_need_their_image(look: str, visual: float, tmp_path: Path) -> None:
    written = Written(tmp_path, WRITES[look], 400, 5, Knobs(visual=visual))
    general = {question for question, _ in world.KNOWLEDGE}
    needs = 0
    for row, known in enumerate(written.nature):
        needed = any(question not in general for question in written.said(row)[::2])
        assert known["needs_image"] == needed
        needs += needed
    if look == "training":  # of the rest that has an image, two in five ask after a thing
        assert needs >= 400 * visual
    else:
        assert within(needs, 400, visual)


@pytest.mark.parametrize("prior", [0.0, 0.9])
def test_with_a_prior_colors_and_answers_are_the_usual_ones(prior: float, tmp_path: Path) -> None:
    """Counted in what is said: of a shape's colors and of the answers yes, two, left and above."""
    knobs = Knobs(prior=prior)
    colors, answers = Counter[bool](), Counter[tuple[str, bool]]()
    usual_answers = {"exists": "Yes", "count": "two", "left": "left", "above": "above"}
    for _, sample in hard.samples(3000, 6, knobs):
        if sample.kind == "caption":
            found = re.findall(r"A \w+ (\w+) (\w+) is at", sample.turns[0].answer)
            colors.update(world.USUAL_COLORS[shape] == color for color, shape in found)
        elif sample.kind in ("exists", "count", "relation"):
            question, answer, ((start, end),) = sample.turns[0]
            asked_of = sample.kind if sample.kind != "relation" else "left" if "left" in question else "above"
            answers[asked_of, answer[start:end] == usual_answers[asked_of]] += 1
    even = {"exists": 1 / 2, "count": 1 / 4, "left": 1 / 2, "above": 1 / 2}
    assert within(colors[True], colors.total(), prior + (1 - prior) / 6)
    for kind, share in even.items():
        assert within(answers[kind, True], answers[kind, True] + answers[kind, False], prior + (1 - prior) * share)
    scenes = [sample.scene for _, sample in world.samples(800, 6, knobs=knobs) if sample.scene]
    things = [thing for scene in scenes for thing in (scene.left, scene.right)]
    usual = sum(world.USUAL_COLORS[thing.shape] == thing.color for thing in things)
    assert (usual > 0.85 * len(things)) == bool(prior)
    yes = Counter(
        row["conversations"][1]["value"]
        for row in Written(tmp_path, asked.write_samples, 800, 6, knobs).rows
        if row["source"] == "exists"
    )
    assert within(yes["Yes."], yes.total(), prior + (1 - prior) / 2)


def test_one_knob_leaves_the_others_samples_where_they_are() -> None:
    both = list(hard.samples(300, 8, Knobs(mismatched=0.2, redundant=0.4)))
    copied = list(hard.samples(300, 8, Knobs(redundant=0.4)))
    assert [sample.nature.template for _, sample in both] == [sample.nature.template for _, sample in copied]
    assert [[turn[:2] for turn in sample.turns] for _, sample in both] == [
        [turn[:2] for turn in sample.turns] for _, sample in copied
    ]


def test_weights_keep_the_shares_within_each_side() -> None:
    of = weights({"a": 30, "b": 10, "c": 5, "d": 5}, ("c", "d"), 0.2)
    assert of == pytest.approx([0.15, 0.05, 0.4, 0.4])
    assert weights({"a": 3, "b": 1}, ("b",), None) == [3, 1]


@pytest.mark.parametrize("name", ["mismatched", "prior", "redundant", "visual"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "much", True])
def test_what_is_no_share_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(StageError, match=f"^{name} is .*; it takes a share from 0 to 1$"):
        Knobs(**{name: value})
    if not isinstance(value, bool):
        told = refused("demo", "--data-only", f"--{name}={value}")
        assert told.count("\n") <= 1
        assert f"--{name} '{value}'" in told


def test_data_only_writes_samples_and_questions_and_runs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--out", str(out), "--look", "hard", "--data-only", "--samples", "40", "--asked", "10"]
    call("demo", *words, "--mismatched", "0.5", "--seed", "2")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["asked", "data"]
    by_hand = tmp_path / "by-hand"
    hard.write(str(by_hand), 40, 2, Knobs(mismatched=0.5))
    assert digest(out / "data") == digest(by_hand)
    assert (out / "data" / "nature.jsonl").read_text() == (by_hand / "nature.jsonl").read_text()
    even = digest(out / "asked")
    call("demo", *words, "--prior", "0.9", "--seed", "2")
    assert digest(out / "data") != digest(by_hand), "data of other knobs is made anew"
    assert digest(out / "asked") == even
    assert "leave one out" in refused("demo", "--data-only", "--evaluate")
