"""Where an answer ends, by what a chat template writes after it and where the model stops to speak."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Any

from vig_ray.errors import StageError


def any_of(texts: Collection[str]) -> str:
    """A pattern of any of these texts, the longest that fits; of nothing where there are none."""
    return "|".join(sorted(map(re.escape, texts), key=len, reverse=True)) or "(?!)"


class EndOfTurn:
    """How much of what follows an answer belongs to it.

    `followed`: what the template writes after an answer up to the next question's text, and after the last one; only
    the latter where it takes no second question. `stops`: the tokens at which the model stops to speak. `asked`: what
    belongs to each answer where the template has it, None for what it puts there up to the first of the `stops`, or,
    where it has none of them, up to where the next turn begins. Raises StageError where no answer is followed by it.
    """

    def __init__(self, followed: Sequence[str], tokenizer: Any, *, stops: Sequence[str], asked: str | None) -> None:
        self.followed = list(followed)
        self.asked, self.stops = asked, list(dict.fromkeys(stops))
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._special = {str(token) for token in added if token.special}.union(tokenizer.all_special_tokens, self.stops)
        self._specials = re.compile(rf"(?:\s*(?:{any_of(self._special)}))+")
        self._stop = re.compile(any_of(self.stops))
        self._before_next = self._written_before_next(self._special.union(map(str, added)))
        if asked and not any(after.startswith(asked) for after in self.followed):
            written = " or ".join(dict.fromkeys(map(repr, self.followed))) or "nothing"
            raise StageError(f"--end-of-turn {asked!r}: the chat template writes {written} after an answer")

    def _written_before_next(self, tokens: Collection[str]) -> str:
        """What the template ends a turn with, whoever comes next: the tokens, or else characters, that all begin with.

        Two tokens such as <|user|> and <|endoftext|> have nothing in common, though their spellings do.
        """
        unit = re.compile(rf"{any_of(tokens)}|.", re.DOTALL)
        split = [unit.findall(after) for after in self.followed]
        alike = takewhile(lambda units: len(set(units)) == 1, zip(*split, strict=False))
        return "".join(units[0] for units in alike)

    def length(self, after: str) -> int:
        """How many characters of what follows an answer belong to it."""
        if self.asked is not None:
            return len(self.asked) if after.startswith(self.asked) else 0
        specials = self._specials.match(after)
        stop = self._stop.search(after, 0, specials.end()) if specials else None
        if stop is not None:
            return stop.end()
        return len(self._before_next) if after.startswith(self._before_next) else 0

    def of(self, number: int, answers: int) -> str:
        """What belongs to an answer of so many."""
        after = self.followed[-1 if number + 1 == answers else 0] if self.followed else ""
        return after[: self.length(after)]

    def told(self) -> str:
        """What is trained after an answer, for a person."""
        ends = [after[: self.length(after)] for after in self.followed] or [""]
        if len(set(ends)) == 1:
            return f"{ends[0]!r} is trained after each answer" if ends[0] else "nothing is trained after an answer"
        inner, last = (repr(end) if end else "nothing" for end in ends)
        return f"{inner} is trained after an answer, {last} after the last"

    def token_ids(self) -> tuple[int, ...]:
        """The tokens at which an answer that is written is at its end: those at which the model stops, and the last
        special one that belongs to an answer. Words that a template ends a turn with are none."""
        ends = [re.findall(any_of(self._special), after[: self.length(after)]) for after in self.followed]
        texts = dict.fromkeys([*self.stops, *(found[-1] for found in ends if found)])
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return tuple(dict.fromkeys(each[0] for each in ids if len(each) == 1))
