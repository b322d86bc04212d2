"""What an answer says: yes or no, or the letter of an option. Several rules, since the benchmarks have several.

Each is as its source has it, and returns None where the source would find neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

YesNo = Literal["yes", "no"]


def exactly_yes_no(text: str) -> YesNo | None:
    """The answer is "yes" or "no" and nothing else, in any case; "Yes." is neither (lmms-eval's POPE)."""
    return _known(text.lower().strip())


def leading_yes_no(text: str) -> YesNo | None:
    """Yes or no within the first four characters, full stops aside; "y" and "n" count (MME, as lmms-eval reads it)."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": _known("yes"), "n": _known("no")}.get(text)
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else None


def contained_yes_no(text: str) -> YesNo | None:
    """Yes where "yes" occurs anywhere, even within a word; else no where "no" does (AMBER, as lmms-eval reads it)."""
    text = text.lower()
    return "yes" if "yes" in text else "no" if "no" in text else None


def first_sentence_yes_no(text: str) -> YesNo:
    """No where "No", "no" or "not" is a word of what comes before the first full stop; else yes (POPE's authors).

    Words are what single spaces separate, once commas are gone. Every answer is one of the two.
    """
    words = text.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def _known(text: str) -> YesNo | None:
    return "yes" if text == "yes" else "no" if text == "no" else None


def first_letter(text: str, letters: Iterable[str] = "ABCD") -> str | None:
    """The first character where it is one of these letters, in any case (SEED-Bench, as lmms-eval reads it)."""
    first = text.strip()[:1].upper()
    return first if first and first in set(letters) else None


# What comes before a letter in a sentence that tells the answer; lmms-eval 0.7.3 knows these.
_THE = ("answer is", "correct answer is", "best answer is", "correct option is", "best option is", "choice is")
_TOLD = (
    *(article + words for words in (*_THE, "correct choice is") for article in ("the ", "")),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def option_letter(text: str, letters: Sequence[str] = "ABCDEFGH") -> str | None:
    """The option that an answer names, by where and how its letter stands (MMStar, as lmms-eval 0.7.3 reads it).

    The surest place counts: alone at the start, else alone at the end, else after words such as "the answer is", else
    as (A), A., A:, A) or A and a space, else anywhere; of several in such places the last. Only capital letters count.
    """
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    inner, text = text.strip(), f" {text} "
    if not inner:
        return None
    found: list[tuple[int, int, str]] = []
    for letter in letters:
        alone = len(inner) == 1
        if inner.startswith(letter) and (alone or not inner[1].isalpha()):
            found.append((10, 0, letter))
        if inner.endswith(letter) and (alone or not inner[-2].isalpha()):
            found.append((9, len(text) - 1, letter))
        forms = ((6, f"({letter})"), (5, f"{letter}."), (4, f"{letter}:"), (3, f"{letter})"), (2, f"{letter} "))
        found += [(rank, text.rfind(form), letter) for rank, form in forms if form in text]
    found += _after_words(text, letters)
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in letters if letter in text]
    return max(found, key=lambda each: each[:2])[2] if found else None


def _after_words(text: str, letters: Sequence[str]) -> list[tuple[int, int, str]]:
    """For each phrase's first place, where each letter next stands after it, as (rank, place, letter)."""
    lower = text.lower()
    starts = [lower.find(words) + len(words) for words in _TOLD if words in lower]
    return [(7, place, letter) for start in starts for letter in letters if (place := text.find(letter, start)) >= 0]


def lettered(options: Sequence[str], letters: Sequence[str] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str:
    """One option a line, as "A. text"."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=False))
