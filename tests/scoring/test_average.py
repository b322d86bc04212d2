"""The picture of blur-mean: which images it is of, and their mean, by hand."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vig_ray.dataset.images import decode_image
from vig_ray.dataset.schema import SAMPLES
from vig_ray.errors import StageError
from vig_ray.model.prompt import Pixels
from vig_ray.scoring.references.average import blur_mean_image, to_png
from vig_ray.tables.order import hashes


def colour(number: int) -> tuple[int, int, int]:
    return number % 251, 7 * number % 251, 13 * number % 251


def png(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour(number)).save(file, "PNG")
    return file.getvalue()


def row(number: int, images: list[dict[str, Any]]) -> dict[str, Any]:
    conversation = [{"role": "assistant", "text": "a"}]
    empty = {"id": None, "source": None, "error": None}
    return {"sample_key": f"made/{number}", "images": images, "conversation": conversation, **empty}


def write(directory: Path, rows: list[dict[str, Any]], *, files: int, group: int) -> str:
    directory.mkdir()
    for part in range(files):
        table = pa.Table.from_pylist(rows[part::files], schema=SAMPLES)
        pq.write_table(table, directory / f"{part}.parquet", row_group_size=group)
    return str(directory)


def same(pixels: Pixels) -> Pixels:
    return pixels


def by_hash(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = pa.array([each["sample_key"] for each in rows])
    return [rows[place] for place in np.argsort(hashes(keys, "blur-mean"))]


def test_it_is_the_mean_of_the_images_whose_samples_have_the_lowest_hashes(tmp_path: Path) -> None:
    """Whatever files they lie in; every third sample is text alone, and sample 1 comes with two images."""
    rows = [row(i, [{"uri": None, "bytes": png(i)}] if i % 3 else []) for i in range(120)]
    rows[1]["images"].append({"uri": None, "bytes": png(500)})
    taken = [int(each["sample_key"].split("/")[1]) for each in by_hash(rows) if each["images"]][:16]
    expected = np.rint(np.mean([colour(number) for number in taken], axis=0))
    for number, (files, group) in enumerate(((1, 120), (3, 7), (5, 1))):
        found = blur_mean_image(write(tmp_path / str(number), rows, files=files, group=group), 16, same)
        assert found.shape == (336, 336, 3)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    everything = blur_mean_image(write(tmp_path / "all", rows, files=2, group=11), 1000, same)
    expected = np.rint(np.mean([colour(i) for i in range(120) if i % 3], axis=0))
    np.testing.assert_array_equal(everything, np.broadcast_to(expected, everything.shape))


def test_where_most_samples_are_text_the_few_images_are_found(tmp_path: Path) -> None:
    rows = [row(i, [{"uri": None, "bytes": png(i)}] if i in (31, 77) else []) for i in range(100)]
    found = blur_mean_image(write(tmp_path / "s", rows, files=2, group=10), 2, same)
    expected = np.rint((np.array(colour(31)) + colour(77)) / 2)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_an_image_of_many_samples_counts_once(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (200, 0, 0)).save(tmp_path / "red.png")
    shared = {"uri": str(tmp_path / "red.png"), "bytes": None}
    rows = [row(i, [shared]) for i in range(9)] + [row(9, [{"uri": None, "bytes": png(0)}])]
    found = blur_mean_image(write(tmp_path / "s", rows, files=1, group=3), 10, same)
    np.testing.assert_array_equal(found, np.broadcast_to([100, 0, 0], found.shape))


def test_each_is_blurred_at_its_own_size_and_then_shrunk_by_area(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (672, 1344, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    sizes = []

    def blur(given: Pixels) -> Pixels:
        sizes.append(given.shape)
        return np.asarray(255 - given)

    directory = write(tmp_path / "s", [row(0, [{"uri": None, "bytes": file.getvalue()}])], files=1, group=1)
    found = blur_mean_image(directory, 1, blur).astype(float)
    assert sizes == [(672, 1344, 3)]
    blocks = (255.0 - pixels).reshape(336, 2, 336, 4, 3).mean(axis=(1, 3))
    assert np.abs(found - blocks).max() <= 0.5 + 1e-9


def test_images_that_cannot_be_read_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row(i, [{"uri": None, "bytes": png(i) if i % 2 else b"no image"}]) for i in range(10)]
    rows.append(row(10, [{"uri": str(tmp_path / "gone.png"), "bytes": None}]))
    with caplog.at_level(logging.WARNING):
        found = blur_mean_image(write(tmp_path / "s", rows, files=1, group=4), 100, same)
    expected = np.rint(np.mean([colour(i) for i in range(1, 10, 2)], axis=0))
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))
    assert "the mean of 5 images; 2 couldn't be read" in caplog.text  # the five bad ones of bytes are one image
    with pytest.raises(StageError, match="2 images that can't be read, such as UnidentifiedImageError"):
        blur_mean_image(write(tmp_path / "bad", [rows[0], rows[10]], files=1, group=1), 3, same)
    with pytest.raises(StageError, match="no sample with an image: nothing to take the mean of"):
        blur_mean_image(write(tmp_path / "text", [row(0, []), row(1, [])], files=1, group=1), 3, same)


def test_its_png_is_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(to_png(picture)), picture)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(to_png(picture)))), picture)
