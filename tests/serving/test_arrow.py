"""POST /v1/score/stream with Arrow IPC: scores as of the same samples in JSON, and what an attacker would write.

Bodies are written by pyarrow, polars and Hugging Face's datasets.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from serve_app import arrow
from serve_app.arrow import CONTENT_TYPE, arrow_rows
from serve_app.errors import RequestError
from serve_app.schema import StreamEnd, StreamItem
from tests.serving.conftest import base64_of, png
from tests.serving.http_server import Served

MAX_BYTES = 2**20


@pytest.fixture(scope="module")
def served(engine: Any, demo_formatter: Any) -> Iterator[Served]:
    started = Served(engine, demo_formatter, queue=16, timeout=20, max_body_mb=1)
    yield started
    started.stop()


def sample(seed: int, **more: Any) -> dict[str, Any]:
    return {"question": "What is this?", "answer": f"Noise number {seed}.", "image": png(seed), **more}


def in_json(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"image": base64_of(sample["image"])} if "image" in sample else sample


def ipc(batches: list[Any], schema: Any = None, **options: Any) -> bytes:
    """A body of record batches, each of rows."""
    written = [pa.RecordBatch.from_pylist(rows, schema=schema) for rows in batches]
    file = io.BytesIO()
    with pa.ipc.new_stream(file, written[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in written:
            writer.write_batch(batch)
    return file.getvalue()


def answered(url: str, body: bytes) -> list[dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/score/stream", content=body, headers={"Content-Type": CONTENT_TYPE}, timeout=60)
    assert answer.status_code == 200, answer.text
    *items, end = [json.loads(line) for line in answer.text.splitlines()]
    for number, item in enumerate(items):
        assert StreamItem.model_validate(item).index == number
    assert StreamEnd.model_validate(end).samples == len(items)
    return [*items, end]


def same(results: list[dict[str, Any]], samples: list[dict[str, Any]], url: str) -> None:
    """Each as POST /v1/score answers the same sample in JSON."""
    for item, each in zip(results, samples, strict=True):
        alone = httpx.post(f"{url}/v1/score", json=in_json({k: v for k, v in each.items() if k != "id"})).json()
        assert item["id"] == each.get("id")
        assert item["result"]["vig"] == pytest.approx(alone["vig"], abs=1e-5)
        assert [token["id"] for token in item["result"]["tokens"]] == [token["id"] for token in alone["tokens"]]


def test_each_row_is_answered_as_the_same_sample_in_json(served: Served) -> None:
    samples = [sample(seed, id=f"row {seed}", tau=seed / 10) for seed in range(20)]
    *items, end = answered(served.url, ipc([samples[:7], samples[7:8], samples[8:]]))
    assert end == {"end": True, "samples": 20, "failed": 0}
    same(items, samples, served.url)
    assert [item["result"]["tau"] for item in items] == [seed / 10 for seed in range(20)]


def test_what_is_wrong_with_a_row_is_told_in_its_place(served: Served) -> None:
    rows = [sample(0, id="a"), {"id": "b", "question": "?"}, sample(1) | {"image": b""}, sample(2) | {"image": b"GIF8"}]
    first, second, third, fourth, end = answered(served.url, ipc([rows]))
    assert end == {"end": True, "samples": 4, "failed": 3}
    assert "result" in first
    assert second["id"] == "b"
    assert "'answer' is missing" in second["error"]["message"]
    assert third["error"] == {"kind": "BadImage", "message": "image: a file of 0 bytes"}
    assert fourth["error"]["kind"] == "UnidentifiedImageError"


def test_messages_and_images_in_lists(served: Served) -> None:
    turns = [
        {"role": "user", "content": "<image>\nAnd <image>?"}, {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    rows = [{"messages": turns, "images": [png(1), png(2)]}]
    item, _ = answered(served.url, ipc([rows]))
    listed = {"messages": turns, "images": [base64_of(png(1)), base64_of(png(2))]}
    alone = httpx.post(f"{served.url}/v1/score", json=listed).json()
    assert item["result"]["vig"] == pytest.approx(alone["vig"], abs=1e-5)


def test_what_other_libraries_write(served: Served) -> None:
    """Columns of Hugging Face's datasets with their structs for images, and polars' strings, cast."""
    import datasets
    import polars

    samples = [sample(seed, id=str(seed)) for seed in range(3)]
    table = datasets.Dataset.from_list(
        [each | {"image": {"bytes": each["image"], "path": None}} for each in samples],
        features=datasets.Features(
            {name: datasets.Value("string") for name in ("id", "question", "answer")}
            | {"image": datasets.Image(decode=False)}
        ),
    ).data.table
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    same(answered(served.url, file.getvalue())[:-1], samples, served.url)
    frame, file = polars.DataFrame(samples), io.BytesIO()
    frame.write_ipc_stream(file, compat_level=polars.CompatLevel.oldest())
    same(answered(served.url, file.getvalue())[:-1], samples, served.url)
    file = io.BytesIO()
    frame.write_ipc_stream(file)
    assert "cast it to string" in answered(served.url, file.getvalue())[-1]["error"]["message"]


def refusal(body: bytes, chunk: int = 4096) -> RequestError | None:
    """What the body is refused with as a whole, however it comes in pieces."""

    class Coming:
        def __init__(self) -> None:
            self.chunks = iter([body[at : at + chunk] for at in range(0, len(body), chunk)])

        def begin(self) -> None:
            pass

        async def chunk(self) -> bytes | None:
            return next(self.chunks, None)

    async def read() -> None:
        async for row in arrow_rows(Coming(), max_bytes=MAX_BYTES):  # type: ignore[arg-type]
            row.size  # noqa: B018 - as the stream asks

    try:
        asyncio.run(read())
    except RequestError as error:
        return error
    return None


ROW = {"question": "?", "answer": "Noise.", "image": b"x" * 100}


def column(kind: Any, values: Any, name: str = "images") -> bytes:
    return ipc([[{name: value} for value in values]], pa.schema([(name, kind)]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (ipc([[ROW] * 50], compression="zstd"), "compressed"),
        (ipc([[ROW] * 50], compression="lz4"), "compressed"),
        (ipc([[ROW]]) + b"more", "after the stream's end"),
        (ipc([[ROW]])[:-40], "ends within record batch 1"),
        (ipc([[ROW]])[:30], "ends within the schema"),
        (b"ARROW1\0\0" + ipc([[ROW]]), "Arrow file"),
        (b'{"question": "?"}\n', "no message where the schema"),
        (ipc([[ROW | {"image_size": 3}]]), "'image_size'"),
        (ipc([[ROW], [ROW | {"image": b"x" * 2**20}]]), "record batch 2 is longer than 1 MiB"),
        (column(pa.dictionary(pa.int32(), pa.string()), ["a"], "answer"), "cast it to string"),
        (column(pa.string_view(), ["a"], "answer"), "cast it to string"),
        (column(pa.list_(pa.null()), [[None] * 100]), "isn't taken"),
        (column(pa.list_(pa.struct([])), [[{}] * 100]), "isn't taken"),
        (column(pa.map_(pa.string(), pa.string()), [[("a", "b")]]), "isn't taken"),
        (column(pa.list_(pa.string()), [["a"] * 5000]), "5000 elements"),
        (column(pa.list_(pa.struct([("url", pa.list_(pa.string()))])), [[{"url": ["a"] * 5000}]]), "5000 elements"),
        (column(pa.null(), [None] * 5000, "question"), "rows in"),
        (b"\xff\xff\xff\xff" + struct.pack("<i", 2**30), "metadata"),
        (b"\xff\xff\xff\xff" + struct.pack("<i", -8) + b"x" * 100, "metadata"),
        (b"\xff\xff\xff\xff" + struct.pack("<i", 64) + b"\xff" * 64, "no readable head"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 4096])
def test_bodies_that_are_refused_in_words(body: bytes, words: str, chunk: int) -> None:
    refused = refusal(body, chunk if len(body) < 10_000 else 4096)
    assert refused is not None
    assert words in refused.message


def test_compression_as_before_arrow_1_is_refused_too() -> None:
    """Arrow still heeds the metadata of a message of its fourth version, which has no field for compression: 700 bytes
    that become three millions."""
    body = bytearray(ipc([[{"question": "a" * 3_000_000}]], compression="zstd"))
    start = body.index(b"\xff\xff\xff\xff", 8)
    length = struct.unpack_from("<i", body, start + 4)[0]
    metadata = bytes(body[start + 8 : start + 8 + length])
    root = struct.unpack_from("<I", metadata, 0)[0]
    place = arrow._field(metadata, root, arrow._VERSION)
    assert place is not None
    body[start + 8 + place : start + 10 + place] = struct.pack("<h", 3)
    header = arrow._field(metadata, root, arrow._HEADER)
    assert header is not None
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    vtable = batch - struct.unpack_from("<i", metadata, batch)[0]
    field = start + 8 + vtable + 4 + 2 * arrow._COMPRESSION
    body[field : field + 2] = b"\0\0"
    refused = refusal(bytes(body))
    assert refused is not None
    assert "before Arrow 1.0" in refused.message


def test_columns_may_not_be_the_same_bytes() -> None:
    """Each buffer of a body says where in it it lies; here all say the same place."""
    names = ["question", "answer", "id", "policy", "model", "reference"]
    body = bytearray(ipc([[dict.fromkeys(names, "a" * 1000)]], pa.schema([(name, pa.string()) for name in names])))
    start = body.index(b"\xff\xff\xff\xff", 8)
    begin = start + 8 + struct.unpack_from("<i", body, start + 4)[0]
    lengths = [at for at in range(start, begin, 8) if body[at : at + 8] == struct.pack("<q", 1000)]
    assert len(lengths) == len(names)
    values, offsets = body[lengths[0] - 8 : lengths[0] + 8], body[lengths[0] - 24 : lengths[0] - 8]
    for at in lengths:
        body[at - 24 : at + 8] = offsets + values
    kept = struct.unpack_from("<q", values)[0] + 1000
    metadata = bytes(body[start + 8 : begin])
    place = arrow._field(metadata, struct.unpack_from("<I", metadata, 0)[0], arrow._BODY_LENGTH)
    assert place is not None
    struct.pack_into("<q", body, start + 8 + place, kept)
    refused = refusal(bytes(body[: begin + kept]))
    assert refused is not None
    assert "columns have" in refused.message


def test_a_record_batch_that_says_it_is_long_is_refused_before_it_comes() -> None:
    body = bytearray(ipc([[ROW]]))
    length = struct.pack("<q", pa.ipc.read_message(pa.BufferReader(second(bytes(body)))).body.size)
    place = bytes(body).index(length, body.rindex(b"\xff\xff\xff\xff", 0, len(body) - 8))
    for claimed in (2**40, 2**62, -1):
        body[place : place + 8] = struct.pack("<q", claimed)
        refused = refusal(bytes(body))
        assert refused is not None
        assert refused.kind in ("TooLarge", "Invalid")


def second(body: bytes) -> bytes:
    """From the second message on."""
    reader = pa.BufferReader(body)
    pa.ipc.read_message(reader)
    return body[reader.tell() :]


class _Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """Ray registers an extension type with Arrow whose values are pickles, and loads them when they are looked at."""
    import ray.data  # noqa: F401 - registers it

    folder = tmp_path / "made"
    field = pa.field(
        "answer", pa.large_binary(), metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object",
            "ARROW:extension:metadata": ""}
    )  # fmt: skip
    body = ipc([[{"answer": pickle.dumps(_Evil(folder))}]], pa.schema([field]))
    pa.ipc.open_stream(body).read_all().to_pylist()
    assert folder.exists(), "the attack itself has to work"
    folder.rmdir()
    refused = refusal(body)
    assert refused is not None
    assert "extension type" in refused.message
    assert not folder.exists()


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_changed_end_in_words_or_rows(seed: int) -> None:
    """No crash of Arrow's own code, and no other exception, whatever was turned over."""
    import random

    draw = random.Random(seed)
    turns = [{"role": "user", "content": [{"type": "text", "text": "?"}]}, {"role": "assistant", "content": []}]
    whole = [ipc([[ROW] * 3, [ROW]]), ipc([[{"messages": turns, "images": [b"abc", None]}] * 3])]
    for body in whole:
        for _ in range(50):
            changed = bytearray(body)
            for _ in range(draw.randint(1, 4)):
                changed[draw.randrange(len(changed))] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            refusal(bytes(changed))
