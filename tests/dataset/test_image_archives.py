"""Images in archives, imported: which member a row's path means, what is refused, what becomes of compressed tars."""

from __future__ import annotations

import io
import itertools
import json
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.dataset.conftest import png
from vig_ray.dataset import member_index, member_lookup, unpacking
from vig_ray.dataset.archived import archived
from vig_ray.dataset.images import ImageError, image_bytes, load_image
from vig_ray.dataset.importing import ImportConfig, run, validate
from vig_ray.errors import StageError

Files = dict[str, bytes]


def picture(number: int) -> bytes:
    return png([(number, number + 1, number + 2)])


def write_zip(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix.removeprefix(".").replace("tgz", "gz")
    with tarfile.open(path, "w:" if kind == "tar" else f"w:{kind}") as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def loaded(bench: Any, make_row: Any, paths: Sequence[str], data: str = "d.json", **options: Any) -> list[Any]:
    """Import rows with these paths; the bytes of each one's image, or its error."""
    file = bench.write(data, [make_row(number, image=path) for number, path in enumerate(paths)])
    rows = bench.load(file, overwrite=True, order="as-is", **options)
    assert len(rows) == len(paths)
    return [row["error"] or image_bytes(row["images"][0]) for row in rows]


@pytest.mark.parametrize("name", ["i.zip", "i.tar", "i.tar.gz", "i.tgz", "i.tar.bz2", "i.tar.xz"])
def test_every_kind(name: str, bench: Any, make_row: Any) -> None:
    files = {f"train/{number:03}.png": picture(number) for number in range(40)} | {"train/about.txt": b"text"}
    path = (write_zip if name.endswith("zip") else write_tar)(bench.folder / "in" / name, files)
    found = loaded(bench, make_row, [each for each in files if each.endswith("png")], images=str(path))
    assert found == [data for each, data in files.items() if each.endswith("png")]
    folder = bench.folder / "out" / "unpacked"
    assert folder.exists() == (name not in ("i.zip", "i.tar"))
    for tar in folder.glob("*") if folder.exists() else ():
        with tarfile.open(tar) as unpacked:
            assert unpacked.getnames() == [each for each in files if each.endswith("png")]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the program zstd")
def test_zstd(bench: Any, make_row: Any) -> None:
    path = write_tar(bench.folder / "in" / "i.tar", {"a.png": picture(1)})
    subprocess.run(["zstd", "-q", "--rm", path], check=True)
    assert loaded(bench, make_row, ["a.png"], images=f"{path}.zst") == [picture(1)]


def test_pixels_of_an_image_in_an_archive(bench: Any, make_row: Any) -> None:
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    path = write_zip(bench.folder / "i.zip", {"x/1.png": out.getvalue()}, zipfile.ZIP_DEFLATED)
    (row,) = bench.load(bench.write("d.json", [make_row(image="x/1.png")]), images=str(path))
    assert row["source"] == "x"
    uri = row["images"][0]["uri"]
    assert uri.startswith(f"{path}#zip=")
    assert uri.endswith("/x/1.png")
    np.testing.assert_array_equal(load_image(row["images"][0]), pixels)
    path.write_bytes(b"replaced" * 1000)
    with pytest.raises(ImageError, match=r"^DamagedArchive: .*i\.zip#zip=.*import again$"):
        load_image(row["images"][0])
    path.unlink()
    with pytest.raises(ImageError, match=r"^FileNotFoundError: "):
        load_image(row["images"][0])


def test_the_names_that_a_path_may_mean(bench: Any, make_row: Any) -> None:
    folder = bench.folder / "in"
    write_zip(folder / "coco" / "train2017.zip", {"train2017/1.png": picture(1), "train2017/2.png": picture(2)})
    write_zip(folder / "gqa" / "images.zip", {"images/1.png": picture(3)})
    write_zip(folder / "vg" / "images.zip", {"VG_100K/1.png": picture(4)})
    write_zip(folder / "flat.zip", {"7.png": picture(5), "read.me": b"x"})
    write_zip(folder / "two.zip", {"p/8.png": picture(6), "q/8.png": picture(7)})
    write_zip(folder / "one.zip", {"./top//9.png": picture(8), "top/in/9.png": picture(9)})
    found = loaded(
        bench,
        make_row,
        [
            "train2017/1.png",  # as it is
            "coco/train2017/2.png",  # where unpacking the archive leaves it
            "gqa/images/1.png",
            "vg/VG_100K/1.png",
            "vg/images/VG_100K/1.png",  # in a folder called after the archive
            "coco/train2017/train2017/1.png",
            "flat/7.png",
            "7.png",
            "two/q/8.png",
            "one/9.png",  # without the folder that all images lie in
            "in/9.png",
            "./top/../top/9.png",
        ],
        images=f"{folder}/**/*.zip",
    )
    assert found == [picture(number) for number in (1, 2, 3, 4, 4, 1, 5, 5, 7, 8, 9, 8)]


def test_what_several_members_may_be_is_refused(bench: Any, make_row: Any) -> None:
    one = write_zip(bench.folder / "in" / "a.zip", {"x/1.png": picture(1), "2.png": picture(2)})
    two = write_zip(bench.folder / "in" / "b.zip", {"x/1.png": picture(3), "3.png": picture(4)})
    found = loaded(bench, make_row, ["x/1.png", "2.png", "a/x/1.png"], images=f"{bench.folder}/in/*.zip")
    assert found[0] == (
        f"AmbiguousImage: 'x/1.png' may mean x/1.png in {one} and x/1.png in {two}; import them separately, each with "
        "its own --images"
    )
    assert found[1:] == [picture(2), picture(1)]


def test_of_two_members_of_one_name_the_last_counts(bench: Any, make_row: Any) -> None:
    path = bench.folder / "i.tar"
    with tarfile.open(path, "w") as archive:
        for number in (1, 2):
            info = tarfile.TarInfo("1.png")
            info.size = len(picture(number))
            archive.addfile(info, io.BytesIO(picture(number)))
    assert loaded(bench, make_row, ["1.png"], images=str(path)) == [picture(2)]


def test_what_is_not_there_is_told_with_the_nearest(bench: Any, make_row: Any) -> None:
    path = write_zip(bench.folder / "i.zip", {f"train2017/{number:03}.png": picture(number) for number in range(100)})
    found = loaded(bench, make_row, ["coco/train2017/042.png", "train2017/043.jpg", "../1.png"], images=str(path))
    assert found[0] == f"NotInArchive: no 'coco/train2017/042.png' in {path}; nearest: 'train2017/042.png'"
    assert found[1].endswith("nearest: 'train2017/043.png'")
    assert found[2].startswith("ImagePath: '../1.png' lies outside")
    assert bench.report.failures == {"NotInArchive": 2, "ImagePath": 1}


def test_members_that_cannot_be_read_where_they_lie(bench: Any, make_row: Any) -> None:
    path = write_zip(bench.folder / "i.zip", {"1.png": picture(1)}, zipfile.ZIP_LZMA)
    assert loaded(bench, make_row, ["1.png"], images=str(path)) == [
        f"ArchiveMember: '1.png' in {path} is compressed by another method than deflate; pack the archive again, or "
        "unpack it"
    ]


@pytest.mark.parametrize("uri", ["i.zip#zip=0+10/1.png", "s3://b/a.tar#bytes=0+10/1.png", "/etc/passwd#bytes=0+99/x"])
def test_a_row_may_not_name_bytes_of_an_archive_itself(uri: str, bench: Any, make_row: Any) -> None:
    error = bench.one(make_row(image=uri))["error"]
    assert error.startswith("ImagePath: ")
    assert error.endswith("names bytes of an archive, which only vig-ray itself does")


def test_archives_by_the_data_are_used_where_images_are_missing(bench: Any, make_row: Any) -> None:
    write_zip(bench.folder / "set" / "pictures" / "a.zip", {"x/1.png": picture(1)})
    write_tar(bench.folder / "set" / "b.tar.gz", {"x/2.png": picture(2)})
    bench.write("set/x/3.png", picture(3))
    found = loaded(bench, make_row, ["x/1.png", "x/2.png", "x/3.png", "x/4.png"], data="set/d.json")
    assert found[:3] == [picture(number) for number in (1, 2, 3)]
    assert found[3].startswith("NotInArchive: no 'x/4.png' in the 2 archives ")
    record = json.loads((bench.out / "samples.stage.json").read_text())
    names = [each["path"].rpartition("/")[2] for each in record["identity"]["archives"]]
    assert names == ["b.tar.gz", "a.zip"]


def test_archives_by_the_data_are_left_alone_where_no_image_is_missing(bench: Any, make_row: Any) -> None:
    bench.write("set/x/1.png", picture(1))
    bench.write("set/broken.zip", b"not a zip")
    rows = [make_row(image="x/1.png"), make_row(image=None), make_row(image="https://x.example/1.png")]
    found = bench.load(bench.write("set/d.json", rows))
    assert [row["images"][0]["uri"] for row in found if row["images"]] == [
        f"{bench.folder}/set/x/1.png",
        "https://x.example/1.png",
    ]
    assert "archives" not in json.loads((bench.out / "samples.stage.json").read_text())["identity"]


def test_a_folder_of_archives(bench: Any, make_row: Any) -> None:
    write_zip(bench.folder / "in" / "coco" / "a.zip", {"x/1.png": picture(1)})
    assert loaded(bench, make_row, ["coco/x/1.png"], images=str(bench.folder / "in")) == [picture(1)]


def test_braces_and_wildcards(bench: Any, make_row: Any) -> None:
    for number in range(3):
        write_tar(bench.folder / f"{number}_data" / f"shard_{number}.tar", {f"{number}.png": picture(number)})
    bench.write("0_data/note.txt", b"x")
    paths, pictures = ["0.png", "1.png", "2.png"], [picture(number) for number in range(3)]
    for pattern in ("*_data/shard_*.tar", "**/shard_?.tar", "{0..2}_data/*.tar", "[0-2]_data/shard_{0..2}.tar"):
        assert loaded(bench, make_row, paths, images=f"{bench.folder}/{pattern}") == pictures
    for pattern, message in (
        ("*_data/*.zip", r"\*\.zip: no such file"),
        ("*_data/*", r"0_data/note\.txt: no such folder; --images"),
        ("{0..3}_data/*.tar", r"3_data.*(no such file|can't be listed)"),
        ("https://x.example/a.zip", "aren't read over http"),
    ):
        at = pattern if pattern.startswith("https") else f"{bench.folder}/{pattern}"
        with pytest.raises(StageError, match=message):
            validate(ImportConfig(data=str(bench.folder / "d.json"), images=at, out=str(bench.folder / "none")))


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_damaged_archive_is_one_line(kind: str, bench: Any, make_row: Any) -> None:
    files = {f"{number}.png": np.random.default_rng(number).bytes(5000) for number in range(20)}
    path = (write_zip if kind == "zip" else write_tar)(bench.folder / f"i.{kind}", files)
    path.write_bytes(path.read_bytes()[:50_000])
    data = bench.write("d.json", [make_row(image="1.png")])
    with pytest.raises(StageError, match=rf"i\.{kind}: can't be read .*damaged or cut off: fetch it again"):
        bench.load(data, images=str(path))


def test_a_gzip_of_several_pieces_is_read_to_its_end(bench: Any, make_row: Any) -> None:
    import gzip

    tar = write_tar(bench.folder / "i.tar", {f"{number}.png": picture(number) for number in range(50)}).read_bytes()
    path = bench.folder / "i.tar.gz"
    path.write_bytes(gzip.compress(tar[:10_000]) + gzip.compress(tar[10_000:]))
    assert loaded(bench, make_row, ["49.png"], images=str(path)) == [picture(49)]
    path = bench.folder / "j.tar.xz"
    path.write_bytes(lzma.compress(tar[:10_000]) + lzma.compress(tar[10_000:]))
    assert loaded(bench, make_row, ["49.png"], images=str(path)) == [picture(49)]


def test_unpacked_files_are_bounded_and_go_with_their_import(
    bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "_FILE_BYTES", 4096)
    files = {f"{number}.png": picture(number) for number in range(20)} | {"page.png": b"<html>", "x": picture(99)}
    path = write_tar(bench.folder / "in" / "i.tar.gz", files)
    assert loaded(bench, make_row, list(files), images=str(path)) == list(files.values())
    unpacked = sorted((bench.out / "unpacked").iterdir())
    assert len(unpacked) > 4
    assert max(each.stat().st_size for each in unpacked) < 4096 + 10240 + 1024
    assert not [each for each in bench.out.iterdir() if each.name.startswith(".import")]
    (bench.out / "unpacked" / "mine.txt").write_text("x")
    with pytest.raises(StageError, match=r"mine\.txt was not written by"):
        loaded(bench, make_row, ["1.png"], images=str(path))
    (bench.out / "unpacked" / "mine.txt").unlink()
    bench.one(make_row(image=None))
    assert not (bench.out / "unpacked").exists()


def test_the_same_import_is_not_done_again_and_another_archive_is_another_one(bench: Any, make_row: Any) -> None:
    path = write_zip(bench.folder / "i.zip", {"1.png": picture(1)})
    config = ImportConfig(
        data=str(bench.write("d.json", [make_row(image="1.png")])), images=str(path), out=str(bench.out)
    )
    first = run(config)
    (part,) = (bench.out / "samples").iterdir()
    assert run(config) == first
    assert list((bench.out / "samples").iterdir()) == [part]
    write_zip(path, {"1.png": picture(2), "2.png": picture(3)})
    with pytest.raises(StageError, match="archives differ"):
        run(config)


def test_by_image_is_the_same_order_wherever_the_archives_lie(bench: Any, make_row: Any) -> None:
    files = {f"{number}.png": picture(number) for number in range(9)}
    paths = [f"{number % 9}.png" for number in range(36)]
    orders = []
    for folder in ("one", "another/place"):
        archive = write_tar(bench.folder / folder / "i.tar.gz", files)
        rows = bench.load(
            bench.write("d.json", [make_row(number, image=path) for number, path in enumerate(paths)]),
            images=str(archive),
            overwrite=True,
        )
        assert [image_bytes(row["images"][0]) for row in rows] == [
            files[paths[int(row["id"].removeprefix("row-"))]] for row in rows
        ]
        orders.append([row["id"] for row in rows])
    assert orders[0] == orders[1]
    assert orders[0] != [f"row-{number}" for number in range(36)]
    images = [paths[int(name.removeprefix("row-"))] for name in orders[0]]
    assert sum(one != other for one, other in itertools.pairwise(images)) == 8


def test_by_several_processes(bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster's machines do, here one after the other, each with nothing but what it is sent."""
    import pickle

    called = []

    def spread(work: Sequence[Callable[[], Any]]) -> Iterable[Any]:
        called.append(len(work))
        for each in reversed(work):
            member_lookup._names.cache_clear()
            member_index.open_index.cache_clear()
            yield pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(each))()))

    for number in range(3):
        write_tar(bench.folder / "in" / f"{number}.tar.gz", {f"{number}-{i}.png": picture(i) for i in range(5)})
        bench.write(f"data/{number}.json", [make_row(i, image=f"{number}-{i}.png") for i in range(5)])
    monkeypatch.setattr("vig_ray.dataset.importing._BYTES_A_GROUP", 1)
    monkeypatch.chdir(bench.folder)
    config = ImportConfig(data="data", images="in/*.gz", out="out")
    report = run(config, spread=spread)
    assert called[:2] == [3, 3]
    assert (report.imported, report.failed, report.directory) == (15, 0, "out/samples")
    from tests.dataset.conftest import read_samples

    for row in read_samples(bench.out / "samples"):
        assert image_bytes(row["images"][0]) == picture(int(row["id"].removeprefix("row-")))


def test_an_archive_in_a_uri_is_not_taken_for_a_web_page() -> None:
    place = archived("/data/a.tar#bytes=1+2/http://x/1.png")
    assert place is not None
    assert place.archive == "/data/a.tar"
