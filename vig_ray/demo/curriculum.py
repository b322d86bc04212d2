"""What the demo world's models learn from: `vig_ray.demo.build` trains by it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT, hard, world
from vig_ray.demo.knobs import Exchange

PATCH = 14
THINGS = [world.Thing(color, shape) for color in world.COLORS for shape in world.SHAPES]
GROUND, DOT = 2 * len(THINGS), 2 * len(THINGS) + 1
"""Classes of a patch: each thing on the left, each thing on the right, then the background and the dot."""

Labels = np.ndarray[Any, np.dtype[np.int64]]


class Recipe(NamedTuple):
    """`tower_steps`: optimizer steps for the tower alone, 128 images each; `steps`: for the whole model, of `batch`
    samples each, out of `pool` different ones. `stop`: how many of the steps are made; the learning rate falls as if
    all were."""

    tower_steps: int
    steps: int
    batch: int
    pool: int
    stop: int | None = None


class Look(NamedTuple):
    """What a model of one look of the world learns from.

    `side`: of its images, pixels. `draw`: a scene as an image. `scene`: a scene by chance. `shown`: so many for the
    tower. `classes`: how many of each kind a patch has; `labels`: those of a scene's P patches, int64 [P, kinds].
    `lesson`: a scene for the whole model, with one or more true exchanges about it. `exchanges`: many, for the
    tokenizer. `checkpoint`: where its model is packaged, and the `recipe` that makes it. `start`: the checkpoint whose
    language model and projector it begins with, by default random ones; with `tower` its tower, too.
    """

    side: int
    draw: Callable[[Any], Any]
    scene: Callable[[random.Random], Any]
    shown: Callable[[random.Random, int], list[Any]]
    classes: tuple[int, ...]
    labels: Callable[[Any], Labels]
    lesson: Callable[[random.Random], tuple[Any, list[Exchange]]]
    exchanges: Callable[[], Iterable[Exchange]]
    checkpoint: str
    recipe: Recipe
    start: str | None = None
    tower: bool = False


def patch_labels(scene: world.Scene) -> Labels:
    """The class of each of the 16 patches, int64 [16, 1]: what covers it and on which side, or the background."""
    labels = np.asarray(world.draw(scene, labels=True))
    height, width = labels.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = labels
    pixels_of_model = FIRST.side
    grid = (np.arange(pixels_of_model) + 0.5) * side / pixels_of_model
    pixels = square[np.ix_(grid.astype(int), grid.astype(int))]
    across = pixels_of_model // PATCH
    patches = pixels.reshape(across, PATCH, across, PATCH).swapaxes(1, 2).reshape(-1, PATCH * PATCH)
    classes = [GROUND, THINGS.index(scene.left), len(THINGS) + THINGS.index(scene.right), DOT]
    of_patches = []
    for patch in patches:
        counts = np.bincount(patch, minlength=4)
        best = int(counts[1:].argmax()) + 1
        of_patches.append(classes[best] if counts[best] >= 0.05 * PATCH * PATCH else GROUND)
    return np.asarray(of_patches, dtype=np.int64)[:, None]


def _first_lesson(rng: random.Random) -> tuple[world.Scene, list[Exchange]]:
    scene = world.random_scene(rng)
    return scene, world.lesson(scene, rng)


def _first_shown(rng: random.Random, count: int) -> list[world.Scene]:
    scenes = [world.random_scene(rng) for _ in range(count)]
    return [dataclasses.replace(scene, dot=rng.random() < 0.5) for scene in scenes]


def _first_exchanges() -> Iterator[Exchange]:
    for _, sample in world.samples(4000, seed=0, kinds=world.KINDS):
        yield from sample.turns


FIRST = Look(
    side=56,
    draw=world.draw,
    scene=world.random_scene,
    shown=_first_shown,
    classes=(2 * len(THINGS) + 2,),
    labels=patch_labels,
    lesson=_first_lesson,
    exchanges=_first_exchanges,
    checkpoint=CHECKPOINT,
    recipe=Recipe(tower_steps=600, steps=1600, batch=64, pool=30_000),
)

HARD_CLASSES = (len(hard.RADII) + 1, len(world.COLORS) + 1, len(world.SHAPES) + 1, hard.GRID, hard.GRID)
"""Of a patch of the harder look: the thing's size, color and shape, the last class being none; its row, its column."""


def cell_labels(scene: hard.Scene) -> Labels:
    """What is in each of the nine patches of the harder look, and which patch it is, int64 [9, 5], as `HARD_CLASSES`
    has it. Each by itself: learned as one class they are no easier to tell apart than any two things, and the language
    model doesn't learn to ask for one color."""
    labels: Labels = np.empty((hard.GRID**2, len(HARD_CLASSES)), np.int64)
    labels[:, :3] = np.asarray(HARD_CLASSES[:3]) - 1
    cells = np.arange(hard.GRID**2)
    labels[:, 3], labels[:, 4] = cells // hard.GRID, cells % hard.GRID
    for thing in scene.things:
        names = (sorted(hard.RADII), sorted(world.COLORS), world.SHAPES)
        told = (thing.size, thing.color, thing.shape)
        labels[thing.cell, :3] = [of.index(name) for of, name in zip(names, told, strict=True)]
    return labels


def _hard_exchanges() -> Iterator[Exchange]:
    for _, sample in hard.samples(6000, seed=0):
        yield from sample.turns


def _hard_shown(rng: random.Random, count: int) -> list[hard.Scene]:
    return [hard.random_scene(rng) for _ in range(count)]


HARD = Look(
    side=hard.GRID * PATCH,
    draw=hard.draw,
    scene=hard.random_scene,
    shown=_hard_shown,
    classes=HARD_CLASSES,
    labels=cell_labels,
    lesson=hard.lesson,
    exchanges=_hard_exchanges,
    checkpoint=HARD_CHECKPOINT,
    # Stopped where it sees colors and things but hardly counts yet, so that instruction tuning has something to teach.
    recipe=Recipe(tower_steps=200, steps=2000, batch=32, pool=64_000, stop=650),
    start=CHECKPOINT,
)
LOOKS = {"first": FIRST, "hard": HARD}


def _colors_only(rng: random.Random) -> tuple[hard.Scene, list[Exchange]]:
    scene = hard.random_scene(rng)
    return scene, hard.lesson_of(scene, rng, seen=("color",))


SEES = {
    "colors": HARD._replace(
        lesson=_colors_only,
        # From noise alone colors aren't learned; from a model that sees some of all the rest is unlearned.
        start=HARD_CHECKPOINT,
        tower=True,
        recipe=Recipe(tower_steps=0, steps=600, batch=32, pool=20_000),
    )
}
"""Models that are blind to something, by what they see."""
