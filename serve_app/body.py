"""A request's body: read within a length and a time, and made into the samples to score."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serve_app.errors import TOO_MANY, RequestError, invalid_request
from serve_app.limits import time_limit
from serve_app.options import AppConfig
from serve_app.schema import BatchRequest, ScoreRequest

_FORM_FIELDS = (
    "question", "answer", "messages", "tau", "policy", "model", "reference", "reference_images", "image",
)  # fmt: skip


async def score_request(request: Request, config: AppConfig, until: float) -> tuple[ScoreRequest, bytes | None]:
    """The sample in a JSON or multipart body, and the image file of a form.

    Raises RequestError, too where the body isn't there at `until`, on the event loop's clock.
    """
    body = await _read(request, config, until)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if content_type == "multipart/form-data":
            fields, image = await _form(request, body)
            return ScoreRequest.model_validate(fields), image
        if content_type not in ("", "application/json"):
            raise RequestError(415, "Invalid", "the body is application/json or multipart/form-data")
        return ScoreRequest.model_validate_json(body), None
    except ValidationError as error:
        raise invalid_request(error) from error


async def batch_items(request: Request, config: AppConfig, until: float) -> list[Any]:
    """The items of a batch, not validated yet. Raises RequestError as `score_request` does."""
    body = await _read(request, config, until)
    try:
        items = BatchRequest.model_validate_json(body).items
    except ValidationError as error:
        raise invalid_request(error) from error
    if len(items) > config.max_items:
        raise RequestError(422, TOO_MANY, f"{len(items)} items, and the limit is {config.max_items}")
    return items


async def _read(request: Request, config: AppConfig, until: float) -> bytes:
    """The whole body. Raises RequestError as soon as it is known to be too long, or too slow."""
    max_bytes = int(config.max_body_mb * 2**20)
    too_long = RequestError(413, "TooLarge", f"the body is longer than {config.max_body_mb:g} MiB, the limit")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise too_long
    too_slow = RequestError(408, "Timeout", f"the body had not come after {config.timeout:g} seconds, the limit")
    body = bytearray()
    async with time_limit(until, too_slow):
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_long
        except ClientDisconnect as error:
            raise RequestError(400, "Disconnected", "the connection ended before the body did") from error
    return bytes(body)


async def _form(request: Request, body: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a multipart body, and the uploaded image. Raises RequestError."""

    async def once() -> Any:
        yield body

    parser = MultiPartParser(request.headers, once(), max_files=1, max_fields=16, max_part_size=len(body))
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise RequestError(422, "Invalid", "the multipart body can't be read") from error
    fields: dict[str, Any] = {}
    image: bytes | None = None
    try:
        for name, value in form.multi_items():
            if name not in _FORM_FIELDS or name in fields:
                raise RequestError(422, "Invalid", f"a form has each of these fields once: {', '.join(_FORM_FIELDS)}")
            if isinstance(value, UploadFile):
                if name != "image":
                    raise RequestError(422, "Invalid", f"{name}: a text, not a file")
                image, value = await value.read(), ""
            fields[name] = value
    finally:
        await form.close()
    if image is not None:
        fields.pop("image")
        if not image:
            raise RequestError(422, "BadImage", "image: a file of 0 bytes")
    if "messages" in fields:
        try:
            fields["messages"] = json.loads(fields["messages"])
        except (ValueError, RecursionError) as error:
            raise RequestError(422, "Invalid", "messages: not JSON") from error
    elif image is not None:
        fields["image"] = "upload"
    return fields, image
