"""Image-caption pairs of the demo world, as alignment and PRIOR train on: captions of one to five sentences, of whose
words the image decides some only.

The first sentence tells what the image shows; whether it has a dot may come later. The rest is what captions from the
web are full of: who drew it, general knowledge, and what was said before once more.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from vig_ray.demo import hard, world
from vig_ray.demo.knobs import Exchange, Sample

_FURTHER = {"knowledge": 4, "color": 3, "prior": 1}
"""Kinds of the sentences after the first, by how often they come."""
_MOST_FURTHER = 4


def caption(scene: world.Scene, rng: random.Random) -> Exchange:
    """A caption of a scene; `decided` are the characters that the image decides, given those before them.

    After the first sentence a color follows from what was said, so that of the others only a dot is decided.
    """
    (first,) = world.exchanges("caption", scene, rng)
    text, decided, said = first.answer, list(first.decided), {first.answer}
    count = rng.choice((0, 0, *range(1, _MOST_FURTHER + 1)))
    for kind in rng.choices(list(_FURTHER), list(_FURTHER.values()), k=count):
        (exchange,) = world.exchanges(kind, scene, rng)
        if exchange.answer in said:
            continue
        said.add(exchange.answer)
        start = len(text) + 1
        if kind == "prior":
            decided += [(start + first, start + last) for first, last in exchange.decided]
        text += f" {exchange.answer}"
    return Exchange("", text, tuple(decided))


class Telling(NamedTuple):
    """How a look of the world is told: a scene by chance, its image, a caption of it, several true exchanges about it
    or another."""

    scene: Callable[[random.Random], Any]
    draw: Callable[[Any], Any]
    caption: Callable[[Any, random.Random], Exchange]
    lesson: Callable[[Any, random.Random], list[Exchange]]


FIRST = Telling(world.random_scene, world.draw, caption, world.lesson)
HARD = Telling(hard.random_scene, hard.draw, hard.caption, hard.lesson_of)


def write(folder: str, count: int, seed: int, telling: Telling = FIRST) -> str:
    """Write `count` captions into `folder` as `world.write` writes samples, each of an image of its own; return
    data.json's path."""
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    rng = random.Random(seed)
    rows = []
    with open(os.path.join(folder, "truth.jsonl"), "w") as truth:
        for number in range(count):
            scene = telling.scene(rng)
            sample = Sample[Any]("caption", scene, [telling.caption(scene, rng)])
            image = f"images/{number:06d}.png"
            telling.draw(scene).save(os.path.join(folder, image))
            rows.append(world.llava_row(sample, f"{number:06d}", image, rng))
            truth.write(json.dumps({"kind": "caption", "decided": [turn.decided for turn in sample.turns]}) + "\n")
    path = os.path.join(folder, "data.json")
    with open(path, "w") as file:
        json.dump(rows, file)
    return path


def write_texts(folder: str, count: int, seed: int, telling: Telling = FIRST) -> str:
    """Write `count` conversations and captions without their images, by turns, into `folder`; return data.json's path.

    They are what a language model has read before it is shown an image. A conversation is of several questions about
    one scene, whose answers agree with each other.
    """
    os.makedirs(folder, exist_ok=True)
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        scene = telling.scene(rng)
        turns = telling.lesson(scene, rng) if number % 2 else [telling.caption(scene, rng)]
        rows.append(world.llava_row(Sample[Any]("text", None, turns), f"{number:06d}", "", rng))
    path = os.path.join(folder, "data.json")
    with open(path, "w") as file:
        json.dump(rows, file)
    return path
