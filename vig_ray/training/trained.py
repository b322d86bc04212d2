"""What `--train` names: parts of the model, and of its tower all layers or a range of them."""

from __future__ import annotations

import re
from collections.abc import Collection

PARTS = ("projector", "language", "tower")
_RANGE = re.compile(r"tower:(\d+)\.\.(\d+)")


def in_order(train: tuple[str, ...]) -> tuple[str, ...]:
    """The same parts, each once, in the order of `PARTS`. Raises ValueError for what is none, and for two ranges."""
    for entry in train:
        found = _RANGE.fullmatch(entry)
        if entry not in PARTS and not (found and int(found[1]) < int(found[2])):
            raise ValueError(
                f"{entry!r}: takes projector, language, tower, or of the tower the layers from A up to B, which isn't "
                "among them, as tower:A..B"
            )
    ordered = tuple(entry for part in PARTS for entry in dict.fromkeys(train) if part_of(entry) == part)
    if len(ordered) > len({part_of(entry) for entry in ordered}):
        raise ValueError("names the tower twice")
    return ordered


def part_of(entry: str) -> str:
    """The part that an entry of `--train` is of."""
    return entry.partition(":")[0]


def trained_parts(train: Collection[str]) -> tuple[str, ...]:
    """The parts of which anything is trained."""
    return tuple(part_of(entry) for entry in train)


def tower_layers(train: Collection[str]) -> range | None:
    """The layers of the tower that are trained, None where it isn't a range of them."""
    found = next((match for match in map(_RANGE.fullmatch, train) if match), None)
    return range(int(found[1]), int(found[2])) if found else None
