"""Texts compared as people would: whether an answer is the one expected, and whether it says it.

A number is said as a whole alone: "1.5", "5,000" and "-5" don't say 5. A hyphen between two words, as in "3-5", is no
sign.
"""

from __future__ import annotations

import re
import unicodedata

from vig_ray.dataset.fields import shorten
from vig_ray.evaluation.files import Record

_AROUND = " \t\n.,;:!?\"'`()[]{}"
_NUMBER = re.compile(r"[.]?\d")  # what a text with a number in front begins with
# What may not stand before a number: a digit with a point or comma, a point of its own, a sign.
_BEFORE_NUMBER = r"(?<!\d[.,])(?<!(?<![\w.])\.)(?<!(?<!\w)[-\u2212\u2013])"
_AFTER_NUMBER = r"(?![.,]\d)"


def normalised(text: str) -> str:
    """Without case, with single spaces, and without quotes, brackets and punctuation around it; NFKC."""
    single = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    bare = single.strip(_AROUND)
    front = single[: len(single) - len(single.lstrip(_AROUND))]
    if bare[:1].isdigit() and front.endswith(".") and not front.endswith(".."):
        return f".{bare}"  # ".5" isn't 5
    return bare


def checked_answer(record: Record, key: str, text: str) -> str:
    """A text under a key with which answers are compared. Raises StageError, which names the record, where nothing is
    left of it: it would be the same as any punctuation, and any answer would begin with it."""
    if not normalised(text):
        raise record.fault(f"'{key}' is {shorten(text)}, of which nothing is left without punctuation")
    return text


def same(answer: str, expected: str) -> bool:
    """Whether two texts are the same, so compared."""
    return normalised(answer) == normalised(expected)


def says(answer: str, expected: str) -> bool:
    """Whether the expected text stands in an answer as whole words and numbers; nothing says an empty text."""
    wanted = normalised(expected)
    return bool(wanted) and re.search(_whole(wanted), normalised(answer)) is not None


def begins(answer: str, expected: str) -> bool:
    """Whether an answer is the expected text, or begins with it as whole words and numbers: "B. a cat" does with "B".

    Nothing begins with an empty text.
    """
    wanted = normalised(expected)
    return bool(wanted) and re.match(_whole(wanted), normalised(answer)) is not None


def _whole(wanted: str) -> str:
    """The pattern of a text that is no part of a longer word or number."""
    before = _BEFORE_NUMBER if _NUMBER.match(wanted) else ""
    after = _AFTER_NUMBER if wanted[-1].isdigit() else ""
    return rf"(?<!\w){before}{re.escape(wanted)}(?!\w){after}"
