"""Images by their rows' paths, in archives that were scanned: looked up by every process that imports.

A row's path is looked up as it is; then as unpacking each archive where it lies would have it, `coco/1.jpg` for `1.jpg`
in `coco/train.zip`; then as unpacking it into a folder called after it, with or without the one folder that all images
in it lie in: `train/1.jpg` for `1.jpg` or `train2017/1.jpg` in `train.zip`. What fits several members is refused.

Where archives were found by the data, each dataset has its own, and of these the ones below a data file's folder are
asked first, in all these ways, from that folder.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vig_ray.dataset.archived import Archived, Way
from vig_ray.dataset.fields import shorten
from vig_ray.dataset.member_index import Found, open_index
from vig_ray.dataset.members import Place, archive_suffix
from vig_ray.dataset.schema import RowError
from vig_ray.storage import join, read_bytes

_TOLD = 1000  # rows that are told one, in a process; it takes a millisecond
_VIEWS_KEPT = 64
ALL = -1
"""In the place of the number of a dataset, where archives are of all."""
_REFUSED = {
    Place.ENCRYPTED: "is encrypted; decrypt the archive",
    Place.OTHER_METHOD: "is compressed by another method than deflate; pack the archive again, or unpack it",
    Place.LINK: "is a link; unpack the archive",
    Place.SPARSE: "is stored as a sparse file; unpack the archive",
    Place.TOO_LARGE: "is larger than any image may be",
}


class _Spelling(NamedTuple):
    """Archives whose members may be meant by a path that begins with some folder: the rest of it below `top`."""

    top: str
    archives: frozenset[int]


class _View(NamedTuple):
    """Some of the archives, and the ways to look paths up in them, one after the other."""

    archives: list[int]
    ways: list[dict[str, list[_Spelling]]]


class _Names:
    """What `index_archives` has written, open."""

    def __init__(self, folder: str) -> None:
        about = json.loads(read_bytes(join(folder, "archives.json")))
        self.index = open_index(folder)
        self.archives: list[dict[str, Any]] = about["archives"]
        self.files = [(uri, number) for number, each in enumerate(self.archives) for uri in each["files"]]
        self._names: dict[str, list[str]] = about["names"]
        self.told = 0
        self._views: dict[tuple[int, str | None], list[_View]] = {}

    def names(self, dataset: int) -> list[str]:
        """Some names of the members that rows of a dataset may mean."""
        return self._names.get(str(dataset), []) + self._names.get(str(ALL), [])

    def views(self, dataset: int, own: str | None) -> list[_View]:
        """Of a dataset's archives those below a folder of its files, if that is given, and then all."""
        found = self._views.get((dataset, own))
        if found is None:
            if len(self._views) >= _VIEWS_KEPT:
                self._views = {}
            found = self._views[dataset, own] = list(self._made(dataset, own))
        return found

    def _made(self, dataset: int, own: str | None) -> Iterator[_View]:
        of_it = {
            number: str(each["folder"])
            for number, each in enumerate(self.archives)
            if not each["datasets"] or dataset in each["datasets"]
        }
        start = None if own is None else own.rstrip("/") + "/"
        if start is not None:
            folders = {number: self.archives[number]["uri"].rpartition("/")[0] + "/" for number in of_it}
            below = {number: each[len(start) : -1] for number, each in folders.items() if each.startswith(start)}
            if below and below != of_it:
                yield self._view(below)
        yield self._view(of_it)

    def _view(self, folders: Mapping[int, str]) -> _View:
        """`folders`: of each archive the folder that it lies in."""
        where: dict[tuple[str, str], set[int]] = defaultdict(set)
        after: dict[tuple[str, str], set[int]] = defaultdict(set)
        for number, lies_in in folders.items():
            each = self.archives[number]
            top = each["top"]
            stem = _stem(each["uri"])
            where[lies_in, ""].add(number)
            for start in {stem, f"{lies_in}/{stem}".lstrip("/")}:
                after[start, ""].add(number)
            if top:
                for start in {"", lies_in, stem, f"{lies_in}/{stem}".lstrip("/")}:
                    after[start, top].add(number)
        return _View(list(folders), [_by_start({("", ""): set(folders)}), _by_start(where), _by_start(after)])


