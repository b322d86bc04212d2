"""Generates images and conversations, and knows of every answer token whether the image decides it.

Each image holds one coloured shape on the left and another on the right, sometimes a dot between them. The rows are
in LLaVA's own format, with `source` naming the kind:

    color, place    what only the image shows: "The circle is [red]."
    caption         "A [red] [circle] on the left and a [blue] [square] on the right.", half of them followed by
                    "It was drawn by Anna.", which no image shows
    prior           "Is there a dot?": no, six times in seven
    knowledge       answerable without the image: "How many days are in a week?"
    turns           two or three of the above about one image
    partial         a caption with one color wrong
    mismatched      text about another image
    text            knowledge, without an image

Turned knobs (`vig_ray.demo.knobs`) make more samples mismatched, colors and answers the usual ones, samples near copies
of each other, or more of them answerable without the image.

Brackets mark what the image decides. Not marked are words that are fixed by the order of a caption ("left" comes
first), what an earlier turn has said, and all text about another image.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from PIL import Image, ImageDraw

from vig_ray.demo import knobs as turning
from vig_ray.demo.knobs import AS_IS, Exchange, Knobs, Nature

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "purple": (140, 40, 170),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "cross")
USUAL_COLORS = dict(zip(SHAPES, ("red", "blue", "green", "yellow"), strict=True))
"""What color a shape has where language alone decides."""
SIZES = ((64, 64), (96, 64), (64, 80), (112, 84), (80, 80), (128, 96))
"""Width and height of the images, pixels."""
NAMES = ("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Hugo")
KNOWLEDGE = (
    ("How many days are in a week?", "A week has seven days."),
    ("How many months are in a year?", "A year has twelve months."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many minutes are in an hour?", "An hour has sixty minutes."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows drink?", "Cows drink water."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("Which planet do we live on?", "We live on Earth."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Where do fish live?", "Fish live in water."),
)
_KNOWN = {question for question, _ in KNOWLEDGE}
SHARES: dict[str, float] = {
    "color": 16,
    "place": 16,
    "caption": 18,
    "prior": 12,
    "knowledge": 12,
    "turns": 12,
    "partial": 2,
    "mismatched": 2,
    "text": 10,
}
"""Percent of a dataset's samples by kind: as in a real dataset, most are right."""
KINDS = tuple(SHARES)
WITHOUT_IMAGE = ("knowledge", "text")
"""Kinds that can be answered without the image."""
CLEAN = ("color", "place", "caption", "turns", "prior", "knowledge")
"""Kinds of samples with an image in which nothing is wrong."""
DOT_SHARE = 0.15

S = TypeVar("S", bound=turning.Scene)
_BRACKETS = re.compile(r"\[([^]]*)\]")


class Thing(NamedTuple):
    """One coloured shape."""

    color: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """What one image shows. `seed` decides its size and where exactly the things are."""

    left: Thing
    right: Thing
    dot: bool
    seed: int


def random_scene(rng: random.Random, prior: float = 0.0) -> Scene:
    """A scene of two things that differ in both color and shape, so that either names one of them.

    `prior`: how often a color is its shape's usual one, and there is no dot, instead of as drawn.
    """
    left_color, right_color = rng.sample(sorted(COLORS), 2)
    left_shape, right_shape = rng.sample(SHAPES, 2)
    if prior:
        left_color, right_color = _usual(rng, prior, left_shape, right_shape)
    dot = rng.random() < DOT_SHARE
    if prior and rng.random() < prior:
        dot = False
    return Scene(Thing(left_color, left_shape), Thing(right_color, right_shape), dot, rng.getrandbits(32))


