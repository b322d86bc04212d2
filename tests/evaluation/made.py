"""Questions about the demo world's pictures, and a model that sees them less well."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.export import save_checkpoint
from vig_ray.model.load import load_model


def write_questions(folder: Path, count: int, seed: int = 5) -> list[world.Scene]:
    """`choices.jsonl` and `exact.jsonl` of as many pictures; the scenes."""
    (folder / "images").mkdir(parents=True)
    rng = random.Random(seed)
    scenes, choices, exact = [], [], []
    for number in range(count):
        scene = world.random_scene(rng)
        scenes.append(scene)
        world.draw(scene).save(folder / "images" / f"{number}.png")
        thing = scene.left
        others = rng.sample(sorted(set(world.COLORS) - {thing.color}), 3)
        texts = [f"The {thing.shape} is {color}." for color in (thing.color, *others)]
        rng.shuffle(texts)
        right = f"The {thing.shape} is {thing.color}."
        row = {"question": f"What color is the {thing.shape}?", "image": f"images/{number}.png", "group": thing.shape}
        answer: Any = (texts.index(right), "ABCD"[texts.index(right)], right)[number % 3]
        choices.append(row | {"choices": texts, "answer": answer, "id": f"c{number}"})
        exact.append(row | {"answer": [right, thing.color]})
    for name, rows in (("choices", choices), ("exact", exact)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return scenes


def write_worse_model(folder: Path) -> str:
    """The demo model with noise on its weights."""
    from transformers import AutoProcessor

    model = load_model(CHECKPOINT, dtype="float32", device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter += 0.25 * parameter.std() * torch.randn_like(parameter)
    save_checkpoint(model, AutoProcessor.from_pretrained(CHECKPOINT), str(folder))
    return str(folder)
