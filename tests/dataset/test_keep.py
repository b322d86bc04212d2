"""`--keep`: the columns of any format that go along with their samples, and what is refused."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.dataset.conftest import llava_row
from vig_ray.cluster import on_machines
from vig_ray.dataset import first_rows, importing, keep
from vig_ray.dataset.importing import ImportConfig
from vig_ray.dataset.keep import json_text
from vig_ray.errors import StageError
from vig_ray.stage import read_stage

# The ratings of FineVision's rows (its dataset card): a list with one number a turn, and the least of them.
RATED = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
        ("source", pa.string()),
        *(
            field
            for name in ("relevance", "image_correspondence", "visual_dependency", "formatting")
            for field in ((f"{name}_ratings", pa.list_(pa.int64())), (f"{name}_min", pa.int64()))
        ),
    ]
)


def rated(number: int) -> dict[str, Any]:
    ratings = {
        f"{name}_ratings": [(number + place) % 5 + 1 for place in range(2)]
        for name in ("relevance", "image_correspondence", "visual_dependency", "formatting")
    }
    least = {name.replace("_ratings", "_min"): min(values) for name, values in ratings.items()}
    return llava_row(number) | {"source": f"set{number % 2}"} | ratings | least


def kept_in(row: dict[str, Any]) -> dict[str, Any] | None:
    """What a row of samples/ has kept, read with Python's own JSON."""
    if row["kept"] is None:
        return None
    return {pair["name"]: json.loads(pair["value"]) for pair in row["kept"]}


def test_what_is_named_is_kept_as_it_is(bench: Any, make_row: Any) -> None:
    rows = [
        make_row(0)
        | {"rating": 4, "url": "http://a/ä", "meta": {"score": 0.25, "by": {"name": "x"}}, "a.b": [1, None]},
        make_row(1) | {"rating": None, "meta": None, "good": True},
        make_row(2) | {"rating": 4.5, "meta": {"score": -1e-7}, "a": {"b": "inner"}},
        "no row",
        {"rating": 3, "conversations": []},
    ]
    found = bench.load(bench.write("d.json", rows), keep="rating,url,meta.score,a.b,good")
    assert [kept_in(row) for row in found] == [
        {"rating": 4, "url": "http://a/ä", "meta.score": 0.25, "a.b": [1, None]},
        {"good": True},
        {"rating": 4.5, "meta.score": -1e-7, "a.b": "inner"},
        None,
        {"rating": 3},
    ]
    assert found[4]["error"].startswith("NoAnswer")
    assert [pair["value"] for pair in found[0]["kept"]] == ["4", '"http://a/ä"', "0.25", "[1, null]"]
    assert "kept rating: in 3 of 5 rows\n" in bench.report.text()
    assert bench.report.kept == {"rating": 3, "url": 1, "meta.score": 2, "a.b": 2, "good": 1}
    record = read_stage(str(bench.out / "samples")) or {}
    assert record["kept"] == bench.report.kept
    assert "kept" not in record["counts"]


def test_patterns_and_whole_objects(bench: Any, make_row: Any) -> None:
    rows = [make_row(0) | {"a_min": 1, "b_min": 2, "b_max": 3, "meta": {"x": {"y": 1}, "z": "t"}, "*": 5}]
    path = bench.write("d.json", rows)
    (row,) = bench.load(path, keep="*_min,meta")
    assert kept_in(row) == {"a_min": 1, "b_min": 2, "meta": {"x": {"y": 1}, "z": "t"}}
    (row,) = bench.load(path, keep="meta.*,?_max", overwrite=True)
    assert kept_in(row) == {"meta.x": {"y": 1}, "meta.z": "t", "b_max": 3}
    (row,) = bench.load(path, keep="*", overwrite=True)
    assert kept_in(row) == {"*": 5}, "a key that is there as it is written comes first"


def test_nothing_kept_is_null_and_says_nothing(bench: Any, make_row: Any) -> None:
    (row,) = bench.load(bench.write("d.json", [make_row(0) | {"rating": 4}]))
    assert row["kept"] is None
    record = read_stage(str(bench.out / "samples")) or {}
    assert "keep" not in record
    assert "kept" not in record


@pytest.mark.parametrize("order", ["as-is", "image"])
def test_ratings_of_a_parquet_file(bench: Any, order: str) -> None:
    rows = [rated(number) for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows, schema=RATED), bench.folder / "d.parquet")
    found = bench.load(bench.folder / "d.parquet", keep="visual_dependency_*,source", order=order, rows_per_file=100)
    assert len(list((bench.out / "samples").iterdir())) == 3
    by_id = {row["id"]: row for row in found}
    for row in rows:
        expected = {name: value for name, value in row.items() if name.startswith("visual") or name == "source"}
        assert kept_in(by_id[row["id"]]) == expected
        assert by_id[row["id"]]["source"] == row["source"]


