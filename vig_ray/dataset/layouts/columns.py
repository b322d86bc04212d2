"""--columns: a user's own names for what a layout's columns hold, as in `question=qa.question,answer=qa.answer`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pyarrow as pa

from vig_ray.dataset.fields import ID_KEYS, IMAGE_KEYS, SOURCE_KEYS, shorten
from vig_ray.dataset.layouts import conversations, exchanges
from vig_ray.dataset.layouts.known import LAYOUTS, recognise, recognise_columns
from vig_ray.dataset.layouts.layout import COMMON, Layout, is_list, storage
from vig_ray.dataset.schema import RowError, Sample
from vig_ray.errors import StageError

TURNS = ("conversations", "messages", "texts")
ROLES = ("question", "answer", "image", "images", "id", "source", "system", *TURNS)
"""What columns can be named for."""
_TEXTS = ("question", "answer", "source")
_ABSENT = object()


def parse_columns(text: str) -> dict[str, str]:
    """The column of each role in `role=column,role=column`. Raises ValueError."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        role, equals, name = (piece.strip() for piece in part.partition("="))
        if role not in ROLES or not equals or not name:
            raise ValueError(f"{part.strip()!r}: expected NAME=COLUMN, the name one of {', '.join(ROLES)}")
        if role in columns:
            raise ValueError(f"{role} is named twice")
        columns[role] = name
    told = [role for role in (*TURNS, "answer" if "answer" in columns else "question") if role in columns]
    if len(told) > 1:
        raise ValueError(f"{' and '.join(told)} exclude each other; name question and answer, or the turns")
    if "image" in columns and "images" in columns:
        raise ValueError("image and images exclude each other; either may hold one image or a list")
    return columns


def named_layout(text: str) -> Layout:
    """The layout that --columns tells."""
    columns = parse_columns(text)
    tops = {name for path in columns.values() for name in (path, path.partition(".")[0])}
    kept = _kept(columns)
    return Layout(
        name="--columns",
        needs={},
        parse=partial(_parse, columns=columns, kept=kept),
        rank=0,
        columns=text,
        more=(*kept, *tops),
    )


def check_columns(text: str, uri: str, schema: pa.Schema) -> None:
    """Raise StageError where the file at `uri` hasn't got a column of --columns, or still fits no layout with them."""
    columns = parse_columns(text)
    types = {role: _type(schema, path) for role, path in columns.items()}
    absent = [f"{role}={columns[role]}" for role, kept in types.items() if kept is None]
    if absent:
        raise StageError(f"{uri}: no such column: --columns {','.join(absent)}; the file has {', '.join(schema.names)}")
    if not _tells_turns(columns):
        replaced = _replaced(columns)
        others = [schema.field(index) for index, name in enumerate(schema.names) if name not in replaced]
        recognise_columns(uri, pa.schema([*others, *(pa.field(role, kept) for role, kept in types.items())]))


def _type(schema: pa.Schema, path: str) -> pa.DataType | None:
    """What a file's column, or a field inside of one, holds."""
    if path in schema.names:
        return schema.types[schema.names.index(path)]
    name, *inner = path.split(".")
    if name not in schema.names:
        return None
    kept = storage(schema.types[schema.names.index(name)])
    lists = 0
    for part in inner:
        while is_list(kept):
            kept, lists = storage(kept.value_type), lists + 1
        if not pa.types.is_struct(kept) or kept.get_field_index(part) < 0:
            return None
        kept = storage(kept.field(part).type)
    return pa.list_(kept) if lists else kept


def _tells_turns(columns: Mapping[str, str]) -> bool:
    """Whether questions, answers or turns are named, so that nothing need be recognised."""
    return any(role in columns for role in ("question", "answer", *TURNS))


def _kept(columns: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that are read under their usual names."""
    if any(role in columns for role in TURNS):
        usual: list[str] = list(COMMON)
    elif _tells_turns(columns):
        usual = [*COMMON, "question", "answer", "answers"]
    else:
        usual = [*COMMON, *(name for layout in LAYOUTS for name in (*layout.needs, *layout.more))]
    replaced = _replaced(columns)
    return tuple(dict.fromkeys(name for name in usual if name not in replaced))


def _replaced(columns: Mapping[str, str]) -> set[str]:
    """The usual names that don't count: one that is named takes the place of all that could mean the same."""
    replaced = set(columns)
    if "image" in columns or "images" in columns:
        replaced.update((*IMAGE_KEYS, "image_sha256"))
    if "source" in columns:
        replaced.update(SOURCE_KEYS)
    if "id" in columns:
        replaced.update(ID_KEYS)
    return replaced


def _parse(row: Mapping[str, Any], *, columns: Mapping[str, str], kept: tuple[str, ...]) -> Sample:
    """The sample in a row whose columns are named so. Raises RowError."""
    named = {key: row[key] for key in kept if key in row}
    for role, path in columns.items():
        value = _value(row, path)
        if value is _ABSENT and role in ("question", "answer", *TURNS):
            keys = ", ".join(shorten(key, 40) for key in list(row)[:20]) or "none"
            raise RowError("MissingColumn", f"no {shorten(path)} ({role}) in the row; its keys are {keys}")
        named[role] = None if value is _ABSENT else exchanges.as_text(value) if role in _TEXTS else value
    for role in TURNS:
        if role in columns:
            return exchanges.pairs(named, role) if role == "texts" else conversations.parse(named, role)
    if not _tells_turns(columns):
        return recognise(named).parse(named)
    answered = "answer" if "answer" in named else "answers"
    if "question" not in named:
        return exchanges.caption(named, answered)
    return exchanges.conversation_of(named, "question", named["question"], answered, named.get(answered))


def _value(row: Any, path: str) -> Any:
    """What lies at a path in a row: under the key of that name, else inside of objects, of each in a list of them."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    return _inner(row, path.split("."))


def _inner(value: Any, parts: list[str]) -> Any:
    for index, part in enumerate(parts):
        if isinstance(value, list):
            found = [_inner(each, parts[index:]) for each in value]
            absent = bool(found) and all(each is _ABSENT for each in found)
            return _ABSENT if absent else [None if each is _ABSENT else each for each in found]
        if not isinstance(value, Mapping) or part not in value:
            return None if value is None and index else _ABSENT
        value = value[part]
    return value
