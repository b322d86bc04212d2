"""A layout: the columns that rows are recognised by, those that are read, and the function from a row to its sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from vig_ray.dataset.fields import ID_KEYS, IMAGE_KEYS, OTHER_MEDIA, SOURCE_KEYS
from vig_ray.dataset.schema import Sample

Kind = Literal["text", "texts", "turns", "any"]
TOLD: dict[Kind, str] = {
    "text": "text",
    "texts": "text or a list of it",
    "turns": "a list of structs, a struct of lists or JSON",
    "any": "anything",
}
"""What a column holds."""

COMMON = (*ID_KEYS, *SOURCE_KEYS, *IMAGE_KEYS, "image_sha256", "system", *OTHER_MEDIA)
"""The columns that are read in every layout."""


@dataclass(frozen=True)
class Layout:
    """One way in which rows hold a conversation and its images."""

    name: str
    needs: Mapping[str, Kind]
    """The columns without which a row is of another layout."""
    parse: Callable[[Mapping[str, Any]], Sample]
    """The sample in a row, with its texts as they are. Raises RowError."""
    rank: int
    """Where several layouts fit, the one of the lowest rank is taken; two of the same rank are ambiguous."""
    columns: str
    """The same, as --columns says it."""
    more: tuple[str, ...] = ()
    """Columns that are read where they are there, beside `needs` and COMMON."""
    image: bool = False
    """Whether rows must have an image's column, be it null."""

    def lacks(self, filled: Collection[str], keys: Collection[str]) -> list[str]:
        """What a row with these keys, `filled` being those that aren't null, lacks to be of this layout."""
        missing = [f"'{key}'" for key in self.needs if key not in filled]
        if self.image and not any(key in keys for key in IMAGE_KEYS):
            missing.append(
                f"an image's column ({', '.join(IMAGE_KEYS)}; some sets keep images in another file: join it first)"
            )
        return missing

    def reads(self, columns: Collection[str]) -> list[str]:
        """Those of a file's columns that this layout reads."""
        wanted = {*COMMON, *self.needs, *self.more}
        return [name for name in columns if name in wanted]


def holds(kept: pa.DataType, kind: Kind) -> bool:
    """Whether a column of this type holds what is needed."""
    kept = storage(kept)
    if kind == "any" or pa.types.is_null(kept) or _is_text(kept):
        return True
    if kind == "text":
        return False
    inner = storage(kept.value_type) if is_list(kept) else None
    if kind == "texts" and inner is not None and (_is_text(inner) or pa.types.is_null(inner)):
        return True
    return pa.types.is_struct(kept) or (inner is not None and (pa.types.is_struct(inner) or pa.types.is_null(inner)))


def storage(kept: pa.DataType) -> pa.DataType:
    """A type as it lies in memory: that of a dictionary's values, or of an extension."""
    while isinstance(kept, pa.BaseExtensionType) or pa.types.is_dictionary(kept):
        kept = kept.value_type if pa.types.is_dictionary(kept) else kept.storage_type
    return kept


def is_list(kept: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists."""
    return bool(pa.types.is_list(kept) or pa.types.is_large_list(kept) or pa.types.is_fixed_size_list(kept))


def _is_text(kept: pa.DataType) -> bool:
    return bool(pa.types.is_string(kept) or pa.types.is_large_string(kept) or pa.types.is_string_view(kept))
