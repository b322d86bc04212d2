"""Several processes of one machine: the same samples, and errors in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vig_ray.dataset import importing
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.inputs import DataFile, read_rows, slices
from vig_ray.errors import StageError
from vig_ray.processes import processes


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_LEAST_A_GROUP", 2000)


def test_several_processes_give_what_one_gives(bench: Any, make_row: Any, small_groups: None) -> None:
    """Files, row groups, lines; a bad row; samples that share images, which are then ordered."""
    rows = [make_row(number, image=f"{number % 40}.jpg") for number in range(200)]
    (bench.folder / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), bench.folder / "set/a.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(rows[:20]), bench.folder / "set/b.parquet")
    lines = [json.dumps(row) for row in rows]
    lines[50], lines[60], lines[199] = "junk", "", "[]"
    bench.write("set.jsonl", "\ufeff" + "\n".join(lines))
    for data in (bench.folder / "set", bench.folder / "set.jsonl"):
        expected = bench.load(data, workers=1, overwrite=True)
        report = bench.report
        assert bench.load(data, overwrite=True) == expected  # it is small: one process
        assert bench.load(data, workers=3, overwrite=True, name="n") == [
            {**row, "sample_key": row["sample_key"].replace("set/", "n/", 1)} for row in expected
        ]
        assert {**vars(bench.report), "directory": ""} == {**vars(report), "directory": ""}


def test_a_broken_file_is_named(bench: Any, make_row: Any, small_groups: None) -> None:
    for number in range(4):
        bench.write(f"set/{number}.json", [make_row(row) for row in range(20)])
    bench.write("set/2.json", '[{"id": 1}')
    with pytest.raises(StageError, match=r"^[^\n]*2\.json: broken JSON after 1 rows[^\n]*$"):
        bench.load(bench.folder / "set", workers=2)


def leave() -> None:
    os._exit(1)


def test_a_process_that_ends_by_itself() -> None:
    with (
        pytest.raises(StageError, match=r"a process of --workers ended by itself: .*--workers 1"),
        processes(2, "--workers") as call,
    ):
        list(call([leave]))


def test_a_script_needs_no_guard(bench: Any, make_row: Any) -> None:
    data = bench.write("d.json", [make_row(number) for number in range(20)])
    script = bench.write(
        "script.py",
        "from vig_ray.dataset.importing import ImportConfig, run\n"
        f"print(run(ImportConfig(data={str(data)!r}, out={str(bench.out)!r}, workers=2)).read)\n",
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("20\n", "")


@pytest.mark.parametrize("size", [1, 30, 100, 1000, 10**6])
@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_parts_of_json_lines_are_its_rows(
    size: int, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, with the number it has in the whole file, wherever it is cut."""
    monkeypatch.setattr("vig_ray.dataset.json_reader.CHUNK_BYTES", 37)
    path = tmp_path / "d.jsonl"
    path.write_text("\ufeff" + "\n".join(["{}", '{"a": "é"}', "", "junk", json.dumps({"b": "x" * 100})] * 3) + ending)
    file = DataFile(str(path), "jsonl", path.stat().st_size, 0, "d")
    parts = slices([file], size, 2)
    assert len(parts) > 1 or size >= path.stat().st_size
    found = [row for part in parts for row in read_rows(part)]
    expected = list(read_rows(file))
    assert len(expected) == 12
    assert [(row.number, str(row.content)) for row in found] == [(row.number, str(row.content)) for row in expected]


def test_parts_of_parquet_are_its_rows(make_row: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.Table.from_pylist([make_row(number) for number in range(100)]), path, row_group_size=9)
    file = DataFile(str(path), "parquet", path.stat().st_size, 0, "d")
    expected = list(read_rows(file))
    for size in (1, path.stat().st_size // 3, path.stat().st_size * 2):
        parts = slices([file], size, 2)
        assert [row for part in parts for row in read_rows(part)] == expected
        assert (len(parts) > 1) == (size < path.stat().st_size)
    assert len(slices([file] * 5, 1, 5)) == 5  # enough files to go round

    def third(number: int) -> bool:
        return number % 3 == 0

    every_third = [row for part in slices([file], 1, 2) for row in read_rows(part, wanted=third)]
    assert every_third == expected[::3]


def test_workers_are_one_or_more() -> None:
    with pytest.raises(ValueError, match="workers"):
        ImportConfig(data="d", out="o", workers=0)
