"""From a sample as a program holds it to the JSON that POST /v1/score takes."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vig_ray.client.answers import Failed

Sample = Mapping[str, Any]
"""`question`, `answer` and `image`, or `messages` with `images`; and `tau`, `model`, `reference`, `reference_images`,
`text_only` and `id`.

An image is a path, the bytes of a file, a PIL image, a data URI, or an http(s) URL that the server fetches.
"""

_KEPT_AS_THEY_ARE = ("http://", "https://", "data:")


@dataclass(frozen=True)
class Outgoing:
    """A sample ready to be sent. `body`: JSON without a line break. `id`: echoed by a stream; not in `body`."""

    body: bytes
    images: int
    id: str | None = None

    @property
    def line(self) -> bytes:
        """The sample as a line of a stream's body."""
        told = b"" if self.id is None else b',"id":' + _json(self.id)
        return self.body[:-1] + told + b"}\n"


def prepare(
    sample: Sample | Failed, *, tau: float | None = None, reference_images: bool = False, max_bytes: int | None = None
) -> Outgoing | Failed:
    """A sample as it is sent, or why it can't be; one that has failed already stays as it is.

    `tau`, `reference_images`: for samples that don't say. `max_bytes`: of a body, the server's limit. Reads the files
    of images.
    """
    if isinstance(sample, Failed):
        return sample
    if not isinstance(sample, Mapping):
        return Failed("Invalid", f"a sample is a dict, not a {type(sample).__name__}")
    if not isinstance(sample.get("id"), str | None):
        return Failed("Invalid", f"id: a string, not a {type(sample['id']).__name__}")
    images = _Images()
    try:
        request = _defaults(tau, reference_images) | _request(sample, images)
        body, name = _json(request), _json(sample.get("id"))
    except _ImageError as error:
        return Failed("BadImage", str(error))
    except (TypeError, ValueError, RecursionError) as error:
        return Failed("Invalid", f"the sample can't be written as JSON: {error}"[:500])
    if max_bytes is not None and len(body) + len(name) + len(b',"id":') > max_bytes:
        return Failed(
            "TooLarge", f"{len(body):,} bytes as JSON, and the server takes {max_bytes:,} (its --max-body-mb)"
        )
    return Outgoing(body, images.count, sample.get("id"))


class _ImageError(Exception):
    """Why an image can't be sent."""


class _Images:
    """Makes images text, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def text(self, image: Any, where: str) -> str:
        """An image as the server takes it: base64, or a URI as it is. Raises _ImageError."""
        self.count += 1
        if isinstance(image, str) and image.lower().startswith(_KEPT_AS_THEY_ARE):
            return image
        return base64.b64encode(_file(image, where)).decode("ascii")


def _file(image: Any, where: str) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        path = os.fspath(image)
        try:
            with open(path, "rb") as file:
                return file.read()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            cause = getattr(error, "strerror", None) or error
            raise _ImageError(f"{where}: {cause} ({str(path)[:200]})") from error
    # A program that has a PIL image has imported Pillow; the others need not.
    from PIL.Image import Image

    from vig_ray.dataset.images import image_file

    if not isinstance(image, Image):
        kinds = "a path, bytes, a PIL image, a data URI or a URL"
        raise _ImageError(f"{where}: {kinds}, not a {type(image).__name__}")
    try:
        return image_file(image)
    except Exception as error:  # Pillow decodes only now, and a damaged file makes it raise nearly anything
        raise _ImageError(f"{where}: {type(error).__name__}: {error}"[:300]) from error


def _defaults(tau: float | None, reference_images: bool) -> dict[str, Any]:
    return ({} if tau is None else {"tau": tau}) | ({"reference_images": True} if reference_images else {})


def _request(sample: Sample, images: _Images) -> dict[str, Any]:
    """The sample with its images as text."""
    request = {name: value for name, value in sample.items() if name != "id" and value is not None}
    if "image" in request:
        request["image"] = images.text(request["image"], "image")
    if isinstance(request.get("images"), list | tuple):
        listed = enumerate(request["images"])
        request["images"] = [images.text(image, f"images.{number}") for number, image in listed]
    if isinstance(request.get("messages"), list | tuple):
        # An image part that brings none stands for the next of `images`, which is counted there.
        request["messages"] = [_message(message, images.text) for message in request["messages"]]
    return request


def _message(message: Any, text: Callable[[Any, str], str]) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list | tuple):
        return message
    return {**message, "content": [_part(part, text) for part in message["content"]]}


def _part(part: Any, text: Callable[[Any, str], str]) -> Any:
    if not isinstance(part, Mapping):
        return part
    part = dict(part)
    for name in ("image", "image_url"):
        value = part.get(name)
        if isinstance(value, Mapping):
            part[name] = {**value, "url": text(value.get("url"), "an image part")}
        elif value is not None:
            part[name] = text(value, "an image part")
    return part


def _json(value: Any) -> bytes:
    """Raises ValueError where a number isn't finite or a text is no Unicode, as half a surrogate pair isn't."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
