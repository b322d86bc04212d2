"""A stream's samples as Arrow IPC: https://arrow.apache.org/docs/format/Columnar.html, "IPC Streaming Format".

What is here reads nothing that isn't bounded first: a message's length, compression and rows before its bytes are kept,
and its columns' types before a value is made of them.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from serve_app.errors import RequestError
from serve_app.rows import Body, Row
from serve_app.schema import StreamRequest

CONTENT_TYPE = "application/vnd.apache.arrow.stream"
_UNREADABLE = (pa.ArrowException, ValueError, OSError)
_CONTINUES = b"\xff\xff\xff\xff"
_MOST_METADATA = 2**20
_MOST_COLUMNS = 32
_SCHEMA, _RECORD_BATCH = 1, 3
_VERSION, _HEADER_TYPE, _HEADER, _BODY_LENGTH, _METADATA = range(5)  # fields of a Message
_V5 = 4
_LENGTH, _COMPRESSION = 0, 3  # fields of a RecordBatch
_MOST_ELEMENTS = 4096  # of a row's lists, at each level
_MOST_LEVELS = 6  # a message's content has parts, which have an image_url, which has a url
# Not string_view and binary_view: any number of their values may be the same bytes, and each a sample as long as all.
_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
_PLAIN = (*_TEXT, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_null)


def _wrong(message: str) -> RequestError:
    return RequestError(422, "Invalid", message)


class _Message(NamedTuple):
    kind: int
    body_length: int
    rows: int
    compressed: bool


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer table's field lies; None where it has its default."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise struct.error
    place = 4 + 2 * number
    if place + 2 > struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + place)[0]
    return table + offset if offset else None


def _at(data: bytes, place: int | None, spelled: str) -> int:
    return 0 if place is None else int(struct.unpack_from(spelled, data, place)[0])


def _message(metadata: bytes) -> _Message:
    """What a message's flatbuffer says of it. Raises RequestError."""
    try:
        root = struct.unpack_from("<I", metadata, 0)[0]
        kind = _at(metadata, _field(metadata, root, _HEADER_TYPE), "<B")
        # An older version tells of compression in the message's own metadata, which Arrow still heeds.
        old = _at(metadata, _field(metadata, root, _VERSION), "<h") != _V5
        if old or _field(metadata, root, _METADATA) is not None:
            raise _wrong("a message has metadata of its own, or a version before Arrow 1.0, which aren't taken")
        body = _at(metadata, _field(metadata, root, _BODY_LENGTH), "<q")
        header = _field(metadata, root, _HEADER)
        if kind != _RECORD_BATCH or header is None:
            return _Message(kind, body, 0, compressed=False)
        batch = header + struct.unpack_from("<I", metadata, header)[0]
        compressed = _field(metadata, batch, _COMPRESSION) is not None
        return _Message(kind, body, _at(metadata, _field(metadata, batch, _LENGTH), "<q"), compressed)
    except struct.error as error:
        raise _wrong("the body isn't Arrow IPC in its streaming format: a message has no readable head") from error


def _check_type(column: str, kind: pa.DataType, level: int = 0) -> None:
    """Raise RequestError for a type that isn't taken. Within lists and structs are only those whose values take bytes:
    a list of nulls may have any number in none."""
    if any(is_plain(kind) for is_plain in (_TEXT if level else _PLAIN)):
        return
    nested = pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if nested and 0 < kind.num_fields <= _MOST_COLUMNS and level < _MOST_LEVELS:
        within = [kind.field(index) for index in range(kind.num_fields)]
        if pa.types.is_struct(kind) and len({field.name for field in within}) < len(within):
            raise _wrong(f"column {column!r} has a struct with two fields of one name")
        for field in within:
            _check_type(column, field.type, level + 1)
        return
    to_cast = pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) or pa.types.is_binary_view(kind)
    hint = ": cast it to string or binary" if to_cast else ""
    raise _wrong(f"column {column!r} has type {str(kind)[:100]}, which isn't taken{hint}")


def _check_lengths(array: pa.Array, what: str) -> None:
    """Raise RequestError where a row's lists are so long that Python objects of their elements would fill the memory.
    `array`: one column of it."""
    if pa.types.is_struct(array.type):
        for child in array.flatten():
            _check_lengths(child, what)
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        elements = array.flatten()
        if len(elements) > _MOST_ELEMENTS:
            raise _wrong(f"{what}: {len(elements)} elements in a list, and there may be {_MOST_ELEMENTS}")
        _check_lengths(elements, what)


def _schema_of(message: bytes) -> pa.Schema:
    """Raises RequestError for columns that no sample has, and for types that aren't plain ones."""
    # Before Arrow reads it: an extension type that some library has registered runs code of its own on what it is given
    # here, and one of Ray's unpickles the values.
    if b"ARROW:extension:" in message:
        raise _wrong("a column has an extension type, which isn't taken: cast it to its storage type")
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(message))
        _check_columns(schema)
    except _UNREADABLE as error:
        raise _wrong("the schema can't be read") from error
    return schema


def _check_columns(schema: pa.Schema) -> None:
    names, known = list(schema.names), list(StreamRequest.model_fields)
    for name in names:
        if name not in known or names.count(name) > 1:
            problem = "twice" if name in known else "which a sample doesn't have"
            raise _wrong(f"column {name[:100]!r}: {problem}; a sample has {', '.join(known)}")
        _check_type(name, schema.field(name).type)


