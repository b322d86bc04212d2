"""Keys that share a hash: they keep their own positions and rows, and only a key that is there twice is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pandas.util import hash_array

from tests.selection.made import made_up, selected, write
from vig_ray.errors import StageError
from vig_ray.selection import job
from vig_ray.selection.config import SelectConfig
from vig_ray.tables import order
from vig_ray.tables.key_index import KeyedRows, KeyIndex
from vig_ray.tables.rows import Rows
from vig_ray.training import index


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of 6 bits, so that 400 keys collide as 1e10 do in 64; and few of them looked up at a time."""
    monkeypatch.setattr(order, "hash_array", lambda *args, **options: hash_array(*args, **options) & np.uint64(63))
    monkeypatch.setattr(order, "_AT_ONCE", 10)


def keys_in_order(out: Path) -> list[str]:
    rows = selected(out)
    assert [row["position"] for row in rows] == list(range(len(rows)))
    return [row["sample_key"] for row in rows]


def select(scores: str, out: Path, **options: Any) -> list[str]:
    job.run(SelectConfig(scores=scores, out=str(out), strategy="full", **options))
    return keys_in_order(out)


def test_every_key_has_a_position_of_its_own(tmp_path: Path, narrow: None) -> None:
    rows = made_up(400)
    keys = select(write(tmp_path / "a", rows), tmp_path / "a")
    assert sorted(keys) == sorted(row["sample_key"] for row in rows if row["error"] is None)
    of_keys = order.hashes(pa.array(keys), 42)
    assert len(set(of_keys.tolist())) < 65
    assert list(zip(of_keys.tolist(), keys, strict=True)) == sorted(zip(of_keys.tolist(), keys, strict=True))
    assert select(write(tmp_path / "b", rows[::-1], files=7), tmp_path / "b", rows_per_file=50) == keys


def test_a_key_that_is_there_twice_is_named(tmp_path: Path, narrow: None) -> None:
    rows = made_up(100)
    twice = next(row for row in rows if row["vig"] is not None)
    with pytest.raises(StageError, match=f"sample key '{twice['sample_key']}' occurs twice; score the dataset again"):
        select(write(tmp_path, [*rows, twice]), tmp_path)


def directories(tmp_path: Path, keys: list[str], chosen: list[str]) -> tuple[str, str]:
    """samples/ of these keys and a selection/ of some, in several files each."""
    errors = [None] * len(keys)
    samples = pa.table({"sample_key": keys, "error": pa.array(errors, pa.string())})
    selection = pa.table({"sample_key": chosen, "position": np.arange(len(chosen))[::-1]})
    for name, table in (("samples", samples), ("selection", selection)):
        (tmp_path / name).mkdir()
        for start in range(0, table.num_rows, 70):
            part = table.slice(start, 70)
            pq.write_table(part, tmp_path / name / f"{start:05d}.parquet", row_group_size=30)
    return str(tmp_path / "samples"), str(tmp_path / "selection")


def read(directory: str, places: Any) -> list[str]:
    return [row["sample_key"] for row in Rows(directory, ["sample_key"]).get(places)]


def test_training_finds_the_row_of_each_key(tmp_path: Path, narrow: None) -> None:
    keys = [f"made/{number}" for number in range(300)]
    chosen = keys[40:220:2]
    samples, selection = directories(tmp_path, keys, chosen)
    found = index.of_selection(samples, selection)
    assert found.selection_at is not None
    assert read(samples, found.sample_at) == read(selection, found.selection_at) == chosen[::-1]
    every = read(samples, index.of_samples(samples, seed=3).sample_at)
    assert sorted(every) == sorted(keys)
    shutil.rmtree(samples)
    shutil.rmtree(selection)
    directories(tmp_path, keys[::-1], chosen)
    assert read(samples, index.of_samples(samples, seed=3).sample_at) == every


def test_training_names_a_key_that_is_there_twice(tmp_path: Path) -> None:
    keys = [f"made/{number}" for number in range(300)]
    for number, (of_samples, of_selection, where) in enumerate(
        ((keys, [*keys, "made/7"], "selection"), ([*keys, "made/7"], keys, "samples"))
    ):
        (tmp_path / str(number)).mkdir()
        samples, selection = directories(tmp_path / str(number), of_samples, of_selection)
        with pytest.raises(StageError, match=f"/{where}: sample key 'made/7' occurs twice"):
            index.of_selection(samples, selection)
    with pytest.raises(StageError, match="/samples: sample key 'made/7' occurs twice"):
        index.of_samples(samples, seed=0)


def test_training_says_which_key_its_samples_lack(tmp_path: Path, narrow: None) -> None:
    keys = [f"made/{number}" for number in range(300)]
    samples, selection = directories(tmp_path, keys[:-1], keys)
    with pytest.raises(StageError, match=r"lacks 1 of the 300 selected samples, 'made/299' among them"):
        index.of_selection(samples, selection)


@pytest.mark.parametrize("hashed", ["narrow", "wide"])
def test_rows_are_found_by_their_keys(tmp_path: Path, hashed: str, request: pytest.FixtureRequest) -> None:
    if hashed == "narrow":
        request.getfixturevalue("narrow")
    keys = [f"made/{number}" for number in range(300)]
    samples, _ = directories(tmp_path, keys, keys[:3])
    found = KeyedRows(Rows(samples, ["sample_key"]), KeyIndex.of(samples))
    asked = np.random.default_rng(1).permutation(keys)[:90].tolist()
    assert [row["sample_key"] for row in found.of(pa.array(asked))] == asked
    with pytest.raises(StageError, match="holds no row of sample 'made/300'"):
        found.of(pa.array(["made/4", "made/300"]))
    (tmp_path / "twice").mkdir()
    twice, _ = directories(tmp_path / "twice", [*keys, "made/7"], keys[:3])
    with pytest.raises(StageError, match="sample key 'made/7' occurs twice"):
        KeyIndex.of(twice)
