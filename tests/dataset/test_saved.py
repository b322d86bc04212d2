"""Folders of save_to_disk, which `datasets` itself writes and reads."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pytest

from tests.hub import Hub
from vig_ray.dataset.importing import ImportConfig, validate
from vig_ray.dataset.inputs import DataFile, count_rows, read_rows
from vig_ray.errors import StageError


def rows_of(make_row: Any, *numbers: int) -> datasets.Dataset:
    return datasets.Dataset.from_list([make_row(number, None) for number in numbers])


def ids(rows: Any) -> list[str]:
    return [row["id"] for row in rows]


def test_a_dataset(bench: Any, make_row: Any) -> None:
    """Its files in their order; shuffled rows as they were saved; not the JSON files beside them."""
    folder = bench.folder / "set"
    rows_of(make_row, *range(100)).shuffle(seed=1).save_to_disk(folder, num_shards=3)
    rows = bench.load(folder)
    assert ids(rows) == ids(datasets.load_from_disk(folder))
    assert rows[0]["sample_key"] == "set/data-00000-of-00003/0000000000"
    (one,) = bench.load(folder / "data-00001-of-00003.arrow", limit=1, overwrite=True)
    assert one["sample_key"] == "data-00001-of-00003/0000000000"


def test_images_come_as_they_are(bench: Any, make_row: Any, make_png: Any) -> None:
    picture = make_png([(1, 2, 3), (4, 5, 6)])
    rows = [{**make_row(0), "image": {"bytes": picture, "path": None}}]
    features = datasets.Features({**datasets.Dataset.from_list(rows).features, "image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(bench.folder / "set")
    (row,) = bench.load(bench.folder / "set")
    assert row["images"] == [{"uri": None, "bytes": picture}]


def test_a_dict_of_splits(bench: Any, make_row: Any, hub_server: Hub) -> None:
    folder = bench.folder / "set"
    splits = {"train": rows_of(make_row, 0, 1), "test": rows_of(make_row, 2), "extra": rows_of(make_row, 3)}
    datasets.DatasetDict(splits).save_to_disk(folder)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    hub_server.commit("org/set", files)
    for where in (str(folder), "hf://datasets/org/set"):
        rows = bench.load(where, overwrite=True)
        assert [row["sample_key"] for row in rows] == [f"set/train/data-00000-of-00001/{n:010d}" for n in range(2)]
        assert ids(bench.load(f"{where}:test", overwrite=True)) == ["row-2"]
        assert ids(bench.load(f"{where}::extra,test", overwrite=True)) == ["row-2", "row-3"]
        assert ids(bench.load(f"{where}::*", overwrite=True)) == [f"row-{n}" for n in range(4)]
        with pytest.raises(StageError, match="has no split 'none'; it has train, test, extra"):
            bench.load(f"{where}::none", overwrite=True)
        with pytest.raises(StageError, match=r"has no configs, so 'other' and 'test' can't both be asked for; .*:test"):
            bench.load(f"{where}:other:test", overwrite=True)


def test_a_file_with_an_index(bench: Any, make_row: Any) -> None:
    table = pa.Table.from_pylist([make_row(number, None) for number in range(70)])
    with pa.ipc.new_file(str(bench.folder / "d.arrow"), table.schema) as writer:
        writer.write_table(table, 40)
    rows = bench.load(bench.folder / "d.arrow")
    assert [(row["sample_key"], row["id"]) for row in rows] == [(f"d/{n:010d}", f"row-{n}") for n in range(70)]


def test_files_that_are_elsewhere(bench: Any, hub_server: Hub) -> None:
    """In a store too, one with an index is read, and a stream that is cut between two batches is refused."""
    table = pa.table({"question": list("abcdef"), "answer": list("uvwxyz"), "image": pa.nulls(6)})
    whole, indexed = io.BytesIO(), io.BytesIO()
    with pa.ipc.new_stream(whole, table.schema) as stream:
        ends = []
        for batch in table.to_batches(2):
            stream.write_batch(batch)
            ends.append(whole.tell())
    with pa.ipc.new_file(indexed, table.schema) as file:
        file.write_table(table, 2)
    stream_bytes = whole.getvalue()
    contents = {"whole": stream_bytes, "indexed": indexed.getvalue(), "cut": stream_bytes[: ends[1]], "empty": b""}
    assert pa.ipc.open_stream(contents["cut"]).read_all().num_rows == 4  # Arrow itself takes it for whole
    hub_server.commit("org/set", {f"{name}.arrow": content for name, content in contents.items()})
    memory = fsspec.filesystem("memory")
    for name, content in contents.items():
        memory.pipe_file(f"/arrow_elsewhere/{name}.arrow", content)
    for where in ("memory://arrow_elsewhere", "hf://datasets/org/set"):
        for name in ("whole", "indexed"):
            file = DataFile(f"{where}/{name}.arrow", "arrow", None, None)
            rows = [row.content for row in read_rows(file)]
            assert [row["question"] for row in rows if isinstance(row, dict)] == list("abcdef")
            assert count_rows(file) == 6
        for name in ("cut", "empty"):
            file = DataFile(f"{where}/{name}.arrow", "arrow", None, None)
            with pytest.raises(StageError, match=rf"{name}\.arrow: can't be read on after 0 rows .*mark at the end"):
                list(read_rows(file))
            with pytest.raises(StageError, match="mark at the end"):
                count_rows(file)
    memory.rm("/arrow_elsewhere", recursive=True)


def test_what_is_damaged_or_missing(bench: Any, make_row: Any) -> None:
    folder = bench.folder / "set"
    rows_of(make_row, *range(3000)).save_to_disk(folder)
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    batches = list(pa.ipc.open_stream(whole))
    assert len(batches) > 1
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=r"\.arrow: can't be read on after .* damaged or cut off"):
        bench.load(folder)
    path.write_bytes(whole[:-8])  # between two batches, which Arrow takes for the end
    with pytest.raises(StageError, match=r"\.arrow: can't be read on after 0 rows .*mark at the end"):
        bench.load(folder)
    path.unlink()
    with pytest.raises(StageError, match=r"\.arrow: no such file, though state\.json names it"):
        validate(ImportConfig(data=str(folder), out=str(bench.out)))
    (folder / "state.json").write_text("{")
    with pytest.raises(StageError, match=r"state\.json: not valid JSON"):
        validate(ImportConfig(data=str(folder), out=str(bench.out)))
    (folder / "state.json").write_text(json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "i"}]}))
    with pytest.raises(StageError, match="with an index to them"):
        validate(ImportConfig(data=str(folder), out=str(bench.out)))


def test_other_columns(bench: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(tmp_path / "set")
    with pytest.raises(StageError, match=r"the columns \('text'\) fit no layout"):
        bench.load(tmp_path / "set")
