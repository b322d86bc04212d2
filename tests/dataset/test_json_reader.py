"""JSON arrays and JSON Lines: what is read, what one bad row costs, and where a file can't be read on."""

from __future__ import annotations

import gzip
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vig_ray.dataset import json_reader
from vig_ray.dataset.json_reader import read_array, read_lines
from vig_ray.dataset.schema import RowError
from vig_ray.errors import StageError

_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_OBJECTS = st.lists(st.dictionaries(st.text(), _VALUES, max_size=4), max_size=6)


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time, so that every row is cut somewhere."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, size: int = -1) -> bytes:
        return self._data.read(self._step)


def array(data: bytes, step: int = 1 << 20) -> list[Any]:
    return [row.content for row in read_array(Dribble(data, step), "x.json")]  # type: ignore[arg-type]


def lines(data: bytes) -> list[tuple[int, Any]]:
    return [(row.number, row.content) for row in read_lines(io.BytesIO(data))]


@given(_OBJECTS, st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_an_array_cut_anywhere_is_what_json_loads(rows: Any, step: int, ascii_only: bool, indent: int | None) -> None:
    data = json.dumps(rows, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    assert array(data, step) == rows


@given(_OBJECTS, st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_lines_are_what_json_loads(rows: Any, end: bytes) -> None:
    found = lines(end.join(json.dumps(row).encode() for row in rows))
    assert [content for _, content in found] == rows
    assert [number for number, _ in found] == [i * end.count(b"\n") for i in range(len(rows))]


def test_white_space_and_byte_order_mark_around_an_array() -> None:
    assert array(b'\xef\xbb\xbf \n[ \t{"a": 1}\r\n , {} ] \n') == [{"a": 1}, {}]
    assert array(b" [ ] ") == []


def test_a_long_row_among_small_reads() -> None:
    rows = [{"text": "x" * 3_000_000}, {"b": "é" * 10}]
    assert array(json.dumps(rows, ensure_ascii=False).encode(), 100_000) == rows


def test_numbers_of_any_length() -> None:
    (row,) = array(b'[{"id": ' + b"9" * 5000 + b"}]")
    assert row["id"] == Decimal("9" * 5000)


def test_elements_that_are_no_objects_are_error_rows() -> None:
    contents = array(b'[1, "two", [3], null, true, {"a": "b"}]', 1)
    assert [str(content) for content in contents[:5]] == [
        f"NotAnObject: the row is {kind}, not an object"
        for kind in ("a number", "a string", "a list", "null", "a boolean")
    ]
    assert contents[5] == {"a": "b"}


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_broken_utf8_costs_one_row_of_an_array(broken: bytes, step: int) -> None:
    contents = array(b'[{"a": "\xc3\xa9"}, {"a": "x' + broken + b'y"}, {"a": "\xef\xb7\x90"}]', step)
    assert contents[0] == {"a": "é"}
    assert isinstance(contents[1], RowError)
    assert str(contents[1]).startswith("UnicodeDecodeError: ")
    assert contents[2] == {"a": "\ufdd0"}


@pytest.mark.parametrize("escape", [r"\ud800", r"\udc00", r"\ud83d\u0041", r"\udc00\ud800"])
def test_half_a_surrogate_pair_stays_what_it_is(escape: str) -> None:
    contents = array(f'[{{"a": "{escape}"}}, {{"a": "\\ud83d\\ude00"}}]'.encode(), 3)
    assert contents == [{"a": json.loads(f'"{escape}"')}, {"a": "😀"}]


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        (b'[{"a": 1}', 1, "the end of the file"),
        (b'[{"a": 1}, ', 1, "Expecting value"),
        (b'[{"a": 1}, {"b": "cut', 1, "Unterminated string"),
        (b'[{"a": 1}, {"b": 2,}]', 1, "property name|trailing comma"),
        (b'[{"a": 1}, {"b": 2},]', 2, "Expecting value"),
        (b'[{"a": 1} {"b": 2}]', 1, "expected ',' or ']'"),
        (b"[{'a': 1}]", 0, "property name"),
        (b"[" * 200_000, 0, "nested too deeply"),
        (b"[", 0, "Expecting value"),
    ],
)
@pytest.mark.parametrize("step", [1000, 1 << 20])
def test_broken_syntax_stops_with_the_rows_read(data: bytes, rows: int, message: str, step: int) -> None:
    found = []
    stream: Any = Dribble(data, step)
    with pytest.raises(StageError, match=rf"x\.json: broken JSON after {rows} rows.*({message}).*JSON Lines"):
        found.extend(read_array(stream, "x.json"))
    assert len(found) == rows


def test_a_syntax_error_far_from_the_end_is_found_at_once() -> None:
    stream: Any = io.BytesIO(b"[{'a': 1}" + b" " * 50_000_000)
    with pytest.raises(StageError, match="broken JSON"):
        list(read_array(stream, "x.json"))
    assert stream.tell() <= 2 << 20


def test_a_row_without_an_end_is_not_read_into_memory_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "MAX_ROW_BYTES", 4 << 20)
    stream: Any = io.BytesIO(b'[{"a": "' + b"x" * 50_000_000)
    with pytest.raises(StageError, match="a row of more than 4 MiB"):
        list(read_array(stream, "x.json"))
    assert stream.tell() < 12 << 20


