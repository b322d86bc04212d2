"""The recipe of the demo model runs, and the packaged model is what it makes."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from vig_ray.demo import CHECKPOINT, build, world
from vig_ray.model.load import load_formatter, load_model


def test_a_few_steps_write_a_checkpoint_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "model")
    build.build(out, seed=3, tower_steps=3, steps=3, batch=4, pool=24)
    assert "parameters" in capsys.readouterr().out
    formatter = load_formatter(out)
    model = load_model(out, dtype="float32", device="cpu")
    assert formatter.num_image_tokens == 16
    assert sorted(os.listdir(out)) == sorted(os.listdir(CHECKPOINT))
    packaged = load_model(CHECKPOINT, dtype="float32", device="cpu")
    shapes = [(name, tensor.shape) for name, tensor in model.state_dict().items()]
    assert shapes == [(name, tensor.shape) for name, tensor in packaged.state_dict().items()]


def test_the_packaged_model_is_small_and_has_todays_tokenizer() -> None:
    assert sum(os.path.getsize(os.path.join(CHECKPOINT, name)) for name in os.listdir(CHECKPOINT)) < 5_000_000
    made = json.loads(build.build_tokenizer().backend_tokenizer.to_str())["model"]
    packaged = json.loads(Path(CHECKPOINT, "tokenizer.json").read_text())["model"]
    assert (made["vocab"], made["merges"]) == (packaged["vocab"], packaged["merges"])


def test_words_of_the_world_are_single_tokens(demo_formatter) -> None:
    """Otherwise the second half of a word would follow from the first, and no image would decide it."""
    for word in [*world.COLORS, *world.SHAPES, "left", "right"]:
        assert len(demo_formatter.tokenizer(f"is {word}", add_special_tokens=False)["input_ids"]) == 2
    for word in ("Yes", "No"):
        assert len(demo_formatter.tokenizer(f": {word}", add_special_tokens=False)["input_ids"]) == 3


def test_patch_labels_follow_the_picture() -> None:
    rng = random.Random(0)
    for _ in range(20):
        scene = world.random_scene(rng)
        labels = build.patch_labels(scene).reshape(4, 4)
        left, right = build.THINGS.index(scene.left), len(build.THINGS) + build.THINGS.index(scene.right)
        assert left in labels[:, :2]
        assert left not in labels[:, 2:]
        assert right in labels[:, 2:]
        assert set(np.unique(labels)) <= {left, right, build.GROUND, build.DOT}
