"""A second, harder look of the demo world: three to six things, which are counted and stand in relation to each other.

Things of six colors, four shapes and two sizes lie on a grid of three by three; each may be there more than once. The
rows are in LLaVA's own format, with `source` naming the kind:

    exists      "Is there a red circle in the image?" "[Yes]."; what isn't there shares a color or a shape with what is
    color       "What color is the large circle?" "The large circle is [red]."
    count       "How many red objects are there?" "I count [three]."
    relation    "Is the red circle left or right of the blue square?" "It is [left] of the blue square."
    caption     each thing with its size, color, shape and place; half of them followed by who drew it
    turns       two or three of the first four about one image, of different things
    knowledge   answerable without the image, as in the first look
    text        the same without an image

Brackets mark what the image decides. Answers are drawn evenly: as many yes as no, each color, one to four alike. With
the knob `prior` a color is more often its shape's usual one (`world.USUAL_COLORS`), and an answer the usual one: yes,
two, left, above. Half of all relations are of left and right, half of above and below.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageDraw

from vig_ray.demo import knobs as turning
from vig_ray.demo import world
from vig_ray.demo.knobs import AS_IS, Exchange, Knobs, Nature

GRID = 3
RADII = {"large": 0.41, "small": 0.25}
"""Of a cell of the grid."""
LEAST, MOST = 3, 6
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
COUNTED = (1, 2, 3, 4)
"""The answers of `count`; a conversation of several turns stops at three, so that no count tells what else is there."""
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
SIZES = (84, 96, 112)
"""Width and height of the images, pixels."""
SHARES: dict[str, float] = {
    "exists": 18,
    "color": 14,
    "count": 18,
    "relation": 18,
    "caption": 8,
    "turns": 12,
    "knowledge": 8,
    "text": 4,
}
"""Percent of a dataset's samples by kind."""
KINDS = tuple(SHARES)
ASKED = ("exists", "color", "count", "relation")
"""Kinds of questions with one right answer."""
USUAL = {"exists": "yes", "count": "two", "relation": ("left", "above")}
"""What language alone answers."""
_USUAL_COUNT = 2
_DESCRIBE = "Describe the image."


class Thing(NamedTuple):
    """One coloured shape and its cell, 0 to 8 in reading order."""

    size: str
    color: str
    shape: str
    cell: int

    @property
    def row(self) -> int:
        """0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """0 on the left."""
        return self.cell % GRID


@dataclass(frozen=True)
class Scene:
    """What one image shows, things in reading order. `seed` decides the image's size and where in its cell each is."""

    things: tuple[Thing, ...]
    seed: int


Sample = turning.Sample[Scene]


class Asked(NamedTuple):
    """A question with its answer, and all answers it could have had, the right one first. `mentions`: colors and
    shapes in question and answer."""

    exchange: Exchange
    answers: tuple[str, ...]
    mentions: frozenset[str]


def random_scene(rng: random.Random, prior: float = 0.0) -> Scene:
    """A scene of three to six things. `prior`: how often a color is its shape's usual one instead of an even draw."""
    things = []
    for cell in sorted(rng.sample(range(GRID * GRID), rng.randint(LEAST, MOST))):
        shape = rng.choice(world.SHAPES)
        usual = prior and rng.random() < prior
        color = world.USUAL_COLORS[shape] if usual else rng.choice(sorted(world.COLORS))
        things.append(Thing(rng.choice(sorted(RADII)), color, shape, cell))
    return Scene(tuple(things), rng.getrandbits(32))


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image, square."""
    rng = random.Random(scene.seed)
    side = rng.choice(SIZES)
    image = Image.new("RGB", (side, side), (245, 245, 240))
    pen, cell = ImageDraw.Draw(image), side / GRID
    for thing in scene.things:
        radius = RADII[thing.size] * cell * rng.uniform(0.9, 1.05)
        x, y = ((at + 0.5 + rng.uniform(-0.07, 0.07)) * cell for at in (thing.column, thing.row))
        pen.polygon(world.outline(thing.shape, x, y, radius), fill=world.COLORS[thing.color])
    return image


def _marked(question: str, before: str, answers: Sequence[str], after: str, mentions: Sequence[str]) -> Asked:
    """`answers`: what may stand between `before` and `after`, the right one first."""
    spans = ((len(before), len(before) + len(answers[0])),)
    texts = tuple(f"{before}{answer}{after}" for answer in answers)
    return Asked(Exchange(question, texts[0], spans), texts, frozenset(mentions))


def exists(scene: Scene, rng: random.Random, *, yes: bool) -> Asked | None:
    """Whether there is a thing; None where all that is like one of the scene's is there."""
    there = {(thing.color, thing.shape) for thing in scene.things}
    if yes:
        color, shape = rng.choice(sorted(there))
    else:
        every = [(color, shape) for color in sorted(world.COLORS) for shape in world.SHAPES]
        near = [(c, s) for c, s in every if (c, s) not in there and any((c == a) != (s == b) for a, b in there)]
        if not near:
            return None
        color, shape = rng.choice(near)
    answers = ("Yes", "No") if yes else ("No", "Yes")
    return _marked(f"Is there a {color} {shape} in the image?", "", answers, ".", (color, shape))


