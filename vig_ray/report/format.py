"""How the report writes numbers and names: gains, shares, intervals, sources."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


NO_SOURCE, OTHERS, EVERYTHING = "(no source)", "all other sources", "all samples"


def source_name(source: str | None) -> str:
    """A source as it is shown; in quotes where its name could be taken for no source or for several."""
    if source is None:
        return NO_SOURCE
    return f"'{source}'" if source in ("", NO_SOURCE, OTHERS, EVERYTHING) else source


def row_name(row: Json) -> str:
    """The name of a row that is about a source, or about all others together."""
    return f"{row['others']:,} others" if "others" in row else source_name(row["source"])


def range_name(row: Json) -> str:
    """A range as it is shown: 7, 9–12, or 4097+."""
    if row["last"] is None:
        return f"{row['first']}+"
    return f"{row['first']}" if row["first"] == row["last"] else f"{row['first']}–{row['last']}"


def format_gain(value: float | None) -> str:
    """A gain in nats, with its sign; empty for None."""
    return "" if value is None else f"{value:+.3f}"


def format_share(value: float) -> str:
    """A share of 1 as per cent."""
    return f"{100 * value:.1f} %"


def format_interval(row: Json) -> str:
    """The 95 % interval of a mean; empty where there is none."""
    return "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
