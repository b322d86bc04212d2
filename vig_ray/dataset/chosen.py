"""Which configs and splits of a dataset are taken: those that are named, else all configs and their `train`."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from vig_ray.errors import StageError

_SHOWN = 20


@dataclass(frozen=True)
class Chosen:
    """Files of a folder by their names in it: those with rows, and archives with images; and what is left, in words."""

    files: list[str]
    archives: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def pick(names: Collection[str], asked: str, what: str, where: str) -> list[str]:
    """The names that are asked for: one, several with commas, or patterns such as `*` and `ocr_*`; in their own order.

    `what`: config or split. Raises StageError, which lists what there is, where one isn't there.
    """
    patterns = [part.strip() for part in asked.split(",") if part.strip()]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise StageError(f"{where}: has no {what} {pattern!r}; it has {listed(names)}")
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def choose_split(splits: Sequence[str], where: str) -> str:
    """The split that is taken where none is named: the only one, or `train`. Raises StageError where there is none."""
    if len(splits) == 1:
        return splits[0]
    if "train" in splits:
        return "train"
    raise StageError(f"{where}: has the splits {listed(splits)}; name one, several with commas, or * for all")


def listed(names: Collection[str]) -> str:
    """Names for a message, the first few where there are many."""
    shown = list(names)[:_SHOWN]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
