"""Questions about the demo world's pictures, and a model that sees them less well."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vig_ray.demo import CHECKPOINT, world
from vig_ray.evaluation.config import EvalConfig
from vig_ray.model.export import save_checkpoint
from vig_ray.model.load import load_model

ENGINE = "tests.engines.one_by_one:engine"


def config_of(data: Path, out: Path, models: tuple[str, ...], tasks: str, **options: Any) -> EvalConfig:
    """Ask these models, by transformers' own generate, what lies in `data`."""
    files = {"choices": "asked/choices.jsonl", "exact": "asked/exact.jsonl", "held-out": "own/data.json"}
    given = {"engine": ENGINE, "rows_per_file": 10, "draws": 50}
    paths = {task: str(data / files[task]) for task in tasks.split(",")}
    return EvalConfig(model=models, tasks=tasks, out=str(out), data=paths, **(given | options))


def rows_of(out: Path, model: str) -> pd.DataFrame:
    """What a model answered, by key, each once."""
    rows = pd.read_parquet(out / "evaluation" / model).set_index("sample_key").sort_index()
    assert rows.index.is_unique
    return rows


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
                parameter += 0.5 * parameter.std() * torch.randn_like(parameter)
    save_checkpoint(model, AutoProcessor.from_pretrained(CHECKPOINT), str(folder))
    return str(folder)
