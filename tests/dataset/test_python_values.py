"""Values of Arrow's arrays against pyarrow's own `to_pylist`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vig_ray.dataset.python_values import python_values

_TEXT = st.one_of(st.none(), st.text(max_size=3))
_IMAGE = st.one_of(
    st.none(), st.fixed_dictionaries({"bytes": st.one_of(st.none(), st.binary(max_size=3)), "path": _TEXT})
)
_TURN = st.fixed_dictionaries({"from": _TEXT, "n": st.one_of(st.none(), st.integers(-9, 9))})
_ROW = st.fixed_dictionaries(
    {
        "images": st.one_of(st.none(), st.lists(_IMAGE, max_size=3)),
        "turns": st.one_of(st.none(), st.lists(st.one_of(st.none(), _TURN), max_size=3)),
        "nested": st.lists(st.lists(_TEXT, max_size=2), max_size=2),
        "flag": st.one_of(st.none(), st.booleans()),
        "nothing": st.none(),
    }
)
_SCHEMA = pa.schema(
    {
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "turns": pa.large_list(pa.struct([("from", pa.large_string()), ("n", pa.int64())])),
        "nested": pa.list_(pa.list_(pa.string())),
        "flag": pa.bool_(),
        "nothing": pa.null(),
    }
)


@settings(max_examples=60)
@given(rows=st.lists(_ROW, max_size=6), cut=st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_they_are_those_of_to_pylist(rows: list[dict[str, Any]], cut: tuple[int, int]) -> None:
    table = pa.Table.from_pylist(rows, schema=_SCHEMA)
    for name in _SCHEMA.names:
        array = table[name].combine_chunks()
        for part in (array, array.slice(*cut), array.slice(cut[0])):
            assert python_values(part) == part.to_pylist()


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", "b", "a", None]).dictionary_encode(),
        pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        pa.array([{}, None, {}], pa.struct([])),
        pa.array([1.5, None]),
        pa.array([b"x", None], pa.large_binary()),
        pa.array(["a", None], pa.string_view()),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
    ],
    ids=lambda array: str(array.type),
)
def test_other_types_too(array: pa.Array) -> None:
    assert python_values(array) == array.to_pylist()


def test_a_text_that_is_not_utf8_is_an_error() -> None:
    broken = pa.array([b"\xff"]).view(pa.string())
    with pytest.raises(UnicodeDecodeError):
        python_values(pa.StructArray.from_arrays([broken], ["text"]))
