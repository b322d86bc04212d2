"""Kept columns as arrays: the JSON texts of one column of many rows, and the numbers and texts that they are.

What JSON text is, its first character says; so no row is parsed in Python. A list of numbers counts as its mean, true
and false as 1 and 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError

KINDS = ("number", "list", "boolean", "text", "other", "empty")
"""What a value may be: a number, a list of numbers, true or false, a text, an object or another list, or a list in
which there is no number."""

_NUMBER = r"-?[0-9][0-9.eE+-]*"
_NUMBERS = rf"^\[(?:{_NUMBER}|null)(?:, (?:{_NUMBER}|null))*\]$"


def kept_values(cell: Iterable[Mapping[str, str]] | None) -> dict[str, Any]:
    """The values of one row by their names; none for null."""
    return {pair["name"]: json.loads(pair["value"]) for pair in cell or ()}


def kept_text(cell: Iterable[Mapping[str, str]] | None) -> str:
    """The values of one row for a person, on one line: texts without quotes, numbers of six digits."""
    return " · ".join(f"{name} {' '.join(_shown(value).split())}" for name, value in kept_values(cell).items())


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def columns_named(record: Mapping[str, Any], patterns: Sequence[str], scores: str, option: str) -> list[str]:
    """The kept columns of scores that fit these names or patterns, in their order; without any, all of them.

    `record`: the scores'. Those that most rows have come first where all are asked for. Raises StageError for a name
    that isn't there.
    """
    there: Mapping[str, int] = record.get("kept", {})
    if not patterns:
        return sorted(there, key=lambda name: (-there[name], name))
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in there if name == pattern or fnmatchcase(name, pattern)]
        if not fitting:
            have = f"they have {', '.join(there)}" if there else "they have none"
            raise StageError(f"{option} {pattern}: no kept column of {scores}; {have} (vig import --keep names them)")
        found += fitting
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Pairs:
    """The pairs of a block of N rows, one after the other.

    `row`: the row of each. `code`: the number of its name in `names`. `values`: their JSON texts.
    """

    rows: int
    row: npt.NDArray[np.int64]
    names: list[str]
    code: npt.NDArray[np.int32]
    values: pa.StringArray

    @classmethod
    def of(cls, kept: pa.ChunkedArray | pa.Array) -> Pairs:
        """From the column `kept`."""
        lists = kept.combine_chunks() if isinstance(kept, pa.ChunkedArray) else kept
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        pairs = lists.flatten()
        names = pairs.field("name").dictionary_encode()
        return cls(
            len(lists),
            np.repeat(np.arange(len(lists)), lengths),
            names.dictionary.to_pylist(),
            names.indices.to_numpy(zero_copy_only=False),
            pairs.field("value"),
        )

    def texts(self, name: str) -> pa.StringArray:
        """The JSON text of a column in each row; null in rows that have none."""
        place = np.full(self.rows, -1)
        if name in self.names:
            at = np.flatnonzero(self.code == self.names.index(name))
            place[self.row[at]] = at
        return self.values.take(pa.array(place, mask=place < 0))


def texts_of(kept: pa.ChunkedArray | pa.Array, name: str) -> pa.StringArray:
    """The JSON text of one column in each row; null in rows that have none."""
    return Pairs.of(kept).texts(name)


@dataclass(frozen=True)
class Values:
    """The values of a column in N rows.

    `numbers` float64 [N]: NaN where there is none. `texts`: JSON text of what isn't a number, null elsewhere. `kind`
    int64 [N]: its place in KINDS, -1 where the row has no value.
    """

    numbers: npt.NDArray[np.float64]
    texts: pa.Array
    kind: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: pa.StringArray) -> Values:
        """From JSON texts, null where there is none."""
        encoded = texts.dictionary_encode()  # most columns have few different values, and these alone are looked at
        missing = len(encoded.dictionary)
        each = _parsed(pa.concat_arrays([encoded.dictionary, pa.nulls(1, pa.string())]))
        return each.take(pc.fill_null(encoded.indices, missing).to_numpy(zero_copy_only=False).astype(np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Values]) -> Values:
        """The values of several blocks of rows, one after the other."""
        texts = pa.chunked_array([part.texts for part in parts], pa.string()).combine_chunks()
        numbers, kind = (np.concatenate([getattr(part, name) for part in parts]) for name in ("numbers", "kind"))
        return cls(numbers, texts, kind)

    def take(self, rows: npt.NDArray[np.int64]) -> Values:
        """The values of these rows."""
        return Values(self.numbers[rows], self.texts.take(pa.array(rows)), self.kind[rows])

    def counts(self) -> npt.NDArray[np.int64]:
        """How many values there are of each kind, int64 [KINDS]."""
        return np.bincount(self.kind[self.kind >= 0], minlength=len(KINDS))


def _parsed(texts: pa.StringArray) -> Values:
    """The values of JSON texts, each looked at."""
    count = len(texts)
    first = pc.utf8_slice_codeunits(texts, 0, 1)
    numbers, kind = np.full(count, np.nan), np.full(count, -1)
    places = {name: number for number, name in enumerate(KINDS)}

    def begins(characters: str) -> npt.NDArray[np.int64]:
        found = pc.is_in(first, value_set=pa.array(list(characters)))
        return np.flatnonzero(pc.fill_null(found, False).to_numpy(zero_copy_only=False))

    plain = begins("-0123456789")
    numbers[plain], kind[plain] = _cast(texts.take(pa.array(plain))), places["number"]
    true = begins("t")
    truth = np.concatenate([true, begins("f")])
    numbers[truth], kind[truth] = np.arange(len(truth)) < len(true), places["boolean"]
    kind[begins('"')], kind[begins("[{")] = places["text"], places["other"]
    lists = begins("[")
    written = texts.take(pa.array(lists))
    flat = pc.match_substring_regex(written, _NUMBERS).to_numpy(zero_copy_only=False)
    empty = pc.equal(written, "[]").to_numpy(zero_copy_only=False)
    means = _means(written.filter(pa.array(flat)))
    numbers[lists[flat]] = means
    kind[lists[flat]] = np.where(np.isnan(means), places["empty"], places["list"])
    kind[lists[empty]] = places["empty"]
    is_text = (kind == places["text"]) | (kind == places["other"])
    return Values(numbers, pc.if_else(pa.array(is_text), texts, pa.scalar(None, pa.string())), kind)


def _cast(texts: pa.StringArray) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _means(lists: pa.StringArray) -> npt.NDArray[np.float64]:
    """The mean of each list of numbers and nulls; NaN where all are null."""
    parts = pc.split_pattern(pc.utf8_slice_codeunits(lists, 1, -1), ", ")
    written = parts.flatten()
    values = _cast(pc.if_else(pc.equal(written, "null"), pa.scalar(None, pa.string()), written))
    lengths = pc.list_value_length(parts).to_numpy(zero_copy_only=False)
    of_list = np.repeat(np.arange(len(lists)), lengths)
    there = ~np.isnan(values)
    sums = np.bincount(of_list[there], weights=values[there], minlength=len(lists))
    with np.errstate(invalid="ignore", divide="ignore"):
        means: npt.NDArray[np.float64] = sums / np.bincount(of_list[there], minlength=len(lists))
    return means
