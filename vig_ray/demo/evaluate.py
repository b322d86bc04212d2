"""`vig demo --evaluate`: whether training on a selection helped, on questions of which the world knows the answers.

From the packaged model, one epoch each on all samples (`full`), on 70 % of them by chance (`random`) and on the samples
and tokens that VIG selects (`vig`), then `vig eval` of the four. Among the samples are questions whether there is a
thing, which the packaged model has never been asked. What is asked afterwards is of other images:

    pope                  is there a red circle? the objects asked for by POPE's three samplings
    chair                 a caption, and which of its objects aren't there
    choices               what color is the circle? four answers to choose from
    blind-faith:choices   the same with a false answer stated before
    held-out              samples of the world, of any kind but the wrong ones: loss, gain, and the answer itself
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from vig_ray.demo import CHECKPOINT, world
from vig_ray.demo.held_out import CLEAN
from vig_ray.demo.knobs import AS_IS, NATURES, Knobs, nature_line
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.job import run as evaluate
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.job import run as score
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.job import run as select
from vig_ray.training.config import TrainConfig
from vig_ray.training.job import run as train

STRATEGIES: dict[str, dict[str, Any]] = {"full": {}, "random": {"p": 70.0}, "vig": {"p": 70.0}}
TASKS = ("pope", "chair", "choices", "blind-faith:choices", "held-out")
OBJECTS, CHOICES, SYNONYMS = "instances_world.json", "choices.jsonl", "synonyms.txt"
"""What is asked, in a folder of `write_asked`; objects and synonyms in the forms of COCO and of CHAIR's authors."""
_EXISTS = 0.4  # of the samples to train on
_THINGS = [world.Thing(color, shape) for color in world.COLORS for shape in world.SHAPES]


def _exists(scene: world.Scene, rng: random.Random, prior: float = 0.0) -> world.Exchange:
    """Whether there is a thing: every other time there is, or with chance `prior` in any case. What isn't there shares
    a color or a shape with what is."""
    there = (scene.left, scene.right)
    thing = rng.choice(there)
    if rng.random() < 0.5 * (1 - prior):
        near = [other for other in _THINGS if (other.color == thing.color) != (other.shape == thing.shape)]
        thing = rng.choice([other for other in near if other not in there])
    said = "Yes" if thing in there else "No"
    return world.Exchange(f"Is there a {thing.color} {thing.shape} in the image?", f"{said}.", ((0, len(said)),))


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


def write_asked(folder: str, images: int, seed: int) -> None:
    """Images that no training sees, with what is asked of them, as `asked` finds it."""
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    rng = random.Random(seed)
    ids = {thing: number for number, thing in enumerate(_THINGS)}
    instances: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": " ".join(thing)} for thing, number in ids.items()],
    }
    choices = []
    for number in range(images):
        scene, file = world.random_scene(rng), f"{number:06d}.png"
        world.draw(scene).save(os.path.join(folder, "images", file))
        instances["images"].append({"id": number, "file_name": file})
        for thing in (scene.left, scene.right):
            instances["annotations"].append({"image_id": number, "category_id": ids[thing]})
        asked = rng.choice((scene.left, scene.right))
        others = rng.sample(sorted(set(world.COLORS) - {asked.color}), 3)
        texts = [f"The {asked.shape} is {color}." for color in (asked.color, *others)]
        row = {"id": str(number), "image": f"images/{file}", "question": f"What color is the {asked.shape}?"}
        choices.append(row | {"choices": rng.sample(texts, len(texts)), "answer": texts[0]})
    with open(os.path.join(folder, OBJECTS), "w") as file_of_objects:
        json.dump(instances, file_of_objects)
    with open(os.path.join(folder, CHOICES), "w") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in choices)
    with open(os.path.join(folder, SYNONYMS), "w") as lines:
        lines.writelines(f"{' '.join(thing)}\n" for thing in _THINGS)
    held_out = world.write(os.path.join(folder, "held-out"), 4 * images, seed + 1)
    with open(held_out) as given:
        rows = [row for row in json.load(given) if row["source"] in CLEAN and "image" in row]
    with open(held_out, "w") as kept:
        json.dump(rows, kept)


def run(out: str, data: str, asked: str, *, images: int, seed: int) -> EvalSummary:
    """Score `data`, a file of `write_samples`, select, train, and ask what `asked`, a folder of `write_asked`, has.

    Everything goes to `out`; what is there already, by the same options, is taken. Raises StageError.
    """
    score(ScoreConfig(data=data, model=CHECKPOINT, out=out, overwrite=True))
    models = [f"aligned={CHECKPOINT}"]
    for strategy, options in STRATEGIES.items():
        to = os.path.join(out, strategy)
        select(SelectConfig(scores=out, out=to, strategy=strategy, seed=seed, overwrite=True, **options))
        config = TrainConfig(
            model=CHECKPOINT, samples=os.path.join(out, "samples"), selection=os.path.join(to, "selection"), out=to,
            global_batch=32, lr=3e-4, watch=("none",), seed=seed, overwrite=True,
        )  # fmt: skip
        train(config)
        models.append(f"{strategy}={os.path.join(to, 'model')}")
    objects, choices = os.path.join(asked, OBJECTS), os.path.join(asked, CHOICES)
    return evaluate(
        EvalConfig(
            model=tuple(models),
            tasks=TASKS,
            data={
                "pope": objects,
                "chair": objects,
                "choices": choices,
                "blind-faith:choices": choices,
                "held-out": os.path.join(asked, "held-out", "data.json"),
            },
            images=dict.fromkeys(("pope", "chair"), os.path.join(asked, "images")),
            task_options={
                "pope.per_image": "2",
                "pope.num_images": str(images),
                "pope.prompt": "plain",
                "chair.prompt": "Describe the image.",
                "chair.captions": "none",
                "chair.num_images": "all",
                "chair.max_new_tokens": "32",
            },
            synonyms=os.path.join(asked, SYNONYMS),
            out=out,
            overwrite=True,
        )
    )