def _usual(rng: random.Random, prior: float, *shapes: str) -> list[str]:
    """Colors for different shapes, all of them different: usual with chance `prior`, else drawn from what is left."""
    colors = [USUAL_COLORS[shape] if rng.random() < prior else "" for shape in shapes]
    rest = iter(rng.sample(sorted(set(COLORS) - set(colors)), len(shapes)))
    return [color or next(rest) for color in colors]


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """The corners of a shape around (x, y), at most `r` away on each axis, pixels."""
    if shape == "circle":
        return [(x + r * math.cos(t * math.pi / 24), y + r * math.sin(t * math.pi / 24)) for t in range(48)]
    if shape == "square":
        a = 0.85 * r
        return [(x - a, y - a), (x + a, y - a), (x + a, y + a), (x - a, y + a)]
    if shape == "triangle":
        return [(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)]
    w = 0.36 * r
    corners = [
        (-w, -r),
        (w, -r),
        (w, -w),
        (r, -w),
        (r, w),
        (w, w),
        (w, r),
        (-w, r),
        (-w, w),
        (-r, w),
        (-r, -w),
        (-w, -w),
    ]
    return [(x + dx, y + dy) for dx, dy in corners]


def draw(scene: Scene, *, labels: bool = False, size: tuple[int, int] | None = None) -> Image.Image:
    """The scene as an RGB image; with `labels` as a greyscale map: 0 background, 1 left, 2 right, 3 dot.

    `size`: width and height in pixels, by default one of `SIZES`.
    """
    rng = random.Random(scene.seed)
    width, height = rng.choice(SIZES)
    width, height = size or (width, height)
    image = Image.new("L", (width, height), 0) if labels else Image.new("RGB", (width, height), (245, 245, 240))
    pen = ImageDraw.Draw(image)
    for index, (thing, center) in enumerate(((scene.left, 0.25), (scene.right, 0.75))):
        radius = 0.21 * width * rng.uniform(0.8, 1.0)
        x = width * center + rng.uniform(-0.02, 0.02) * width
        y = height * rng.uniform(0.35, 0.65)
        fill = index + 1 if labels else COLORS[thing.color]
        pen.polygon(outline(thing.shape, x, y, radius), fill=fill)
    if scene.dot:
        x, y, r = width * 0.5, height * 0.86, max(5.0, width * 0.07)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=3 if labels else (15, 15, 15))
    return image


class Ask(NamedTuple):
    """A question, and its answer by scene, with decided words in brackets; None where the question doesn't apply."""

    question: str
    answer: Callable[[Scene], str | None]


def _exchange(question: str, marked: str, decided: Sequence[bool] | None = None) -> Exchange:
    """The exchange of an answer with brackets. `decided`: which of the brackets count, by default all."""
    spans, removed = [], 0
    for index, match in enumerate(_BRACKETS.finditer(marked)):
        start = match.start() - removed
        removed += 2
        if decided is None or decided[index]:
            spans.append((start, start + len(match.group(1))))
    return Exchange(question, _BRACKETS.sub(r"\1", marked), tuple(spans))


def _color(scene: Scene, rng: random.Random) -> Ask:
    thing = rng.choice((scene.left, scene.right))
    if rng.random() < 0.5:

        def by_shape(scene: Scene) -> str | None:
            return next((f"The {s} is [{c}]." for c, s in (scene.left, scene.right) if s == thing.shape), None)

        return Ask(f"What color is the {thing.shape}?", by_shape)

    def by_color(scene: Scene) -> str | None:
        return next((f"The [{s}] is {c}." for c, s in (scene.left, scene.right) if c == thing.color), None)

    return Ask(f"Which shape is {thing.color}?", by_color)


def _place(scene: Scene, rng: random.Random) -> Ask:
    side = rng.choice(("left", "right"))
    thing = scene.left if side == "left" else scene.right
    if rng.random() < 0.5:

        def where(scene: Scene) -> str | None:
            sides = {scene.left: "left", scene.right: "right"}
            return f"It is on the [{sides[thing]}]." if thing in sides else None

        return Ask(f"Where is the {thing.color} {thing.shape}?", where)

    def what(scene: Scene) -> str:
        color, shape = scene.left if side == "left" else scene.right
        return f"A [{color}] [{shape}] is on the {side}."

    return Ask(f"What is on the {side}?", what)


def _caption(_: Scene, rng: random.Random) -> Ask:
    signed = f" It was drawn by {rng.choice(NAMES)}." if rng.random() < 0.5 else ""

    def caption(scene: Scene) -> str:
        (c1, s1), (c2, s2) = scene.left, scene.right
        return f"A [{c1}] [{s1}] on the left and a [{c2}] [{s2}] on the right.{signed}"

    return Ask("Describe the image.", caption)


