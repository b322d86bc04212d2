"""Patterns of files, against Python's own glob."""

from __future__ import annotations

import glob
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from vig_ray.dataset.patterns import expand, fixed_folder, matches, without_signs

FILES = [
    "a.json", "b.json", "c.txt", ".h.json", "x/a.json", "x/train-0.parquet", "x/y/train-0.parquet",
    "x/y/train-00.parquet", "x/y/test-1.parquet", "x/.h/train-0.parquet", "x-y/train-1.parquet", "z/x/y/a.json",
    "x/y/[1].json", "x/y/.d.json",
]  # fmt: skip


@pytest.mark.parametrize(
    "pattern",
    [
        "*.json", "*", "**", "**/*", "x/**", "**/train-*.parquet", "**/train-?.parquet", "x/**/train-*", "*/*.json",
        "x/*/t*", "x*/*", "**/[ac].json", "**/[!a].json", "**/x/**/*.json", ".*", "**/.h/*", "x/.h/*", "*/.*/*",
        "x/y/[[]1].json", "none/*", "none/**", "**/y/*", "x/y/*.json", "*/y/**/*.json",
    ],
)  # fmt: skip
def test_the_files_that_match_are_those_of_pythons_glob(pattern: str, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    expected = [name for name in glob.glob(f"{tmp_path}/{pattern}", recursive=True) if Path(name).is_file()]
    fs = pafs.LocalFileSystem()
    assert [info.path for info in matches(fs, f"{tmp_path}/{pattern}")] == sorted(set(expected))
    through_fsspec = pafs.PyFileSystem(pafs.FSSpecHandler(pytest.importorskip("fsspec").filesystem("file")))
    assert [info.path for info in matches(through_fsspec, f"{tmp_path}/{pattern}")] == sorted(set(expected))


def test_braces() -> None:
    assert expand("s-{08..11}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]
    assert expand("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]


def test_what_is_fixed() -> None:
    assert fixed_folder("/d/x/{0..1}/*.json") == "/d/x"
    assert fixed_folder("s3://b/**/x") == "s3://b"
    assert fixed_folder("*.json") == ""
    assert without_signs("llava-{000..001}") == "llava"
    assert without_signs("train-*") == "train"
