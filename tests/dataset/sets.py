"""What the rows of public sets are told in, each with the sample that it is, worked out by hand; `cards/` has the sets'
own columns.

A card is the head of the set's README on the hub, as far as it says which columns there are (`dataset_info`): the
`datasets` library makes the Arrow types of it and writes the files.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from vig_ray.dataset.schema import Image

Told = list[tuple[str, str]]


def picture(red: int) -> bytes:
    """A PNG of one pixel."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (1, 1), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


ONE, TWO = picture(1), picture(2)
URL, SHA = "https://images.example.org/1.jpg", hashlib.sha256(ONE).hexdigest()


def kept(data: bytes) -> dict[str, Any]:
    """An image as `datasets.Image` keeps it."""
    return {"bytes": data, "path": None}


@dataclass(frozen=True)
class Expected:
    """What a row comes to; `error` is a pattern, and nothing else counts then."""

    conversation: Sequence[tuple[str, str]] = ()
    images: tuple[Image, ...] = ()
    id: str | None = None
    source: str | None = None
    marked: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Set:
    """Some rows of a set: as Parquet where it has a card, else as JSON."""

    card: str | None
    rows: list[tuple[dict[str, Any], Expected]]
    lines: bool = False  # JSON Lines


def asked(*told: str) -> Told:
    """User and assistant in turn."""
    return [("assistant" if index % 2 else "user", text) for index, text in enumerate(told)]


def embedded(*data: bytes) -> tuple[Image, ...]:
    return tuple(Image(bytes=each) for each in data)


def links(checksum: str | None = None) -> tuple[Image, ...]:
    return (Image(uri=URL, sha256=checksum),)


def from_value(*told: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if index % 2 else "human", "value": text} for index, text in enumerate(told)]
