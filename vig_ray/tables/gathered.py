"""Many small parts merged into one large whole, in time that goes by what there is, not by parts times the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Part = TypeVar("Part")


class Gathered(Generic[Part]):
    """Parts that are merged whenever those that wait are together as large as the whole: each entry is then merged a
    few times, however many parts come, and memory is at most about twice the whole's.

    `merge`: of parts, one; of none, an empty one. `size`: the entries of a part.
    """

    def __init__(self, merge: Callable[[Sequence[Part]], Part], size: Callable[[Part], int]) -> None:
        self._merge, self._size = merge, size
        self._whole = merge(())
        self._waiting: list[Part] = []
        self._entries = 0

    def add(self, part: Part) -> None:
        """One more part."""
        self._waiting.append(part)
        self._entries += self._size(part)
        if self._entries > self._size(self._whole):
            self.whole()

    def whole(self) -> Part:
        """All parts so far, merged."""
        if self._waiting:
            self._whole = self._merge([self._whole, *self._waiting])
            self._waiting, self._entries = [], 0
        return self._whole
