"""Knobs of a demo world's training data: what may be wrong with it, one-sided in it, or more than once in it.

Each is a share from 0 to 1. At their defaults the data is what it is without them, bit for bit. What a knob did to a
sample is its `Nature`, which is written beside the data as nature.jsonl, one line a row of data.json:

    mismatched    the image is another scene's; the answers are true of the original
    template      which of the few templates the sample is a near copy of; null for one of its own
    needs_image   whether the image is needed to answer one of its questions at all, right or wrong as the answer is
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from vig_ray.errors import StageError

TEMPLATES = 12
"""How many samples the near copies of `redundant` are copies of."""
NATURES = "nature.jsonl"


class Scene(Protocol):
    """What an image shows; `seed` decides where exactly and how large."""

    @property
    def seed(self) -> int:
        """Of the picture, not of what it shows."""


class Exchange(NamedTuple):
    """One question and its answer; `decided` are the answer's characters (start, end) that the image decides."""

    question: str
    answer: str
    decided: tuple[tuple[int, int], ...]


class Nature(NamedTuple):
    """What is true of a sample: see the module."""

    needs_image: bool = True
    mismatched: bool = False
    template: int | None = None


S = TypeVar("S", bound=Scene)


class Sample(NamedTuple, Generic[S]):
    """One sample of a world before it is written. `scene`: what its image shows; `about`: what the text is about where
    that is another scene."""

    kind: str
    scene: S | None
    turns: list[Exchange]
    nature: Nature = Nature()
    about: S | None = None


@dataclass(frozen=True)
class Knobs:
    """Shares from 0 to 1. Raises StageError, which names the knob, for any other value.

    `mismatched`: samples whose image is another scene's, the answer staying that of the original. `prior`: how often
    a color is the usual one of its shape, and an answer the usual one of its question, instead of an even draw.
    `redundant`: samples that are near copies of `TEMPLATES` ones: same scene, question and answer, the picture drawn
    anew. `visual`: samples that can't be answered without the image; None for the look's own share.
    """

    mismatched: float = 0.0
    prior: float = 0.0
    redundant: float = 0.0
    visual: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise StageError(f"{field.name} is {value!r}; it takes a share from 0 to 1")

    def turned(self) -> dict[str, float]:
        """The knobs that aren't at their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


AS_IS = Knobs()
"""No knob turned."""


def weights(shares: dict[str, float], without_image: Iterable[str], visual: float | None) -> list[float]:
    """How often each kind of `shares` is drawn so that `visual` of the samples are of a kind that needs its image."""
    if visual is None:
        return list(shares.values())
    blind = set(without_image)
    total = {side: math.fsum(share for kind, share in shares.items() if (kind in blind) == side) for side in (0, 1)}
    return [share / total[kind in blind] * (1 - visual if kind in blind else visual) for kind, share in shares.items()]


Drawn = list[tuple[int, Sample[S]]]
"""Samples with the number of their image."""


def turn(drawn: Drawn[S], knobs: Knobs, seed: int, make: Callable[[random.Random], Sample[S]]) -> Drawn[S]:
    """The samples with `redundant` and `mismatched` applied, those that neither meets being as they were.

    `make` draws one more sample: the templates. Each knob draws by a course of chance of its own, so that turning one
    leaves the others' samples where they are.
    """
    if knobs.redundant:
        drawn = _copied(drawn, knobs.redundant, random.Random(f"redundant {seed}"), make)
    if knobs.mismatched:
        drawn = _mismatched(drawn, knobs.mismatched, random.Random(f"mismatched {seed}"))
    return drawn


def _copied(drawn: Drawn[S], share: float, rng: random.Random, make: Callable[[random.Random], Sample[S]]) -> Drawn[S]:
    templates = [make(rng) for _ in range(TEMPLATES)]
    rows: Drawn[S] = []
    for row, (number, sample) in enumerate(drawn):
        if rng.random() < share:
            which = rng.randrange(TEMPLATES)
            template, seed = templates[which], rng.getrandbits(32)
            sample = template._replace(nature=template.nature._replace(template=which))
            if sample.scene is not None:
                sample = sample._replace(scene=dataclasses.replace(sample.scene, seed=seed))  # type: ignore[type-var]
            number = len(drawn) + row + 1  # an image of its own: the row's may be another row's, too
        rows.append((number, sample))
    return rows


def _mismatched(drawn: Drawn[S], share: float, rng: random.Random) -> Drawn[S]:
    images = [(number, sample.scene) for number, sample in drawn if sample.scene is not None]
    rows: Drawn[S] = []
    for number, sample in drawn:
        if sample.scene is not None and rng.random() < share and len({other for other, _ in images}) > 1:
            about, own = sample.about or sample.scene, number
            while number == own:
                number, scene = rng.choice(images)
            turns = [exchange._replace(decided=()) for exchange in sample.turns]
            nature = sample.nature._replace(mismatched=True)
            sample = sample._replace(scene=scene, about=about, turns=turns, nature=nature)
        rows.append((number, sample))
    return rows


def nature_line(nature: Nature) -> str:
    """A line of nature.jsonl."""
    known: dict[str, Any] = nature._asdict()
    return json.dumps(known) + "\n"
