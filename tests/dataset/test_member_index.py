"""Looking members up by name: against a dict, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vig_ray.dataset import member_index
from vig_ray.dataset.member_index import Found, MemberIndex, write_index, write_scan
from vig_ray.dataset.members import Member, Place
from vig_ray.errors import StageError


def some(first: int, past: int) -> Iterator[tuple[int, Member]]:
    for number in range(first, past):
        yield number % 3, Member(f"folder/{number}.jpg", Place(number % 3), 1 << 40 | number, number)


@pytest.mark.parametrize("at_once", [100, 1 << 23])
def test_every_name_is_found_where_it_was_put(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_index, "_AT_ONCE", at_once)
    monkeypatch.setattr(member_index, "_WRITTEN_AT_ONCE", 64)
    scans, expected, files = [], {}, 0
    for number, (first, past) in enumerate([(0, 1000), (1000, 1000), (900, 2500)]):
        uri = str(tmp_path / f"scan-{number}")
        scans.append((uri, write_scan(uri, some(first, past)), files))
        for file, member in some(first, past):
            place = Found(files + file, member.place, member.offset, member.size)
            expected.setdefault(member.name, []).append(place)
        files += 3
    write_index(str(tmp_path / "index"), scans)
    index = MemberIndex(str(tmp_path / "index"))
    assert {name: sorted(index.find(name)) for name in expected} == {k: sorted(v) for k, v in expected.items()}
    assert len(expected["folder/950.jpg"]) == 2
    assert index.find("folder/2500.jpg") == index.find("") == index.find("\ud800") == []


def test_of_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "scan")
    write_index(str(tmp_path / "index"), [(uri, write_scan(uri, iter(())), 0)])
    assert MemberIndex(str(tmp_path / "index")).find("a") == []


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    uri = str(tmp_path / "scan")
    count = write_scan(uri, some(0, 100))
    Path(uri).write_bytes(Path(uri).read_bytes()[: -33 * 10])
    with pytest.raises(StageError, match="90 members of archives where 100 were written"):
        write_index(str(tmp_path / "index"), [(uri, count, 0)])
    with pytest.raises(StageError, match="can't be read"):
        MemberIndex(str(tmp_path / "nowhere"))


_PEAK = """
import pathlib, re, sys
import numpy as np
from vig_ray.dataset import member_index
from vig_ray.dataset.member_index import MemberIndex, write_index
folder, count = sys.argv[1], int(sys.argv[2])
member_index._AT_ONCE = 1 << 18
rng = np.random.default_rng(1)
with open(folder + "/scan", "wb") as file:
    for _ in range(0, count, 1 << 16):
        records = np.zeros(1 << 16, dtype=member_index._SCANNED)
        records["key"] = rng.integers(0, 1 << 64, 1 << 16, dtype=np.uint64)
        file.write(records.tobytes())
write_index(folder + "/index", [(folder + "/scan", count, 0)])
assert MemberIndex(folder + "/index").find("a") == []
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_memory_does_not_grow_with_the_number_of_members(tmp_path: Path) -> None:
    peaks = []
    for count in (1 << 18, 1 << 21):
        (folder := tmp_path / str(count)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(folder), str(count)], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 60  # MiB; the index of the larger is 69
