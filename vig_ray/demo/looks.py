"""The looks of the demo world, as `vig demo --look` names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT, asked, captions, hard, world
from vig_ray.demo.captions import Telling
from vig_ray.demo.knobs import Knobs

LookName = Literal["first", "hard"]


class Look(NamedTuple):
    """What a look of the world comes with.

    `checkpoint`: its aligned model. `write`: samples to look at, into a folder, so many, by a seed and knobs; returns
    data.json's path. `write_training`: samples to train on, likewise. `write_asked`: what trained models are asked,
    into a folder, about so many images, by a seed. `kinds`: what each kind of sample is. `tasks`: of `vig eval`.
    `caption_tokens`: as many as a caption may have. `lr`: the highest learning rate of a short training. `telling`:
    what captions and texts are like.
    """

    checkpoint: str
    write: Callable[[str, int, int, Knobs], str]
    write_training: Callable[[str, int, int, Knobs], str]
    write_asked: Callable[[str, int, int], None]
    kinds: dict[str, str]
    tasks: tuple[str, ...]
    caption_tokens: int
    lr: float
    telling: Telling


LOOKS: dict[LookName, Look] = {
    "first": Look(
        CHECKPOINT,
        world.write,
        asked.write_samples,
        asked.write_asked,
        {
            "color": "only the image tells",
            "place": "only the image tells",
            "caption": "partly what no image shows",
            "turns": "several turns of the other kinds",
            "prior": "a language prior tells, mostly",
            "knowledge": "answerable without the image",
            "partial": "caption with one color wrong",
            "mismatched": "text about another image",
        },
        ("pope", "chair", "choices", "blind-faith:choices", "held-out"),
        32,
        3e-4,
        captions.FIRST,
    ),
    "hard": Look(
        HARD_CHECKPOINT,
        hard.write,
        hard.write,
        asked.write_hard_asked,
        {
            "exists": "only the image tells",
            "color": "only the image tells",
            "count": "only the image tells",
            "relation": "only the image tells",
            "caption": "every thing, and partly what no image shows",
            "turns": "several turns of the first four",
            "knowledge": "answerable without the image",
        },
        ("pope", "chair", "choices", "exact", "blind-faith:choices", "held-out"),
        128,
        1e-3,
        captions.HARD,
    ),
}
