"""Captions whose decided words are those that another scene would have otherwise."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.command import call
from vig_ray.demo import captions, world
from vig_ray.demo.looks import LOOKS, LookName
from vig_ray.model.load import load_formatter
from vig_ray.model.text_only import TextOnly


def words(text: str) -> list[tuple[int, str]]:
    """The words of a text, a full stop or a comma being one, and where they begin."""
    found, at = [], 0
    for piece in text.replace(".", " .").replace(",", " ,").split(" "):
        at = text.index(piece, at)
        found.append((at, piece))
        at += len(piece)
    return found


def test_what_the_image_decides_is_what_other_scenes_have_otherwise() -> None:
    """Of all scenes, told by the same course of chance: where those that agree so far have several next words."""
    rng = random.Random(3)
    several = 0
    for seed in range(8):
        scene = world.random_scene(rng)
        text, decided = captions.caption(scene, random.Random(seed))[1:]
        others = [captions.caption(other, random.Random(seed)).answer for other in world.all_scenes()]
        several += text.count(".") > 2
        agreeing = others
        for at, word in words(text):
            agreeing = [other for other in agreeing if other.startswith(text[:at])]
            differs = any(not other.startswith(word, at) for other in agreeing)
            assert differs == any(first <= at < last for first, last in decided), (text, word)
    assert several > 1


def test_lone_texts_and_captions_are_read_as_written(tmp_path: Path) -> None:
    path = captions.write(str(tmp_path / "captions" / "data"), 12, 5)
    call("import", "--data", path, "--out", str(tmp_path / "captions"))
    truth = [json.loads(line) for line in Path(path).with_name("truth.jsonl").read_text().splitlines()]
    rows = json.loads(Path(path).read_text())
    for row, known in zip(rows, truth, strict=True):
        answer = row["conversations"][1]["value"]
        for first, last in known["decided"][0]:
            assert answer[first:last] in {*world.COLORS, *world.SHAPES, "Yes", "No", "yes", "no"}
    assert set(world.CLEAN) < set(world.KINDS)
    texts = captions.write_texts(str(tmp_path / "texts" / "data"), 12, 5)
    call("import", "--data", texts, "--out", str(tmp_path / "texts"))


@pytest.mark.parametrize("look", ["first", "hard"])
def test_the_template_is_what_documents_of_conversations_are(look: LookName, tmp_path: Path) -> None:
    """So that the language model is spoken to as it has read: token for token, by the assembled model's own prompts."""
    from vig_ray.dataset.schema import Turn

    call("demo", "--parts", "--look", look, "--samples", "6", "--asked", "10", "--out", str(tmp_path))
    made, telling = tmp_path / "parts", LOOKS[look].telling
    where = ["--language-model", str(made / "language"), "--vision-tower", str(made / "tower")]
    call("assemble", *where, "--projector", "random", "--dtype", "float32", "--out", str(tmp_path / "start"))
    formatter = load_formatter(str(tmp_path / "start"))
    reader = TextOnly(AutoTokenizer.from_pretrained(made / "language"), context="conversation", max_length=2048)
    rng = random.Random(4)
    for _ in range(20):
        turns = [
            Turn(role, text)
            for exchange in telling.lesson(telling.scene(rng), rng)
            for role, text in (("user", exchange.question), ("assistant", exchange.answer))
        ]
        spoken, read = formatter.prompt(turns, []), reader.prompt(turns)
        assert spoken.token_ids.tolist() == read.token_ids.tolist()
        assert spoken.answer_positions.tolist() == read.answer_positions.tolist()
