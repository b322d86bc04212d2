"""Which files are data, which hold images, what is passed over, and the keys that come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vig_ray.dataset.importing import ImportConfig, validate
from vig_ray.dataset.kinds import data_and_archives
from vig_ray.dataset.listing import find
from vig_ray.dataset.spec import parse
from vig_ray.errors import StageError


def keys(rows: list[dict[str, Any]]) -> list[str]:
    return [row["sample_key"] for row in rows]


def test_a_folder_is_listed_with_all_that_lies_in_it(bench: Any, make_row: Any) -> None:
    """Equal names don't clash; a folder's images lie beside its files; what isn't data is passed over."""
    for name in ("set/a.json", "set/x/a.json", "set/x/y/a.json", "set/x-y/a.json"):
        bench.write(name, [make_row(0)])
    for name in ("set/.cache/a.json", "set/_old/a.json", "set/x/.a.json", "set/x/dataset_info.json", "set/x/a.png"):
        bench.write(name, "passed over")
    rows = bench.load(bench.folder / "set")
    assert keys(rows) == [f"set/{part}/0000000000" for part in ("a", "x-y/a", "x/a", "x/y/a")]
    assert rows[3]["images"][0]["uri"] == f"{bench.folder}/set/x/y/coco/train2017/1.jpg"


def test_outputs_in_a_folder_are_not_its_data(bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the same command twice, in the folder itself, is one import."""
    bench.write("set/a.json", [make_row(0)])
    monkeypatch.chdir(bench.folder / "set")
    bench.out = Path("runs")
    first = bench.load(".")
    assert bench.load(".") == first
    assert keys(first) == ["set/a/0000000000"]


@pytest.mark.parametrize(
    ("names", "kind", "data", "archives"),
    [
        (["a.json", "images.zip"], "auto", ["a.json"], ["images.zip"]),
        (
            ["a.json", "i/shard_0.tar.gz", "i/shard_1.tar.gz"],
            "auto",
            ["a.json"],
            ["i/shard_0.tar.gz", "i/shard_1.tar.gz"],
        ),
        (["a.tar", "b.tar"], "auto", ["a.tar", "b.tar"], []),
        (["a.tar", "b.zip"], "auto", ["a.tar"], ["b.zip"]),
        # As img2dataset writes them.
        (["0.parquet", "0.tar", "0_stats.json", "1.parquet", "1.tar", "1_stats.json"], "auto", ["0.tar", "1.tar"], []),
        (["0.tar", "0.json", "1.tar", "1.json"], "auto", ["0.json", "1.json"], ["0.tar", "1.tar"]),
        (["0.tar", "0_more.json"], "auto", ["0_more.json"], ["0.tar"]),
        (["0.tar", "0.parquet", "a.json"], "json", ["a.json"], ["0.tar"]),
        (["a.json", "b.tar.bz2", "c.txz", "d.tar.zst"], "auto", ["a.json"], ["b.tar.bz2", "c.txz", "d.tar.zst"]),
        (["x/0.tar", "0.json"], "auto", ["0.json"], ["x/0.tar"]),
        (["a.json", "b.tar"], "webdataset", ["b.tar"], []),
        (["a.parquet", "b.json", "c.tar"], "parquet", ["a.parquet"], ["c.tar"]),
        (["config.json", "state.json", "a.jsonl", "out.stage.json"], "auto", ["a.jsonl"], []),
        (["readme.md", "1.png"], "auto", [], []),
    ],
)
def test_data_and_archives(names: list[str], kind: Any, data: list[str], archives: list[str]) -> None:
    assert data_and_archives(names, kind)[:2] == (data, archives)


def test_archives_are_told(bench: Any, make_row: Any) -> None:
    bench.write("set/a.json", [make_row(0)])
    bench.write("set/images/1.zip", "x")
    bench.write("set/images/2.tar", "x")
    listing = find(parse(str(bench.folder / "set")), "auto")
    assert [file.uri for file in listing.files] == [f"{bench.folder}/set/a.json"]
    assert listing.archives == [f"{bench.folder}/set/images/1.zip", f"{bench.folder}/set/images/2.tar"]


def test_patterns_and_their_keys(bench: Any, make_row: Any) -> None:
    for name in ("train/a", "val/b", "val/a"):
        bench.write(f"set/{name}.json", [make_row(0)])
    folder = f"{bench.folder}/set"
    # The keys that earlier versions gave, where they could.
    assert keys(bench.load(f"{folder}/{{train/a,val/b}}.json", name="n")) == ["n/a/0000000000", "n/b/0000000000"]
    rows = bench.load(f"{folder}/{{val,train}}/a.json", name="n", order="as-is", overwrite=True)
    assert keys(rows) == ["n/val/a/0000000000", "n/train/a/0000000000"]
    rows = bench.load(f"{folder}/*/a.json", overwrite=True)
    assert keys(rows) == ["a/train/a/0000000000", "a/val/a/0000000000"]
    rows = bench.load(f"{folder}/{{val,train}}/*.json", name="n", order="as-is", overwrite=True)
    assert keys(rows) == ["n/val/a/0000000000", "n/val/b/0000000000", "n/train/a/0000000000"]


def test_several_data(bench: Any, make_row: Any) -> None:
    bench.write("a.json", [make_row(0)])
    bench.write("b/x.jsonl", json.dumps(make_row(1)))
    bench.write("b/y.jsonl", json.dumps(make_row(2)))
    rows = bench.load(bench.folder / "b", bench.folder / "a.json")
    assert keys(rows) == ["b/x/0000000000", "b/y/0000000000", "a/0000000000"]
    assert [row["id"] for row in rows] == ["row-1", "row-2", "row-0"]
    # In another order it is other data.
    with pytest.raises(StageError, match="holds another run"):
        bench.load(bench.folder / "a.json", bench.folder / "b")


def test_what_several_data_are_refused_for(bench: Any, make_row: Any) -> None:
    a, other = bench.write("a.json", [make_row(0)]), bench.write("other/a.json", [make_row(0)])
    b = bench.write("b.json", [make_row(0)])
    for data, options, message in [
        ((a, other), {}, r"two --data are called a .*a\.json.*rename"),
        ((a, a), {}, r"two files are called .*a\.json is named twice"),
        ((a, b), {"name": "n"}, "--name names one dataset"),
        ((f"{a}=1", b), {}, r"b\.json: give each --data a weight"),
        ((f"{a}=1",), {}, "a weight is for several --data"),
        ((f"{a}=1", f"{b}=1"), {"limit": 1}, "--limit with weights"),
        ((bench.folder / "none*.json",), {}, "no file matches"),
        ((bench.folder / "{a,none}.json",), {}, r"none\.json: no such file"),
        ((f"{bench.folder}/other:ocr",), {}, "has no config 'ocr'; it has default"),
    ]:
        with pytest.raises(StageError, match=message):
            validate(ImportConfig(data=tuple(map(str, data)), out=str(bench.out), **options))


def test_one_value_or_several_from_anywhere() -> None:
    assert ImportConfig(data="a.json", out="o").data == ("a.json",)
    assert ImportConfig(data=["a", "b"], out="o").data == ("a", "b")
    assert ImportConfig(data="a.json", out="o").model_dump(mode="json")["data"] == "a.json"
    assert ImportConfig(data=("a", "b"), out="o").model_dump(mode="json")["data"] == ["a", "b"]
    with pytest.raises(ValueError, match="data"):
        ImportConfig(data=(), out="o")
