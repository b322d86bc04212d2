"""Where an image path may lead."""

from __future__ import annotations

from pathlib import Path

import pytest

from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.schema import RowError


@pytest.mark.parametrize(
    ("folder", "uri", "expected"),
    [
        ("/data", "coco/1.jpg", "/data/coco/1.jpg"),
        ("/data", "./coco//2/../1.jpg", "/data/coco/1.jpg"),
        ("/data", "/data/coco/1.jpg", "/data/coco/1.jpg"),
        ("/data/", "/data/x/../1.jpg", "/data/1.jpg"),
        ("/data", "file:///data/a%20b.jpg", "/data/a b.jpg"),
        ("/data", "a%20b #1?.jpg", "/data/a%20b #1?.jpg"),
        ("/data", "...jpg", "/data/...jpg"),
        ("file:///data", "1.jpg", "/data/1.jpg"),
        ("/", "etc/1.jpg", "/etc/1.jpg"),
        ("/", "/etc/1.jpg", "/etc/1.jpg"),
        ("/data", "s3://bucket/1.jpg", "s3://bucket/1.jpg"),
        ("/data", "gs://bucket/1.jpg", "gs://bucket/1.jpg"),
        ("/data", "HTTPS://x.org/1.jpg?a=b", "HTTPS://x.org/1.jpg?a=b"),
        ("s3://bucket/images/", "coco/./1.jpg", "s3://bucket/images/coco/1.jpg"),
        ("s3://bucket", "a b%.jpg", "s3://bucket/a b%.jpg"),
        ("gs://bucket/i", "a b%.jpg", "gs://bucket/i/a%20b%25.jpg"),
        ("https://x.org/i", "a b?.jpg", "https://x.org/i/a%20b%3F.jpg"),
        ("s3://bucket/images", "http://x.org/1.jpg", "http://x.org/1.jpg"),
    ],
)
def test_resolved(folder: str, uri: str, expected: str) -> None:
    assert ImageFolder.at(folder).resolve(uri) == expected


@pytest.mark.parametrize("folder", ["/data", "s3://bucket/data", "https://x.org/data"])
@pytest.mark.parametrize(
    "uri",
    [
        "../1.jpg",
        "a/../../1.jpg",
        "..",
        ".",
        "/data/../etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/database/1.jpg",
        "file:///etc/passwd",
        "file:///data/..%2Fetc/passwd",
        "file://[/etc/passwd",
    ],
)
def test_a_path_that_climbs_out_is_refused(folder: str, uri: str) -> None:
    with pytest.raises(RowError, match=r"ImagePath: .* lies outside .* pass --images"):
        ImageFolder.at(folder).resolve(uri)


@pytest.mark.parametrize(
    "uri", ["local:///etc/passwd", "zip://a::file:///etc/passwd", "ftp://x/1.jpg", "s3://x::file:///etc/passwd"]
)
def test_a_scheme_that_may_lead_back_to_the_machine_is_refused(uri: str) -> None:
    with pytest.raises(RowError, match="ImagePath"):
        ImageFolder.at("/data").resolve(uri)


def test_a_chain_without_a_scheme_is_a_plain_name() -> None:
    assert ImageFolder.at("/data").resolve("simplecache::file:///etc/passwd") == "/data/simplecache::file:/etc/passwd"


def test_a_relative_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert ImageFolder.at("images").resolve("1.jpg") == f"{tmp_path}/images/1.jpg"


def test_a_link_inside_the_folder_is_not_resolved(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to(tmp_path)
    assert ImageFolder.at(f"{tmp_path}/images").resolve("link/1.jpg") == f"{tmp_path}/images/link/1.jpg"
