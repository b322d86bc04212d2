"""POPE's three samplings: which objects are asked for that an image doesn't show (Li et al. 2023, section 5.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import NamedTuple

from vig_ray.errors import StageError

SAMPLINGS = ("random", "popular", "adversarial")


class Probe(NamedTuple):
    """A question whether an image shows an object. `number`: from 1, within its sampling."""

    sampling: str
    number: int
    image: str
    object: str
    shown: bool


def probes(objects: Mapping[str, Sequence[str]], num_images: int, per_image: int, seed: int) -> Iterator[Probe]:
    """For each sampling and each of `num_images` images, `per_image` objects that it shows and as many that it doesn't.

    `objects`: by image, each once. Images are drawn among those with at least `per_image` objects; the first objects of
    an image are asked for. In turn with each goes one that isn't there: a random one, the most frequent among the drawn
    images, or the one that is most often with the object just asked for; none twice an image. Everything is drawn from
    one seed in the order of the authors' program, so that `random.seed` gives theirs the same questions. Raises
    StageError where there aren't as many images or objects.
    """
    enough = [image for image, shown in objects.items() if len(shown) >= per_image]
    if len(enough) < num_images:
        raise StageError(f"{len(enough)} images show at least {per_image} objects; give pope.num_images={len(enough)}")
    random = Random(seed)
    drawn = {image: objects[image] for image in random.sample(enough, num_images)}
    ranked = _Ranked(drawn)
    for image, shown in drawn.items():
        if len(ranked.objects) - len(shown) < per_image:
            raise StageError(
                f"{image}: of {len(ranked.objects)} objects it lacks fewer than {per_image}; give more images"
            )
    for sampling in SAMPLINGS:
        number = 0
        for image, shown in drawn.items():
            used = set(shown)
            for there in shown[:per_image]:
                absent = ranked.absent(sampling, there, used, random)
                used.add(absent)
                yield Probe(sampling, number + 1, image, there, True)
                yield Probe(sampling, number + 2, image, absent, False)
                number += 2


class _Ranked:
    """The objects of the drawn images, how often each is there, and how often with each other."""

    def __init__(self, drawn: Mapping[str, Sequence[str]]) -> None:
        counts: Counter[str] = Counter()
        together: dict[str, Counter[str]] = {}
        for shown in drawn.values():
            counts.update(shown)
            for one in shown:
                together.setdefault(one, Counter()).update(other for other in shown if other != one)
        self.objects = list(counts)
        # Both keep the order of first appearance among equals.
        self._popular = [one for one, _ in counts.most_common()]
        self._together = {one: [other for other, _ in with_it.most_common()] for one, with_it in together.items()}

    def absent(self, sampling: str, there: str, used: set[str], random: Random) -> str:
        """The object to ask for beside `there`, none of `used`."""
        listed = {"random": [], "popular": self._popular, "adversarial": self._together[there]}[sampling]
        for one in listed:
            if one not in used:
                return one
        while (one := random.choice(self.objects)) in used:
            pass
        return one
