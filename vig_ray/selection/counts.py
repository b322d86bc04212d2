"""Counts of what a selection keeps: the row of VIG's Table 3, the same by source, the columns of Tables E.2 and E.3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.selection.rank import EVERYTHING, Groups
from vig_ray.selection.tilt import Tilt
from vig_ray.selection.weights import Lengths, Weights, sums_of
from vig_ray.tables.threshold import value_of

_KINDS = ("scored", "text_only", "failed")
_SHOWN_SOURCES = 20
_WIDTH = {"scored": 13, "tokens": 15, "active": 15}


@dataclass
class Counted:
    """By source: rows of each kind, tokens of the scored ones, and of these the active ones.

    A token is active where its weight is above 0. `emptied`: scored samples without any active token.
    """

    by_source: dict[str, dict[str, int]] = field(default_factory=dict)

    def total(self, name: str) -> int:
        """The sum of a count over all sources."""
        return sum(counts.get(name, 0) for counts in self.by_source.values())


def count_rows(
    table: pa.Table,
    scored: npt.NDArray[np.bool_],
    *,
    lengths: Lengths | None = None,
    weights: Weights | None = None,
    unmeasured: npt.NDArray[np.bool_] | None = None,
) -> Counted:
    """The counts of a block. `weights` [N]: of the tokens of all its rows; None where all are 1. `unmeasured`: scored
    rows that lack a measure."""
    if lengths is None:
        lengths = pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False).astype(np.int64)
    # A row that is scored may have the error of another reference.
    failed = table["error"].is_valid().to_numpy(zero_copy_only=False) & ~scored
    active = lengths if weights is None else sums_of((weights > 0).astype(np.float64), lengths).astype(np.int64)
    text = ~scored & ~failed
    columns = {
        "scored": scored,
        "text_only": text,
        "failed": failed,
        "tokens": np.where(scored, lengths, 0),
        "active": np.where(scored, active, 0),
        "text_tokens": np.where(text, lengths, 0),
        "emptied": scored & (active == 0) & (lengths > 0),
    }
    if unmeasured is not None:
        columns["unmeasured"] = unmeasured
    source = pc.fill_null(table["source"], "")
    rows = pa.table({"source": source, **{name: pa.array(values.astype(np.int64)) for name, values in columns.items()}})
    sums = rows.group_by("source").aggregate([(name, "sum") for name in columns])
    return Counted({row["source"]: {name: row[f"{name}_sum"] for name in columns} for row in sums.to_pylist()})


def merge(parts: Iterable[Counted]) -> Counted:
    """The counts of all blocks together."""
    whole = Counted()
    for part in parts:
        for source, counts in part.by_source.items():
            sums = whole.by_source.setdefault(source, {})
            for name, count in counts.items():
                sums[name] = sums.get(name, 0) + count
    return whole


@dataclass(frozen=True)
class Kept:
    """What one share keeps. `thresholds`: by group, "" for the samples without a quota; empty where all are kept.

    `tilt`: does it change what is answered; None where it can't, or wasn't looked at. `told`: that in words.
    """

    share: float
    thresholds: dict[str, float]
    counted: Counted
    tilt: Tilt | None = None
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The outcome of a selection, or of several percentages compared (then `directory` is None).

    `notes`: what else a person should know of it.
    """

    strategy: str
    read: Counted
    kept: tuple[Kept, ...]
    directory: str | None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        strategy: str,
        read: Counted,
        shares: Sequence[float],
        groups: Groups,
        thresholds: Sequence[npt.NDArray[np.uint64]],
        counted: Sequence[Counted],
        directory: str | None,
        *,
        chance: bool = False,
        notes: Sequence[str] = (),
        tilts: Sequence[tuple[Tilt, tuple[str, ...]] | None] = (),
    ) -> Selection:
        """The outcome from the scans' counts and thresholds. Thresholds of a ranking by chance are left out."""
        kept = []
        of_shares = tilts or [None] * len(thresholds)
        for share, bits, counts, told in zip(shares, thresholds, counted, of_shares, strict=True):
            named = {}
            for group, value in enumerate(bits.tolist() if groups.within is None else ()):
                if value == np.iinfo(np.uint64).max or value == EVERYTHING or chance:
                    continue
                source, cluster = divmod(group, groups.clusters)
                name = groups.sources[source - 1] if source else ""
                named[name if groups.clusters == 1 else f"{name}#{cluster}"] = value_of(value)
            kept.append(Kept(float(share), named, counts, *(told or ())))
        return cls(strategy, read, tuple(kept), directory, tuple(notes))

    def to_json(self) -> dict[str, Any]:
        """As the record holds it."""
        return {
            "strategy": self.strategy,
            "read": _with_total(self.read),
            "kept": [
                {
                    "share": kept.share,
                    "thresholds": kept.thresholds,
                    **_with_total(kept.counted),
                    **({"tilt": kept.tilt.to_json() | {"told": list(kept.told)}} if kept.tilt else {}),
                }
                for kept in self.kept
            ],
            **({"notes": list(self.notes)} if self.notes else {}),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], directory: str) -> Selection:
        """From the record."""
        kept = []
        for row in record["kept"]:
            tilt = dict(row.get("tilt", {}))
            told = tuple(tilt.pop("told", ()))
            counted = Counted(row["by_source"])
            kept.append(Kept(row["share"], row["thresholds"], counted, Tilt.from_json(tilt) if tilt else None, told))
        return cls(
            record["strategy"],
            Counted(record["read"]["by_source"]),
            tuple(kept),
            directory if len(kept) == 1 else None,
            tuple(record.get("notes", ())),
        )

    def text(self) -> str:
        """A table for people: one row a percentage, then one a source."""
        read = self.read
        lines = [
            f"read {sum(read.total(kind) for kind in _KINDS):,} = scored {read.total('scored'):,} + text-only "
            f"{read.total('text_only'):,} + failed {read.total('failed'):,} (left out)",
            "",
            f"{self.strategy:<16}{'tau':>9}{'samples':>13}{'':>7}{'sample tokens':>15}{'':>7}{'active tokens':>15}",
            _line("scored", None, read, read),
        ]
        for kept in self.kept:
            lines.append(_line(f"{kept.share:g} %", kept.thresholds, kept.counted, read))
        last = self.kept[-1].counted
        if last.total("text_only"):
            lines.append(
                f"and {last.total('text_only'):,} text-only samples, all their {last.total('text_tokens'):,} tokens"
            )
        for kept in self.kept:
            if kept.counted.total("emptied"):
                lines.append(
                    f"{kept.counted.total('emptied'):,} of the samples kept at {kept.share:g} % have no active token"
                )
        if read.total("unmeasured"):
            lines.append(f"{read.total('unmeasured'):,} scored samples lack what the strategy needs and are left out")
        lines += self.notes
        for kept in self.kept:
            lines += [f"at {kept.share:g} %: {line}" if len(self.kept) > 1 else line for line in kept.told]
        if len(self.kept) == 1 and len(read.by_source) > 1:
            lines += ["", *self._sources(last)]
        if self.directory:
            lines += ["", f"selection: {self.directory}"]
        else:
            lines += ["", "nothing selected: give one --p to select"]
        return "\n".join(lines)

    def _sources(self, kept: Counted) -> list[str]:
        lines = [f"{'by source':<25}{'samples':>13}{'':>7}{'sample tokens':>15}{'':>7}{'active tokens':>15}"]
        ranked = sorted(self.read.by_source, key=lambda name: -self.read.by_source[name]["scored"])
        for name in ranked[:_SHOWN_SOURCES]:
            read_here = Counted({"": self.read.by_source[name]})
            kept_here = Counted({"": kept.by_source.get(name, {})})
            if read_here.total("scored"):
                lines.append(_line(f"  {name or '(none)'}", {}, kept_here, read_here))
        if len(ranked) > _SHOWN_SOURCES:
            lines.append(f"  and {len(ranked) - _SHOWN_SOURCES:,} more in the record")
        return lines


def _with_total(counted: Counted) -> dict[str, Any]:
    names = ("scored", "text_only", "failed", "tokens", "active", "text_tokens", "emptied")
    return {"total": {name: counted.total(name) for name in names}, "by_source": counted.by_source}


def _line(name: str, thresholds: Mapping[str, float] | None, kept: Counted, read: Counted) -> str:
    tau = ""
    if thresholds:
        values = list(thresholds.values())
        tau = f"{values[0]:+.4f}" if len(values) == 1 else f"{len(values)} of them"
    cells = []
    for count, whole in (("scored", "scored"), ("tokens", "tokens"), ("active", "tokens")):
        share = 100 * kept.total(count) / read.total(whole) if read.total(whole) else 0.0
        cells.append(f"{kept.total(count):>{_WIDTH[count]},}{share:>6.1f}%")
    return f"{name:<16.24}{tau:>9}" + "".join(cells)
