"""Members of archives and their bytes: what zipfile and tarfile say of the same files."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vig_ray.dataset.archived import Archived, DamagedArchiveError, TooLargeError, archived, read_archived
from vig_ray.dataset.members import Member, Place, members

MOST = 1 << 20
FILES = {
    "a.jpg": b"first",
    "deep/er/b.png": bytes(range(256)) * 40,
    "Grüße/日本.png": b"unicode" * 99,
    "a b#1?.jpg": b"odd",
    "of/no/bytes.jpg": b"",
    f"{'long/' * 40}name.jpg": b"long" * 1000,
    "#bytes=1+2/c.jpg": b"a name like a place",
}


def needs(program: str) -> Any:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs the program {program}")


def listed(path: Path) -> list[Member]:
    return list(members(str(path), "zip" if path.suffix == ".zip" else "tar", path.stat().st_size))


def contents(path: Path, most: int = MOST) -> dict[str, bytes]:
    """What is read by the members' URIs, written out and parsed again."""
    found = {}
    for member in listed(path):
        if member.place not in (Place.BYTES, Place.ZIP):
            continue
        way = "zip" if member.place == Place.ZIP else "bytes"
        uri = Archived(str(path), way, member.offset, member.size, member.name).uri
        assert uri.endswith(f"/{member.name}")
        file = archived(uri)
        assert file is not None
        found[member.name] = read_archived(file, most)
    return found


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.mkdir("deep")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def by_zipfile(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


def tarred(path: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_as_zipfile_reads_it(method: int, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", method)
    assert contents(path) == by_zipfile(path) == FILES
    assert [member.name for member in listed(path)] == list(FILES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_read_as_tarfile_reads_it(form: int, tmp_path: Path) -> None:
    path = tarred(tmp_path / "a.tar", form)
    assert contents(path) == FILES
    with tarfile.open(path) as archive:
        expected = [(info.name, info.offset_data, info.size) for info in archive if info.isreg()]
    assert [(member.name, member.offset, member.size) for member in listed(path)] == expected


class OneWay(io.RawIOBase):
    """A file that can't be set back: zipfile writes sizes and checksums after the data then."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += data
        return len(data)


def test_a_zip_that_was_written_to_a_pipe(tmp_path: Path) -> None:
    out = OneWay()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, data in FILES.items():
            archive.writestr(name, data)
    path = tmp_path / "a.zip"
    path.write_bytes(bytes(out.data))
    assert contents(path) == by_zipfile(path) == FILES


def test_a_zip_of_64_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 300)  # zipfile takes these sizes and offsets for large ones
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = zipped(tmp_path / "a.zip", zipfile.ZIP_STORED)
    assert b"PK\6\6" in path.read_bytes()
    assert contents(path) == by_zipfile(path) == FILES


def test_a_zip_with_something_before_and_a_comment_after(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK comment" * 5000
    path.write_bytes(b"#!/bin/sh\n" * 100 + path.read_bytes())
    assert contents(path) == by_zipfile(path) == FILES


def test_long_extra_fields_are_read_past(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        info.extra = struct.pack("<HH", 0xCAFE, 3000) + bytes(3000)
        archive.writestr(info, b"data" * 100)
        archive.writestr("b.jpg", b"next")
    assert contents(path) == {"a.jpg": b"data" * 100, "b.jpg": b"next"}


def test_names_that_say_nothing_of_their_encoding(tmp_path: Path) -> None:
    """UTF-8 where it is that, as a Mac writes it; else code page 437, which zipfile takes all for."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("xxxxxx.jpg", b"1")
        archive.writestr("yy.jpg", b"2")
    data = path.read_bytes().replace(b"xxxxxx", "日本".encode()).replace(b"yy", "Ü".encode("cp437") + b"-")
    path.write_bytes(data)
    assert contents(path) == {"日本.jpg": b"1", "Ü-.jpg": b"2"}


@needs("zip")
def test_a_zip_of_the_zip_program(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["zip", "-rq", "../a.zip", "."], cwd=tmp_path / "in", check=True)
    assert contents(tmp_path / "a.zip") == FILES
    subprocess.run(["zip", "-rqP", "secret", "../b.zip", "."], cwd=tmp_path / "in", check=True)
    places = {member.name: member.place for member in listed(tmp_path / "b.zip")}
    assert places == dict.fromkeys(FILES, Place.ENCRYPTED) | {"of/no/bytes.jpg": places["of/no/bytes.jpg"]}


@needs("tar")
def test_a_tar_of_the_tar_program(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    os.link(tmp_path / "in/a.jpg", tmp_path / "in/z-hard.jpg")
    (tmp_path / "in/z-soft.jpg").symlink_to("a.jpg")
    with (tmp_path / "in/z-sparse.jpg").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    subprocess.run(["tar", "-S", "--sort=name", "-cf", "../a.tar", "."], cwd=tmp_path / "in", check=True)
    places = {member.name: member.place for member in listed(tmp_path / "a.tar")}
    assert places == dict.fromkeys(FILES, Place.BYTES) | {
        "z-hard.jpg": Place.LINK,
        "z-soft.jpg": Place.LINK,
        "z-sparse.jpg": Place.SPARSE,
    }
    assert contents(tmp_path / "a.tar") == FILES


def test_other_methods_and_what_macs_add(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.jpg", b"1" * 100)
        archive.writestr("__MACOSX/._a.jpg", b"2")
    assert [(member.name, member.place) for member in listed(path)] == [("a.jpg", Place.OTHER_METHOD)]


def cuts(size: int) -> Iterator[int]:
    yield from (0, 1, size // 3, size - 30, size - 1)
    yield from random.Random(1).sample(range(size), 20)


@pytest.mark.parametrize("make", [lambda path: zipped(path.with_suffix(".zip")), lambda path: tarred(path)])
def test_a_file_that_is_cut_off_is_never_taken_for_whole(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar")
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) if path.suffix == ".tar" else len(whole)
    for cut in cuts(end):
        path.write_bytes(whole[:cut])
        with pytest.raises((DamagedArchiveError, tarfile.TarError)):
            listed(path)


def test_a_damaged_directory(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at] = 0
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedArchiveError, match="damaged"):
        listed(path)
    data[at] = ord("P")
    data[data.rindex(b"PK\5\6") + 10] += 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedArchiveError, match="8 entries where 9 are announced"):
        listed(path)


def test_more_bytes_than_are_allowed(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", files={"bomb.png": bytes(8 << 20), "as many.png": bytes(MOST)})
    bomb, whole = listed(path)
    assert bomb.size < MOST
    with pytest.raises(TooLargeError, match="when inflated"):
        read_archived(Archived(str(path), "zip", bomb.offset, bomb.size, bomb.name), MOST)
    assert read_archived(Archived(str(path), "zip", whole.offset, whole.size, whole.name), MOST) == bytes(MOST)
    with pytest.raises(TooLargeError, match=f"{MOST + 1} bytes, and {MOST} are allowed"):
        read_archived(Archived(str(path), "bytes", 0, MOST + 1, "a.png"), MOST)


def test_what_was_changed_after_the_import(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", zipfile.ZIP_STORED)
    file = next(member for member in listed(path) if member.name == "deep/er/b.png")
    place = Archived(str(path), "zip", file.offset, file.size, file.name)
    assert read_archived(place, MOST) == FILES[file.name]
    with pytest.raises(DamagedArchiveError, match=r"another file lies there.*import again"):
        read_archived(place._replace(member="deep/er/c.png"), MOST)
    with pytest.raises(DamagedArchiveError, match="another file lies there"):
        read_archived(place._replace(offset=place.offset + 1), MOST)
    with pytest.raises(DamagedArchiveError, match="cut off"):
        read_archived(place._replace(size=1 << 19), MOST)
    data = bytearray(path.read_bytes())
    data[data.index(FILES["deep/er/b.png"]) + 9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedArchiveError, match="checksum"):
        read_archived(place, MOST)
    path.write_bytes(bytes(data[: place.offset + 10]))
    with pytest.raises(DamagedArchiveError, match="cut off"):
        read_archived(place, MOST)


@pytest.mark.parametrize("uri", ["/a.zip", "/a#1.jpg", "s3://b/a.tar#bytes=1/2", "/a.zip#zip=x+1/a", "http://x/#top"])
def test_what_is_no_place_in_an_archive(uri: str) -> None:
    assert archived(uri) is None


def test_the_first_place_in_a_uri_counts() -> None:
    assert archived("s3://b/a#b.tar#bytes=5+6/c#zip=1+2/d.jpg") == Archived(
        "s3://b/a#b.tar", "bytes", 5, 6, "c#zip=1+2/d.jpg"
    )
