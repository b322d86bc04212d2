"""How the report says its numbers."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


NO_SOURCE, OTHERS, EVERYTHING = "(no source)", "all other sources", "all samples"


def source_name(source: str | None) -> str:
    """As it is shown; in quotes where it could be taken for none or for several."""
    if source is None:
        return NO_SOURCE
    return f"'{source}'" if source in ("", NO_SOURCE, OTHERS, EVERYTHING) else source


def row_name(row: Json) -> str:
    """Of a row about a source, or about all others together."""
    return f"{row['others']:,} others" if "others" in row else source_name(row["source"])


def range_name(row: Json) -> str:
    """As it is shown: 7, 9 to 12, or 4097 and more."""
    if row["last"] is None:
        return f"{row['first']}+"
    return f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}–{row['last']}"


def gain(value: float | None) -> str:
    """Of nats, signed."""
    return "" if value is None else f"{value:+.3f}"


def share(value: float) -> str:
    """Of 1, as per cent."""
    return f"{100 * value:.1f} %"


def interval(row: Json) -> str:
    """The 95 % interval of a mean."""
    return "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
