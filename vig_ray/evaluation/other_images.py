"""Another sample's image for each question: a derangement, drawn with a seed.

The images of a few hundred different files are held at a time, as questions come; each of these sets of images goes to
the questions of another set, as a cycle. No question gets an image that it has itself, under whatever name: files of
one content are one image.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence

from vig_ray.dataset.images import ImageError, image_bytes
from vig_ray.dataset.schema import Image
from vig_ray.evaluation.question import Question
from vig_ray.storage import filesystem

_AT_ONCE = 256  # sets of images among which they are exchanged
Key = tuple[str, ...]


def with_other_images(
    questions: Iterable[Question], seed: int, *, at_once: int = _AT_ONCE
) -> Iterator[tuple[Question, tuple[Image, ...] | None]]:
    """Questions in order, each with as many images of another question; None where no other has as many."""
    waiting: list[Question] = []
    different: set[tuple[Image, ...]] = set()
    for question in questions:
        if len(different) >= 2 * at_once and question.images not in different:
            first = _up_to(waiting, at_once)
            yield from _exchanged(waiting[:first], seed)
            waiting = waiting[first:]
            different = {each.images for each in waiting}
        waiting.append(question)
        different.add(question.images)
    yield from _exchanged(waiting, seed)


def _up_to(questions: Sequence[Question], sets: int) -> int:
    """How many questions, from the first, have so many different sets of images."""
    different: set[tuple[Image, ...]] = set()
    for number, question in enumerate(questions):
        different.add(question.images)
        if len(different) > sets:
            return number
    return len(questions)


def _exchanged(questions: Sequence[Question], seed: int) -> Iterator[tuple[Question, tuple[Image, ...] | None]]:
    """All of these with images of others among them."""
    names = _names({image for question in questions for image in question.images})
    sets: dict[Key, tuple[Image, ...]] = {}
    for question in questions:
        sets.setdefault(_key(question.images, names), question.images)
    order = list(sets)
    random.Random(f"{seed} {questions[0].id if questions else ''}").shuffle(order)
    other = {key: _next(order, place) for place, key in enumerate(order)}
    for question in questions:
        found = other[_key(question.images, names)]
        yield question, None if found is None else sets[found]


def _next(order: Sequence[Key], place: int) -> Key | None:
    """The next set after one, round and round, that has as many images and none of its own."""
    own = order[place]
    following = (order[(place + step) % len(order)] for step in range(1, len(order)))
    return next((key for key in following if own and len(key) == len(own) and not set(key) & set(own)), None)


def _key(images: Sequence[Image], names: dict[Image, str]) -> Key:
    return tuple(names[image] for image in images)


def _names(images: Iterable[Image]) -> dict[Image, str]:
    """One name for all images of the same content. Files of different sizes differ; the others are read."""
    named: dict[Image, str] = {}
    by_size: dict[int | None, list[Image]] = {}
    for image in images:
        if image.bytes is not None:
            by_size.setdefault(len(image.bytes), []).append(image)
        else:
            by_size.setdefault(_size(image.uri or ""), []).append(image)
    for size, alike in by_size.items():
        for image in alike:
            alone = size is not None and len(alike) == 1
            named[image] = f"{image.uri or size}" if alone else _digest(image)
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
