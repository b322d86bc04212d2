"""What lies where a stage's options point to on this machine: from where relative paths start, and what tells files
from others in their place."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from vig_ray.model.checkpoint import fingerprint

WEIGHT = re.compile(r"=[\d.]+$")
"""--data PATH=WEIGHT"""
_DIGITS = 10


@contextlib.contextmanager
def paths_from(folder: str) -> Iterator[str | None]:
    """Let relative paths start from a folder, meanwhile. Where it isn't on this machine they start from an empty one,
    whose name is given, so that none of them leads to anything else."""
    if os.path.isdir(folder):
        with contextlib.chdir(folder):
            yield None
        return
    with tempfile.TemporaryDirectory(prefix="vig-nowhere-") as empty, contextlib.chdir(empty):
        yield os.getcwd()


def strings_in(value: Any) -> Iterator[str]:
    """The strings in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings_in(each)


def state(value: Any, runs: str, known: dict[str, str], prefix: str) -> list[str]:
    """What tells the files that an option names from others in their place: a model by its weights, a file by its size
    and when it was changed, a folder or a pattern by those of all in it. Outputs of other stages are told apart by
    name, and so is what lies elsewhere. `known`: what has been looked at; `prefix`: of a model, before its path."""
    found = []
    for each in strings_in(value):
        path = WEIGHT.sub("", each.removeprefix(prefix))
        if path.startswith("/") and not path.startswith(runs):
            if path not in known:
                known[path] = _state_of(path)
            found += [known[path]] if known[path] else []
    return found


def _state_of(path: str) -> str:
    if os.path.isfile(os.path.join(path, "config.json")):
        return fingerprint(path)
    digest, empty = hashlib.blake2b(digest_size=_DIGITS), True
    inside = glob.glob(path, recursive=True) if any(sign in path for sign in "*?[") else [path]
    for top in sorted(inside):
        for file in sorted(_files(top)):
            digest.update(f"{file} {_stamp(file)}".encode())
            empty = False
    return "" if empty else digest.hexdigest()


def _files(top: str) -> Iterator[str]:
    """A file, or all in a folder."""
    if os.path.isfile(top):
        yield top
    for folder, _, names in os.walk(top):
        yield from (os.path.join(folder, name) for name in names)


def _stamp(path: str) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns
