"""Captions of the demo world, and a tiny LLaVA of one's own with a new projector."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.model.own_parts import TOWERS, write_own
from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.demo import world
from vig_ray.model.assemble import AssembleConfig, run


def write_model(folder: Path, kind: str = "llama", tower: str = "clip", **config: Any) -> str:
    """`folder`/model, put together from `folder`/language and `folder`/tower. `config`: of the language model."""
    write_own(folder / "language", kind, bos="<s>", **config)
    TOWERS[tower](folder / "tower")
    parts = {"language_model": "language", "vision_tower": "tower", "out": "model"}
    given = {name: str(folder / value) for name, value in parts.items()}
    run(AssembleConfig(**given, projector="random", dtype="float32"))
    return str(folder / "model")


def write_captions(folder: Path, count: int = 60, texts: int = 0) -> Path:
    """`folder`/samples of so many captions, and as many texts without an image, by turns."""
    (folder / "images").mkdir(parents=True)
    rng = random.Random(7)
    rows = []
    for number in range(count):
        scene = world.random_scene(rng)
        world.draw(scene).save(folder / "images" / f"{number}.png")
        said = [rng.choice(["A picture of shapes.", "Shapes: red, blue; one is left of the other.", "Où? À gauche."])]
        said += [f" It is number {number}."] * (number % 3)
        asked = {"from": "human", "value": "Give a brief description.\n<image>"}
        rows.append({"image": f"{number}.png", "conversations": [asked, {"from": "gpt", "value": "".join(said)}]})
        if number < texts:
            text = {"from": "gpt", "value": f"A text of {number} words, of which none is of an image."}
            rows.append({"conversations": [{"from": "human", "value": ""}, text]})
    data = folder / "captions.json"
    data.write_text(json.dumps(rows))
    importing.run(ImportConfig(data=str(data), images=str(folder / "images"), out=str(folder)))
    return folder