def color(scene: Scene, rng: random.Random, color: str | None = None) -> Asked | None:
    """The color of the one thing of its shape, or of its shape and size. `color`: the right answer; None where there is
    no such thing."""
    shapes = Counter(thing.shape for thing in scene.things)
    sized = Counter((thing.size, thing.shape) for thing in scene.things)
    known = []
    for thing in scene.things:
        if color in (None, thing.color) and sized[thing.size, thing.shape] == 1:
            alone = shapes[thing.shape] == 1
            known.append((thing.shape if alone else f"{thing.size} {thing.shape}", thing))
    if not known:
        return None
    name, thing = rng.choice(known)
    answers = [thing.color, *rng.sample(sorted(set(world.COLORS) - {thing.color}), len(world.COLORS) - 1)]
    return _marked(f"What color is the {name}?", f"The {name} is ", answers, ".", (thing.shape, thing.color))


def count(scene: Scene, rng: random.Random, number: int | None = None, most: int = COUNTED[-1]) -> Asked | None:
    """How many things of a color or of a shape there are, at most `most`. `number`: the right answer; None where
    nothing is there so often."""
    colors, shapes = (Counter(getattr(thing, name) for thing in scene.things) for name in ("color", "shape"))
    known = [
        (name, noun, several)
        for counts, noun in ((colors, "{} objects"), (shapes, "{}s"))
        for name, several in sorted(counts.items())
        if several <= most and number in (None, several)
    ]
    if not known:
        return None
    name, noun, several = rng.choice(known)
    plural = noun.format(name).replace("crosss", "crosses")
    answers = [NUMBERS[several], *(NUMBERS[other] for other in COUNTED if other != several)]
    return _marked(f"How many {plural} are there?", "I count ", answers, ".", (name,))


def relation(scene: Scene, rng: random.Random, axis: str | None = None, *, first: bool | None = None) -> Asked | None:
    """Which side of a thing another is on, both the only ones of their color and shape. `axis`: row or column;
    `first`: whether left or above is right; None where no two things are so."""
    named = Counter((thing.color, thing.shape) for thing in scene.things)
    alone = [thing for thing in scene.things if named[thing.color, thing.shape] == 1]
    axis = axis or rng.choice(("row", "column"))
    pairs = [
        (one, other)
        for one in alone
        for other in alone
        if getattr(one, axis) != getattr(other, axis) and first in (None, getattr(one, axis) < getattr(other, axis))
    ]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    before = getattr(one, axis) < getattr(other, axis)
    if axis == "column":
        words, of, choice = ("left", "right"), " of", "left or right of"
    else:
        words, of, choice = ("above", "below"), "", "above or below"
    name, its = (f"the {thing.color} {thing.shape}" for thing in (one, other))
    return _marked(
        f"Is {name} {choice} {its}?",
        "It is ",
        words if before else words[::-1],
        f"{of} {its}.",
        (one.color, one.shape, other.color, other.shape),
    )