def test_kinds_of_parquet_columns(bench: Any) -> None:
    day, moment = datetime.date(2026, 2, 1), datetime.datetime(2026, 2, 1, 3, 4, 5)
    columns = {
        "price": (pa.decimal128(20, 2), [decimal.Decimal("12.50"), decimal.Decimal("-3.00"), None]),
        "day": (pa.date32(), [day, None, day]),
        "moment": (pa.timestamp("ms"), [moment, None, None]),
        "kind": (pa.dictionary(pa.int32(), pa.string()), ["a", "b", None]),
        "half": (pa.float32(), [0.5, math.nan, math.inf]),
        "inner": (pa.struct([("score", pa.float64()), ("b", pa.bool_())]),
                  [{"score": 1.0, "b": True}, {"score": None, "b": False}, None]),
    }  # fmt: skip
    table = pa.Table.from_pylist([llava_row(number) for number in range(3)])
    for name, (kind, values) in columns.items():
        array = pa.array(values).dictionary_encode() if name == "kind" else pa.array(values, kind)
        table = table.append_column(name, array)
    pq.write_table(table, bench.folder / "d.parquet")
    found = bench.load(bench.folder / "d.parquet", keep="price,day,moment,kind,half,inner.score,inner.b")
    assert [kept_in(row) for row in found] == [
        {"price": 12.5, "day": "2026-02-01", "moment": "2026-02-01T03:04:05", "kind": "a", "half": 0.5,
         "inner.score": 1.0, "inner.b": True},
        {"price": -3, "kind": "b", "inner.b": False},
        {"day": "2026-02-01", "half": "inf"},
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_what_is_kept_does_not_decide_the_layout(bench: Any, kind: str) -> None:
    """A list of answers isn't VQA's most frequent one, so the file may be two layouts and the row isn't of a third."""
    row = {"question": "Which?", "answer": "right", "caption": "A bus.", "image": None}
    table = pa.Table.from_pylist([row | {"multiple_choice_answer": ["wrong"]}])
    path = bench.folder / f"d.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    for names in ((), ("multiple_choice_answer",)):
        (sample,) = bench.load(path, keep=names, overwrite=True)
        assert sample["conversation"][1]["text"] == "right"
        assert bool(sample["kept"]) == bool(names)


def test_facts_beside_a_caption_in_a_shard(bench: Any, make_png: Any, make_tar: Callable[..., Path]) -> None:
    """As img2dataset writes them: the image, its caption, and a JSON of what is known of it."""
    members = []
    for number in range(3):
        facts = {"url": f"http://a/{number}", "similarity": 0.1 * number, "source": "web"}
        members += [
            (f"{number}.jpg", make_png([(number, 2, 3)])),
            (f"{number}.json", json.dumps(facts).encode()),
            (f"{number}.txt", b"A bus."),
        ]
    found = bench.load(make_tar(bench.folder / "d.tar", members), keep="similarity,url")
    assert [kept_in(row) for row in found] == [
        {"similarity": 0.1 * number, "url": f"http://a/{number}"} for number in range(3)
    ]
    assert [row["source"] for row in found] == [None] * 3, "beside a caption they are facts, nothing else"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_json_comes_back(value: Any) -> None:
    text = json_text(value)
    if value is None:
        assert text is None
    else:
        assert text is not None
        text.encode()
        assert json.loads(text) == value


def test_numbers_that_float64_has_not_are_texts() -> None:
    assert json_text(decimal.Decimal("1" * 5000)) == f'"{"1" * 5000}"'
    assert json_text(10**400) == f'"{10**400}"'
    assert json_text(math.inf) == '"inf"'
    assert json_text(decimal.Decimal("NaN")) is None
    assert json_text([math.nan, 1]) == "[null, 1]"
    assert json_text("\ud800") == '"\\ud800"'
    assert json.loads(json_text(decimal.Decimal("12345678901234567890")) or "") == 12345678901234567890


def test_a_column_that_no_parquet_file_has_is_refused_before_anything_is_written(bench: Any) -> None:
    folder = bench.folder / "parts"
    folder.mkdir()
    for name in ("a", "b"):
        schema = RATED if name == "b" else RATED.remove(RATED.get_field_index("formatting_min"))
        pq.write_table(pa.Table.from_pylist([rated(0)], schema=schema), folder / f"{name}.parquet")
    bench.load(folder, keep="formatting_min")  # b has it
    for name in ("rating", "source.x", "nothing_*"):
        config = ImportConfig(data=str(folder), out=str(bench.folder / "other"), keep=name)
        for step in (importing.validate, importing.run):
            with pytest.raises(StageError) as refused:
                step(config)
            (line,) = str(refused.value).splitlines()
            assert line.startswith(f"--keep {name}: no such column in {folder}/a.parquet; the columns are id, image, ")
            assert "visual_dependency_ratings" in line
    assert not (bench.folder / "other").exists()


def test_a_column_that_no_json_row_has_is_refused_with_the_counts(
    bench: Any, make_row: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(first_rows, "_ROWS_LOOKED_AT", 3)
    caplog.set_level(logging.WARNING)
    rows = [make_row(number) for number in range(5)] + [make_row(5) | {"rating": 1}]
    path = bench.write("d.json", rows)
    bench.load(path, keep="rating")
    assert "--keep rating: not in the first 3 rows, looked for in all; the columns are id, conversations" in caplog.text
    with pytest.raises(StageError, match=r"^--keep ratings: in 0 of 6 rows; the columns are id, conversations, image"):
        bench.load(path, keep="rating,ratings", overwrite=True)
    record = read_stage(str(bench.out / "samples")) or {}
    assert not record["complete"]


def test_bytes_and_too_many_columns_are_refused(bench: Any, make_row: Any, make_png: Any) -> None:
    turns = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "Yes."}]
    images = [{"bytes": make_png([(1, 2, 3)]), "path": "x.png"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "images": images}]), bench.folder / "d.parquet")
    with pytest.raises(StageError, match=r"^--keep images: it holds bytes; numbers, text, and lists of them can be"):
        bench.load(bench.folder / "d.parquet", keep="images")
    rows = [make_row(0) | {"by": {f"user{n}": n for n in range(keep.MOST + 1)}}]
    with pytest.raises(StageError, match=r"more than 100 columns, such as by\.user0, .*; name them"):
        bench.load(bench.write("d.json", rows), keep="by.*", overwrite=True)


