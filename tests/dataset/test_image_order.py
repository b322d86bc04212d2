"""Samples of one image together: which rows, in which order, from how many files and machines, killed anywhere."""

from __future__ import annotations

import base64
import json
import logging
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.dataset.conftest import Rows, read_samples
from vig_ray.cluster import on_machines
from vig_ray.dataset import importing, sharing
from vig_ray.dataset.importing import ImportConfig, run, validate
from vig_ray.errors import StageError
from vig_ray.stage import read_stage

ROWS = 400


def turns(question: str, images: int, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>" * images + question}, {"from": "gpt", "value": answer}]


def a_mixture(seed: int = 0, rows: int = ROWS) -> list[Any]:
    """Rows of every kind, shuffled: one of a shared image or a single one, of several, text-only, and bad ones."""
    rng = random.Random(seed)
    data: list[Any] = []
    for number in range(rows):
        kind = rng.choices(
            ("shared", "hot", "alone", "several", "text", "bad", "outside", "remote"), (6, 3, 6, 2, 2, 1, 1, 1)
        )[0]
        image: Any = {
            "shared": f"coco/{rng.randrange(rows // 10)}.jpg",
            "hot": "coco/hot.jpg",
            "alone": f"alone/{number}.jpg",
            "several": [f"coco/{rng.randrange(rows // 10)}.jpg", f"alone/{number}.jpg"],
            "outside": "../../etc/passwd",
            "remote": f"https://images.example/{rng.randrange(3)}.jpg",
        }.get(kind)  # fmt: skip
        if kind == "bad":
            data.append(rng.choice(["junk", {"id": f"{number}"}]))
            continue
        images = 0 if image is None else len(image) if isinstance(image, list) else 1
        row = {"id": f"{number}", "conversations": turns(f"What is in {number}?", images, "é" * rng.randrange(1, 200))}
        data.append(row | ({"image": image} if images else {}))
    return data


def first_image(row: dict[str, Any]) -> Any:
    """What decides a row's place: its first image, None where it has none."""
    return (row["images"][0]["uri"] or row["images"][0]["bytes"]) if row["images"] else None


def together(rows: Rows) -> bool:
    """Whether the samples of each image are adjacent, and rows without an image last, all in file order."""
    images = [first_image(row) for row in rows]
    runs = [image for number, image in enumerate(images) if number == 0 or images[number - 1] != image]
    of_image: dict[Any, list[str]] = {}
    for image, row in zip(images, rows, strict=True):
        of_image.setdefault(image, []).append(row["sample_key"])
    last = None in of_image and runs[-1] is not None
    return len(runs) == len(of_image) and not last and all(keys == sorted(keys) for keys in of_image.values())


def by_key(rows: Rows) -> Rows:
    return sorted(rows, key=lambda row: str(row["sample_key"]))


def order_of(bench: Any) -> dict[str, Any]:
    return (read_stage(str(bench.out / "samples")) or {})["order"]


def counted(rows: Rows) -> int:
    """How many samples share their first image with another."""
    of_image = Counter(first_image(row) for row in rows if row["images"])
    return sum(count for count in of_image.values() if count > 1)


@pytest.fixture(params=[None, 20_000, 3_000], ids=["all at once", "buckets", "buckets of buckets"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many bytes are held in memory at a time."""
    if request.param:
        monkeypatch.setattr(importing, "_BYTES_AT_ONCE", request.param)


@pytest.mark.parametrize("rows_per_file", [7, 100, 10_000])
def test_every_row_comes_out_once_beside_those_of_its_image(bench: Any, at_once: None, rows_per_file: int) -> None:
    path = bench.write("d.json", a_mixture())
    before = bench.load(path, order="as-is", rows_per_file=rows_per_file)
    as_it_was = bench.report
    assert not together(before)
    assert [row["sample_key"] for row in before] == [f"d/{number:010d}" for number in range(ROWS)]
    bench.out = bench.folder / "ordered"
    after = bench.load(path, rows_per_file=rows_per_file)
    assert together(after)
    assert by_key(after) == before
    assert {**vars(bench.report), "directory": ""} == {**vars(as_it_was), "directory": ""}
    assert order_of(bench)["sharing"] == counted(before)
    assert (order_of(bench)["asked"], order_of(bench)["written"]) == ("auto", "image")
    parts = [pq.ParquetFile(part) for part in sorted((bench.out / "samples").iterdir())]
    assert max(part.metadata.num_rows for part in parts) <= rows_per_file
    assert not list(bench.out.glob(".import-*"))


@pytest.mark.parametrize("at_once", [None, 20_000], indirect=True)
def test_an_image_is_in_one_file_if_that_can_hold_it(bench: Any, at_once: None) -> None:
    """One that fits in memory, at least."""
    bench.load(bench.write("d.json", a_mixture(rows=300)), rows_per_file=20)
    files_of: dict[Any, list[int]] = {}
    sizes = Counter[Any]()
    for number, part in enumerate(sorted((bench.out / "samples").iterdir())):
        for row in pq.read_table(part).to_pylist():
            files_of.setdefault(first_image(row), []).append(number)
            sizes[first_image(row)] += 1
    small = [image for image, size in sizes.items() if size <= 20 and image is not None]
    assert len(small) > 100
    assert all(len(set(files_of[image])) == 1 for image in small)


def split(folder: Path, data: list[Any], files: int) -> Path:
    folder.mkdir(parents=True)
    for number, rows in enumerate(np.array_split(np.arange(len(data)), files)):
        (folder / f"{number:03d}.json").write_text(json.dumps([data[row] for row in rows]))
    return folder


def reversed_spread(work: Any) -> Iterator[Any]:
    """Machines that are done in another order than they began."""
    yield from [call() for call in work][::-1]


def test_the_order_is_the_rows_own(tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files and machines there are, and wherever the dataset lies."""
    monkeypatch.setattr(importing, "_BYTES_A_GROUP", 20_000)
    data = [row for row in a_mixture() if isinstance(row, dict)]
    expected: list[str] = []
    for number, (files, spread) in enumerate([(1, None), (9, None), (9, reversed_spread), (2, reversed_spread)]):
        folder = split(tmp_path / str(number) / "set", data, files)
        report = run(ImportConfig(data=str(folder), out=str(tmp_path / str(number))), None, spread)
        rows = read_samples(report.directory)
        assert together(rows)
        order = [row["id"] for row in rows]
        assert sorted(order, key=int) == [row["id"] for row in data]
        assert order == (expected := expected or order)


def test_machines_of_a_cluster_order_side_by_side(
    bench: Any, local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(split(bench.folder / "set", a_mixture(), 5))
    expected = bench.load(data)
    monkeypatch.setattr(importing, "_BYTES_A_GROUP", 20_000)
    monkeypatch.setattr(importing, "_BYTES_AT_ONCE", 20_000)
    report = run(ImportConfig(data=data, out=str(tmp_path / "there")), None, on_machines)
    assert read_samples(report.directory) == expected
    assert len(list(Path(report.directory).iterdir())) > 2


@pytest.mark.parametrize(
    ("alone", "text", "bad", "written"),
    [(38, 0, 0, "image"), (39, 0, 0, "as-is"), (30, 8, 0, "image"), (30, 9, 0, "as-is"), (38, 0, 50, "image")],
)
def test_auto_orders_where_five_percent_share(
    bench: Any, make_row: Any, alone: int, text: int, bad: int, written: str
) -> None:
    """Two samples that share an image among 40 samples are 5 %, bad rows left out; among 41 they are less."""
    data = [make_row(0, image="s.jpg"), *(make_row(number, image=f"{number}.jpg") for number in range(1, alone + 1))]
    data += [*(make_row(number, image=None) for number in range(text)), *["junk"] * bad, make_row(99, image="s.jpg")]
    rows = bench.load(bench.write("d.json", data))
    assert together(rows) == (written == "image")
    assert (order_of(bench)["written"], order_of(bench)["sharing"]) == (written, 2)
    assert ("less than 5 %" in order_of(bench)["why"]) == (written == "as-is")
    if written == "as-is":
        assert by_key(rows) == rows


def embedded(image: bytes, number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"<image>{number}"}, {"role": "assistant", "content": "A bus."}],
            "images": [{"bytes": base64.b64encode(image).decode(), "path": None}]}  # fmt: skip


def test_images_in_the_data_are_moved_only_when_asked(
    bench: Any, make_png: Any, caplog: pytest.LogCaptureFixture, at_once: None
) -> None:
    pictures = [make_png([(number, 0, 0)]) for number in range(3)]
    path = bench.write("d.json", [embedded(pictures[number % 3], number) for number in range(30)])
    with caplog.at_level(logging.INFO, logger="vig_ray"):
        rows = bench.load(path)
    assert rows == by_key(rows)
    (told,) = [record.getMessage() for record in caplog.records if "order of samples/" in record.getMessage()]
    assert "as-is" in told
    assert "30 hold their images in the data, which is costly to move" in told
    assert order_of(bench)["written"] == "as-is"
    assert order_of(bench)["why"] in told
    with pytest.raises(StageError, match=r"\(order differ\); .*--overwrite"):
        bench.load(path, order="image")
    ordered = bench.load(path, order="image", overwrite=True)
    assert together(ordered)
    assert by_key(ordered) == rows
    assert order_of(bench)["written"] == "image"


@pytest.mark.parametrize("image", [None, "alone"])
@pytest.mark.parametrize("order", ["auto", "image"])
def test_where_nothing_is_shared_nothing_is_moved(
    bench: Any, make_row: Any, image: str | None, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = [make_row(number, image=image and f"{number}.jpg") for number in range(20)]
    path = bench.write("d.json", data)
    with caplog.at_level(logging.INFO, logger="vig_ray"):
        rows = bench.load(path, order=order)
    assert rows == by_key(rows)
    assert order_of(bench) == {"asked": order, "written": "as-is", "sharing": 0, "why": order_of(bench)["why"]}
    assert not caplog.records
    assert bench.load(path, order=order) == rows


def written(bench: Any) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (bench.out / "samples").iterdir()}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("auto", "auto", True),
        ("auto", "image", True),
        ("image", "auto", True),
        ("image", "image", True),
        ("as-is", "auto", True),
        ("as-is", "as-is", True),
        ("old", "auto", True),
        ("old", "as-is", True),
        ("old", "image", False),
        ("auto", "as-is", False),
        ("image", "as-is", False),
        ("as-is", "image", False),
    ],
)
def test_which_orders_are_the_same_import(bench: Any, first: str, second: str, same: bool) -> None:
    """ "old": a record of a version that knew no order."""
    path = bench.write("d.json", a_mixture())
    bench.load(path, order="as-is" if first == "old" else first)
    if first == "old":
        file = bench.out / "samples.stage.json"
        record = json.loads(file.read_text())
        del record["order"], record["config"]["order"]
        assert "order" not in record["identity"]
        file.write_text(json.dumps(record))
    before = written(bench)
    config = ImportConfig(data=str(path), out=str(bench.out), order=second)
    if same:
        assert run(config) == bench.report
        assert written(bench) == before
        return
    for call in (validate, run):
        with pytest.raises(StageError, match=r"holds another run of `vig import` \(order differ\).*--overwrite"):
            call(config)
    assert written(bench) == before
    rows = bench.load(path, order=second, overwrite=True)
    assert together(rows) == (second == "image")
    assert not before.keys() & written(bench).keys()