class ArrowRow:
    """A row of a record batch: its values by column, without nulls."""

    def __init__(self, values: dict[str, Any], size: int) -> None:
        self._values, self._size = values, size

    @property
    def size(self) -> int:
        """See `Row`."""
        return self._size

    @property
    def name(self) -> str | None:
        """See `Row`."""
        name = self._values.get("id")
        return name if isinstance(name, str) else None

    def request(self) -> tuple[StreamRequest, bytes | None]:
        """See `Row`. An image is the bytes of its file, or text as in JSON; a struct of `bytes` and `path`, as Hugging
        Face's datasets have it, is its bytes."""
        values = dict(self._values)
        image = _image(values["image"], "image") if "image" in values else None
        if image is not None:
            values["image"] = "upload" if isinstance(image, bytes) else image
        if isinstance(values.get("images"), list):
            listed = [_image(each, f"images.{index}") for index, each in enumerate(values["images"])]
            values["images"] = [base64.b64encode(each).decode() if isinstance(each, bytes) else each for each in listed]
        request = StreamRequest.model_validate(values)
        return request, image if isinstance(image, bytes) else None


def _image(value: Any, where: str) -> Any:
    """Raises RequestError."""
    if isinstance(value, dict):
        if not isinstance(value.get("bytes"), bytes):
            raise RequestError(422, "BadImage", f"{where}: no bytes; a path is of no use to the server")
        value = value["bytes"]
    if value == b"":
        raise RequestError(422, "BadImage", f"{where}: a file of 0 bytes")
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value]
    return value


class _Messages:
    """The messages of a body, each kept whole. `max_bytes`: of one."""

    def __init__(self, body: Body, max_bytes: int) -> None:
        self._body, self._max_bytes = body, max_bytes
        self._kept, self._ended = bytearray(), False

    async def next(self, what: str) -> tuple[_Message, bytes] | None:
        """The next one, and its bytes; None at the end. `what`: its name in an error. Raises RequestError."""
        self._body.begin()
        if not await self._have(1, what):
            return None
        if bytes(self._kept[:6]) == b"ARROW1"[: len(self._kept)]:
            raise _wrong("the body is an Arrow file; send Arrow's streaming format (pyarrow.ipc.new_stream)")
        await self._have(8, what)
        if self._kept[:4] != _CONTINUES:
            raise _wrong(f"the body isn't Arrow IPC in its streaming format: no message where {what} should begin")
        length = struct.unpack_from("<i", self._kept, 4)[0]
        if length == 0:
            del self._kept[:8]
            if await self._have(1, what):
                raise _wrong("there are more bytes after the stream's end")
            return None
        if not 0 < length <= _MOST_METADATA:
            raise _wrong(f"{what} says that its metadata has {length} bytes; there may be {_MOST_METADATA}")
        await self._have(8 + length, what)
        message = _message(bytes(self._kept[8 : 8 + length]))
        whole = 8 + length + message.body_length
        if message.body_length < 0 or whole > self._max_bytes:
            limit = f"{self._max_bytes / 2**20:g} MiB, the limit (--max-body-mb); send smaller record batches"
            raise RequestError(413, "TooLarge", f"{what} is longer than {limit}")
        await self._have(whole, what)
        taken = bytes(memoryview(self._kept)[:whole])
        del self._kept[:whole]
        return message, taken

    async def _have(self, count: int, what: str) -> bool:
        """Keep `count` bytes; False at the body's end with none kept. Raises RequestError where it ends between."""
        while len(self._kept) < count and not self._ended:
            chunk = await self._body.chunk()
            self._ended = chunk is None
            self._kept += chunk or b""
        if len(self._kept) < count and self._kept:
            raise _wrong(f"the body ends within {what}")
        return bool(self._kept)


async def arrow_rows(body: Body, *, max_bytes: int) -> AsyncIterator[Row]:
    """The rows of an Arrow IPC stream, a record batch in memory at a time.

    Columns are the fields of a sample (`StreamRequest`). Record batches may have `max_bytes` each. Raises RequestError
    for what isn't that, for compressed record batches, dictionaries and extension types, and as `Body.chunk` does.
    """
    messages = _Messages(body, max_bytes)
    first = await messages.next("the schema")
    if first is None:
        return
    if first[0].kind != _SCHEMA:
        raise _wrong("the body doesn't begin with a schema")
    schema = _schema_of(first[1])
    number = 0
    while (found := await messages.next(f"record batch {number + 1}")) is not None:
        number += 1
        for row in _rows(*found, schema, f"record batch {number}"):
            yield row


def _rows(message: _Message, data: bytes, schema: pa.Schema, what: str) -> Iterator[Row]:
    """Raises RequestError."""
    if message.kind != _RECORD_BATCH:
        raise _wrong(f"{what} isn't a record batch; dictionaries aren't taken")
    if message.compressed:
        raise _wrong(f"{what} is compressed, which isn't taken: how much it would become isn't known before")
    # A column of nulls takes no bytes however many rows it has.
    if not 0 <= message.rows <= len(data):
        raise _wrong(f"{what} has {message.rows} rows in {len(data)} bytes")
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
        batch.validate(full=True)
    except _UNREADABLE as error:
        raise _wrong(f"{what} can't be read as its schema says") from error
    # Buffers are places in the body, and any number may name the same one.
    if batch.nbytes > len(data):
        raise _wrong(f"{what}: its columns have {batch.nbytes} bytes, and it has {len(data)}")
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        for column in row.columns:
            _check_lengths(column, f"row {index} of {what}")
        yield ArrowRow(_without_nulls(row.to_pylist()[0]), row.nbytes)
