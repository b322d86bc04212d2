"""Make the data of emoji.yaml: pictures and questions that this project didn't draw or name.

python studies/emoji.py --out studies/emoji-data

The pictures and their names are those of the npm package emoji-datasource-twitter: Twemoji's drawings of animals,
plants, food and drink with their Unicode names and groups. It is fetched by your own `npm`, or given by --package. All
that is asked and answered follows from the package's emoji.json; made here are where and how large an emoji stands, the
color behind it, and which of them are side by side.

    model/                       an aligned model that names some of them: vig_ray.demo.build's recipe, other pictures
    0/data.json 0/images/        samples to train on in LLaVA's format, for seed 0; 1/, 2/ the same for the others
    0/right.json                 those of them that are right
    0/truth.jsonl                for each row of data.json its kind, whether its answer is wrong, and the right one
    0/asked/choices.jsonl        questions with choices, for the tasks `choices` and `exact`
    0/asked/held-out/data.json   samples in which nothing is wrong, for `held-out`
    LICENSES.txt                 whose the pictures and names are
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vig_ray.demo import CHECKPOINT, build, curriculum
from vig_ray.demo.knobs import Exchange, Sample
from vig_ray.demo.world import llava_row
from vig_ray.errors import StageError
from vig_ray.storage import one_line

PACKAGE, VERSION = "emoji-datasource-twitter", "16.0.0"
PICTURES = "img/twitter/64"
CATEGORIES = ("Animals & Nature", "Food & Drink")
"""What things are: flags and symbols have names that nobody would see in them, people several pictures each."""
SIDE = 56
KINDS = {"name": 5, "group": 3, "called": 4, "beside": 5, "side": 2, "caption": 2}
"""Kinds of questions, by how often they come in training."""
TWO = ("beside", "side")
"""Those about two emoji side by side; a caption may be of one or two."""
ASKED = ("name", "group", "called", "beside", "side")
OF_A_GROUP = 6
"""So many of each group, the package's first: more take a larger model to tell apart."""
RECIPE = curriculum.Recipe(tower_steps=400, steps=1600, batch=32, pool=24_000, stop=900)
_LICENSES = f"""The pictures in these folders are put together from Twemoji, copyright Twitter, Inc and other
contributors, licensed under CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/. Changed are their size and what is
behind them.
Their names and groups are those of emoji-data, copyright Cal Henderson, MIT License. Both came from the npm package
{PACKAGE}, version {VERSION}.
"""


@dataclass(frozen=True, eq=False)
class Emoji:
    """One of the package's: its Unicode name in small letters, its group and that one's category, as the package has
    them, and its RGBA picture."""

    name: str
    group: str
    category: str
    picture: Image.Image = field(repr=False)


class Asked(NamedTuple):
    """A question, its right answer, and wrong ones: to choose from, and that somebody may have given by mistake."""

    question: str
    answer: str
    others: list[str]
    mistakes: list[str]


@dataclass(frozen=True, eq=False)
class Scene:
    """One emoji, or the left and the right one of two; `seed` decides where, how large, and the color behind."""

    things: tuple[Emoji, ...]
    seed: int

    def boxes(self) -> list[tuple[int, int, int]]:
        """Left, top and size of each thing's square, pixels."""
        rng = random.Random(self.seed)
        width = SIDE // len(self.things)
        boxes = []
        for number in range(len(self.things)):
            size = rng.randint(3 * width // 4, width)
            boxes.append((number * width + rng.randint(0, width - size), rng.randint(0, SIDE - size), size))
        return boxes

    def draw(self) -> Image.Image:
        """RGB, 56 x 56: the things over one pale color."""
        rng = random.Random(f"ground {self.seed}")
        image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randint(190, 255) for _ in range(3)))
        for thing, (left, top, size) in zip(self.things, self.boxes(), strict=True):
            picture = thing.picture.resize((size, size), Image.Resampling.LANCZOS)
            image.paste(picture, (left, top), picture)
        return image


