"""The recipe of the demo model runs, and the packaged model is what it makes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT, build, curriculum, hard, world
from vig_ray.model.load import load_formatter, load_model

LOOKS = pytest.mark.parametrize("look", curriculum.LOOKS.values(), ids=curriculum.LOOKS)


@LOOKS
def test_a_few_steps_write_a_checkpoint_that_loads(
    look: curriculum.Look, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "model")
    build.build(out, seed=3, look=look, recipe=curriculum.Recipe(tower_steps=2, steps=30, batch=4, pool=24, stop=3))
    told = capsys.readouterr().out
    assert "parameters" in told
    assert "whole     3/3" in told
    formatter = load_formatter(out)
    model = load_model(out, dtype="float32", device="cpu")
    assert formatter.num_image_tokens == (look.side // curriculum.PATCH) ** 2
    assert sorted(os.listdir(out)) == sorted(os.listdir(look.checkpoint))
    packaged = load_model(look.checkpoint, dtype="float32", device="cpu")
    shapes = [(name, tensor.shape) for name, tensor in model.state_dict().items()]
    assert shapes == [(name, tensor.shape) for name, tensor in packaged.state_dict().items()]


@LOOKS
def test_the_packaged_model_is_small_and_has_todays_tokenizer(look: curriculum.Look) -> None:
    folder = look.checkpoint
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) < 5_000_000
    made = json.loads(build.build_tokenizer(look).backend_tokenizer.to_str())["model"]
    packaged = json.loads(Path(folder, "tokenizer.json").read_text())["model"]
    assert (made["vocab"], made["merges"]) == (packaged["vocab"], packaged["merges"])


def test_words_of_the_world_are_single_tokens(demo_formatter) -> None:
    """Otherwise the second half of a word would follow from the first, and no image would decide it."""
    for word in [*world.COLORS, *world.SHAPES, "left", "right"]:
        assert len(demo_formatter.tokenizer(f"is {word}", add_special_tokens=False)["input_ids"]) == 2
    for word in ("Yes", "No"):
        assert len(demo_formatter.tokenizer(f": {word}", add_special_tokens=False)["input_ids"]) == 3


def test_words_of_the_harder_look_are_single_tokens() -> None:
    tokenizer = load_formatter(HARD_CHECKPOINT).tokenizer
    words = [*world.COLORS, *world.SHAPES, *hard.RADII, *hard.ROWS, *hard.COLUMNS, *hard.NUMBERS[1:], "above", "below"]
    for word in words:
        assert len(tokenizer(f"is {word}", add_special_tokens=False)["input_ids"]) == 2, word


def test_what_is_taken_over_is_by_piece() -> None:
    """Words that both looks know keep their rows, and the rest of the language model is the other one's."""
    processor = build.build_processor(curriculum.HARD)
    model = build.build_model(processor)
    mine = {name: weight.clone() for name, weight in model.state_dict().items()}
    build.take_over(model, processor.tokenizer, CHECKPOINT)
    other = load_model(CHECKPOINT, dtype="float32", device="cpu").state_dict()
    ids, other_ids = processor.tokenizer.get_vocab(), load_formatter(CHECKPOINT).tokenizer.get_vocab()
    name = "lm_head.weight"
    taken = model.state_dict()
    assert (taken[name][ids["▁circle"]] == other[name][other_ids["▁circle"]]).all()
    assert "▁above" not in other_ids
    assert (taken[name][ids["▁above"]] == mine[name][ids["▁above"]]).all()
    for name, weight in taken.items():
        if "vision_tower" in name:
            assert (weight == mine[name]).all()
        elif name not in ("lm_head.weight", "model.language_model.embed_tokens.weight"):
            assert (weight == other[name]).all()


def test_patch_labels_follow_the_picture() -> None:
    rng = random.Random(0)
    for _ in range(20):
        scene = world.random_scene(rng)
        labels = curriculum.patch_labels(scene).reshape(4, 4)
        left, right = curriculum.THINGS.index(scene.left), len(curriculum.THINGS) + curriculum.THINGS.index(scene.right)
        assert left in labels[:, :2]
        assert left not in labels[:, 2:]
        assert right in labels[:, 2:]
        assert set(np.unique(labels)) <= {left, right, curriculum.GROUND, curriculum.DOT}


@pytest.mark.parametrize("options", [["--sees", "colors"], ["--sees", "colors", "--look", "first", "--out", "x"]])
def test_a_half_blind_model_is_of_the_harder_look_and_not_in_the_package(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["build", *options])
    with pytest.raises(SystemExit):
        build.main()
    assert "--sees is of --look hard, and needs --out" in capsys.readouterr().err
