"""Prepared samples on their way to the engines, as Arrow arrays: a group of samples is one row (`groups_schema`).

Ray Data joins and cuts blocks between two stages, but never a row. So samples that share an image travel in one row,
which holds each array once: those of images, of whole samples and of prompts alike, whichever samples and passes have
them. What is read lies in the row's own memory, such as Ray's object store; nothing is copied, and nothing can be
written to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vig_ray.model.prompt import ImageInputs, Prompt, PromptError, PromptImage, prepared_image, whole_inputs

_ALIGNED = 64  # bytes: where an array begins, as Arrow's own do
_ARRAYS = ("token_ids", "answer_positions", "turns", "image_mask", "image_spans", "answer_chars")
_VALUES = ("hide_images", "truncated", "note")


def pack(samples: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """One row of `schema`, a `groups_schema` or `groups_of` others, that holds these samples.

    A sample: the columns of that schema, but `prompts` a tuple of Prompt and PromptError, or None. Images of one
    key are taken to be the same, as everywhere.
    """
    pool = _Pool()
    rows = [{**sample, "prompts": _packed(sample["prompts"], pool)} for sample in samples]
    columns = [
        pa.array([rows], schema.field("samples").type),
        pa.array([pool.images], schema.field("images").type),
        pa.LargeListArray.from_arrays([0, len(pool.arrays)], pool.stored(schema.field("arrays").type.value_type)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def unpack(groups: pa.Table) -> list[dict[str, Any]]:
    """The samples of each row, in order, as they were given to `pack`; their arrays are those of the table."""
    samples = []
    for batch in groups.to_batches():
        every = _views(batch["arrays"].flatten())
        first = batch["arrays"].offsets.to_numpy()
        first = first - first[0]
        rows, images_of = batch["samples"].to_pylist(), batch["images"].to_pylist()
        for number, (group, images) in enumerate(zip(rows, images_of, strict=True)):
            arrays = every[first[number] : first[number + 1]]
            inputs = [{name: arrays[place] for name, place in image["arrays"]} for image in images]
            pictures = [
                None if image["key"] is None else prepared_image(image["key"], given)
                for image, given in zip(images, inputs, strict=True)
            ]
            for row in group:
                if row["prompts"] is not None:
                    row["prompts"] = tuple(_unpacked(one, arrays, pictures, inputs) for one in row["prompts"])
                samples.append(row)
    return samples


class _Pool:
    """The distinct arrays of a group, and its images: of each, its key and by name which arrays it has.

    The arrays that a processor made of a whole sample are listed among the images, without a key.
    """

    def __init__(self) -> None:
        self.arrays: list[npt.NDArray[Any]] = []
        self.images: list[dict[str, Any]] = []
        self._places: dict[int, tuple[int, Any]] = {}  # by identity, and what it is of, so that no other gets it
        self._by_key: dict[str, int] = {}

    def array(self, array: npt.NDArray[Any]) -> int:
        """The place of an array."""
        if id(array) not in self._places:
            self._places[id(array)] = len(self.arrays), array
            self.arrays.append(np.asarray(array, order="C"))
        return self._places[id(array)][0]

    def image(self, image: PromptImage) -> int:
        """The place of an image."""
        if image.key not in self._by_key:
            self._by_key[image.key] = self._add(image.key, image.inputs)
        return self._by_key[image.key]

    def whole(self, inputs: ImageInputs) -> int:
        """The place of a whole sample's arrays."""
        if id(inputs) not in self._places:
            self._places[id(inputs)] = self._add(None, inputs), inputs
        return self._places[id(inputs)][0]

    def _add(self, key: str | None, inputs: ImageInputs) -> int:
        self.images.append({"key": key, "arrays": [(name, self.array(array)) for name, array in inputs.items()]})
        return len(self.images) - 1

    def stored(self, kind: pa.StructType) -> pa.StructArray:
        """The arrays as Arrow's of type `kind`, their bytes copied once, each filled up to a multiple of 64."""
        ends = np.cumsum([0, *(-(-array.nbytes // _ALIGNED) * _ALIGNED for array in self.arrays)], dtype=np.int64)
        data = np.zeros(ends[-1], dtype=np.uint8)
        for array, start in zip(self.arrays, ends, strict=False):
            if array.dtype.hasobject:
                raise TypeError(f"an image's array of {array.dtype}: the model is given numbers")
            data[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        parts = {
            "dtype": pa.array([array.dtype.str for array in self.arrays], kind.field("dtype").type),
            "shape": pa.array([array.shape for array in self.arrays], kind.field("shape").type),
            "data": pa.Array.from_buffers(
                kind.field("data").type, len(self.arrays), [None, pa.py_buffer(ends), pa.py_buffer(data)]
            ),
        }
        return pa.StructArray.from_arrays([parts[field.name] for field in kind], fields=list(kind))


def _views(stored: pa.StructArray) -> list[npt.NDArray[Any]]:
    """The arrays that `_Pool.stored` made, in its memory."""
    data = stored.field("data")
    _, offsets, data_of = data.buffers()
    starts = np.frombuffer(offsets, np.int64)[data.offset :]
    views = []
    for start, name, shape in zip(
        starts, stored.field("dtype").to_pylist(), stored.field("shape").to_pylist(), strict=False
    ):
        count = math.prod(shape)
        flat = np.frombuffer(data_of, name, count, start) if count else np.zeros(0, name)
        views.append(flat.reshape(shape))
    return views


def _packed(prompts: tuple[Prompt | PromptError, ...] | None, pool: _Pool) -> list[dict[str, Any]] | None:
    if prompts is None:
        return None
    packed: list[dict[str, Any]] = []
    for one in prompts:
        if isinstance(one, PromptError):
            packed.append({"error": {"kind": one.kind, "cause": one.args[1]}})
            continue
        packed.append(
            {name: pool.array(getattr(one, name)) for name in _ARRAYS}
            | {name: getattr(one, name) for name in _VALUES}
            | {"images": [pool.image(image) for image in one.images]}
            | {"whole": None if one.whole is None else pool.whole(one.whole.arrays)}
        )
    return packed


def _unpacked(
    packed: Mapping[str, Any],
    arrays: Sequence[npt.NDArray[Any]],
    images: Sequence[PromptImage | None],
    inputs: Sequence[ImageInputs],
) -> Prompt | PromptError:
    if packed["error"] is not None:
        return PromptError(packed["error"]["kind"], packed["error"]["cause"])
    of_whole = packed["whole"]
    return Prompt(
        **{name: arrays[packed[name]] for name in _ARRAYS},
        **{name: packed[name] for name in _VALUES},
        images=tuple(image for place in packed["images"] if (image := images[place]) is not None),
        whole=None if of_whole is None else whole_inputs(inputs[of_whole]),
    )
