"""What nobody else should read: where things lie on this machine and in private stores.

Records, errors and configs name files by their paths. What is uploaded has only the last part of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from vig_ray.model.checkpoint import is_local

# Not http, https and hf, which anybody may look up.
_STORE = r"(?:(?:s3|s3a|gs|gcs|az|abfs|abfss|hdfs|viewfs|file)://|file:(?=/))"
_END = r"[^\s'\"`()\[\]{}<>|,;]"
_IN_STORE = re.compile(rf"{_STORE}{_END}+")
# Not after a letter or a slash, as in "and/or", "</s>" and "https://host/a".
_ALONE = r"(?<![\w/.<>~-])"
_ROOT = r"(?:~|[A-Za-z]:)?[/\\](?![/\\])"
_ON_DISK = re.compile(rf"{_ALONE}{_ROOT}{_END}+")
# In quotes, where it may hold spaces.
_QUOTED = re.compile(rf"(?<!\w)(['\"`])((?:{_STORE}|{_ROOT})(?:(?!\1)[^\n])+)\1")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def without_paths(text: str, folders: Sequence[str] = ()) -> str:
    """`text` with the last part alone of every absolute path, and of every URI of a store.

    `folders`: what paths here begin with, which may hold spaces; they are left out wherever they stand.
    """
    text = _QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)
    names = sorted({folder.rstrip("/") for folder in folders} - {""}, key=len, reverse=True)
    if names:
        # Whole parts of a path: /llava is no part of llava-hf/llava-1.5-7b.
        begins = rf"{_ALONE}(?:file:(?://)?)?({'|'.join(map(re.escape, names))})(/|(?![\w-]|\.\w))"
        text = re.sub(begins, lambda found: "" if found[2] else _last(found[1]), text)
    return _ON_DISK.sub(_last_of, _IN_STORE.sub(_last_of, text))


def _last_of(found: re.Match[str]) -> str:
    return _last(found[0])


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def cleaned(value: Any, folders: Sequence[str] = ()) -> Any:
    """A JSON value whose texts, keys among them, are `without_paths`."""
    if isinstance(value, str):
        return without_paths(value, folders)
    if isinstance(value, dict):
        return {without_paths(str(name), folders): cleaned(inner, folders) for name, inner in value.items()}
    return [cleaned(inner, folders) for inner in value] if isinstance(value, list | tuple) else value


def folders_of(*records: dict[str, Any]) -> list[str]:
    """The folders that the paths in these records, and those of this process, begin with."""
    found = [os.path.expanduser("~"), os.getcwd()]
    for record in records:
        config, samples = record.get("config", {}), record.get("identity", {}).get("samples") or {}
        named = [config.get(name) for name in ("out", "images", "samples", "scores", "selection")]
        named += [samples.get("images")]
        data = config.get("data")
        files = [each.get("path") for each in samples.get("inputs") or []] + [config.get("model")]
        files += data if isinstance(data, list) else [data]
        named += [os.path.dirname(file) for file in files if isinstance(file, str)]
        found += [folder for folder in named if isinstance(folder, str) and folder.count("/") > 1]
    return [folder for folder in found if len(folder) > 1 and not folder.startswith(("hf:", "http"))]


def hub_id(model: object) -> str | None:
    """`model`, if it is the id of a repository rather than a folder of this machine."""
    if not isinstance(model, str) or is_local(model) or not _HUB_ID.fullmatch(model):
        return None
    return model


def model_name(model: object) -> str:
    """How a card calls a model: by its id, or by the last part of its folder."""
    return hub_id(model) or without_paths(_last(str(model)))