def test_other_names_are_another_import(bench: Any, make_row: Any) -> None:
    path = bench.write("d.json", [make_row(0) | {"rating": 4, "url": "u"}])
    bench.load(path, keep="rating")
    written = {file: file.stat().st_mtime_ns for file in (bench.out / "samples").iterdir()}
    assert bench.load(path, keep="rating")[0]["kept"] is not None
    assert bench.report.kept == {"rating": 1}
    assert {file: file.stat().st_mtime_ns for file in (bench.out / "samples").iterdir()} == written
    for names in ("", "rating,url"):
        with pytest.raises(StageError, match=r"holds another run of `vig import` \(keep differ\)"):
            bench.load(path, keep=names)
    assert kept_in(bench.load(path, keep="rating,url", overwrite=True)[0]) == {"rating": 4, "url": "u"}


def test_on_a_clusters_machines(bench: Any, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_BYTES_A_GROUP", 1)
    folder = bench.folder / "parts"
    folder.mkdir()
    for part in range(3):
        rows = [rated(10 * part + number) for number in range(10)]
        (folder / f"{part}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = ImportConfig(data=str(folder), out=str(bench.out), keep="visual_dependency_min,source")
    report = importing.run(config, spread=on_machines)
    assert report.kept == {"source": 30, "visual_dependency_min": 30}
    with pytest.raises(StageError, match=r"--keep nothing: in 0 of 30 rows; the columns are id, conversations"):
        importing.run(
            ImportConfig(data=str(folder), out=str(bench.folder / "o"), keep="nothing"), spread=on_machines
        )  # fmt: skip


def test_the_parts_stay_small_where_what_is_kept_is_large(bench: Any, make_row: Any) -> None:
    rows = [make_row(number) | {"long": "x" * 1000} for number in range(100)]
    bench.load(bench.write("d.json", rows), keep="long", max_bytes_per_file=30_000, order="as-is")
    assert len(list((bench.out / "samples").iterdir())) >= 3


def test_the_pattern_is_matched_for_each_set_of_keys_once() -> None:
    asked = keep.Keep(("*_min",))
    keep._fitting.cache_clear()
    for number in range(1000):
        assert asked.of({"a_min": number, "b": 1}) == {"a_min": str(number)}
    assert keep._fitting.cache_info().misses <= 2