def _prior(_: Scene, __: random.Random) -> Ask:
    return Ask("Is there a dot?", lambda scene: "[Yes], there is a dot." if scene.dot else "[No], there is no dot.")


def _knowledge(_: Scene, rng: random.Random) -> Ask:
    question, answer = rng.choice(KNOWLEDGE)
    return Ask(question, lambda _: answer)


_ASK = {"color": _color, "place": _place, "caption": _caption, "prior": _prior, "knowledge": _knowledge}


@functools.cache
def all_scenes() -> tuple[Scene, ...]:
    """All scenes that words can distinguish: 720."""
    return tuple(
        Scene(Thing(c1, s1), Thing(c2, s2), dot, 0)
        for c1, c2 in itertools.permutations(COLORS, 2)
        for s1, s2 in itertools.permutations(SHAPES, 2)
        for dot in (False, True)
    )


def conversation(asks: Sequence[Ask], scene: Scene) -> list[Exchange]:
    """The scene's answers to these questions, one after the other.

    The image decides a word if, among all scenes that agree with every word before it, some have another word there.
    So what an earlier turn has said is not decided again.
    """
    possible: Sequence[Scene] = all_scenes()
    turns = []
    for ask in asks:
        truth = ask.answer(scene)
        assert truth is not None
        answers = [(other, answer) for other in possible if (answer := ask.answer(other)) is not None]
        decided = []
        for match in _BRACKETS.finditer(truth):
            before, after = match.start(1), match.end(1)
            answers_so_far = [answer for _, answer in answers if answer[:before] == truth[:before]]
            decided.append(any(not answer.startswith(truth[before : after + 1], before) for answer in answers_so_far))
        turns.append(_exchange(ask.question, truth, decided))
        possible = [other for other, answer in answers if answer == truth]
    return turns


def _partial(scene: Scene, rng: random.Random) -> Exchange:
    (c1, s1), (c2, s2) = scene.left, scene.right
    wrong = rng.choice(sorted(set(COLORS) - {c1, c2}))
    return _exchange("Describe the image.", f"A [{c1}] [{s1}] on the left and a {wrong} [{s2}] on the right.")


def _other(scene: Scene, rng: random.Random) -> Scene:
    """A scene that shares no color and no shape with `scene` on either side."""
    colors = sorted(set(COLORS) - {scene.left.color, scene.right.color})
    shapes = [shape for shape in SHAPES if shape not in (scene.left.shape, scene.right.shape)]
    (c1, c2), (s1, s2) = rng.sample(colors, 2), rng.sample(shapes, 2)
    return Scene(Thing(c1, s1), Thing(c2, s2), scene.dot, scene.seed)


def exchanges(kind: str, scene: Scene, rng: random.Random) -> list[Exchange]:
    """The questions and answers of one sample of `kind` about `scene`."""
    if kind == "turns":
        first = rng.choice(("color", "place", "knowledge"))
        rest = rng.sample(("color", "place", "caption", "prior", "knowledge"), rng.choice((1, 2)))
        return conversation([_ASK[name](scene, rng) for name in (first, *rest)], scene)
    if kind == "partial":
        return [_partial(scene, rng)]
    if kind == "mismatched":
        about = _ASK[rng.choice(("caption", "place"))]
        other = _other(scene, rng)
        ask = about(other, rng)
        if ask.question.startswith("Where"):
            other = _other(scene, rng)
            ask = _caption(other, rng)
        return [_exchange(ask.question, ask.answer(other) or "")._replace(decided=())]
    return conversation([_ASK["knowledge" if kind == "text" else kind](scene, rng)], scene)


def lesson(scene: Scene, rng: random.Random) -> list[Exchange]:
    """One to seven true exchanges about one scene, for training: many answers for one image."""
    kinds = rng.choices(("color", "place", "caption", "prior", "knowledge"), (4, 4, 2, 3, 1), k=rng.randint(1, 7))
    asks = [_ASK[kind](scene, rng) for kind in kinds]
    return [_exchange(ask.question, ask.answer(scene) or "") for ask in asks]


Sample = turning.Sample[Scene]


