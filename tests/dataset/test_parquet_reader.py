"""Parquet: files and folders, only the needed columns, damaged ones."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vig_ray.dataset import parquet_reader
from vig_ray.errors import StageError

_TURN = pa.struct([("from", pa.string()), ("value", pa.string())])


def write(path: Any, rows: list[dict[str, Any]], **more: pa.Array) -> None:
    table = pa.Table.from_pylist(rows)
    for name, column in more.items():
        table = table.append_column(name, column)
    pq.write_table(table, path)


def test_a_folder_of_files_sorted_by_name(bench: Any, make_row: Any) -> None:
    folder = bench.folder / "parts"
    folder.mkdir()
    write(folder / "b.parquet", [make_row(2)])
    write(folder / "a.parquet", [make_row(0), make_row(1)])
    (folder / "_SUCCESS").write_text("")
    (folder / "README.md").write_text("x")
    (folder / ".a.parquet.crc").write_text("x")
    rows = bench.load(folder)
    assert [(row["sample_key"], row["id"]) for row in rows] == [
        ("parts/a/0000000000", "row-0"),
        ("parts/a/0000000001", "row-1"),
        ("parts/b/0000000000", "row-2"),
    ]
    assert rows[0]["images"] == [{"uri": f"{folder}/coco/train2017/1.jpg", "bytes": None}]


def test_a_folder_of_one_file_has_the_keys_that_stay_when_another_comes(bench: Any, make_row: Any) -> None:
    folder = bench.folder / "parts"
    folder.mkdir()
    write(folder / "parts.parquet", [make_row(0)])
    assert [row["sample_key"] for row in bench.load(folder)] == ["parts/parts/0000000000"]


def test_more_rows_than_a_batch_keep_their_numbers(bench: Any, make_row: Any) -> None:
    write(bench.folder / "d.parquet", [make_row(number) for number in range(100)])
    rows = bench.load(bench.folder / "d.parquet")
    assert [(row["sample_key"], row["id"]) for row in rows] == [(f"d/{i:010d}", f"row-{i}") for i in range(100)]


def test_rows_keep_their_numbers_over_row_groups_of_any_size(bench: Any, make_row: Any) -> None:
    table = pa.Table.from_pylist([make_row(number) for number in range(100)])
    with pq.ParquetWriter(bench.folder / "d.parquet", table.schema) as writer:
        for start, rows in ((0, 1), (1, 40), (41, 59)):
            writer.write_table(table.slice(start, rows))
    rows = bench.load(bench.folder / "d.parquet", order="as-is")
    assert [(row["sample_key"], row["id"]) for row in rows] == [(f"d/{i:010d}", f"row-{i}") for i in range(100)]


@pytest.mark.parametrize(("image", "most"), [(b"", 64), (b"x" * 1000, 64), (b"x" * (1 << 20), 4)])
def test_batches_are_bounded_by_bytes(image: bytes, most: int, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    contents = parquet_reader._contents
    monkeypatch.setattr(parquet_reader, "_contents", lambda batch: (sizes.append(batch.num_rows), contents(batch))[1])
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A."}]
    rows = [{"messages": turns, "image": image + str(number).encode()} for number in range(100)]
    write(bench.folder / "d.parquet", rows)
    assert len(list(parquet_reader.read_parquet(str(bench.folder / "d.parquet")))) == sum(sizes) == 100
    assert max(sizes) <= most


def test_image_bytes_are_kept(bench: Any, make_png: Any) -> None:
    picture = make_png([(1, 2, 3), (4, 5, 6)], [(7, 8, 9), (9, 9, 9)])
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]
    write(bench.folder / "d.parquet", [{"messages": turns, "images": [{"bytes": picture, "path": "x.png"}], "id": 4}])
    (row,) = bench.load(bench.folder / "d.parquet")
    assert row["images"] == [{"uri": None, "bytes": picture}]
    assert row["id"] == "4"


def test_columns_that_no_format_uses_are_not_read(bench: Any, make_row: Any) -> None:
    # Such a day is past what Python's dates can hold: reading the column would fail.
    days = pa.array([10_000_000], pa.date32())
    write(bench.folder / "d.parquet", [make_row(0)], created=days)
    assert [row["error"] for row in bench.load(bench.folder / "d.parquet")] == [None]


def test_unknown_columns_are_named(bench: Any) -> None:
    write(bench.folder / "d.parquet", [{"question": "Why?", "answer": "So.", "picture": "a.jpg"}])
    told = r"d\.parquet: the columns \('question', 'answer', 'picture'\) fit no layout; .*,image=picture$"
    with pytest.raises(StageError, match=told):
        bench.load(bench.folder / "d.parquet")


def test_broken_utf8_costs_one_row(bench: Any) -> None:
    good, bad = b"Why? \xc3\xa9", b"Why? \xff"
    values = pa.array([b"So.", good, b"So.", bad, b"So.", good], pa.binary()).view(pa.string())
    froms = pa.array(["gpt", "human"] * 3)
    turns = pa.StructArray.from_arrays([froms, values], fields=list(_TURN))
    table = pa.table({"conversations": pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), turns)})
    pq.write_table(table, bench.folder / "d.parquet")
    rows = bench.load(bench.folder / "d.parquet")
    assert [(row["error"] or "").split(":")[0] for row in rows] == ["", "UnicodeDecodeError", ""]
    assert rows[2]["conversation"][1] == {"role": "user", "text": "Why? é"}


def test_a_date_that_python_has_not_costs_one_row(bench: Any, make_row: Any) -> None:
    days, seconds = pa.array([0, 4_000_000, 1], pa.date32()), pa.array([0, 1, 400_000_000_000], pa.timestamp("s"))
    write(bench.folder / "d.parquet", [make_row(number, None) for number in range(3)], day=days, at=seconds)
    rows = bench.load(bench.folder / "d.parquet", keep=("day", "at"))
    assert [row["error"] for row in rows] == [
        None,
        "OverflowError: day: date value out of range",
        "OverflowError: at: date value out of range",
    ]
    assert [pair["value"] for pair in rows[0]["kept"]] == ['"1970-01-01"', '"1970-01-01T00:00:00"']


@pytest.mark.parametrize("data", [b"", b"PAR1 not parquet", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_damaged_file_is_named(data: bytes, bench: Any) -> None:
    with pytest.raises(StageError, match=r"d\.parquet: can't be read on after 0 rows"):
        bench.load(bench.write("d.parquet", data))
