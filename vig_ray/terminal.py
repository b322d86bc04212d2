"""What a terminal can show: which characters, and whether what is there can be drawn over."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterable
from typing import TextIO

_PLAIN = {
    "–": "-", "—": "-", "−": "-", "…": "...", "↑": "(more is better)", "↓": "(less is better)", "×": "x", "α": "alpha",
    "≤": "<=", "≥": ">=", "±": "+-",
}  # fmt: skip
_HANDLER = "vig_ray.plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(_HANDLER, _plain)


def printable(text: str, encoding: str) -> str:
    """A text without what an encoding lacks: Windows-1252 has no arrows."""
    return text.encode(encoding, _HANDLER).decode(encoding)


def make_printable(streams: Iterable[TextIO]) -> None:
    """Let streams print any text, whatever their encoding, instead of ending the program."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_HANDLER)


def can_redraw(stream: TextIO) -> bool:
    """Whether it is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
