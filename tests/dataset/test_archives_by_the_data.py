"""Archives that no option names: which of those that lie by the data are used, and by whose rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.dataset.test_image_archives import picture, write_tar, write_zip
from vig_ray.dataset.images import image_bytes
from vig_ray.dataset.importing import ImportConfig, run
from vig_ray.dataset.listing import find
from vig_ray.dataset.patterns import uri_below
from vig_ray.dataset.spec import parse
from vig_ray.errors import StageError
from vig_ray.stage import read_stage


def pictures(bench: Any, *data: Path | str, **options: Any) -> dict[str, Any]:
    """Of each file the bytes of its first row's image, or its error."""
    rows = bench.load(*data, order="as-is", overwrite=True, **options)
    return {
        row["sample_key"].rpartition("/")[0]: row["error"] or (image_bytes(row["images"][0]) if row["images"] else None)
        for row in rows
    }


def test_each_dataset_has_its_own(bench: Any, make_row: Any) -> None:
    bench.write("A/a.json", [make_row(image="images/1.png")])
    bench.write("A/images/1.png", picture(1))
    bench.write("B/b.json", [make_row(image="images/1.png"), make_row(image="images/3.png")])
    archive = write_zip(bench.folder / "B" / "images.zip", {"images/1.png": picture(2)})
    write_zip(bench.folder / "C" / "images.zip", {"images/3.png": picture(3), "images/1.png": picture(4)})
    bench.write("C/c.json", [make_row(image="images/1.png")])
    folders = [bench.folder / name for name in "ABC"]
    found = pictures(bench, *folders)
    assert (found["A/a"], found["C/c"]) == (picture(1), picture(4))
    assert found["B/b"] == f"NotInArchive: no 'images/3.png' in {archive}; nearest: 'images/1.png'"
    first = bench.load(*folders, order="as-is")[1]
    assert image_bytes(first["images"][0]) == picture(2)


def test_those_by_a_file_come_before_those_of_its_dataset(bench: Any, make_row: Any) -> None:
    for name in ("ai2d/a", "vqa/b", "coco/c", "d"):
        bench.write(f"Z/{name}.json", [make_row(image="images/1.png")])
    write_zip(bench.folder / "Z" / "ai2d" / "pics.zip", {"images/1.png": picture(1)})
    write_zip(bench.folder / "Z" / "vqa" / "images.zip", {"1.png": picture(2)})
    write_zip(bench.folder / "Z" / "coco" / "images" / "x.zip", {"1.png": picture(3)})  # images/ as unpacked there
    found = pictures(bench, bench.folder / "Z")
    assert found == {"Z/ai2d/a": picture(1), "Z/coco/c": picture(3), "Z/d": picture(1), "Z/vqa/b": picture(2)}


@pytest.mark.parametrize("data", ["one/llava.json", "one/{llava,more}.json", "one/l*.json", "one"])
def test_by_a_single_file_as_well(data: str, bench: Any, make_row: Any) -> None:
    bench.write("one/llava.json", [make_row(image="images/1.png")])
    bench.write("one/more.json", [make_row(image="images/1.png")])
    write_zip(bench.folder / "one" / "images.zip", {"images/1.png": picture(1)})
    assert set(pictures(bench, bench.folder / data).values()) == {picture(1)}


def test_where_the_first_files_name_no_image(bench: Any, make_row: Any) -> None:
    bench.write("Y/a.json", [make_row(image=None)])
    bench.write("Y/b.json", [make_row(image="1.png")])
    write_zip(bench.folder / "Y" / "i.zip", {"1.png": picture(1)})
    assert pictures(bench, bench.folder / "Y") == {"Y/a": None, "Y/b": picture(1)}
    # None of the files that are looked at names any.
    for number in range(9):
        bench.write(f"Y/a{number}.json", [make_row(image=None)])
    assert pictures(bench, bench.folder / "Y")["Y/b"] == picture(1)


def test_a_single_file_that_begins_with_text(bench: Any, make_row: Any) -> None:
    write_zip(bench.folder / "i.zip", {"1.png": picture(1)})
    data = bench.write("d.json", [make_row(number, image=None) for number in range(150)] + [make_row(image="1.png")])
    assert image_bytes(bench.load(data, order="as-is")[-1]["images"][0]) == picture(1)


@pytest.mark.parametrize("kind", ["tar", "tar.bz2", "tar.xz", "txz"])
def test_every_archive_beside_a_table(kind: str, bench: Any, make_row: Any) -> None:
    """One that is called as the table is, too."""
    bench.write("P/train.json", [make_row(image="1.png")])
    if kind == "txz":
        write_tar(bench.folder / "P" / "train.tar.xz", {"1.png": picture(1)}).rename(bench.folder / "P" / "train.txz")
    else:
        write_tar(bench.folder / "P" / f"train.{kind}", {"1.png": picture(1)})
    assert pictures(bench, bench.folder / "P") == {"P/train": picture(1)}