@pytest.mark.parametrize("data", [b'[{"a": 1}] [{"b": 2}]', b'[{"a": 1}]\n{"b": 2}', b"[] x"])
def test_text_behind_the_array_is_not_lost_silently(data: bytes) -> None:
    with pytest.raises(StageError, match="more text after the array's end"):
        array(data)


def test_bad_lines_cost_one_row_each() -> None:
    data = (
        b'\xef\xbb\xbf{"a": 1}\n\nnot json\n[1]\n{"a": "\xff"}\n{"a": 1}{"b": 2}\n' + b'{"a":' * 100_000 + b'\n{"z": 9}'
    )
    found = lines(data)
    assert [number for number, _ in found] == [0, 2, 3, 4, 5, 6, 7]
    assert found[0][1] == {"a": 1}
    assert [error.kind for _, error in found[1:-1]] == [
        "JSONDecodeError",
        "NotAnObject",
        "UnicodeDecodeError",
        "JSONDecodeError",
        "JSONDecodeError",
    ]
    assert found[-1][1] == {"z": 9}


def test_an_endless_line_is_one_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reader, "MAX_ROW_BYTES", 1000)
    data = b'{"a": 1}\n' + b"x" * 5500 + b'\n{"b": 2}\n' + b"y" * 1000
    found = lines(data)
    assert found[0] == (0, {"a": 1})
    assert found[1][0] == 1
    assert found[1][1].kind == "TooLong"
    assert found[2] == (2, {"b": 2})
    assert found[3][1].kind == "TooLong"


@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d.jsonl", "d.jsonl.gz", "d.ndjson", "D.JSON"])
def test_each_name_is_read(name: str, bench: Any, make_row: Any) -> None:
    rows = [make_row(number) for number in range(3)]
    text = "\n".join(json.dumps(row) for row in rows) if "l" in name or "nd" in name else json.dumps(rows)
    data = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    assert [row["id"] for row in bench.load(bench.write(name, data))] == ["row-0", "row-1", "row-2"]


def test_json_lines_called_json(bench: Any, make_row: Any) -> None:
    rows = bench.load(bench.write("d.json", "\n" + "\n".join(json.dumps(make_row(number)) for number in range(3))))
    assert [row["sample_key"] for row in rows] == ["d/0000000001", "d/0000000002", "d/0000000003"]
    assert [row["error"] for row in rows] == [None] * 3


@pytest.mark.parametrize("text", ['{\n "data": [{}]\n}', '"text"', "id,question\n1,2"])
def test_other_json_is_refused_with_a_clear_line(text: str, bench: Any) -> None:
    with pytest.raises(StageError, match="begins with neither a JSON array nor one object a line"):
        bench.load(bench.write("d.json", text))


def test_a_cut_gzip_stops_with_the_rows_read(bench: Any, make_row: Any) -> None:
    packed = gzip.compress("\n".join(json.dumps(make_row(number)) for number in range(5000)).encode())
    with pytest.raises(StageError, match=r"d\.jsonl\.gz: can't be read on after \d+ rows"):
        bench.load(bench.write("d.jsonl.gz", packed[:-2000]))
