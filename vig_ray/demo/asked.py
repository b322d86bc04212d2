"""What the models of `vig demo --evaluate` are trained on and asked, by look.

A folder of questions has images that no training sees, and

    choices.jsonl          questions with their choices and the right one, as the tasks `choices` and `exact` read them
    instances_world.json   which things each image shows, in COCO's form, for `pope` and `chair`
    synonyms.txt           the things' names, as CHAIR's list has them
    held-out/data.json     samples of the look in which nothing is wrong

It is the same whatever knobs the training data has: as many answers of one kind as of another.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Collection, Iterable
from typing import Any

from vig_ray.demo import hard, world
from vig_ray.demo.knobs import AS_IS, NATURES, Exchange, Knobs, nature_line

OBJECTS, CHOICES, SYNONYMS = "instances_world.json", "choices.jsonl", "synonyms.txt"
HELD_OUT = os.path.join("held-out", "data.json")
_EXISTS = 0.4  # of the samples to train on
_THINGS = [world.Thing(color, shape) for color in world.COLORS for shape in world.SHAPES]


def _exists(scene: world.Scene, rng: random.Random, prior: float = 0.0) -> Exchange:
    """Whether there is a thing: every other time there is, or with chance `prior` in any case. What isn't there shares
    a color or a shape with what is."""
    there = (scene.left, scene.right)
    thing = rng.choice(there)
    if rng.random() < 0.5 * (1 - prior):
        near = [other for other in _THINGS if (other.color == thing.color) != (other.shape == thing.shape)]
        thing = rng.choice([other for other in near if other not in there])
    said = "Yes" if thing in there else "No"
    return Exchange(f"Is there a {thing.color} {thing.shape} in the image?", f"{said}.", ((0, len(said)),))


def write_samples(folder: str, count: int, seed: int, knobs: Knobs = AS_IS) -> str:
    """Samples to train on, in LLaVA's format: the world's, two in five of them asking whether there is a thing."""
    path = world.write(folder, count, seed, knobs)
    rng = random.Random(seed + 2)
    with open(path) as file:
        rows: list[dict[str, Any]] = json.load(file)
    numbered = list(world.samples(count, seed, knobs=knobs))
    scenes = {number: sample.scene for number, sample in numbered if sample.scene is not None}
    natures = [sample.nature for _, sample in numbered]
    for at, (row, (_, sample)) in enumerate(zip(rows, numbered, strict=True)):
        scene = sample.about or scenes.get(int(row["id"]))
        template = sample.nature.template
        # All near copies of a template are asked the same.
        of_row = rng if template is None else random.Random(f"exists {seed} {template}")
        if "image" in row and scene is not None and of_row.random() < _EXISTS:
            exists = _exists(scene, of_row, knobs.prior)
            row.update(world.llava_row(world.Sample("exists", scene, [exists]), row["id"], row["image"], of_row))
            # What the kind "mismatched" got wrong is gone; that the image is another's is not.
            natures[at] = natures[at]._replace(needs_image=True, mismatched=sample.about is not None)
    with open(path, "w") as file:
        json.dump(rows, file)
    with open(os.path.join(folder, NATURES), "w") as lines:
        lines.writelines(map(nature_line, natures))
    return path


def _write(
    folder: str,
    pictures: Iterable[Collection[tuple[str, str]]],
    choices: Iterable[dict[str, Any]],
    held_out: str,
    kinds: Collection[str],
) -> None:
    """The files of a folder of questions but the images. `pictures`: color and shape of each thing, by image.
    `held_out`: samples, of which those of `kinds` with an image are kept."""
    ids = {tuple(thing): number for number, thing in enumerate(_THINGS)}
    instances: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": " ".join(thing)} for thing, number in ids.items()],
    }
    for number, things in enumerate(pictures):
        instances["images"].append({"id": number, "file_name": f"{number:06d}.png"})
        instances["annotations"] += [{"image_id": number, "category_id": ids[thing]} for thing in things]
    with open(os.path.join(folder, OBJECTS), "w") as file_of_objects:
        json.dump(instances, file_of_objects)
    with open(os.path.join(folder, CHOICES), "w") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in choices)
    with open(os.path.join(folder, SYNONYMS), "w") as lines:
        lines.writelines(f"{' '.join(thing)}\n" for thing in _THINGS)
    with open(held_out) as given:
        rows = [row for row in json.load(given) if row["source"] in kinds and "image" in row]
    with open(held_out, "w") as kept:
        json.dump(rows, kept)


def write_asked(folder: str, images: int, seed: int) -> None:
    """Images that no training sees, with what is asked of them, as `asked` finds it."""
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    rng = random.Random(seed)
    pictures, choices = [], []
    for number in range(images):
        scene, file = world.random_scene(rng), f"{number:06d}.png"
        world.draw(scene).save(os.path.join(folder, "images", file))
        pictures.append((scene.left, scene.right))
        asked = rng.choice((scene.left, scene.right))
        others = rng.sample(sorted(set(world.COLORS) - {asked.color}), 3)
        texts = [f"The {asked.shape} is {color}." for color in (asked.color, *others)]
        row = {"id": str(number), "image": f"images/{file}", "question": f"What color is the {asked.shape}?"}
        choices.append(row | {"choices": rng.sample(texts, len(texts)), "answer": texts[0]})
    _write(folder, pictures, choices, world.write(os.path.join(folder, "held-out"), 4 * images, seed + 1), world.CLEAN)


def write_hard_asked(folder: str, images: int, seed: int) -> None:
    """The same for the harder look: four questions about each image, one of each kind in `hard.ASKED`, with every
    answer of a kind as often as every other."""
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    rng = random.Random(seed)
    pictures, choices = [], []
    for number in range(images):
        scene, asked = _all_kinds(number, rng)
        file = f"{number:06d}.png"
        hard.draw(scene).save(os.path.join(folder, "images", file))
        pictures.append(sorted({(thing.color, thing.shape) for thing in scene.things}))
        for kind, each in asked.items():
            row = {"id": f"{number}-{kind}", "group": str(number), "image": f"images/{file}"}
            texts = rng.sample(each.answers, len(each.answers))
            row |= {"question": each.exchange.question}
            choices.append(row | {"kind": kind, "choices": texts, "answer": each.answers[0]})
    held_out = hard.write(os.path.join(folder, "held-out"), 4 * images, seed + 1)
    _write(folder, pictures, choices, held_out, hard.KINDS)


def _all_kinds(number: int, rng: random.Random) -> tuple[hard.Scene, dict[str, hard.Asked]]:
    """A scene that can be asked all, and what is asked: the answers go round with `number`, each as often as others."""
    yes, first = number % 2 == 0, number // 2 % 2 == 0
    axis = ("row", "column")[number // 4 % 2]
    color = sorted(world.COLORS)[number % len(world.COLORS)]
    several = hard.COUNTED[number % len(hard.COUNTED)]
    while True:
        scene = hard.random_scene(rng)
        found = {
            "exists": hard.exists(scene, rng, yes=yes),
            "color": hard.color(scene, rng, color),
            "count": hard.count(scene, rng, several),
            "relation": hard.relation(scene, rng, axis, first=first),
        }
        asked = {kind: each for kind, each in found.items() if each is not None}
        if len(asked) == len(found):
            return scene, asked
