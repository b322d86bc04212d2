"""Prepared samples as Arrow arrays: what comes out is what went in, each array once, in the table's own memory."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.model.family import SAMPLES, picture
from tests.scoring.prompts import ask
from vig_ray.dataset.schema import SAMPLES as SAMPLES_SCHEMA
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.prepare import Preparer, make_passes
from vig_ray.scoring.prepared import pack, unpack
from vig_ray.scoring.schema import groups_schema, prepared_schema

ARRAYS = ("token_ids", "answer_positions", "turns", "image_mask", "image_spans", "answer_chars")
VALUES = ("hide_images", "truncated", "note")


def sample(prompts: Any, key: str = "made/0", **more: Any) -> dict[str, Any]:
    return dict.fromkeys(prepared_schema().names) | {"sample_key": key, "prompts": prompts} | more


def images_of(formatter: Any, sizes: Any, named: str = "") -> list[PromptImage]:
    pictures = [np.asarray(picture(size, seed)) for seed, size in enumerate(sizes)]
    return [
        PromptImage(f"{named}{number}", lambda pixels=pixels: pixels, formatter.preprocess)  # type: ignore[misc]
        for number, pixels in enumerate(pictures)
    ]


def arrays_of(prompt: Prompt) -> Iterator[np.ndarray[Any, Any]]:
    """Every array that a prompt has."""
    yield from (getattr(prompt, name) for name in ARRAYS)
    for inputs in (*(image.inputs for image in prompt.images), prompt.whole.arrays if prompt.whole else {}):
        yield from inputs.values()


def assert_same(found: Any, expected: Any) -> None:
    """Two prompts with the same arrays of the same types, or two refusals with the same words."""
    assert type(found) is type(expected)
    if isinstance(expected, PromptError):
        assert (found.kind, found.args, str(found)) == (expected.kind, expected.args, str(expected))
        return
    assert [getattr(found, name) for name in VALUES] == [getattr(expected, name) for name in VALUES]
    assert [image.key for image in found.images] == [image.key for image in expected.images]
    assert (found.whole is None) == (expected.whole is None)
    for ours, theirs in zip(found.images, expected.images, strict=True):
        assert list(ours.inputs) == list(theirs.inputs)
    if expected.whole is not None:
        assert list(found.whole.arrays) == list(expected.whole.arrays)
    for one, other in zip(arrays_of(found), arrays_of(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.array_equal(one, other)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "lfm2_vl", "mllama"])
def test_what_comes_out_is_what_a_pickle_would_bring(family: str, tmp_path: Path) -> None:
    """From parts, several images, M-RoPE's grids, whole samples; in every pass, and refused."""
    if family == "llava":
        formatter = load_formatter(CHECKPOINT)
    else:
        importlib.import_module(f"tests.model.families.{family}").make(str(tmp_path))
        formatter = load_formatter(str(tmp_path))
    passes = make_passes(("clean", "blur", "blind", "no-image", "mean", "vcd"), formatter)
    samples = []
    for name in ("one image", "two images", "text", "a later image", "two turns"):
        texts, sizes = SAMPLES[name]
        turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
        prompt = replace(formatter.prompt(turns, images_of(formatter, sizes, name)), note=f"of {name}", truncated=3)
        prompts = (*(one(prompt) for one in passes), PromptError("Odd", "it is: 红")) if sizes else None
        kept = [{"name": "rating", "value": "4"}, {"name": "url", "value": '"红"'}] if sizes else None
        more = {"error": None if sizes else "told", "token_ids": prompt.answer_ids, "kept": kept}
        samples.append(sample(prompts, name, **more))
    found = unpack(pack(samples, groups_schema()))
    assert [row["sample_key"] for row in found] == [row["sample_key"] for row in samples]
    for row, given in zip(found, samples, strict=True):
        assert row.keys() == given.keys()
        assert row["token_ids"] == given["token_ids"].tolist()
        assert (row["error"], row["kept"]) == (given["error"], given["kept"])
        if given["prompts"] is None:
            assert row["prompts"] is None
            continue
        for one, other in zip(row["prompts"], pickle.loads(pickle.dumps(given["prompts"])), strict=True):
            assert_same(one, other)


def test_odd_arrays_come_out_as_they_are() -> None:
    """Of no dimension, no element, every other column, and types that the model's own aren't."""
    arrays = {
        "scalar": np.array(3, dtype=np.int16),
        "none": np.zeros((2, 0, 3), dtype=np.float16),
        "columns": np.arange(24, dtype=np.float64).reshape(4, 6)[:, ::2],
        "turned": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "flags": np.array([[True, False]]),
    }
    ids = np.array([1, 2], dtype=np.int32)
    image = PromptImage("odd", lambda: np.zeros((1, 1, 3), np.uint8), lambda _: arrays)
    prompt = Prompt(ids, ids[:1], ids[:0], ids == 0, np.zeros((0, 2), np.int32), (image,))
    (row,) = unpack(pack([sample((prompt,))], groups_schema()))
    assert_same(row["prompts"][0], prompt)
    with pytest.raises(TypeError, match="an image's array of object"):
        pack([sample((replace(prompt, turns=np.array([None])),))], groups_schema())


