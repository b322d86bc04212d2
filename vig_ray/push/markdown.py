"""Parts of a card: its YAML and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import yaml

import vig_ray


def card(data: Mapping[str, Any], body: str) -> str:
    """A README.md: YAML, then Markdown."""
    shown = {name: value for name, value in data.items() if value is not None}
    return f"---\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}---\n\n{body.strip()}\n"


def cell(value: Any) -> str:
    """A value in a table; what others named can't end the cell or become HTML."""
    return " ".join(escape(str(value), quote=False).replace("|", "\\|").split())


def code(value: Any) -> str:
    """A value in a table, as code."""
    return f"`{cell(str(value).replace('`', ''))}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table; with `numbers` all columns but the first are aligned to the right."""
    line = ["---", *(["---:" if numbers else "---"] * (len(head) - 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, line, *rows))


def licence(given: str | None, of_what: str) -> str:
    """The section about the licence. `given`: as whoever pushes says it is."""
    if given is None:
        told = (
            f"To be confirmed by whoever pushed this: these files are made from {of_what}, and may be given on only as "
            "its licence allows. Until then `license` above says `other`."
        )
    else:
        told = f"`{given}`, as whoever pushed this stated; these files are made from {of_what}."
    return f"## Licence\n\n{told}"


def versions(record: Mapping[str, Any]) -> str:
    """The versions that a record names, on one line."""
    found = record.get("versions", {})
    return ", ".join(f"{name.replace('_', '-')} {cell(version)}" for name, version in found.items())


def cite() -> str:
    """What the numbers are, and who wrote the file."""
    return (
        "## Citation\n\nVisual information gain: Hwang and Lee, 2026, "
        "[arXiv 2602.17186](https://arxiv.org/abs/2602.17186). "
        f"Measured and written by vig-ray {vig_ray.__version__}."
    )