# Imports, and kills itself before the call of that number of what `place` names.
_KILLED = """
import os, signal, sys
from vig_ray.dataset import image_order, importing, writer
from vig_ray.dataset.importing import ImportConfig, run
from vig_ray.stage import Claim
import pyarrow.fs

importing._BYTES_AT_ONCE = 20_000
place, number = sys.argv[3], int(sys.argv[4])
calls = 0

def killing(holder, name):
    real = getattr(holder, name)
    def wrapped(*args, **options):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    setattr(holder, name, wrapped)

if place == "deletion":
    class Deleting(pyarrow.fs.LocalFileSystem):
        def delete_file(self, path):
            super().delete_file(path)
    killing(Deleting, "delete_file")
    image_order.filesystem = lambda uri: (Deleting(), os.path.abspath(uri))
else:
    killing(*{
        "begin": (Claim, "begin"),
        "row group": (writer.Parts, "write"),
        "count": (importing, "count_sharing"),
        "chunk": (image_order.Gather, "_chunk"),
        "sorted": (image_order, "_by_image"),
        "part": (writer.Parts, "close_part"),
        "commit": (Claim, "commit"),
        "cleared": (__import__("vig_ray.stage").stage, "delete_tree"),
    }[place])
run(ImportConfig(data=sys.argv[1], out=sys.argv[2], rows_per_file=50))
"""