def test_tables_that_belong_to_tars_are_told(bench: Any) -> None:
    for name in ("0.tar", "0.parquet", "0_stats.json"):
        bench.write(f"set/{name}", "x")
    listing = find(parse(str(bench.folder / "set")), "auto")
    assert [file.kind for file in listing.files] == ["webdataset"]
    assert listing.left_out == ["about tars: 0.parquet, 0_stats.json"]
    assert find(parse(str(bench.folder / "set" / "*")), "auto").left_out == ["about tars: 0.parquet, 0_stats.json"]


@pytest.mark.parametrize(
    ("data", "images", "out"),
    [
        ("T", None, "T/run"),
        ("T", None, "T"),
        ("T/*", None, "T"),
        ("T/**/*.[jt]*", None, "T/run"),
        ("T/x.json", None, "T/run"),
        ("T", "T/**/*tar*", "T/run"),
    ],
)
def test_what_an_import_unpacked_is_no_archive_of_the_next(
    data: str, images: str | None, out: str, bench: Any, make_row: Any
) -> None:
    bench.write("T/x.json", [make_row(image="1.png")])
    write_tar(bench.folder / "T" / "i.tar.gz", {"1.png": picture(1)})
    config = ImportConfig(
        data=str(bench.folder / data),
        images=images and str(bench.folder / images),
        out=str(bench.folder / out),
    )
    first = run(config)
    assert (first.imported, first.failed) == (1, 0)
    assert len(list((bench.folder / out / "unpacked").iterdir())) == 1
    record = (bench.folder / out / "samples.stage.json").read_bytes()
    assert run(config) == first
    assert (bench.folder / out / "samples.stage.json").read_bytes() == record


def test_a_folder_and_its_only_file_are_two_imports(bench: Any, make_row: Any) -> None:
    file = bench.write("llava/llava.json", [make_row(image=None)])
    for one, other, options in [
        (file.parent, file, {}),
        (file, file.parent, {}),
        (file.parent, file, {"name": "n"}),
        (file, f"{file.parent}/ll*.json", {"name": "n"}),
    ]:
        rows = bench.load(one, overwrite=True, **options)
        assert bench.load(one, **options) == rows
        with pytest.raises(StageError, match="holds another run"):
            bench.load(other, **options)
    file = bench.write("x/llava.json", [make_row(image=None)])
    bench.load(file, overwrite=True)
    assert (read_stage(str(bench.out / "samples")) or {})["identity"].keys() == {
        "inputs", "format", "images", "name", "rows_per_file", "max_bytes_per_file"
    }  # fmt: skip
    for other in (f"{file.parent}/llava*.json", f"{file.parent}/lla?a*"):
        with pytest.raises(StageError, match="holds another run"):
            bench.load(other)


def test_the_record_of_a_folder_is_that_of_earlier_versions(bench: Any, make_row: Any) -> None:
    for name in ("llava/llava.json", "set/a.json"):
        file = bench.write(name, [make_row(image=None)])
        bench.load(file.parent, overwrite=True)
        assert (read_stage(str(bench.out / "samples")) or {})["identity"].keys() == {
            "inputs", "format", "images", "name", "rows_per_file", "max_bytes_per_file"
        }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "start", "path", "uri"),
    [
        ("/data/x", "/data/x", "/data/x/y/1.zip", "/data/x/y/1.zip"),
        ("s3://bucket/x", "bucket/x", "bucket/x/1.zip", "s3://bucket/x/1.zip"),
        ("s3://bucket", "bucket", "bucket/1.zip", "s3://bucket/1.zip"),
        (
            "abfs://c@account.dfs.core.windows.net/x/",
            "c/x",
            "c/x/y/1.zip",
            "abfs://c@account.dfs.core.windows.net/x/y/1.zip",
        ),
        ("hdfs://host:8020/x", "/x", "/x/1.zip", "hdfs://host:8020/x/1.zip"),
        ("hdfs://host:8020", "/", "/1.zip", "hdfs://host:8020/1.zip"),
        ("sftp://user@host/x", "/x", "/x/1.zip", "sftp://user@host/x/1.zip"),
        ("memory://x", "/x", "/x/1.zip", "memory://x/1.zip"),
    ],
)
def test_the_uri_of_what_a_listing_names(folder: str, start: str, path: str, uri: str) -> None:
    assert uri_below(folder, start, path) == uri


def test_patterns_in_another_filesystem(bench: Any, make_row: Any) -> None:
    """fsspec's paths are not what follows the scheme."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/patterns/a/d.json", json.dumps([make_row(image="x/1.png")]).encode())
    archive = write_zip(bench.folder / "i.zip", {"x/1.png": picture(1)})
    memory.pipe("/patterns/a/i.zip", archive.read_bytes())
    try:
        for images in (None, "memory://patterns/*/*.zip", "memory://patterns"):
            (row,) = bench.load("memory://patterns/*/d.json", name="n", images=images, overwrite=True)
            assert row["sample_key"] == "n/a/d/0000000000"
            assert row["images"][0]["uri"].startswith("memory://patterns/a/i.zip#zip=")
            assert image_bytes(row["images"][0]) == picture(1)
    finally:
        memory.rm("/patterns", recursive=True)
