"""Values of kept columns and their ranks, against Python's json and SciPy."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.report.test_kept import number
from vig_ray.dataset.keep import json_text
from vig_ray.report.format import kept_value_names
from vig_ray.report.kept import spearman
from vig_ray.tables.kept import KINDS, Values, texts_of

NUMBERS = st.integers(-9, 9) | st.floats(-1e6, 1e6)
JSON = st.one_of(
    st.none(), NUMBERS, st.booleans(), st.text(), st.lists(st.none() | NUMBERS, max_size=4), st.lists(st.text()),
    st.dictionaries(st.text(), NUMBERS, max_size=2), st.lists(st.lists(NUMBERS, max_size=1), max_size=2),
)  # fmt: skip


@given(st.lists(JSON, max_size=12))
def test_values_are_what_pythons_json_reads(values: list[Any]) -> None:
    found = Values.of(pa.array([json_text(value) for value in values], pa.string()))
    for at, value in enumerate(values):
        text = found.texts[at].as_py()
        kind = KINDS[found.kind[at]] if found.kind[at] >= 0 else None
        flat = isinstance(value, list) and all(one is None or isinstance(one, (int, float)) for one in value)
        expected = number(value) if flat or not isinstance(value, list) else None
        if expected is None:
            assert math.isnan(found.numbers[at])
        else:
            assert found.numbers[at] == pytest.approx(expected, rel=1e-12)
        if value is None or (flat and expected is None):
            assert (text, kind) == (None, None if value is None else "empty")
        elif expected is None:
            assert json.loads(text) == value
            assert kind == ("text" if isinstance(value, str) else "other")
        else:
            assert text is None
            assert kind == ("boolean" if isinstance(value, bool) else "list" if flat else "number")


def test_texts_of_a_slice_and_of_nulls() -> None:
    kind = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
    cells = [None, [("a", "1")], [], [("b", "2"), ("a", "3")], [("b", "4")], None]
    array = pa.array([c and [{"name": n, "value": v} for n, v in c] for c in cells], kind)
    assert texts_of(array, "a").to_pylist() == [None, "1", None, "3", None, None]
    assert texts_of(array.slice(2, 3), "a").to_pylist() == [None, "3", None]
    assert texts_of(pa.chunked_array([array.slice(0, 1), array.slice(3)]), "b").to_pylist() == [None, "2", "4", None]
    assert texts_of(array.slice(0, 0), "a").to_pylist() == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=20))
def test_rank_correlation_of_counts(cells: list[tuple[int, int, int]]) -> None:
    one, other, count = (np.array(part) for part in zip(*cells, strict=True))
    found = spearman(one, other, count)
    a, b = np.repeat(one, count), np.repeat(other, count)
    if len(set(a.tolist())) == 1 or len(set(b.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-9)


def test_values_that_differ_late_have_different_names() -> None:
    numbers = [1700000000001.0, 1700000000002.0, 0.1, 3.0]
    names = kept_value_names({"values": [{"value": one} for one in numbers], "boolean": False})
    assert [float(name) for name in names] == numbers
    assert kept_value_names({"values": [{"value": 0.1 + 0.2}, {"value": 3.0}], "boolean": False}) == ["0.3", "3"]
