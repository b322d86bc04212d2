"""The columns of samples/, and the form that every format is brought to before it becomes a row of them."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

IMAGE_MARK = "<image>"
"""Stands in a turn's text where an image goes."""

SAMPLES = pa.schema(
    [
        # Unique and stable: dataset name, file where there are several, row number. Never the dataset's own id.
        pa.field("sample_key", pa.string(), nullable=False),
        # The dataset's own id; it may repeat (it does in LLaVA-665K). Null where the row has none.
        pa.field("id", pa.string()),
        # The dataset's own sub-dataset ("coco", "gqa"), for breakdowns. Null where the row names none.
        pa.field("source", pa.string()),
        # In the order of their `<image>` marks; exactly one of `uri` and `bytes` is set. Empty for a text-only sample.
        pa.field("images", pa.list_(pa.struct([("uri", pa.string()), ("bytes", pa.binary())]))),
        # Role is "system", "user" or "assistant"; the text is exactly the dataset's. Empty for a failed row.
        pa.field("conversation", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        # Null, or why this row could not be imported: "Kind: cause".
        pa.field("error", pa.string()),
    ]
)


class Image(NamedTuple):
    """An image as its row gives it: its path or URI, or the bytes of its file. Exactly one of the two is set.

    `sha256`, in lower-case hexadecimal digits, is what a URI's bytes are compared with where the row tells it; it isn't
    a column of samples/.
    """

    uri: str | None = None
    bytes: bytes | None = None
    sha256: str | None = None


class Turn(NamedTuple):
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    text: str


class Sample(NamedTuple):
    """A row in the form that every format is brought to. It gets its key when it is written."""

    id: str | None
    source: str | None
    images: tuple[Image, ...]
    conversation: tuple[Turn, ...]


class RowError(Exception):
    """Why one row can't be imported. `kind` is a short name to count by; the message is "kind: cause"."""

    def __init__(self, kind: str, cause: str) -> None:
        super().__init__(f"{kind}: {cause}")
        self.kind = kind
