"""WebDataset shards: grouping, captions, patterns, and tars that are cut off or damaged."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from vig_ray.dataset import webdataset_reader
from vig_ray.dataset.importing import samples_directory
from vig_ray.dataset.patterns import expand
from vig_ray.errors import StageError

CAPTION = [("user", "<image>\nDescribe the image."), ("assistant", "A red bus.")]


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["text"]) for turn in row["conversation"]]


def pictures(row: dict[str, Any]) -> list[bytes]:
    assert all(image["uri"] is None for image in row["images"])
    return [image["bytes"] for image in row["images"]]


def as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(row).encode()


def test_members_of_one_name_are_one_row(bench: Any, make_row: Any, make_tar: Any) -> None:
    two = {"messages": [{"role": "user", "content": "<image><image>"}, {"role": "assistant", "content": "Yes."}]}
    path = make_tar(
        bench.folder / "shard.tar",
        [
            ("a/0001.jpg", b"one"),
            ("a/0001.json", as_json({**make_row(1), "source": "coco"})),
            ("a/0002.txt", b"  A red bus.\n"),
            ("a/0002.PNG", b"two"),
            ("b/0002.left.webp", b"left"),
            ("b/0002.right.jpeg", b"right"),
            ("b/0002.json", as_json(two)),
            ("b/0002.meta.json", b"{}"),
            ("b/0002.cls", b"7"),
            ("0003.json", as_json(make_row(3, image=None))),
        ],
    )
    rows = bench.load(path)
    assert [row["sample_key"] for row in rows] == [f"shard/{number:010d}" for number in range(4)]
    assert [row["error"] for row in rows] == [None] * 4
    assert [pictures(row) for row in rows] == [[b"one"], [b"two"], [b"left", b"right"], []]
    assert [row["id"] for row in rows] == ["row-1", "a/0002", "b/0002", "row-3"]
    assert [row["source"] for row in rows] == ["coco", None, None, None]
    assert turns(rows[1]) == CAPTION
    assert turns(rows[0]) == [("user", "<image>\nWhat is in picture 1?"), ("assistant", "A bus, number 1.")]


def test_a_caption_beside_facts_about_the_image(bench: Any, make_tar: Any) -> None:
    facts = as_json({"url": "http://x.org", "width": 3, "caption": "A red bus."})
    path = make_tar(bench.folder / "s.tar", [("1.jpg", b"one"), ("1.json", facts), ("1.txt", b"A red bus.")])
    assert [turns(row) for row in bench.load(path)] == [CAPTION]


def test_a_caption_does_not_decide_between_two_conversations(bench: Any, make_row: Any, make_tar: Any) -> None:
    both = {**make_row(1), "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    members = [("1.jpg", b"one"), ("1.txt", b"A red bus."), ("1.json", as_json(both))]
    (row,) = bench.load(make_tar(bench.folder / "s.tar", members))
    assert row["error"].startswith("UnknownFormat: both 'conversations' and 'messages' are there")


def test_a_json_of_any_layout(bench: Any, make_tar: Any) -> None:
    pairs = {"texts": [{"user": "What?", "assistant": "A bus."}]}
    members = [
        ("1.jpg", b"one"),
        ("1.json", as_json({"question": "What?", "answer": "A bus."})),
        ("2.jpg", b"two"),
        ("2.json", as_json(pairs)),
        ("2.txt", b"A red bus."),
        ("3.jpg", b"three"),
        ("3.json", as_json({"caption": "A red bus.", "url": "http://x.org"})),
    ]
    rows = bench.load(make_tar(bench.folder / "s.tar", members))
    asked = [("user", "<image>\nWhat?"), ("assistant", "A bus.")]
    assert [turns(row) for row in rows] == [asked, asked, CAPTION]
    assert [pictures(row) for row in rows] == [[b"one"], [b"two"], [b"three"]]


def test_a_json_without_image_members_keeps_its_own_images(bench: Any, make_row: Any, make_tar: Any) -> None:
    path = make_tar(bench.folder / "s.tar", [("1.json", as_json(make_row(1)))])
    (row,) = bench.load(path, images=str(bench.folder))
    assert row["images"] == [{"uri": f"{bench.folder}/coco/train2017/1.jpg", "bytes": None}]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", b"x")], "UnknownFormat: 1: neither a .json nor a .txt"),
        ([("1.txt", b"A bus.")], "ImageCount: 1 <image> .*, 0 images"),
        ([("1.jpg", b"x"), ("1.txt", b"\xff")], "UnicodeDecodeError: 1.txt"),
        ([("1.jpg", b"x"), ("1.json", b"{")], "JSONDecodeError"),
        ([("1.jpg", b"x"), ("1.json", b"[]")], "NotAnObject"),
        ([("1.jpg", b"x"), ("1.json", b'{"width": 3}')], "UnknownFormat: .*'width'"),
        ([("1.jpg", b""), ("1.txt", b"A bus.")], "BadImage: 1: an image of 0 bytes"),
        ([("1.jpg", b"x"), ("1.png", b"y"), ("1.txt", b"A bus.")], "ImageCount: 1 <image> .*, 2 images"),
        ([("1.jpg", b"x" * 2000), ("1.txt", b"A bus.")], "TooLong"),
    ],
)
def test_a_bad_group_is_one_error_row(
    members: Any, message: str, bench: Any, make_tar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_reader, "MAX_ROW_BYTES", 1500)
    good = [("9.jpg", b"nine"), ("9.txt", b"A red bus.")]
    rows = bench.load(make_tar(bench.folder / "s.tar", [*members, *good]))
    assert len(rows) == 2
    assert re.match(message, rows[0]["error"])
    assert (turns(rows[1]), pictures(rows[1])) == (CAPTION, [b"nine"])


def test_members_that_are_not_neighbours_are_not_joined(bench: Any, make_tar: Any) -> None:
    members = [("1.jpg", b"x"), ("2.jpg", b"y"), ("1.txt", b"A bus."), ("2.txt", b"A bus.")]
    rows = bench.load(make_tar(bench.folder / "s.tar", members))
    assert [row["error"].split(":")[0] for row in rows] == ["UnknownFormat"] * 2 + ["ImageCount"] * 2


def test_hidden_members_are_passed_over(bench: Any, make_tar: Any) -> None:
    members = [("._1.jpg", b"junk"), ("1.jpg", b"one"), (".DS_Store", b""), ("1.txt", b"A red bus.")]
    assert [pictures(row) for row in bench.load(make_tar(bench.folder / "s.tar", members))] == [[b"one"]]


def shards(folder: Path, make_tar: Any, names: list[str], mode: str = "w") -> None:
    for name in names:
        make_tar(folder / name, [("1.jpg", name.encode()), ("1.txt", b"A red bus.")], mode)


def test_a_pattern_of_shards(bench: Any, make_tar: Any) -> None:
    shards(bench.folder, make_tar, [f"shard-{number:03d}.tar" for number in range(8, 12)])
    rows = bench.load(bench.folder / "shard-{008..010}.tar")
    assert [(row["sample_key"], pictures(row)) for row in rows] == [
        (f"shard/shard-{number}/0000000000", [f"shard-{number}.tar".encode()]) for number in ("008", "009", "010")
    ]


def test_a_folder_of_packed_shards(bench: Any, make_tar: Any) -> None:
    folder = bench.folder / "wds"
    folder.mkdir()
    shards(folder, make_tar, ["b.tar.gz", "c.tgz"], "w:gz")
    shards(folder, make_tar, ["a.tar"])
    assert [row["sample_key"] for row in bench.load(folder)] == [f"wds/{name}/0000000000" for name in "abc"]


def test_a_missing_shard_of_a_pattern_is_named(bench: Any, make_tar: Any) -> None:
    shards(bench.folder, make_tar, ["s-0.tar", "s-2.tar"])
    with pytest.raises(StageError, match=r"s-1\.tar: no such file"):
        bench.load(bench.folder / "s-{0..2}.tar")


def test_patterns() -> None:
    assert expand("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{train,val}/{0..1}.tar") == ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]
    assert expand("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("cut", ["in a member", "between members", "in a header", "no end"])
def test_a_cut_shard_is_never_taken_for_a_whole_one(cut: str, mode: str, bench: Any, make_tar: Any) -> None:
    members = [member for i in range(4) for member in ((f"{i}.jpg", bytes([i]) * 5000), (f"{i}.txt", b"A red bus."))]
    # A group of members: a block of header and 10 of data for the image, one and one for the caption.
    group = 512 * (1 + 10 + 1 + 1)
    end = {
        "in a member": group + 2000,
        "between members": 2 * group,
        "in a header": 2 * group + 100,
        "no end": 4 * group,
    }
    plain = make_tar(bench.folder / "plain.tar", members).read_bytes()[: end[cut]]
    packed = plain if mode == "w" else gzip.compress(plain)
    path = bench.write("s.tar" if mode == "w" else "s.tar.gz", packed)
    with pytest.raises(StageError, match=r"s\.tar.*: can't be read on after \d rows .*fetch it again"):
        bench.load(path)
    assert samples_directory(str(bench.out)) is None


def test_a_damaged_header_is_not_the_end(bench: Any, make_tar: Any) -> None:
    path = make_tar(bench.folder / "s.tar", [(f"{i}.txt", b"x") for i in range(6)])
    data = bytearray(path.read_bytes())
    data[3 * 1024 : 3 * 1024 + 8] = b"\xff" * 8
    path.write_bytes(bytes(data))
    with pytest.raises(StageError, match="can't be read on after 2 rows"):
        bench.load(path)


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, b"\x1f\x8b junk"])
def test_what_is_no_tar_is_named(data: bytes, bench: Any) -> None:
    with pytest.raises(StageError, match=r"s\.tar: can't be read on after 0 rows"):
        bench.load(bench.write("s.tar", data))


def test_the_rows_before_the_damage_stay(bench: Any, make_tar: Any) -> None:
    members = [member for i in range(4) for member in ((f"{i}.jpg", bytes([i]) * 5000), (f"{i}.txt", b"A red bus."))]
    path = make_tar(bench.folder / "s.tar", members)
    path.write_bytes(path.read_bytes()[: 512 * 13 * 2 + 1000])
    with pytest.raises(StageError):
        bench.load(path)
    assert pq.read_table(bench.out / "samples")["id"].to_pylist() == ["0", "1"]