def test_what_samples_and_passes_share_is_stored_once(demo_formatter: Any) -> None:
    (image,) = images_of(demo_formatter, [(100, 80)])
    clean, blind, blur = make_passes(("clean", "blind", "blur"), demo_formatter)
    prompts = [ask(demo_formatter, f"Answer {number}.", image) for number in range(50)]
    samples = [sample((clean(prompt), blind(prompt), blur(prompt)), str(n)) for n, prompt in enumerate(prompts)]
    table = pack(samples, groups_schema())
    arrays = table["arrays"].chunk(0).values
    pixels = image.inputs["pixel_values"]
    stored = [data.as_py() for data in arrays.field("data")]
    assert sum(len(data) >= pixels.nbytes for data in stored) == 2  # the image and the blurred one
    assert pixels.tobytes() in stored
    assert sum(map(len, stored)) < 2 * pixels.nbytes + 50 * 6 * (64 + 4 * max(len(one.token_ids) for one in prompts))
    pictures = {id(each) for row in unpack(table) for prompt in row["prompts"] for each in prompt.images}
    assert len(pictures) == 2


def test_arrays_lie_in_the_tables_memory(demo_formatter: Any) -> None:
    """As Ray's object store hands it out: nothing is copied, and nothing can be written to."""
    prompt = ask(demo_formatter, "A red circle.", *images_of(demo_formatter, [(100, 80)]))
    sink = pa.BufferOutputStream()
    table = pack([sample((prompt,))], groups_schema())
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    memory = sink.getvalue()
    (row,) = unpack(pa.ipc.open_stream(memory).read_all())
    begin = memory.address
    for array in arrays_of(row["prompts"][0]):
        assert not array.flags.writeable
        assert begin <= array.ctypes.data < begin + memory.size
        assert array.ctypes.data % array.itemsize == 0


def test_groups_stay_whole_however_their_blocks_are_joined_and_cut(demo_formatter: Any) -> None:
    images = images_of(demo_formatter, [(100, 80), (60, 60)])
    groups, expected = [], []
    for number in range(5):
        image = images[number % 2]
        samples = [sample((ask(demo_formatter, f"Of {n}.", image),), f"{number}-{n}") for n in range(number)]
        groups.append(pack(samples, groups_schema()))
        expected += samples
    joined = pa.concat_tables(groups)
    for table in (joined, joined.combine_chunks(), pickle.loads(pickle.dumps(joined.combine_chunks()))):
        for cuts in ([0, 5], [0, 1, 4, 5], [0, 3, 5]):
            parts = [table.slice(a, b - a) for a, b in pairwise(cuts)]
            found = [row for part in parts for row in unpack(pickle.loads(pickle.dumps(part)))]
            assert [row["sample_key"] for row in found] == [row["sample_key"] for row in expected]
            for row, given in zip(found, expected, strict=True):
                assert_same(row["prompts"][0], given["prompts"][0])
    assert unpack(joined.slice(5)) == unpack(pack([], groups_schema())) == []


def test_a_block_of_samples_becomes_one_row(tmp_path: Path) -> None:
    """Scored and text-only samples and one that can't be prepared, in order."""
    path = tmp_path / "a.png"
    picture((50, 40), 0).save(path)
    turns = [{"role": "user", "text": "<image>\nWhat?"}, {"role": "assistant", "text": "A circle."}]
    of_text = [{**turns[0], "text": "What?"}, turns[1]]
    there, gone = ({"uri": f"file://{name}", "bytes": None} for name in (path, tmp_path / "b.png"))
    given = [(turns, [there]), (of_text, []), (turns, [gone]), (turns, [there])]
    empty = dict.fromkeys(SAMPLES_SCHEMA.names)
    rows = [
        {**empty, "sample_key": str(number), "images": images, "conversation": conversation}
        for number, (conversation, images) in enumerate(given)
    ]
    preparer = Preparer(
        model=CHECKPOINT, template="auto", max_length=None, passes=("clean", "blur"), too_long="error",
        max_image_pixels=10**8,
    )  # fmt: skip
    table = preparer(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA))
    assert table.num_rows == 1
    found = unpack(table)
    assert [row["sample_key"] for row in found] == ["0", "1", "2", "3"]
    assert [row["prompts"] is None for row in found] == [False, True, True, False]
    assert [bool(row["error"]) for row in found] == [False, False, True, False]
    assert found[0]["prompts"][0].images[0] is found[3]["prompts"][0].images[0]
