"""Bodies and images that nobody meant to send."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import PIL.Image
import pyarrow as pa

from serve_app.arrow import CONTENT_TYPE
from serve_app.schema import EXAMPLE_MESSAGES, EXAMPLE_QA
from tests.serving.conftest import png

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
ODD: list[Any] = [None, True, -1, 1e308, "", "<image>", "\u0000", "\ud83d\ude00", "x" * 5000, [], {}, [[]],
       {"type": "image"}, {"type": "image_url", "image_url": "data:,"},
       {"role": "user", "content": "<image>"}]  # fmt: skip


def image_of(rng: random.Random) -> bytes:
    """An image file of any kind, then bytes of it changed, cut, doubled or swapped."""
    mode = rng.choice(["RGB", "L", "RGBA", "P", "1", "I;16", "CMYK"])
    size = rng.choice([(1, 1), (2, 2), (8, 9), (40, 30), (1, 200)])
    file = io.BytesIO()
    try:
        PIL.Image.new(mode, size).save(file, rng.choice(FORMATS))
        data = bytearray(file.getvalue())
    except (OSError, ValueError, KeyError):
        data = bytearray(png())
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(data) or 1)
        match rng.randrange(4):
            case 0 if data:
                data[place] = rng.randrange(256)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.randbytes(rng.randrange(20))
            case _:
                data += data[:place]
    return bytes(data)


def spoiled(value: Any, rng: random.Random) -> Any:
    """A JSON value with one place changed, taken away or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {rng.choice(["tau", "images", "question", "type", "\u0000"]): rng.choice(ODD)}
            case _:
                return value | {key: spoiled(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], spoiled(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def body_of(rng: random.Random) -> tuple[bytes, str]:
    """A body and its content type."""
    sample: Any = rng.choice([EXAMPLE_QA, EXAMPLE_MESSAGES])
    match rng.randrange(5):
        case 0:
            sample = EXAMPLE_QA | {"image": base64.b64encode(image_of(rng)).decode()}
        case 1:
            boundary = b"frontier"
            parts = [b'name="image"; filename="a"\r\n\r\n' + image_of(rng), b'name="question"\r\n\r\nWhat?',
                     b'name="answer"\r\n\r\nThis.', b'name="tau"\r\n\r\n' + rng.randbytes(3)]  # fmt: skip
            rng.shuffle(parts)
            sent = b"".join(
                b"--" + boundary + b"\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts
            )
            sent = bytearray(sent + b"--" + boundary + b"--\r\n")
            if rng.random() < 0.5:
                sent[rng.randrange(len(sent))] = rng.randrange(256)
            return bytes(sent), "multipart/form-data; boundary=frontier"
        case _:
            for _ in range(rng.randrange(1, 4)):
                sample = spoiled(sample, rng)
    if rng.random() < 0.2:
        sample = {"items": [sample, EXAMPLE_QA]}
    sent = bytearray(json.dumps(sample).encode())
    if rng.random() < 0.3:
        sent[rng.randrange(len(sent))] = rng.randrange(256)
    return bytes(sent), "application/json"


def stream_of(rng: random.Random) -> tuple[bytes, str]:
    """A stream's body of a few lines or rows, and its content type."""
    if rng.random() < 0.5:
        bodies = [body_of(rng)[0].replace(b"\n", b" ") for _ in range(rng.randrange(4))]
        return b"\n".join(bodies), "application/x-ndjson"
    rows = [
        {"question": rng.choice(["?", "", None]), "answer": rng.choice(["This.", "<image>", None]),
         "image": image_of(rng)} for _ in range(rng.randrange(1, 4))
    ]  # fmt: skip
    batch = pa.RecordBatch.from_pylist(rows, pa.schema({"question": "string", "answer": "string", "image": "binary"}))
    file = io.BytesIO()
    with pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    sent = bytearray(file.getvalue())
    for _ in range(rng.randrange(4)):
        sent[rng.randrange(len(sent))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(sent[: rng.choice([len(sent), rng.randrange(len(sent))])]), CONTENT_TYPE


def request_of(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A route, a body, and headers."""
    if rng.random() < 0.15:
        body, kind = stream_of(rng)
        return "/v1/score/stream", body, {"Content-Type": kind}
    body, kind = body_of(rng)
    route = "/v1/score/batch" if body.startswith(b'{"items"') else "/v1/score"
    return route, body, {"Content-Type": kind}


def undocumented(route: str, status: int, text: str, *, also: tuple[int, ...] = ()) -> str | None:
    """What is not as documented in an answer; None where all is. `also`: statuses that may be answered here, too."""
    if status not in (200, 413, 415, 422, *also):
        return f"{status}: {text}"
    if status != 200:
        return None if json.loads(text)["error"]["message"] else "an error without a message"
    if route != "/v1/score/stream":
        return None if json.loads(text) else "an empty answer"
    *items, end = [json.loads(line) for line in text.split("\n") if line]
    kinds = [each["error"]["kind"] for each in [*items, end] if each.get("error")]
    if "Internal" in kinds or end["samples"] != len(items) or end["end"] == ("error" in end):
        return f"a stream that ended so: {end}, with {kinds}"
    return None
