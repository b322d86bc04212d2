"""Texts compared as people would: whether an answer is the one expected, and whether it says it."""

from __future__ import annotations

import re
import unicodedata

_AROUND = " \t\n.,;:!?\"'`()[]{}"


def normalised(text: str) -> str:
    """Without case, with single spaces, and without quotes, brackets and punctuation around it; NFKC."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)


def same(answer: str, expected: str) -> bool:
    """Whether two texts are the same, so compared."""
    return normalised(answer) == normalised(expected)


def says(answer: str, expected: str) -> bool:
    """Whether the expected text stands in an answer as whole words; nothing says an empty text."""
    wanted = normalised(expected)
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalised(answer)) is not None
