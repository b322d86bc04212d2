"""The import stage: keys, sources, parts, what a second call does, and every refusal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.dataset.conftest import read_samples
from vig_ray.cluster import on_machines
from vig_ray.dataset import importing
from vig_ray.dataset.import_report import Counts
from vig_ray.dataset.importing import ImportConfig, already_imported, run, samples_directory, validate
from vig_ray.dataset.inputs import DataFile, read_rows
from vig_ray.dataset.schema import SAMPLES
from vig_ray.errors import StageError
from vig_ray.stage import StageConfig, read_stage, write_stage


def test_a_mixed_file_row_by_row(bench: Any, make_row: Any) -> None:
    """Every row comes out, in its place, with what the file says and nothing else."""
    data = [
        make_row(0),
        make_row(1, image=None),
        {"id": 5, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        "junk",
        {**make_row(4), "image": "../../etc/passwd"},
        make_row(0, image="gqa/2.jpg"),
    ]
    rows = bench.load(bench.write("mix665k.json", data), images=str(bench.folder))
    assert rows[0] == {
        "sample_key": "mix665k/0000000000",
        "id": "row-0",
        "source": "coco",
        "kept": None,
        "images": [{"uri": f"{bench.folder}/coco/train2017/1.jpg", "bytes": None}],
        "conversation": [
            {"role": "user", "text": "<image>\nWhat is in picture 0?"},
            {"role": "assistant", "text": "A bus, number 0."},
        ],
        "error": None,
    }
    assert rows[1]["images"] == []
    assert rows[1]["source"] is None
    assert [row["id"] for row in rows] == ["row-0", "row-1", "5", None, "row-4", "row-0"]
    assert [row["source"] for row in rows] == ["coco", None, None, None, None, "gqa"]
    assert rows[3]["error"] == "NotAnObject: the row is a string, not an object"
    assert rows[4]["error"].startswith("ImagePath: '../../etc/passwd' lies outside")
    report = bench.report
    assert (report.read, report.imported, report.failed) == (6, 4, 2)
    assert (report.text_only, report.with_images) == (2, 2)
    assert report.failures == {"NotAnObject": 1, "ImagePath": 1}


def test_the_table_has_the_declared_columns(bench: Any, make_row: Any) -> None:
    bench.load(bench.write("d.json", ["bad", make_row(0)]))
    (part,) = (bench.out / "samples").iterdir()
    assert pq.read_schema(part).remove_metadata().equals(SAMPLES)


def test_images_lie_beside_the_data_unless_told(bench: Any, make_row: Any) -> None:
    path = bench.write("deep/d.json", [make_row(0)])
    assert bench.load(path)[0]["images"][0]["uri"] == f"{bench.folder}/deep/coco/train2017/1.jpg"
    (bench.folder / "pictures").mkdir()
    (row,) = bench.load(path, images=str(bench.folder / "pictures"), overwrite=True)
    assert row["images"][0]["uri"] == f"{bench.folder}/pictures/coco/train2017/1.jpg"


def test_each_file_of_a_pattern_has_its_own_folder(bench: Any, make_row: Any) -> None:
    for name in ("train/a", "val/b"):
        bench.write(f"{name}.json", [make_row(0)])
    rows = bench.load(f"{bench.folder}/{{train/a,val/b}}.json", name="n")
    assert [(row["sample_key"], row["images"][0]["uri"]) for row in rows] == [
        ("n/a/0000000000", f"{bench.folder}/train/coco/train2017/1.jpg"),
        ("n/b/0000000000", f"{bench.folder}/val/coco/train2017/1.jpg"),
    ]


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("set.json", {}, "set/0000000000"),
        ("set.v1.json", {}, "set.v1/0000000000"),
        ("set.json", {"name": "mine"}, "mine/0000000000"),
        ("set.txt", {"format": "json"}, "set.txt/0000000000"),
    ],
)
def test_keys(name: str, options: dict[str, Any], key: str, bench: Any, make_row: Any) -> None:
    assert [row["sample_key"] for row in bench.load(bench.write(name, [make_row(0)]), **options)] == [key]


def test_parts_are_bounded_by_rows(bench: Any, make_row: Any) -> None:
    rows = bench.load(bench.write("d.json", [make_row(number) for number in range(25)]), rows_per_file=10)
    sizes = [pq.read_metadata(path).num_rows for path in sorted((bench.out / "samples").glob("*.parquet"))]
    assert sizes == [10, 10, 5]
    assert [row["id"] for row in rows] == [f"row-{number}" for number in range(25)]


def test_parts_are_bounded_by_bytes(bench: Any) -> None:
    image = {"path": None, "bytes": "QUFB" * 1000}
    turns = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A"}]
    path = bench.write("d.json", [{"messages": turns, "images": [image]}] * 10)
    bench.load(path, max_bytes_per_file=7000)
    sizes = [pq.read_metadata(path).num_rows for path in sorted((bench.out / "samples").glob("*.parquet"))]
    assert sizes == [3, 3, 3, 1]


def test_progress_counts_rows(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(number) for number in range(2500)])
    seen: list[int] = []
    run(ImportConfig(data=str(path), out=str(bench.out)), seen.append)
    assert seen == [1000, 2000, 2500]


def test_the_record_explains_the_result(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(0), "bad"])
    bench.load(path, images=str(bench.folder))
    record = read_stage(str(bench.out / "samples"))
    assert record is not None
    assert record["stage"] == "import"
    assert record["config"]["data"] == str(path)
    (found,) = record["inputs"]
    assert (found["path"], found["size"]) == (str(path), path.stat().st_size)
    assert record["counts"] == {
        "read": 2,
        "imported": 1,
        "failed": 1,
        "text_only": 0,
        "with_images": 1,
        "failures": {"NotAnObject": 1},
    }


def written(bench: Any) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (bench.out / "samples").iterdir()}


def test_a_complete_import_is_not_done_again(bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.write("d.json", [make_row(0), "bad"])
    bench.load(path)
    first, before = bench.report, written(bench)
    bench.load(path)
    assert bench.report == first
    # The same files, named from elsewhere.
    monkeypatch.chdir(bench.folder)
    assert run(ImportConfig(data="d.json", out=str(bench.out))) == first
    assert written(bench) == before


def test_overwrite_does_it_again(bench: Any, make_row: Any) -> None:
    bench.load(bench.write("d.json", [make_row(number) for number in range(3)]), rows_per_file=1)
    rows = bench.load(bench.write("d.json", [make_row(7)]), overwrite=True)
    assert [row["id"] for row in rows] == ["row-7"]
    assert len(written(bench)) == 1


def test_an_import_that_was_cut_off_begins_anew(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(number) for number in range(3)])
    bench.load(path, rows_per_file=1)
    record = bench.out / "samples.stage.json"
    record.write_text(record.read_text().replace('"complete": true', '"complete": false'))
    run_id = json.loads(record.read_text())["run"]
    (bench.out / "samples" / f"{run_id}-00009.parquet").write_bytes(b"half a par")
    assert samples_directory(str(bench.out)) is None
    assert [row["id"] for row in bench.load(path, rows_per_file=1)] == ["row-0", "row-1", "row-2"]
    assert len(written(bench)) == 3
    assert not any(name.startswith(run_id) for name in written(bench))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"name": "other"}, "name"),
        ({"rows_per_file": 7}, "rows_per_file"),
        ({"images": "."}, "images"),
        ({"data": "e.json"}, "inputs"),
        ({"data": "d.json again"}, "inputs"),
    ],
)
def test_samples_of_something_else_are_not_replaced(
    change: dict[str, Any], what: str, bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    bench.write("e.json", [make_row(1)])
    path = bench.write("d.json", [make_row(0)])
    bench.load(path)
    if change.get("data") == "d.json again":
        bench.write("d.json", [make_row(5)])
        os.utime(path, (1, 1))
        change = {}
    config = ImportConfig(**{"data": str(path), "out": str(bench.out), **change})
    for call in (validate, run):
        with pytest.raises(StageError, match=f"holds another run of `vig import` .*{what}.*--out.*--overwrite"):
            call(config)
    assert samples_directory(str(bench.out)) is not None


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_a_folder_with_other_things_in_it_is_never_cleared(options: Any, bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(0)])
    precious = bench.write("out/samples/thesis.txt", "five years")
    for call in (validate, run):
        with pytest.raises(StageError, match=r"thesis\.txt was not written by `vig import`"):
            call(ImportConfig(data=str(path), out=str(bench.out), **options))
    assert precious.read_text() == "five years"


def test_the_output_of_another_stage_is_not_replaced(bench: Any, make_row: Any) -> None:
    class OtherConfig(StageConfig):
        pass

    write_stage(str(bench.out / "samples"), "score", OtherConfig())
    with pytest.raises(StageError, match="holds the output of 'vig score'"):
        bench.load(bench.write("d.json", [make_row(0)]))


@pytest.mark.parametrize("content", ["[]", " [ ]\n", "", "\n \n"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_no_rows(content: str, name: str, bench: Any) -> None:
    if name == "d.jsonl" and "[" in content:
        pytest.skip("a line with a list is a bad row")
    with pytest.raises(StageError, match="no rows"):
        bench.load(bench.write(name, content))
    assert samples_directory(str(bench.out)) is None


def refused(bench: Any, message: str, data: str | Path, **options: Any) -> None:
    config = ImportConfig(data=str(data), out=str(bench.out), **options)
    for call in (validate, run):
        with pytest.raises(StageError, match=message):
            call(config)
    assert not bench.out.exists()


def test_refusals_before_anything_is_read(bench: Any, make_row: Any) -> None:
    folder = bench.folder
    refused(bench, r"none\.json: no such file", folder / "none.json")
    refused(bench, "nothing://x: can't open", "nothing://x")
    path = bench.write("a/d.json", [make_row(0)])
    refused(bench, "nowhere: no such folder; --images", path, images=str(folder / "nowhere"))
    refused(bench, "no such folder; --images", path, images=str(path))
    refused(bench, r"d\.csv: can't tell its format.*--format", bench.write("b/d.csv", "a,b"))
    refused(bench, r"none of its 1 files ends in \.json, ", folder / "b")
    bench.write("a/e.jsonl", json.dumps(make_row(1)))
    refused(bench, r"several kinds \(1 json, 1 jsonl\).*--format", folder / "a")
    refused(bench, r"none of its 2 files ends in \.parquet$", folder / "a", format="parquet")
    bench.write("c/d.json", [make_row(0)])
    bench.write("c/d.json.gz", b"x")
    refused(bench, "two files are called d", folder / "c", format="json")


def test_a_format_chooses_among_the_files_of_a_folder(bench: Any, make_row: Any) -> None:
    bench.write("a/d.json", [make_row(0)])
    bench.write("a/e.jsonl", json.dumps(make_row(1)))
    (bench.folder / "a" / "folder.json").mkdir()
    assert [row["id"] for row in bench.load(bench.folder / "a", format="json")] == ["row-0"]


def test_samples_are_found_or_not(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(0)])
    assert samples_directory(str(bench.out)) is None
    bench.load(path)
    samples = str(bench.out / "samples")
    assert samples_directory(str(bench.out)) == samples_directory(samples) == samples
    assert samples_directory(str(path)) is None
    assert samples_directory(str(bench.folder)) is None
    bench.write("other/stage.json", "{}")
    bench.write("broken/stage.json", "{")
    assert samples_directory(str(bench.folder / "other")) is None
    assert samples_directory(str(bench.folder / "broken")) is None


def test_samples_of_an_import_are_taken_by_themselves(bench: Any, make_row: Any) -> None:
    path = str(bench.write("d.json", [make_row(0)]))
    bench.load(path)
    samples = str(bench.out / "samples")
    assert already_imported((str(bench.out),)) == already_imported((samples,)) == samples
    assert already_imported((path,)) is already_imported((path, path)) is None
    assert already_imported(("hf://datasets/org/set", path)) is None
    with pytest.raises(StageError, match="are scored by themselves, not with others"):
        already_imported((path, samples))


@pytest.mark.parametrize(
    "options", [{"rows_per_file": 0}, {"name": "a/b"}, {"name": ""}, {"format": "csv"}, {"nme": "x"}]
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ImportConfig(data="d.json", out="out", **options)


def test_every_option_is_described() -> None:
    assert all(field.description for field in ImportConfig.model_fields.values())


def test_an_output_that_cannot_be_written(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(0)])
    bench.out.write_text("a file where a folder should be")
    with pytest.raises(StageError, match=r"out/samples\.stage\.json: can't be written"):
        bench.load(path)


def test_groups_of_files_on_a_cluster_give_the_same_samples(
    bench: Any, make_row: Any, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side, a bad row and an empty file among them, on workers that have another working directory."""
    monkeypatch.setattr(importing, "_BYTES_A_GROUP", 2000)
    for number in range(7):
        rows = [make_row(10 * number + row) if row != number else "junk" for row in range(5 * (number != 3))]
        bench.write(f"many/{number}.json", rows)
    expected = bench.load(bench.folder / "many")
    monkeypatch.chdir(tmp_path)
    spread: list[Any] = []

    def on_ray(work: Any) -> Any:
        spread.extend(work)
        return on_machines(work)

    counted: list[int] = []
    report = run(ImportConfig(data=str(bench.folder / "many"), out="there"), counted.append, on_ray)
    assert len(spread) > 2
    assert read_samples(str(tmp_path / "there" / "samples")) == expected
    assert {**vars(report), "directory": ""} == {**vars(bench.report), "directory": ""}
    assert counted[-1] == len(expected)
    bench.write("many/5.json", '[{"id": 1}')
    with pytest.raises(StageError, match=r"5\.json"):
        run(ImportConfig(data=str(bench.folder / "many"), out="other"), None, on_machines)


def test_what_machines_wrote_elsewhere_is_missed(bench: Any, make_row: Any) -> None:
    """A local path on a cluster: each machine has its own."""
    config = ImportConfig(data=str(bench.write("d.json", [make_row(0)])), out=str(bench.out))
    with pytest.raises(StageError, match=r"2 files were written .* sees 0; every path must be on storage"):
        run(config, None, lambda _: [Counts(read=1, with_images=1, parts=2)])
    assert samples_directory(str(bench.out)) is None
    with pytest.raises(StageError, match="not on the machine that reads it"):
        list(read_rows(DataFile("/nowhere/d.json", "json", 1, 1)))
