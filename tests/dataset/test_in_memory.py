"""Rows that a program holds come through the import as those of a file: the same texts, pixels and keys."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vig_ray.dataset import importing
from vig_ray.dataset.images import ImageError, load_image
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.in_memory import in_memory, write_rows
from vig_ray.errors import StageError

COUNT = 5


def picture(number: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (6 + number, 9, 3), dtype=np.uint8)).convert(mode)


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def rows(image: Callable[[Image.Image], Any]) -> list[dict[str, Any]]:
    """LLaVA's rows, each with a picture as `image` gives it; the last one is text alone."""
    found: list[dict[str, Any]] = []
    for number in range(COUNT):
        last = number == COUNT - 1
        asked = "Where?" if last else "<image>\nWhat's this? é"
        turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"Nr. {number}\n"}]
        found.append(
            {"id": number, "source": "made", "image": None if last else image(picture(number)), "conversations": turns}
        )
    return found


def as_struct(image: Image.Image) -> dict[str, Any]:
    return {"bytes": file_of(image), "path": None}


def hugging_face() -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "source": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    return datasets.Dataset.from_list(rows(lambda image: image), features=features)


def read_back_by_pandas() -> pd.DataFrame:
    file = io.BytesIO()
    pd.DataFrame(rows(as_struct)).to_parquet(file)
    return pd.read_parquet(io.BytesIO(file.getvalue()))


def by_ray() -> Any:
    import ray.data

    return ray.data.from_arrow(pa.Table.from_pylist(rows(as_struct)))


HELD: dict[str, Callable[[], Any]] = {
    "list of PIL images": lambda: rows(lambda image: image),
    "list of bytes": lambda: rows(file_of),
    "list of structs": lambda: rows(as_struct),
    "pandas with PIL images": lambda: pd.DataFrame(rows(lambda image: image)),
    "pandas from Parquet": read_back_by_pandas,
    "polars": lambda: pl.DataFrame(rows(as_struct)),
    "pyarrow": lambda: pa.Table.from_pylist(rows(as_struct)),
    "pyarrow batch": lambda: pa.RecordBatch.from_pylist(rows(as_struct)),
    "pyarrow slice": lambda: pa.concat_tables([pa.Table.from_pylist(rows(as_struct))] * 2).slice(COUNT),
    "datasets": hugging_face,
    "datasets, shown as arrays": lambda: hugging_face().with_format("numpy"),
}


def written(data: Any, out: Path, *, overwrite: bool = False) -> str:
    held = in_memory(data)
    return write_rows(held, str(out), held.digest(), overwrite=overwrite)


def imported(data: Any, out: Path) -> list[dict[str, Any]]:
    path = written(data, out)
    report = importing.run(ImportConfig(data=path, out=str(out), name="data", images=os.getcwd(), order="as-is"))
    return [row for file in sorted(Path(report.directory).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def assert_as_made(found: list[dict[str, Any]]) -> None:
    for number, row in enumerate(found):
        assert row["error"] is None
        assert (row["id"], row["source"]) == (str(number), "made")
        assert [turn["text"] for turn in row["conversation"]] == [
            "Where?" if number == COUNT - 1 else "<image>\nWhat's this? é",
            f"Nr. {number}\n",
        ]
        pixels = [load_image(image) for image in row["images"]]
        assert len(pixels) == (number < COUNT - 1)
        for image in pixels:
            np.testing.assert_array_equal(image, np.asarray(picture(number)))


@pytest.mark.parametrize("name", HELD)
def test_every_row_comes_in_with_its_text_its_pixels_and_its_number(name: str, tmp_path: Path) -> None:
    found = imported(HELD[name](), tmp_path)
    assert [row["sample_key"] for row in found] == [f"data/{number:010d}" for number in range(COUNT)]
    assert_as_made(found)


def test_a_ray_dataset_is_written_where_its_blocks_are(tmp_path: Path, local_ray: None) -> None:
    found = imported(by_ray(), tmp_path)
    assert len({row["sample_key"] for row in found}) == COUNT
    assert_as_made(sorted(found, key=lambda row: row["id"]))
    with pytest.raises(StageError, match=r"holds the rows of an earlier call; with data='.*' and name='data'"):
        written(by_ray(), tmp_path)
    assert written(by_ray(), tmp_path, overwrite=True)


def test_rows_that_were_chosen_and_shuffled_are_those_that_are_read(tmp_path: Path) -> None:
    chosen = hugging_face().select([3, 1])
    assert [row["id"] for row in imported(chosen, tmp_path)] == ["3", "1"]


def test_files_that_a_dataset_only_names_come_with_it(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "images": [datasets.Image()],
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
        }
    )
    picture(2).save(tmp_path / "2.png")
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "It."}]
    paths = [str(tmp_path / "2.png"), str(tmp_path / "gone.png")]
    held = datasets.Dataset.from_list([{"images": [path], "messages": messages} for path in paths], features=features)
    there, gone = imported(held, tmp_path / "out")
    np.testing.assert_array_equal(load_image(there["images"][0]), np.asarray(picture(2)))
    assert "gone" in gone["error"]


