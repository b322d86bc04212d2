"""What a repository on the hub will hold, before anything of it is made or sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["dataset", "model"]
CARD = "README.md"
FACTS = "vig-ray.json"
"""Tells that `vig push` wrote a repository, which files, and from what."""


@dataclass(frozen=True)
class Part:
    """A file. `name`: its path in the repository. `size`: in words. `at`: puts it on this machine, at the path given
    or elsewhere, and returns where it is."""

    name: str
    size: str
    at: Callable[[str], str]


@dataclass(frozen=True)
class Repository:
    """A repository's files. `card`: its README.md. `facts`: its vig-ray.json. `small`: further files, by name."""

    kind: Kind
    card: str
    facts: dict[str, Any]
    parts: tuple[Part, ...]
    small: dict[str, bytes]

    @property
    def names(self) -> list[str]:
        """The names of all files but the card, sorted."""
        return sorted([FACTS, *self.small, *(part.name for part in self.parts)])

    def text(self) -> str:
        """All files, for a person."""
        sizes = {CARD: size_of(len(self.card.encode())), FACTS: "what made them"}
        sizes |= {name: size_of(len(content)) for name, content in self.small.items()}
        sizes |= {part.name: part.size for part in self.parts}
        width = max(map(len, sizes))
        return "\n".join(f"  {name:<{width}}  {size}" for name, size in sorted(sizes.items()))


def size_of(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
