"""How the report writes numbers and names: gains, shares, intervals, sources."""

from __future__ import annotations

import json
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


ALL_OTHER_VALUES = "all other values"


def kept_value_names(column: Json) -> list[str]:
    """The names of a kept column's values as they are shown, each another one."""
    numeric = any("value" in row or "from" in row for row in column["values"])
    bounds = [row["to"] for row in column["values"] if row.get("to") is not None]
    of_bounds = _digits(bounds, 3)
    of_values = _digits([row["value"] for row in column["values"] if "value" in row], 10)
    return [_value_name(row, column["boolean"], numeric, of_bounds, of_values) for row in column["values"]]


def _digits(numbers: list[float], least: int) -> int:
    """How many digits tell these numbers, each another one, from each other."""
    return next((few for few in range(least, 17) if len({f"{one:.{few}g}" for one in numbers}) == len(numbers)), 17)


def _value_name(row: Json, boolean: bool, beside_numbers: bool, of_bounds: int, of_values: int) -> str:
    if "others" in row:
        return ALL_OTHER_VALUES
    if "text" in row:
        value = json.loads(row["text"])
        quoted = not isinstance(value, str) or beside_numbers or value in ("", ALL_OTHER_VALUES)
        return str(row["text"] if quoted else value)
    if "value" in row:
        return ("false", "true")[int(row["value"])] if boolean else f"{row['value']:.{of_values}g}"
    low, high = (None if row[end] is None else f"{row[end]:.{of_bounds}g}" for end in ("from", "to"))
    if low is None:
        return "all" if high is None else f"below {high}"
    return f"{low} and above" if high is None else f"{low} to {high}"


def kept_kinds(column: Json) -> str:
    """What the values of a kept column are, in words: 1,200 numbers, 3 texts."""
    words = {
        "number": "numbers",
        "list": "lists, each as the mean of its numbers",
        "boolean": "true or false",
        "text": "texts",
        "other": "objects or lists of other things",
        "empty": "lists without a number",
    }
    there = {name: count for name, count in column["kinds"].items() if count}
    if len(there) == 1:
        return words[next(iter(there))]
    return ", ".join(f"{count:,} {words[name]}" for name, count in there.items())


def correlation_text(column: Json) -> str:
    """The rank correlation of a kept column with VIG, in words."""
    of = "rank correlation of its mean" if column["kinds"]["list"] else "rank correlation"
    return f"{of} {column['spearman']:+.3f}" if column["spearman"] is not None else ""


def format_gain(value: float | None) -> str:
    """A gain in nats, with its sign; empty for None."""
    return "" if value is None else f"{value:+.3f}"


def format_share(value: float) -> str:
    """A share of 1 as per cent."""
    return f"{100 * value:.1f} %"


def format_interval(row: Json) -> str:
    """The 95 % interval of a mean; empty where there is none."""
    return "" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
