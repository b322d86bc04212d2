"""What is said where keys or columns fit no layout, or two: the nearest one, what it lacks, and --columns."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from vig_ray.dataset.fields import shorten
from vig_ray.dataset.layouts.layout import Layout, is_list, storage

EXPECTED = "'conversations', 'messages', 'texts' with 'images', or 'question' with 'answer' and 'image'"
"""What most sets have, as messages say it."""
# What columns are often called, the likeliest first.
_NAMES = {
    "question": ("question", "query", "prompt", "instruction", "problem", "input", "user", "human"),
    "answer": ("answer", "answers", "response", "output", "completion", "solution", "reply", "caption", "assistant"),
    "image": ("image", "images", "image_path", "image_file", "file_name", "picture", "photo", "img", "url", "path"),
}
_TURN_FIELDS = frozenset({"from", "value", "role", "content"})
_MOST_KEYS = 20


def ambiguous(fitting: Sequence[Layout]) -> str:
    """What is said of rows that fit several layouts alike."""
    names = " and ".join(" with ".join(f"'{key}'" for key in layout.needs) for layout in fitting)
    return f"both {names} are there; say which to take with " + " or ".join(
        f"--columns {layout.columns}" for layout in fitting
    )


def unfit(
    subject: str, keys: Sequence[str], lacking: Sequence[tuple[Layout, list[str]]], paths: Sequence[tuple[str, bool]]
) -> str:
    """What is said of `keys` that fit no layout; `lacking`: what each lacks; `paths`: what --columns could name."""
    told = ", ".join(shorten(key, 40) for key in keys[:_MOST_KEYS]) or "none"
    if len(keys) > _MOST_KEYS:
        told += f" and {len(keys) - _MOST_KEYS} more"
    near = [(layout, missing) for layout, missing in lacking if any(key in keys for key in layout.needs)]
    if near:
        layout, missing = min(near, key=lambda each: (len(each[1]), -len(each[0].needs) - each[0].image))
        needs = ", ".join(f"'{key}'" for key in layout.needs)
        nearest = f"the nearest is {layout.name} ({needs}), which lacks {' and '.join(missing)}"
    else:
        nearest = f"expected {EXPECTED}"
    return f"{subject} ({told}) fit no layout; {nearest}; other names are told with --columns {columns_line(paths)}"


def columns_line(paths: Sequence[tuple[str, bool]]) -> str:
    """A --columns value that might do; in capitals what no name gives away."""
    for path, turns in paths:
        if turns:
            return f"conversations={path}"
    names = [path for path, _ in paths]
    chosen: dict[str, str] = {}
    for role, often in _NAMES.items():
        free = [name for name in names if name not in chosen.values()]
        chosen[role] = next(_likely(free, often), role.upper())
    return ",".join(f"{role}={name}" for role, name in chosen.items())


def row_paths(row: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The keys of a row, those inside of its objects too, and whether they hold turns."""
    paths: list[tuple[str, bool]] = []
    for key, value in row.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict):
            paths.append((key, isinstance(value, list) and bool(_TURN_FIELDS & inner.keys())))
            paths += [(f"{key}.{name}", False) for name in inner]
        else:
            paths.append((key, False))
    return paths


def schema_paths(schema: pa.Schema) -> list[tuple[str, bool]]:
    """The columns of a file, those inside of structs too, and whether they hold turns."""
    paths: list[tuple[str, bool]] = []
    for name, kept in zip(schema.names, schema.types, strict=True):
        outer = storage(kept)
        inner = storage(outer.value_type) if is_list(outer) else outer
        fields = [inner.field(index).name for index in range(inner.num_fields)] if pa.types.is_struct(inner) else []
        paths.append((name, is_list(outer) and bool(_TURN_FIELDS.intersection(fields))))
        paths += [(f"{name}.{field}", False) for field in fields]
    return paths


def _likely(names: Collection[str], often: Sequence[str]) -> Iterator[str]:
    """Those of `names` that are, end in, or hold one of the usual ones."""
    for usual in often:
        yield from (name for name in names if name.lower().rpartition(".")[2] == usual)
    for usual in often:
        yield from (name for name in names if usual in name.lower().rpartition(".")[2])