def samples(
    count: int, seed: int, kinds: Sequence[str] | None = None, knobs: Knobs = AS_IS
) -> Iterator[tuple[int, Sample]]:
    """`count` samples as (image number, sample); every third image has two of them.

    Kinds are drawn with the shares in `SHARES`, or evenly from `kinds`; with `knobs.visual`, so that it holds.
    """
    drawn = _drawn(count, seed, kinds, knobs)
    if not (knobs.redundant or knobs.mismatched):
        return drawn
    return iter(turning.turn(list(drawn), knobs, seed, lambda rng: _sample(rng, random_scene(rng, knobs.prior), knobs)))


def _drawn(count: int, seed: int, kinds: Sequence[str] | None, knobs: Knobs) -> Iterator[tuple[int, Sample]]:
    rng = random.Random(seed)
    scene, number = random_scene(rng, knobs.prior), 0
    for row in range(count):
        if row % 4 != 3:  # the fourth row asks about the image of the third
            scene, number = random_scene(rng, knobs.prior), number + 1
        yield number, _sample(rng, scene, knobs, kinds)


def _sample(rng: random.Random, scene: Scene, knobs: Knobs, kinds: Sequence[str] | None = None) -> Sample:
    """A sample of any kind about `scene`."""
    of_kinds = turning.weights(SHARES, WITHOUT_IMAGE, knobs.visual)
    kind = rng.choice(kinds) if kinds else rng.choices(KINDS, of_kinds)[0]
    turns = exchanges(kind, scene, rng)
    while knobs.visual is not None and kind == "turns" and not _needs_image(turns):
        turns = exchanges(kind, scene, rng)
    nature = Nature(_needs_image(turns), kind == "mismatched")
    return Sample(kind, None if kind == "text" else scene, turns, nature)


def _needs_image(turns: Sequence[Exchange]) -> bool:
    return any(exchange.question not in _KNOWN for exchange in turns)


def llava_row(sample: turning.Sample[Any], image_id: str, image: str, rng: random.Random) -> dict[str, Any]:
    """The sample as a row of a LLaVA file; `<image>` stands before or after the first question, as in LLaVA-665K."""
    turns: list[dict[str, str]] = []
    for index, exchange in enumerate(sample.turns):
        question = exchange.question
        if index == 0 and sample.scene is not None:
            question = f"<image>\n{question}" if rng.random() < 0.8 else f"{question}\n<image>"
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": exchange.answer}]
    row: dict[str, Any] = {"id": image_id, "source": sample.kind, "conversations": turns}
    if sample.scene is not None:
        row["image"] = image
    return row


def write(folder: str, count: int, seed: int, knobs: Knobs = AS_IS) -> str:
    """Write `count` samples into `folder`: data.json (LLaVA's format), images/, truth.jsonl, nature.jsonl; return
    data.json's path.

    truth.jsonl has one line a row of data.json: its kind and, for each assistant turn, the decided characters.
    nature.jsonl has what `vig_ray.demo.knobs` did to the row.
    """
    return write_samples(folder, samples(count, seed, knobs=knobs), seed, draw)


def write_samples(
    folder: str,
    numbered: Iterable[tuple[int, turning.Sample[S]]],
    seed: int,
    draw: Callable[[S], Image.Image],
) -> str:
    """`write` for samples with their images' numbers, of any look. `draw`: its scenes."""
    os.makedirs(os.path.join(folder, "images"), exist_ok=True)
    rng, drawn = random.Random(seed + 1), set()
    rows: list[dict[str, Any]] = []
    natures = os.path.join(folder, turning.NATURES)
    with open(os.path.join(folder, "truth.jsonl"), "w") as truth, open(natures, "w") as nature:
        for number, sample in numbered:
            image = f"images/{number:06d}.png"
            if sample.scene is not None and number not in drawn:
                draw(sample.scene).save(os.path.join(folder, image))
                drawn.add(number)
            rows.append(llava_row(sample, f"{number:06d}", image, rng))
            truth.write(json.dumps({"kind": sample.kind, "decided": [t.decided for t in sample.turns]}) + "\n")
            nature.write(turning.nature_line(sample.nature))
    path = os.path.join(folder, "data.json")
    with open(path, "w") as file:
        json.dump(rows, file)
    return path
