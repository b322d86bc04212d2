"""The fields that rows of every layout share: id, source, images, system prompt, roles, lists of objects."""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote_to_bytes

from vig_ray.dataset.schema import Image, RowError, Turn
from vig_ray.storage import scheme_of

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ID_KEYS = ("id", "question_id", "questionId")
SOURCE_KEYS = ("source", "dataset", "data_source")
IMAGE_KEYS = ("image", "images", "image_url")
OTHER_MEDIA = {"video": "Video", "videos": "Video", "audio": "Audio", "audios": "Audio"}
"""Columns of what isn't looked at, with the kind of their rows' error."""
# Bytes come first: beside bytes, a path is only a name (Hugging Face's image struct).
_PLACES = ("bytes", "base64", "image_url", "url", "image", "path")
_WHITESPACE = re.compile(r"\s+")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def type_name(value: object) -> str:
    """The type of a value in JSON's words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float, Decimal)):
        return "a number"
    names: dict[type, str] = {str: "a string", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)


def shorten(text: str, limit: int = 80) -> str:
    """`text` in quotes and cut to `limit` characters, with escapes for what can't be printed or encoded."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def identifier(row: Mapping[str, Any]) -> str | None:
    """The row's own id (`id`, else `question_id` or `questionId`) as text; None where it is neither text nor number."""
    for key in ID_KEYS:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
            return str(value)
        return None
    return None


def source(row: Mapping[str, Any], images: tuple[Image, ...]) -> str | None:
    """The sub-dataset a row names, else the first folder of its first relative image path, else None."""
    for key in SOURCE_KEYS:
        value = row.get(key)
        if isinstance(value, str) and value:
            return value
    for image in images:
        if image.uri and not scheme_of(image.uri) and not image.uri.startswith("/"):
            folder, slash, _ = posixpath.normpath(image.uri).partition("/")
            return folder if slash and folder != ".." else None
    return None


def role(name: object, number: int) -> str:
    """A turn's role as "system", "user" or "assistant". Raises RowError, with the turn's number, for an unknown one."""
    canonical = _ROLES.get(name) if isinstance(name, str) else None
    if canonical is None:
        given = shorten(name) if isinstance(name, str) else type_name(name)
        raise RowError("BadConversation", f"turn {number}: unknown role {given}; expected one of {', '.join(_ROLES)}")
    return canonical


def structs(value: object, key: str, item: str = "turn") -> list[dict[str, Any]]:
    """The list of objects in `value`: as it is, as an object of lists of the same length, or as JSON text of either.

    Arrow keeps the `datasets` library's `Sequence` of a dict as an object of lists. `item` is what one object is called
    in messages. Raises RowError where `value` is none of these.
    """
    given = value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("BadConversation", f"'{key}' is a string, and not JSON of a list: {error}") from error
    if isinstance(value, dict):
        value = _transposed(value, key)
    if not isinstance(value, list):
        raise RowError("BadConversation", f"'{key}' is {type_name(given)}, not a list of objects")
    for index, one in enumerate(value):
        if not isinstance(one, dict):
            raise RowError("BadConversation", f"{item} {index} of '{key}' is {type_name(one)}, not an object")
    return value


def _transposed(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    lists = {name: column for name, column in value.items() if column is not None}
    if not lists or not all(isinstance(column, list) for column in lists.values()):
        raise RowError("BadConversation", f"'{key}' is an object, not a list of objects or an object of lists")
    lengths = {name: len(column) for name, column in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} {shorten(name, 40)}" for name, length in lengths.items())
        raise RowError("BadConversation", f"'{key}' is an object of lists of different lengths: {told}")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def with_system(row: Mapping[str, Any], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """`turns`, after the system prompt under the row's `system` key if it has one (LLaMA-Factory, ms-swift)."""
    prompt = row.get("system")
    if prompt is None or prompt == "":
        return turns
    if not isinstance(prompt, str):
        raise RowError("BadConversation", f"'system' is {type_name(prompt)}, not a string")
    if any(turn.role == "system" for turn in turns):
        raise RowError("BadConversation", "a system prompt both under 'system' and in the turns; keep one")
    return (Turn("system", prompt), *turns)


def row_images(row: Mapping[str, Any]) -> tuple[Image, ...]:
    """The images under a row's `image` or `images` key: one, a list of them, or none (absent, null, "").

    `image_url` counts where both are empty, with its `image_sha256` to compare what is fetched with.
    """
    one, many = row.get("image"), row.get("images")
    if one is None or one in ("", []):
        if many is None or many in ("", []):
            return _linked(row)
        one = many
    elif not (many is None or many in ("", [])):
        raise RowError(
            "BadImage", "images under both 'image' and 'images'; keep one, or name one with --columns image="
        )
    return tuple([image(each) for each in one]) if isinstance(one, list) else (image(one),)


def _linked(row: Mapping[str, Any]) -> tuple[Image, ...]:
    """The images under a row's `image_url` key."""
    value = row.get("image_url")
    if value is None or value in ("", []):
        return ()
    linked = tuple([image(each) for each in value]) if isinstance(value, list) else (image(value),)
    checksum = row.get("image_sha256")
    if checksum is None or len(linked) != 1 or linked[0].uri is None:
        return linked
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        given = shorten(checksum) if isinstance(checksum, str) else type_name(checksum)
        raise RowError("BadImage", f"'image_sha256' is {given}, not 64 hexadecimal digits")
    return (linked[0]._replace(sha256=checksum.lower()),)


def inner_image(part: Mapping[str, Any], depth: int = 0) -> Image | None:
    """The image inside a message part or an image struct, or None where there is none."""
    for key in _PLACES:
        value = part.get(key)
        if value is not None:
            encoded = key in ("bytes", "base64") and isinstance(value, str)
            return _from_base64(value) if encoded else image(value, depth + 1)
    return None


def image(value: object, depth: int = 0) -> Image:
    """One image from a path or URI, a data: URI, bytes, or an object that holds one of them. Raises RowError."""
    if isinstance(value, str):
        if not value:
            raise RowError("BadImage", "an empty string where an image's path should be")
        return _from_data_uri(value) if value[:5].lower() == "data:" else Image(uri=value)
    if isinstance(value, bytes):
        if not value:
            raise RowError("BadImage", "an image of 0 bytes")
        return Image(bytes=value)
    # {"image": {"image_url": {"url": ...}}} is as deep as any format goes.
    if isinstance(value, dict) and depth < 3:
        inner = inner_image(value, depth)
        if inner is not None:
            return inner
        keys = ", ".join(shorten(str(key), 40) for key in list(value)[:10]) or "nothing"
        raise RowError("BadImage", f"an image object with {keys} set; expected one of {', '.join(_PLACES)}")
    raise RowError("BadImage", f"an image is {type_name(value)}; expected a path, a URI, bytes or an object")


def _from_data_uri(uri: str) -> Image:
    head, comma, body = uri.partition(",")
    if not comma:
        raise RowError("BadImage", "a data: URI without a comma")
    if head.lower().endswith(";base64"):
        return _from_base64(body)
    return image(unquote_to_bytes(body))


def _from_base64(text: str) -> Image:
    try:
        return image(base64.b64decode(_WHITESPACE.sub("", text), validate=True))
    except (binascii.Error, ValueError) as error:
        raise RowError("BadImage", f"not base64: {error}") from error
