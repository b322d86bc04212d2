"""Another sample's image for each question: a derangement, drawn with a seed.

Each set of images goes to the questions of another set, as a cycle. No question gets an image that it has itself, under
whatever name: files of one content are one image. Images that are named by their files are exchanged among all
questions; of those that come as bytes only so many are held at a time, and exchanged among each other. So are images of
any kind where a bound is given, beyond which nothing is to be read for the first questions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vig_ray.dataset.images import ImageError, image_bytes
from vig_ray.dataset.schema import Image
from vig_ray.evaluation.question import Question
from vig_ray.storage import filesystem

_MOST_BYTES = 256 << 20
Key = tuple[str, ...]
Sets = dict[Key, tuple[Image, ...]]


def with_other_images(
    questions: Iterable[Question], seed: int, *, most_bytes: int = _MOST_BYTES, most_sets: int | None = None
) -> Iterator[tuple[Question, tuple[Image, ...] | None]]:
    """Questions in order, each with as many images of another question; None where no other has as many.

    `most_bytes`: of different images that are exchanged among each other; `most_sets`: how many different sets of
    images are, None for any number. Twice as many are held, so that none of these parts is small, the last one neither.
    """
    waiting: list[Question] = []
    held = _Held(most_bytes, most_sets)
    left: dict[int, Sets] = {}
    for question in questions:
        if held.full(2) and question.images not in held.sets:
            first = _up_to(waiting, most_bytes, most_sets)
            yield from _exchanged(waiting[:first], seed, left)
            waiting, held = waiting[first:], _Held(most_bytes, most_sets)
            for each in waiting:
                held.add(each)
        waiting.append(question)
        held.add(question)
    yield from _exchanged(waiting, seed, left)


class _Held:
    """Different sets of images, and how many bytes they hold; a part is full with so many of either."""

    def __init__(self, most_bytes: int, most_sets: int | None) -> None:
        self.sets: set[tuple[Image, ...]] = set()
        self.bytes = 0
        self._most_bytes, self._most_sets = most_bytes, most_sets

    def full(self, parts: int = 1) -> bool:
        """Whether there is enough for so many parts; no image at all is no set to exchange."""
        sets = len(self.sets) - (() in self.sets)
        return self.bytes >= parts * self._most_bytes or (
            self._most_sets is not None and sets >= parts * self._most_sets
        )

    def add(self, question: Question) -> None:
        if question.images not in self.sets:
            self.sets.add(question.images)
            self.bytes += sum(len(image.bytes or b"") for image in question.images)


def _up_to(questions: Sequence[Question], most_bytes: int, most_sets: int | None) -> int:
    """How many questions, from the first, fill a part; the last set stays together."""
    held = _Held(most_bytes, most_sets)
    for number, question in enumerate(questions):
        if held.full() and question.images not in held.sets:
            return number
        held.add(question)
    return len(questions)


def _exchanged(
    questions: Sequence[Question], seed: int, left: dict[int, Sets]
) -> Iterator[tuple[Question, tuple[Image, ...] | None]]:
    """All of these with images of others among them, or else with one of the sets that were `left` of those before,
    two by their number of images."""
    names = _names({image for question in questions for image in question.images})
    sets: Sets = {}
    for question in questions:
        sets.setdefault(_key(question.images, names), question.images)
    order = list(sets)
    random.Random(f"{seed} {questions[0].id if questions else ''}").shuffle(order)
    of_count: dict[int, list[Key]] = {}
    for key in order:
        of_count.setdefault(len(key), []).append(key)
    other: dict[Key, tuple[Image, ...] | None] = {}
    for count, keys in of_count.items():
        before = left.setdefault(count, {})
        for place, key in enumerate(keys):
            other[key] = _next(keys, place, sets) or _next([key, *before], 0, before)
        left[count] = {key: sets[key] for key in keys[:2]} if len(keys) > 1 else {**before, **{keys[0]: sets[keys[0]]}}
    for question in questions:
        yield question, other[_key(question.images, names)]


def _next(keys: Sequence[Key], place: int, sets: Mapping[Key, tuple[Image, ...]]) -> tuple[Image, ...] | None:
    """The images of the next set after one, round and round, that has none of its own."""
    own = keys[place]
    following = (keys[(place + step) % len(keys)] for step in range(1, len(keys)))
    found = next((key for key in following if own and not set(key) & set(own)), None)
    return None if found is None else sets[found]


def _key(images: Sequence[Image], names: Mapping[Image, str]) -> Key:
    return tuple(names[image] for image in images)


def _names(images: Iterable[Image]) -> dict[Image, str]:
    """One name for all images of the same content. Files whose sizes differ do, too; the others are read."""
    named: dict[Image, str] = {}
    by_size: dict[int | None, list[Image]] = {}
    for image in images:
        size = len(image.bytes) if image.bytes is not None else _size(image.uri or "")
        by_size.setdefault(size, []).append(image)
    for size, alike in by_size.items():
        for image in alike:
            alone = size is not None and len(alike) == 1
            named[image] = image.uri if alone and image.uri is not None else _digest(image)
    return named


def _size(uri: str) -> int | None:
    """The bytes of a file; None where only reading it tells."""
    try:
        fs, path = filesystem(uri)
        size: int | None = fs.get_file_info(path).size
    except Exception:  # an archive's member, a page of the web: what has no size is read
        return None
    return size


def _digest(image: Image) -> str:
    """Of an image's file; one that can't be read is itself, and the error of its row later."""
    try:
        return hashlib.blake2b(image_bytes(image._asdict()), digest_size=16).hexdigest()
    except ImageError:
        return image.uri or ""