def test_messages_of_mixed_types_are_rows_too(tmp_path: Path) -> None:
    parts = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "What?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    (row,) = imported([{"messages": [*messages, {"role": "assistant", "content": "It."}]}], tmp_path)
    assert [turn["text"] for turn in row["conversation"]] == ["Be brief.", "<image>What?", "It."]
    np.testing.assert_array_equal(load_image(row["images"][0]), np.asarray(picture(1)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_an_image_of_any_mode_is_what_pillow_makes_of_it_in_rgb(mode: str, tmp_path: Path) -> None:
    image = picture(3, "RGB").convert("L").convert("LA") if mode == "LA" else _converted(mode)
    (row,) = imported([{**rows(lambda _: None)[0], "image": image}], tmp_path)
    np.testing.assert_array_equal(load_image(row["images"][0]), np.asarray(image.convert("RGB")))


def _converted(mode: str) -> Image.Image:
    from PIL import ImageCms

    if mode == "LAB":
        return ImageCms.profileToProfile(
            picture(3), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )  # type: ignore[return-value]
    return picture(3, "P").convert("PA") if mode == "PA" else picture(3, mode)


def test_16_bits_keep_their_upper_8_and_unknown_ranges_are_an_error_of_their_row(tmp_path: Path) -> None:
    deep = Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000)
    first = rows(lambda _: None)[0]
    images = [deep, Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70000)]
    found = imported([{**first, "image": image} for image in images], tmp_path)
    np.testing.assert_array_equal(load_image(found[0]["images"][0])[..., 0], np.asarray(deep) >> 8)
    for row in found[1:]:
        with pytest.raises(ImageError, match="UnsupportedMode"):
            load_image(row["images"][0])


def test_pixels_are_taken_as_they_are_whatever_exif_says(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    picture(2).save(file, "PNG", exif=exif)
    image = Image.open(file)
    (row,) = imported([{**rows(lambda _: None)[0], "image": image}], tmp_path)
    assert load_image(row["images"][0]).shape[:2] == (image.height, image.width)


def test_what_is_missing_in_pandas_is_missing_in_the_row(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(as_struct)).assign(source=[None, float("nan"), pd.NA, "made", pd.NaT])
    assert [row["source"] for row in imported(frame, tmp_path)] == [None, None, None, "made", None]


def test_what_is_no_row_is_a_bad_row(tmp_path: Path) -> None:
    found = imported([*rows(lambda image: image), 3, {"conversations": None}], tmp_path)
    assert_as_made(found[:COUNT])
    assert all(row["error"] for row in found[COUNT:])
    assert len(found) == COUNT + 2


def test_the_same_rows_are_written_once_and_others_not_over_them(tmp_path: Path) -> None:
    path = written(rows(as_struct), tmp_path)
    before = os.stat(path).st_mtime_ns
    assert written(rows(as_struct), tmp_path) == path
    assert os.stat(path).st_mtime_ns == before
    others = rows(as_struct)[:2]
    with pytest.raises(StageError, match=r"holds the rows of an earlier call; choose another out, or overwrite=True"):
        written(others, tmp_path)
    other = written(others, tmp_path, overwrite=True)
    assert not Path(path).exists()
    assert len(Path(other).read_text().splitlines()) == 2


def test_rows_are_told_from_others_by_what_they_hold() -> None:
    digests = {name: in_memory(make()).digest() for name, make in HELD.items()}
    again = {name: in_memory(make()).digest() for name, make in HELD.items()}
    assert digests == again
    changed = rows(as_struct)
    changed[1]["conversations"][1]["value"] += "!"
    assert in_memory(changed).digest() != digests["list of structs"]
    assert in_memory(pa.Table.from_pylist(changed)).digest() != digests["pyarrow"]


def streamed() -> Any:
    return hugging_face().to_iterable_dataset()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (lambda: {"a": 1}, r"data is a builtins\.dict, and must be a path or URI, a list of dicts"),
        (lambda: 3, r"builtins\.int"),
        (lambda: pl.DataFrame(rows(as_struct)).lazy(), r"collect\(\) it first"),
        (lambda: datasets.DatasetDict(train=hugging_face()), r"choose a split, such as data\['train'\]"),
        (streamed, r"list\(data\.take\(100\)\)"),
        (lambda: hugging_face().with_transform(lambda batch: batch), r"has a transform.*data\.map"),
        (lambda: [], "holds no rows"),
        (lambda: pd.DataFrame(), "holds no rows"),
        (lambda: pa.table({"conversations": []}), "holds no rows"),
        (lambda: hugging_face().select([]), "holds no rows"),
        (lambda: [{"a": 1}, {"image": object()}], r"row 1 of data can't be written: it holds a builtins\.object"),
        (lambda: [{"image": np.zeros((4, 4, 3), np.uint8)}], r"PIL\.Image\.fromarray\(array\)"),
        (lambda: pl.DataFrame({"image": [object()]}), r"data\.to_dicts\(\)"),
    ],
)  # fmt: skip
def test_what_holds_no_rows_is_refused_in_one_line(data: Callable[[], Any], told: str) -> None:
    with pytest.raises(StageError, match=told) as refused:
        in_memory(data()).digest()
    assert "\n" not in str(refused.value)
