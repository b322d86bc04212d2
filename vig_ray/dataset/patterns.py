"""Names of files by patterns: braces list or count, `*`, `?` and `[...]` match, `**` matches folders at any depth."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs
from fsspec.utils import glob_translate

from vig_ray.storage import join, scheme_of

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARD = re.compile(r"[*?]|\[[^\]]+\]")


def has_braces(text: str) -> bool:
    """Whether braces stand for several names."""
    return _BRACES.search(text) is not None


def has_wildcards(text: str) -> bool:
    """Whether names are to be matched with what is there."""
    return _WILDCARD.search(text) is not None


def without_signs(text: str) -> str:
    """What is left of a pattern when its signs are taken out."""
    return _WILDCARD.sub("", _BRACES.sub("", text)).strip("-_.")


def expand(pattern: str) -> list[str]:
    """The names that braces stand for: `{000..012}` counts with leading zeros, `{a,b}` lists."""
    pieces = _BRACES.split(pattern)  # text, inside of braces, text, ...
    choices = [_choices(piece) if index % 2 else [piece] for index, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def fixed_folder(pattern: str) -> str:
    """The folder that all names of a pattern lie in, as far as it has no signs."""
    sign = min(match.start() for match in (_BRACES.search(pattern), _WILDCARD.search(pattern)) if match)
    return pattern[:sign].rpartition("/")[0]


def uri_below(folder: str, start: str, path: str) -> str:
    """The path or URI of what a listing names. `folder`: one that it lies in, as it is given. `start`, `path`: both as
    their filesystem has them, where a host or an account isn't part of them.
    """
    scheme = scheme_of(folder)
    if scheme in ("", "file"):
        return path
    start = start.rstrip("/") + "/"
    return join(folder, path.removeprefix(start)) if path.startswith(start) else f"{scheme}://{path}"


def matches(fs: pafs.FileSystem, path: str) -> list[Any]:
    """The infos of all files that match, sorted by their paths. `path`: of the filesystem, with wildcards.

    As Python's own `glob` with `recursive`: names that begin with a dot match only where the pattern has the dot.
    """
    first, *rest = path.split("/")
    found = {info.path: info for info in _matches(fs, first, rest)}
    return [found[name] for name in sorted(found)]


def _matches(fs: pafs.FileSystem, folder: str, parts: list[str]) -> Iterator[Any]:
    while parts and not has_wildcards(parts[0]):
        folder, parts = f"{folder}/{parts[0]}", parts[1:]
    if not parts:
        info = fs.get_file_info(folder)
        if info.is_file:
            yield info
        return
    selector = pafs.FileSelector(folder or "/", recursive="**" in parts[0], allow_not_found=True)
    if parts[0] == "**":
        # What follows is matched with whole paths, so that nothing is listed twice.
        pattern = "/".join(["**", *parts[1:]] if parts[1:] else ["**", "*"])
        matched = re.compile(glob_translate(pattern))
        for info in fs.get_file_info(selector):
            name = info.path[len(folder.rstrip("/")) + 1 :]
            if info.is_file and matched.match(name) and not _hidden(name, pattern):
                yield info
        return
    for info in fs.get_file_info(selector):
        name = info.path[len(folder.rstrip("/")) + 1 :]
        if not fnmatch.fnmatchcase(name, parts[0]) or _hidden(name, parts[0]):
            continue
        if len(parts) > 1 and info.type == pafs.FileType.Directory:
            yield from _matches(fs, info.path, parts[1:])
        elif len(parts) == 1 and info.is_file:
            yield info


def _hidden(name: str, pattern: str) -> bool:
    """Whether a name that matches has more parts that begin with a dot than the pattern asks for."""
    asked = sum(part.startswith(".") for part in pattern.split("/"))
    return sum(part.startswith(".") for part in name.split("/")) > asked


def _choices(inside: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = span.groups()
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