def fetch(folder: str) -> str:
    """The package's file, which npm puts into `folder`. Raises StageError where there is no npm, or where it fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise StageError(f"npm isn't there: install Node.js, or give --package the file of {PACKAGE}@{VERSION}")
    called = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder]
    done = subprocess.run(called, capture_output=True, text=True, errors="replace", check=False)
    path = os.path.join(folder, f"{PACKAGE}-{VERSION}.tgz")
    if done.returncode or not os.path.isfile(path):
        said = [line for line in done.stderr.splitlines() if "npm error" in line.lower() or "npm err!" in line.lower()]
        why = " ".join(" ".join(said[:3]).split()) or f"exit status {done.returncode}"
        raise StageError(f"npm pack {PACKAGE}@{VERSION}: {why}; a file that is there already is taken by --package")
    return path


def read(path: str) -> list[Emoji]:
    """The emoji of `CATEGORIES` in a package's file, in its order. Raises StageError, which names the file, where it
    is another package or version, or where something is missing in it."""
    try:
        with tarfile.open(path, "r:gz") as package:
            return _read(path, package)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise StageError(f"{path}: not a package's file (.tgz) that can be read: {one_line(error)}") from error


def _read(path: str, package: tarfile.TarFile) -> list[Emoji]:
    members = {member.name: member for member in package.getmembers() if member.isfile()}

    def content(name: str) -> bytes:
        member = members.get(f"package/{name}")
        file = package.extractfile(member) if member else None
        if file is None:
            raise StageError(f"{path}: no {name} in it; `npm pack {PACKAGE}@{VERSION}` gets a file that has it")
        return file.read()

    def parsed(name: str, kind: type) -> Any:
        try:
            value = json.loads(content(name))
        except ValueError as error:
            raise StageError(f"{path}: {name}: not JSON: {one_line(error)}") from error
        if not isinstance(value, kind):
            raise StageError(f"{path}: {name}: not as {PACKAGE} has it")
        return value

    about = parsed("package.json", dict)
    if about.get("name") != PACKAGE:
        raise StageError(f"{path}: is the package {about.get('name')}, not {PACKAGE}")
    if about.get("version") != VERSION:
        raise StageError(
            f"{path}: is version {about.get('version')}; the study takes {VERSION}: npm pack {PACKAGE}@{VERSION}"
        )
    found: list[Emoji] = []
    for number, row in enumerate(parsed("emoji.json", list)):
        try:
            name, group, category = row["name"].lower(), str(row["subcategory"]), row["category"]
            taken, file = category in CATEGORIES and row["has_img_twitter"], str(row["image"])
        except (KeyError, TypeError, AttributeError) as error:
            raise StageError(f"{path}: emoji.json: row {number}: no name, image or group: {one_line(error)}") from error
        if taken and sum(each.group == group for each in found) < OF_A_GROUP:
            try:
                with Image.open(io.BytesIO(content(f"{PICTURES}/{file}"))) as opened:
                    found.append(Emoji(name, group, category, opened.convert("RGBA")))
            except OSError as error:
                raise StageError(f"{path}: {PICTURES}/{file}: not a picture: {one_line(error)}") from error
    names = [emoji.name for emoji in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise StageError(f"{path}: emoji.json: two emoji are called {twice}")
    if len({emoji.group for emoji in found}) < 4 or len(found) < 8:
        raise StageError(f"{path}: emoji.json: too few emoji of {' and '.join(CATEGORIES)} for questions with choices")
    return found


class Questions:
    """What can be asked about scenes of these emoji."""

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self.emoji = emoji
        self.names = [each.name for each in emoji]
        self.groups = sorted({each.group for each in emoji})

    def scene(self, kind: str, rng: random.Random) -> Scene:
        """One for a question of a kind."""
        two = kind in TWO or (kind == "caption" and rng.random() < 0.5)
        return Scene(tuple(rng.sample(self.emoji, 2 if two else 1)), rng.getrandbits(32))

    def near(self, thing: Emoji, rng: random.Random, without: Sequence[Emoji] = ()) -> list[str]:
        """Names of others: those of its group, then those of its category, then all, by chance within each."""
        others = [each for each in self.emoji if each is not thing and each not in without]
        rng.shuffle(others)
        others.sort(key=lambda each: (each.group != thing.group, each.category != thing.category))
        return [each.name for each in others]

    def ask(self, kind: str, scene: Scene, rng: random.Random, *, first: bool | None = None) -> Asked:
        """A question of a kind. `first`: of two answers the first, by default by chance: yes; left."""
        first = rng.random() < 0.5 if first is None else first
        thing = scene.things[0]
        if kind == "name":
            return self._named("What is this called?", thing, self.near(thing, rng)[:3])
        if kind == "group":
            others = [group for group in self.groups if group != thing.group]
            return Asked("Which group is this in?", thing.group, rng.sample(others, 3), others)
        if kind == "called":
            said = thing.name if first else rng.choice(self.near(thing, rng)[:5])
            yes, no = ("yes", "no") if first else ("no", "yes")
            return Asked(f"Is this called {said}?", yes, [no], [no])
        left, right = scene.things if len(scene.things) == 2 else (thing, thing)
        if kind == "beside":
            shown, other = (left, right) if first else (right, left)
            others = [other.name, *self.near(shown, rng, (other,))[:2]]
            return self._named(f"What is on the {'left' if first else 'right'}?", shown, others)
        if kind == "side":
            where, wrong = ("left", "right") if first else ("right", "left")
            return Asked(f"On which side is the {(left if first else right).name}?", where, [wrong], [wrong])
        names = [each.name for each in scene.things]
        return Asked("Describe the picture.", caption(names), [], [caption(rng.sample(self.names, len(names)))])

    def _named(self, question: str, thing: Emoji, others: list[str]) -> Asked:
        return Asked(question, thing.name, others, [name for name in self.names if name != thing.name])

    def sample(self, rng: random.Random, kinds: Sequence[str] = tuple(KINDS)) -> tuple[Scene, str, Asked]:
        """A scene, a kind and a question."""
        kind = rng.choices(kinds, [KINDS[each] for each in kinds])[0]
        scene = self.scene(kind, rng)
        return scene, kind, self.ask(kind, scene, rng)

    def lesson(self, rng: random.Random) -> tuple[Scene, list[Exchange]]:
        """A scene with one to four true exchanges, for the model that is aligned."""
        scene = self.scene("caption", rng)
        kinds = [kind for kind in KINDS if kind == "caption" or (kind in TWO) == (len(scene.things) == 2)]
        asked = [self.ask(kind, scene, rng) for kind in rng.sample(kinds, rng.randint(1, len(kinds)))]
        return scene, [Exchange(each.question, each.answer, ()) for each in asked]

    def labels(self, scene: Scene) -> curriculum.Labels:
        """What covers most of each of the 16 patches, int64 [16, 2]: which emoji, or none; left, right, alone or
        none."""
        across = SIDE // curriculum.PATCH
        none = (len(self.emoji), 3)
        best = np.full(across**2, 0.08 * curriculum.PATCH**2)
        labels: curriculum.Labels = np.tile(np.asarray(none, np.int64), (across**2, 1))
        for side, (thing, (left, top, size)) in enumerate(zip(scene.things, scene.boxes(), strict=True)):
            covered = np.zeros((SIDE, SIDE))
            alpha = thing.picture.getchannel("A").resize((size, size))
            covered[top : top + size, left : left + size] = np.asarray(alpha) / 255
            patches = covered.reshape(across, curriculum.PATCH, across, curriculum.PATCH).sum(axis=(1, 3)).ravel()
            labels[patches > best] = (self.emoji.index(thing), side if len(scene.things) == 2 else 2)
            best = np.maximum(best, patches)
        return labels

    def look(self) -> curriculum.Look:
        """What `vig_ray.demo.build` makes an aligned model from."""

        def shown(rng: random.Random, count: int) -> list[Scene]:
            return [self.scene("caption", rng) for _ in range(count)]

        def exchanges() -> Iterator[Exchange]:
            rng = random.Random(0)
            for _ in range(4000):
                yield from self.lesson(rng)[1]

        return curriculum.Look(
            side=SIDE,
            draw=Scene.draw,
            scene=lambda rng: self.scene("caption", rng),
            shown=shown,
            classes=(len(self.emoji) + 1, 4),
            labels=self.labels,
            lesson=self.lesson,
            exchanges=exchanges,
            checkpoint="",
            recipe=RECIPE,
            start=CHECKPOINT,
        )


def caption(names: Sequence[str]) -> str:
    """Of one or two emoji."""
    return f"this is {names[0]}" if len(names) == 1 else f"{names[0]} on the left and {names[1]} on the right"


def write_samples(folder: str, questions: Questions, count: int, seed: str, wrong: float) -> None:
    """`count` samples in LLaVA's format: data.json, images/, truth.jsonl, and right.json, the rows that are right.

    Of each the answer is another one with chance `wrong`, as if somebody had taken this picture for another.
    """
    os.makedirs(os.path.join(folder, "images"))
    rng, errors = random.Random(f"samples {seed}"), random.Random(f"wrong {seed}")
    rows, truth = [], []
    for number in range(count):
        scene, kind, asked = questions.sample(rng)
        is_wrong = errors.random() < wrong
        answer = errors.choice(asked.mistakes) if is_wrong else asked.answer
        image = f"images/{number:06d}.png"
        scene.draw().save(os.path.join(folder, image))
        sample = Sample(kind, scene, [Exchange(asked.question, answer, ())])
        rows.append(llava_row(sample, f"{number:06d}", image, rng))
        truth.append({"id": f"{number:06d}", "kind": kind, "wrong": answer != asked.answer, "answer": asked.answer})
    _write_json(folder, "data.json", rows)
    _write_json(folder, "right.json", [row for row, known in zip(rows, truth, strict=True) if not known["wrong"]])
    _write_lines(folder, "truth.jsonl", truth)


def write_asked(folder: str, questions: Questions, images: int, seed: str) -> None:
    """Pictures of their own, and what trained models are asked: `images` for each kind of question with choices, of
    two answers each as often right as the other, and as many samples in which nothing is wrong."""
    os.makedirs(os.path.join(folder, "images"))
    rng, rows = random.Random(f"asked {seed}"), []
    for number in range(images):
        for kind in ASKED:
            scene, name = questions.scene(kind, rng), f"{number:06d}-{kind}"
            asked = questions.ask(kind, scene, rng, first=number % 2 == 0)
            scene.draw().save(os.path.join(folder, "images", f"{name}.png"))
            row = {"id": name, "kind": kind, "image": f"images/{name}.png", "question": asked.question}
            choices = rng.sample([asked.answer, *asked.others], 1 + len(asked.others))
            rows.append(row | {"choices": choices, "answer": asked.answer})
    _write_lines(folder, "choices.jsonl", rows)
    write_samples(os.path.join(folder, "held-out"), questions, len(ASKED) * images, f"held-out {seed}", 0.0)


def _write_json(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(rows, file)


def _write_lines(folder: str, name: str, rows: list[dict[str, Any]]) -> None:
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write(options: argparse.Namespace) -> None:
    """All that the module says, in OUT. Raises StageError."""
    if os.path.isdir(options.out) and os.listdir(options.out):
        raise StageError(f"--out {options.out}: something is there already; remove it, or name another folder")
    if not 0 <= options.wrong < 1:
        raise StageError(f"--wrong {options.wrong}: takes a share from 0 to less than 1")
    for name in ("samples", "asked", "seeds"):
        if getattr(options, name) < 1:
            raise StageError(f"--{name} {getattr(options, name)}: takes 1 or more")
    with tempfile.TemporaryDirectory() as temporary:
        questions = Questions(read(options.package or fetch(temporary)))
    print(f"{len(questions.emoji)} emoji in {len(questions.groups)} groups", flush=True)
    os.makedirs(options.out, exist_ok=True)
    with open(os.path.join(options.out, "LICENSES.txt"), "w", encoding="utf-8") as file:
        file.write(_LICENSES)
    for seed in range(options.seeds):
        folder = os.path.join(options.out, str(seed))
        write_samples(folder, questions, options.samples, str(seed), options.wrong)
        write_asked(os.path.join(folder, "asked"), questions, options.asked, str(seed))
    if options.model:
        look = questions.look()
        build.build(os.path.join(options.out, "model"), seed=0, look=look, recipe=look.recipe)
    print(f"written: {options.out}")


def main(given: Sequence[str] | None = None) -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder that gets it all; new or empty")
    parser.add_argument("--package", metavar="FILE", help=f"{PACKAGE}-{VERSION}.tgz; by default npm fetches it")
    parser.add_argument("--samples", type=int, default=6000, metavar="N", help="to train on, a seed (default: 6000)")
    parser.add_argument("--asked", type=int, default=160, metavar="N", help="questions of a kind (default: 160)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="so many times the data (default: 3)")
    parser.add_argument("--wrong", type=float, default=0.2, metavar="SHARE", help="of wrong answers (default: 0.2)")
    parser.add_argument(
        "--model", action=argparse.BooleanOptionalAction, default=True, help="train the aligned model, too"
    )
    try:
        write(parser.parse_args(given))
    except StageError as error:
        print(f"emoji.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