def caption(scene: Scene, rng: random.Random) -> Exchange:
    """Each thing in reading order. Decided is what other scenes with the same beginning have otherwise: not a row or
    column where the number of things that are to come leaves one alone."""
    text, spans = "", []

    def say(word: str, *, decided: bool = False) -> None:
        nonlocal text
        if decided:
            spans.append((len(text), len(text) + len(word)))
        text += word

    say("The image shows ")
    say(NUMBERS[len(scene.things)], decided=True)
    say(" objects.")
    least = 0  # the first cell in which the next thing can be
    for index, thing in enumerate(scene.things):
        last = GRID * GRID - (len(scene.things) - index)
        say(" A ")
        for word in (thing.size, thing.color, thing.shape):
            say(word, decided=True)
            say(" ")
        say("is at the ")
        say(ROWS[thing.row], decided=least // GRID < last // GRID)
        say(" ")
        of_row = [cell for cell in range(least, last + 1) if cell // GRID == thing.row]
        say(COLUMNS[thing.column], decided=len(of_row) > 1)
        say(".")
        least = thing.cell + 1
    if rng.random() < 0.5:
        say(f" It was drawn by {rng.choice(world.NAMES)}.")
    return Exchange(_DESCRIBE, text, tuple(spans))


def ask(kind: str, rng: random.Random, prior: float = 0.0) -> tuple[Scene, Asked]:
    """A question of one of the kinds `ASKED` and a scene to which it applies, its answer drawn evenly, or with chance
    `prior` the usual one."""
    usual = bool(prior) and rng.random() < prior
    before = usual or rng.random() < 0.5
    number = _USUAL_COUNT if usual else rng.choice(COUNTED)
    axis = rng.choice(("row", "column"))
    while True:
        scene = random_scene(rng, prior)
        if kind == "exists":
            asked = exists(scene, rng, yes=before)
        elif kind == "color":
            asked = color(scene, rng)
        elif kind == "count":
            asked = count(scene, rng, number)
        else:
            asked = relation(scene, rng, axis, first=before)
        if asked:
            return scene, asked


def turns(rng: random.Random, prior: float = 0.0) -> tuple[Scene, list[Exchange]]:
    """Two or three questions of different kinds about one scene.

    No two name the same color or shape, so that no answer follows from those before it. With `prior` an answer is the
    usual one with this chance where the scene has such a question.
    """
    kinds = rng.sample(ASKED, rng.choice((2, 3)))
    while True:
        scene, said, found = random_scene(rng, prior), frozenset[str](), list[Exchange]()
        for kind in kinds:
            usual = bool(prior) and rng.random() < prior
            if kind == "exists":
                asked = exists(scene, rng, yes=usual or rng.random() < 0.5)
            elif kind == "color":
                asked = color(scene, rng)
            elif kind == "count":
                asked = count(scene, rng, _USUAL_COUNT if usual else None, most=COUNTED[-2])
            else:
                asked = relation(scene, rng, first=True if usual else None)
            if asked is None or asked.mentions & said:
                break
            said |= asked.mentions
            found.append(asked.exchange)
        else:
            return scene, found


def lesson(rng: random.Random) -> tuple[Scene, list[Exchange]]:
    """A scene and up to eight true exchanges about it, for training: many answers for one image."""
    scene = random_scene(rng)
    return scene, lesson_of(scene, rng)


def lesson_of(scene: Scene, rng: random.Random, seen: Sequence[str] = (*ASKED, "caption")) -> list[Exchange]:
    """Up to eight exchanges about one scene. Those of the kinds `seen` are true, and most where others
    aren't seen; other questions are answered by chance, and other captions are of another scene."""
    found = []
    often = [5 if {*ASKED} <= {*seen} else 12 if kind in seen else 2 for kind in ASKED]
    for kind in rng.choices((*ASKED, "caption", "knowledge"), (*often, 1, 1), k=rng.randint(3, 8)):
        if kind == "caption":
            found.append(caption(scene if kind in seen else random_scene(rng), rng))
        elif kind == "knowledge":
            found.append(Exchange(*rng.choice(world.KNOWLEDGE), ()))
        else:
            asked = _asked(kind, scene, rng)
            if asked and kind not in seen:
                found.append(Exchange(asked.exchange.question, rng.choice(asked.answers), ()))
            elif asked:
                found.append(asked.exchange)
    return found or [caption(scene if "caption" in seen else random_scene(rng), rng)]


def _asked(kind: str, scene: Scene, rng: random.Random) -> Asked | None:
    if kind == "exists":
        return exists(scene, rng, yes=rng.random() < 0.5)
    if kind == "color":
        return color(scene, rng)
    return count(scene, rng) if kind == "count" else relation(scene, rng)


def sample(rng: random.Random, knobs: Knobs = AS_IS) -> Sample:
    """A sample of any kind, its scene drawn with it."""
    of_kinds = turning.weights(SHARES, world.WITHOUT_IMAGE, knobs.visual)
    kind = rng.choices(KINDS, of_kinds)[0]
    if kind in world.WITHOUT_IMAGE:
        exchange = Exchange(*rng.choice(world.KNOWLEDGE), ())
        return Sample(kind, None if kind == "text" else random_scene(rng, knobs.prior), [exchange], Nature(False))
    if kind == "turns":
        return Sample(kind, *turns(rng, knobs.prior))
    if kind == "caption":
        scene = random_scene(rng, knobs.prior)
        return Sample(kind, scene, [caption(scene, rng)])
    scene, asked = ask(kind, rng, knobs.prior)
    return Sample(kind, scene, [asked.exchange])


def samples(count: int, seed: int, knobs: Knobs = AS_IS) -> Iterator[tuple[int, Sample]]:
    """`count` samples as (image number, sample), each with an image of its own."""
    rng = random.Random(seed)
    drawn = [(number, sample(rng, knobs)) for number in range(1, count + 1)]
    yield from turning.turn(drawn, knobs, seed, lambda rng: sample(rng, knobs))


def write(folder: str, count: int, seed: int, knobs: Knobs = AS_IS) -> str:
    """Write `count` samples into `folder` as `world.write` does; return data.json's path."""
    return world.write_samples(folder, samples(count, seed, knobs), seed, draw)
