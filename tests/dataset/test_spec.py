"""What a value of --data says, taken apart by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vig_ray.dataset.spec import DataSpec, in_full, parse
from vig_ray.errors import StageError

HUB = "hf://datasets/org/set"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d.json", DataSpec("d.json", "d.json", None)),
        ("d.json=0.7", DataSpec("d.json=0.7", "d.json", 0.7)),
        ("s3://b/date=x/d.json", DataSpec("s3://b/date=x/d.json", "s3://b/date=x/d.json", None)),
        ("s3://b/d=2=1e-3", DataSpec("s3://b/d=2=1e-3", "s3://b/d=2", 0.001)),
        ("year=2024", DataSpec("year=2024", "year=2024", None)),  # it is there
        ("year=2024=2", DataSpec("year=2024=2", "year=2024", 2.0)),
        ("year=2023/", DataSpec("year=2023/", "year=2023/", None)),
        ("a:b.json", DataSpec("a:b.json", "a:b.json", None)),  # so is this
        ("folder:ocr", DataSpec("folder:ocr", "folder", None, config="ocr")),
        (
            "folder:ocr_*,vqa:test=3",
            DataSpec("folder:ocr_*,vqa:test=3", "folder", 3.0, config="ocr_*,vqa", split="test"),
        ),
        ("folder::test", DataSpec("folder::test", "folder", None, split="test")),
        ("nowhere:ocr", DataSpec("nowhere:ocr", "nowhere:ocr", None)),
        (HUB, DataSpec(HUB, "", None, "org/set")),
        (f"{HUB}/", DataSpec(f"{HUB}/", "", None, "org/set")),
        (f"{HUB}@v1:ocr:test=2", DataSpec(f"{HUB}@v1:ocr:test=2", "", 2.0, "org/set", "v1", "ocr", "test")),
        (f"{HUB}@refs/pr/3:ocr", DataSpec(f"{HUB}@refs/pr/3:ocr", "", None, "org/set", "refs/pr/3", "ocr")),
        (f"{HUB}::test", DataSpec(f"{HUB}::test", "", None, "org/set", None, None, "test")),
        (f"{HUB}/data/*.parquet", DataSpec(f"{HUB}/data/*.parquet", "data/*.parquet", None, "org/set")),
        (f"{HUB}@v1/a:b.json", DataSpec(f"{HUB}@v1/a:b.json", "a:b.json", None, "org/set", "v1")),
        ("hf://buckets/org/b/d.json", DataSpec("hf://buckets/org/b/d.json", "hf://buckets/org/b/d.json", None)),
    ],
)
def test_parts(text: str, expected: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "year=2024"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a:b.json").touch()
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d.json=0", "--data d.json=0: a weight is a number above 0"),
        ("d.json=1e999", "a weight is a number above 0"),
        ("hf://datasets/set", "not hf://datasets/ORG/NAME"),
        ("hf://org/set", "a model; a dataset is hf://datasets/org/set"),
        ("hf://", "not hf://datasets/ORG/NAME"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        parse(text)


def test_a_value_for_somebody_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.fspath(tmp_path)
    for text, full in {
        "d.json=0.7": f"{here}/d.json=0.7",
        "data/**/t-*.json": f"{here}/data/**/t-*.json",
        "folder:ocr:test=2": f"{here}/folder:ocr:test=2",
        "year=2024/": f"{here}/year=2024/",
        "folder/": f"{here}/folder",
        f"{HUB}@v1:ocr=2": f"{HUB}@v1:ocr=2",
        "s3://b/x/": "s3://b/x/",
    }.items():
        assert in_full(text) == full
