"""`--keep`: what of a row goes along with its sample through all stages, as JSON text by its name.

A name is one of the row's own keys, a path into objects (`meta.score`), or a pattern of either (`*_min`). A key that is
there as it is written comes first, so that keys with dots and stars can be named.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa

from vig_ray.dataset.fields import shorten
from vig_ray.errors import StageError

MOST = 100
"""The most columns that are kept, so that a pattern over keys that are data doesn't grow without bounds."""

_LISTED = 40  # columns that a message shows
_LARGEST_EXPONENT = 307  # of whole numbers that any reader can make a float64 of


@dataclass(frozen=True)
class Keep:
    """The names and patterns that the user gave; without any, nothing is kept."""

    patterns: tuple[str, ...] = ()

    def columns(self, names: Iterable[str]) -> list[str]:
        """Those of a table's columns that something is kept of."""
        return [
            name
            for name in names
            if any(name == one or fnmatchcase(name, one) or fnmatchcase(name, one.partition(".")[0])
                   for one in self.patterns)
        ]  # fmt: skip

    def of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The kept values of a row that aren't null, as JSON text by their names.

        Raises StageError for bytes, which are no JSON.
        """
        kept = {}
        for pattern in self.patterns:
            for name, value in _values(row, pattern):
                try:
                    text = json_text(value)
                except TypeError as error:
                    raise StageError(f"--keep {name}: {error}; numbers, text, and lists of them can be kept") from error
                if text is not None:
                    kept[name] = text
        return kept

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """The patterns that no key of the row fits."""
        return [pattern for pattern in self.patterns if next(_values(row, pattern), None) is None]


NOTHING = Keep()


@dataclass
class KeptCounts:
    """In how many rows each kept column has a value; `seen`: keys of the first rows, for messages."""

    rows: Counter[str] = field(default_factory=Counter)
    seen: dict[str, None] = field(default_factory=dict)

    def add(self, kept: Mapping[str, str], row: Mapping[str, Any]) -> None:
        """Count a row. Raises StageError for too many columns."""
        self.rows.update(kept.keys())
        if len(self.seen) < _LISTED:
            self.seen |= dict.fromkeys(row)
        self._check_most()

    def merge(self, other: KeptCounts) -> None:
        """Add the counts of other rows. Raises StageError for too many columns."""
        self.rows += other.rows
        self.seen |= other.seen
        self._check_most()

    def _check_most(self) -> None:
        if len(self.rows) > MOST:
            raise StageError(f"--keep: more than {MOST} columns, such as {', '.join(list(self.rows)[:5])}; name them")

    def check(self, keep: Keep, read: int) -> None:
        """Raise StageError for a name that none of the `read` rows had a value for."""
        for pattern in keep.patterns:
            if not any(name == pattern or fnmatchcase(name, pattern) for name in self.rows):
                raise not_there(pattern, f"in 0 of {read:,} rows", self.seen)


def not_there(pattern: str, where: str, names: Iterable[str]) -> StageError:
    """What is said of a name that isn't there. `names`: those that are."""
    shown = list(names)
    more = ", ..." if len(shown) > _LISTED else ""
    listed = ", ".join(shorten(str(name), 40)[1:-1] for name in shown[:_LISTED])
    return StageError(f"--keep {pattern}: {where}; the columns are {listed}{more}")


def skeleton(schema: Iterable[pa.Field]) -> dict[str, Any]:
    """The names of a table's columns as a row would have them: objects hold the names inside."""
    return {each.name: skeleton(each.type) if pa.types.is_struct(each.type) else None for each in schema}


def json_text(value: Any) -> str | None:
    """A value as JSON text in UTF-8; None for null, which NaN counts as. Raises TypeError for bytes."""
    plain = _plain(value)
    if plain is None:
        return None
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return json.dumps(plain, allow_nan=False)
    return text


def _values(row: Mapping[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    """The names and values that a pattern names in a row."""
    if pattern in row:
        yield pattern, row[pattern]
        return
    head, dot, rest = pattern.partition(".")
    names = tuple(row)
    for name in _fitting(pattern, names):
        yield name, row[name]
    for name in _fitting(head, names) if dot else ():
        if isinstance(row[name], Mapping):
            for inner, value in _values(row[name], rest):
                yield f"{name}.{inner}", value


@functools.lru_cache(maxsize=1024)  # rows of a dataset mostly have the same keys
def _fitting(pattern: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name == pattern or fnmatchcase(name, pattern))


def _plain(value: Any) -> Any:
    """A value of Parquet's or JSON's as one that JSON has; what has no number in float64 becomes a text."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 10**_LARGEST_EXPONENT else str(value)
    if isinstance(value, Decimal):
        if not value.is_finite() or value.adjusted() >= _LARGEST_EXPONENT:
            return None if value.is_nan() else str(value)
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        raise TypeError("it holds bytes")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)  # dates, times and the like