def _by_start(found: dict[tuple[str, str], set[int]]) -> dict[str, list[_Spelling]]:
    by_start: dict[str, list[_Spelling]] = defaultdict(list)
    for (start, top), numbers in found.items():
        by_start[start].append(_Spelling(top, frozenset(numbers)))
    return dict(by_start)


def _stem(uri: str) -> str:
    name = uri.rpartition("/")[2]
    return name[: len(name) - len(archive_suffix(name))]


@functools.lru_cache(maxsize=2)
def _names(folder: str) -> _Names:
    return _Names(folder)


@dataclass(frozen=True)
class ImageArchives:
    """The images in an import's archives; workers of a cluster get it pickled. `folder`: of `index_archives`.

    `dataset`: whose archives they are. `own`: the folder whose archives are asked before all others.
    """

    folder: str
    dataset: int = 0
    own: str | None = None

    def among(self, dataset: int, own: str | None) -> ImageArchives:
        """Those that rows of a dataset may mean. `own`: its data file's folder; None where paths start elsewhere."""
        return ImageArchives(self.folder, dataset, own)

    def find(self, path: str) -> str | None:
        """The URI of the image that a row's relative path, normalised, means; None where no archive has it.

        Raises RowError where it may mean several, or one that can't be read where it lies.
        """
        names = _names(self.folder)
        for by_start in (way for view in names.views(self.dataset, self.own) for way in view.ways):
            found = _matching(names, by_start, path)
            if len(found) > 1:
                told = " and ".join(f"{name} in {names.archives[number]['uri']}" for number, name in list(found)[:2])
                raise RowError(
                    "AmbiguousImage",
                    f"{shorten(path)} may mean {told}; import them separately, each with its own --images",
                )
            for (number, name), member in found.items():
                if member.place in _REFUSED:
                    uri = names.archives[number]["uri"]
                    raise RowError("ArchiveMember", f"{shorten(name)} in {uri} {_REFUSED[Place(member.place)]}")
                way: Way = "zip" if member.place == Place.ZIP else "bytes"
                return Archived(names.files[member.archive][0], way, member.offset, member.size, name).uri
        return None

    def missing(self, path: str) -> RowError:
        """Why a row whose image no archive has can't be imported."""
        names = _names(self.folder)
        archives = [names.archives[number]["uri"] for number in names.views(self.dataset, self.own)[-1].archives]
        where = archives[0] if len(archives) == 1 else f"the {len(archives):,} archives {archives[0]} ..."
        names.told += 1
        like = _nearest(path, names.names(self.dataset)) if names.told <= _TOLD else None
        return RowError(
            "NotInArchive", f"no {shorten(path)} in {where}" + (f"; nearest: {shorten(like)}" if like else "")
        )


def _matching(names: _Names, by_start: dict[str, list[_Spelling]], path: str) -> dict[tuple[int, str], Found]:
    """The members that a path may mean, by the number of their archive and their name; of several of one name in an
    archive its last, which is what unpacking leaves."""
    matching: dict[tuple[int, str], Found] = {}
    for start, rest in _divided(path):
        for top, archives in by_start.get(start, ()):
            name = f"{top}/{rest}" if top else rest
            for member in names.index.find(name):
                number = names.files[member.archive][1]
                before = matching.get((number, name))
                if number in archives and (before is None or _later(member) > _later(before)):
                    matching[number, name] = member
    return matching


def _later(member: Found) -> tuple[int, int]:
    return member.archive, member.offset


def _divided(path: str) -> Iterator[tuple[str, str]]:
    """A path as the folder that it begins with and the rest, in every way."""
    yield "", path
    at = path.find("/")
    while at >= 0:
        yield path[:at], path[at + 1 :]
        at = path.find("/", at + 1)


def _nearest(path: str, names: Sequence[str]) -> str | None:
    """The name that has most characters at its end and beginning in common with a path."""

    def alike(one: Iterable[str], other: Iterable[str]) -> int:
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

    return max(names, key=lambda name: alike(name, path) + alike(name[::-1], path[::-1]), default=None)
