"""URIs and plain paths alike."""

from __future__ import annotations

import json

import pyarrow.fs as pafs
import pytest

from vig_ray.errors import StageError
from vig_ray.stage import StageConfig, read_stage, write_stage
from vig_ray.storage import exists, filesystem, join, read_bytes, scheme_of, write_bytes


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [("s3://b/k", "s3"), ("GS://b", "gs"), ("/a/b", ""), ("a b/c", ""), ("C:/x", ""), ("file:///x", "file")],
)
def test_schemes(uri: str, scheme: str) -> None:
    assert scheme_of(uri) == scheme


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("/a", "b"), "/a/b"),
        (("/a/", "/b/", "c"), "/a/b/c"),
        (("s3://bucket", "x"), "s3://bucket/x"),
        (("s3://bucket/x/", "y"), "s3://bucket/x/y"),
        (("a", "b"), "a/b"),
        (("/", "b"), "/b"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert join(*parts) == joined


def test_local_paths_and_file_uris_are_the_same_place(tmp_path) -> None:
    write_bytes(f"file://{tmp_path}/a%20b/c", b"hello")
    assert read_bytes(str(tmp_path / "a b" / "c")) == b"hello"
    assert exists(str(tmp_path / "a b")) == pafs.FileType.Directory
    assert exists(str(tmp_path / "none")) == pafs.FileType.NotFound
    assert [file.name for file in (tmp_path / "a b").iterdir()] == ["c"]


def test_unknown_scheme_is_named() -> None:
    with pytest.raises(StageError, match="ftx://host/x"):
        filesystem("ftx://host/x")


class Config(StageConfig):
    number: int = 3


def test_stage_record_explains_itself(tmp_path) -> None:
    write_stage(str(tmp_path), "test", Config(number=4), counts={"read": 1})
    record = read_stage(str(tmp_path))
    assert record is not None
    assert (record["stage"], record["config"], record["counts"]) == ("test", {"number": 4}, {"read": 1})
    assert record["versions"]["vig_ray"]
    assert json.loads((tmp_path.parent / f"{tmp_path.name}.stage.json").read_text()) == record
    assert read_stage(str(tmp_path / "none")) is None


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_foreign_stage_record_is_refused(tmp_path, content: str) -> None:
    (tmp_path / "stage.json").write_text(content)
    with pytest.raises(StageError, match=r"stage\.json"):
        read_stage(str(tmp_path))
