"""COCO's annotation files: which objects an image shows, and what people wrote of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.files import read_json


@dataclass(frozen=True)
class Coco:
    """An instances file. `files`: an image's file name by its id. `objects`: the names of its objects by its id, each
    once, in the order of the file's annotations. `names`: all categories, in the file's order."""

    files: Mapping[int, str]
    objects: Mapping[int, tuple[str, ...]]
    names: tuple[str, ...]


def read_instances(uri: str) -> Coco:
    """The objects of an `instances_*.json`. Raises StageError, naming file and key, for another layout."""
    whole = _read(uri, ("images", "annotations", "categories"))
    names = _by_id(uri, "category", whole["categories"], "name")
    files = _by_id(uri, "image", whole["images"], "file_name")
    objects: dict[int, dict[str, None]] = {image: {} for image in files}
    for number, each in enumerate(whole["annotations"], 1):
        try:
            objects[each["image_id"]][names[each["category_id"]]] = None
        except (KeyError, TypeError) as error:
            raise StageError(f"{uri}, annotation {number}: no image or category {error}") from error
    return Coco(files, {image: tuple(found) for image, found in objects.items()}, tuple(names.values()))


def read_captions(uri: str) -> dict[int, list[str]]:
    """The captions of a `captions_*.json` by their image's id. Raises StageError as `read_instances` does."""
    captions: dict[int, list[str]] = {}
    for number, each in enumerate(_read(uri, ("annotations",))["annotations"], 1):
        try:
            captions.setdefault(each["image_id"], []).append(str(each["caption"]))
        except (KeyError, TypeError) as error:
            raise StageError(f"{uri}, annotation {number}: no {error}; expected COCO's captions") from error
    return captions


def _by_id(uri: str, what: str, rows: list[Any], key: str) -> dict[int, str]:
    """What each row has under a key, as text, by its id."""
    found = {}
    for number, each in enumerate(rows, 1):
        try:
            found[each["id"]] = str(each[key])
        except (KeyError, TypeError) as error:
            raise StageError(f"{uri}, {what} {number}: no {error}; expected COCO's layout") from error
    return found


def _read(uri: str, keys: tuple[str, ...]) -> dict[str, Any]:
    whole: dict[str, Any] = read_json(uri, object_hook=_without_outlines)
    for key in keys:
        if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
            raise StageError(f"{uri}: no list under '{key}'; expected COCO's layout")
    return whole


def _without_outlines(found: dict[str, Any]) -> dict[str, Any]:
    """An object without its segmentation, which is nearly all of an instances file."""
    found.pop("segmentation", None)
    return found