@pytest.mark.parametrize(
    ("place", "number"),
    [("begin", 1), ("row group", 4), ("count", 1), ("chunk", 1), ("chunk", 3), ("deletion", 1), ("deletion", 4),
     ("sorted", 9), ("part", 12), ("part", 15), ("commit", 1), ("cleared", 1)],
)  # fmt: skip
def test_killed_anywhere_the_same_command_gives_the_whole(bench: Any, place: str, number: int) -> None:
    path = bench.write("d.json", a_mixture())
    expected = bench.load(path, rows_per_file=50)
    out = bench.folder / "killed"
    notes = out / "notes.txt"
    out.mkdir()
    notes.write_text("mine")
    command = [sys.executable, "-c", _KILLED, str(path), str(out), place, str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    bench.out = out
    assert bench.load(path, rows_per_file=50) == expected
    record = read_stage(str(out / "samples")) or {}
    assert record["complete"]
    assert all(file.name.startswith(record["run"]) for file in (out / "samples").iterdir())
    assert {file.name for file in out.iterdir()} == {"samples", "samples.stage.json", "notes.txt"}


@pytest.mark.parametrize("at_a_time", [1, 100, 10**6])
def test_counting_in_several_scans(tmp_path: Path, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_SORTED_AT_ONCE", at_a_time * 7)
    monkeypatch.setattr(sharing, "_READ_AT_ONCE", 11)
    rng = np.random.default_rng(3)
    count = 600 if at_a_time > 1 else 40
    hashes = rng.integers(0, 2**64, size=count, dtype=np.uint64)[rng.integers(0, count, size=count)]
    for number, part in enumerate(np.array_split(hashes, 3)):
        part.tofile(tmp_path / f"{number}")
    times = Counter(hashes.tolist())
    assert sharing.count_sharing(str(tmp_path), count) == sum(each for each in times.values() if each > 1)
    with pytest.raises(StageError, match="hashes of images where"):
        sharing.count_sharing(str(tmp_path), count + 1)


def test_an_object_store(s3: Callable[[], Any], bench: Any) -> None:
    client = s3()
    client.create_bucket(Bucket="ordered")
    path = bench.write("d.json", a_mixture())
    expected = bench.load(path, images=str(bench.folder))
    report = run(ImportConfig(data=str(path), images=str(bench.folder), out="s3://ordered/out"))
    listed = [found["Key"] for found in client.list_objects_v2(Bucket="ordered")["Contents"] if found["Size"]]
    assert sorted(key.rpartition("/")[0] for key in listed) == ["out", "out/samples"]
    (part,) = [key for key in listed if key.endswith(".parquet")]
    (bench.folder / "there").mkdir()
    client.download_file("ordered", part, str(bench.folder / "there" / "0.parquet"))
    assert read_samples(bench.folder / "there") == expected
    assert report.imported == bench.report.imported
