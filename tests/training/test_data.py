"""From positions to samples: the right rows, the right weights, and what is told where they don't fit."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.training.runs import alone, setup_of, together
from vig_ray.errors import StageError
from vig_ray.selection.schema import SELECTION
from vig_ray.tables import rows as stored
from vig_ray.tables.rows import Rows
from vig_ray.training.batch import TrainingSample
from vig_ray.training.index import of_samples, of_selection
from vig_ray.training.loader import Mismatch, Unusable, load_steps
from vig_ray.training.run import BadBatchError


def changed(chosen: Path, tmp_path: Path, change: Any) -> Path:
    """The same samples, with a selection whose rows `change` has altered, cut into files of another size."""
    (tmp_path / "samples").symlink_to(chosen / "samples")
    (tmp_path / "selection").mkdir()
    record = json.loads((chosen / "selection.stage.json").read_text())
    del record["runs"]  # by which the files are named
    (tmp_path / "selection.stage.json").write_text(json.dumps(record))
    rows = [row for path in sorted((chosen / "selection").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    rows = change(rows)
    for start in range(0, len(rows), 50):
        table = pa.Table.from_pylist(rows[start : start + 50], schema=SELECTION)
        pq.write_table(table, tmp_path / "selection" / f"{start:05d}.parquet", row_group_size=7)
    return tmp_path


def test_each_position_is_its_own_sample_with_its_own_weights(
    chosen: Path, demo_formatter: Any, tmp_path: Path
) -> None:
    folder = changed(chosen, tmp_path, lambda rows: rows[::-1])
    selection = pd.concat([pd.read_parquet(p) for p in (folder / "selection").glob("*.parquet")]).set_index("position")
    loaded = setup_of(folder).source().__getitems__(range(len(selection)))
    assert len(loaded) == len(selection) > 150
    for position, sample in enumerate(loaded):
        assert isinstance(sample, TrainingSample)
        row = selection.loc[position]
        assert (sample.position, sample.key) == (position, row.sample_key)
        assert sample.prompt.answer_ids.tolist() == row.token_ids.tolist()
        assert sample.weights_T.tolist() == row.token_weights.tolist()


def test_processes_that_load_ahead_give_the_same_in_the_same_order(chosen: Path) -> None:
    source = setup_of(chosen).source()
    parts = [np.arange(start, start + 5) for start in range(0, 40, 5)]
    here = list(load_steps(source, parts, processes=0))
    ahead = list(load_steps(source, parts, processes=2))
    for ours, theirs in zip(ahead, here, strict=True):
        assert [s.key for s in ours] == [s.key for s in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert isinstance(one, TrainingSample)
            assert isinstance(other, TrainingSample)
            assert one.prompt.token_ids.tolist() == other.prompt.token_ids.tolist()
            assert all(
                np.array_equal(a.inputs["pixel_values"], b.inputs["pixel_values"])
                for a, b in zip(one.prompt.images, other.prompt.images, strict=True)
            )


def test_without_a_selection_every_sample_is_trained_on_whole(chosen: Path) -> None:
    every = of_samples(str(chosen / "samples"), seed=3)
    keys = [row["sample_key"] for row in Rows(str(chosen / "samples"), ["sample_key"]).get(every.sample_at)]
    assert len(set(keys)) == len(keys) == 300
    assert keys != sorted(keys)
    assert np.array_equal(of_samples(str(chosen / "samples"), seed=3).sample_at, every.sample_at)
    assert not np.array_equal(of_samples(str(chosen / "samples"), seed=4).sample_at, every.sample_at)
    loaded = setup_of(chosen, selection=False).source().__getitems__(range(20))
    assert all(isinstance(each, TrainingSample) and (each.weights_T == 1).all() for each in loaded)


def test_a_broken_selection_is_one_line(chosen: Path, tmp_path: Path) -> None:
    def refused(told: str, change: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        changed(chosen, folder, change)
        with pytest.raises(StageError, match=told):
            of_selection(str(folder / "samples"), str(folder / "selection"))

    refused("no sample is selected|no Parquet", lambda rows: [])
    refused("positions from", lambda rows: [rows[0] | {"position": 10**6}, *rows[1:]])
    refused(
        "position 3 is missing",
        lambda rows: [row | {"position": 4 if row["position"] == 3 else row["position"]} for row in rows],
    )
    refused("lacks 1 of the", lambda rows: [rows[0] | {"sample_key": "another/1"}, *rows[1:]])
    refused("sample key .* occurs twice", lambda rows: [*rows, rows[0] | {"position": len(rows)}])


def test_few_files_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stops taking tables has not had the whole dataset read into memory."""
    submitted = []

    class Counting(ThreadPoolExecutor):
        def submit(self, function: Any, /, *args: Any, **options: Any) -> Any:
            submitted.append(args)
            return super().submit(function, *args, **options)

    for number in range(100):
        pq.write_table(pa.table({"sample_key": [str(number)]}), tmp_path / f"{number:03d}.parquet")
    monkeypatch.setattr(stored, "ThreadPoolExecutor", Counting)
    next(stored.scan(str(tmp_path), ["sample_key"]))
    assert len(submitted) <= 2 * (os.cpu_count() or 1) + 1
    keys = [key for _, table in stored.scan(str(tmp_path), ["sample_key"]) for key in table["sample_key"].to_pylist()]
    assert keys == [str(number) for number in range(100)]


@pytest.mark.parametrize("what", ["id", "count", "weights", "held out"])
def test_tokens_of_another_tokenizer_stop_the_run_before_its_first_step(
    chosen: Path, tmp_path: Path, what: str
) -> None:
    def spoil(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        row = max(rows, key=lambda row: row["position"])  # the last one that would be trained on
        spoiled["key"] = row["sample_key"]
        if what in ("id", "held out"):
            row["token_ids"][2] += 1
        elif what == "count":
            row["token_ids"], row["token_weights"] = row["token_ids"][:-1], row["token_weights"][:-1]
        else:
            row["token_weights"] = row["token_weights"][:-1]
        return rows

    spoiled: dict[str, str] = {}
    folder = changed(chosen, tmp_path, spoil)
    with pytest.raises(StageError, match=spoiled["key"] + ": .*answer token"):
        alone(setup_of(folder, max_steps=60, held_out=5 if what == "held out" else 0), tmp_path / "out")
    assert not list((tmp_path / "out").glob("step-*"))
    assert isinstance(setup_of(folder).source()[len(setup_of(folder).index) - 1], Mismatch)
    if what == "id":  # both of two workers stop, though only one has seen it
        together(2, tmp_path, {"both": setup_of(folder, max_steps=60)})
        for rank in range(2):
            assert spoiled["key"] in torch.load(tmp_path / f"both.{rank}.pt")["refused"]


def without_the_image(chosen: Path, tmp_path: Path, positions: Sequence[int]) -> str:
    """A copy of the samples and their selection in which one sample's image is gone since it was scored; its key."""
    shutil.copytree(chosen / "samples", tmp_path / "samples")
    shutil.copytree(chosen / "selection", tmp_path / "selection")
    source = setup_of(tmp_path).source()
    key = next(s.key for s in source.__getitems__(positions) if isinstance(s, TrainingSample) and s.prompt.images)
    for path in (tmp_path / "samples").glob("*.parquet"):
        table = pq.read_table(path)
        rows = [
            row | {"images": [{"uri": "/gone.png", "bytes": None}]} if row["sample_key"] == key else row
            for row in table.to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return key


def test_a_held_out_sample_that_cannot_be_loaded_is_counted_and_named(chosen: Path, tmp_path: Path) -> None:
    held = range(len(setup_of(chosen).index) - 9, len(setup_of(chosen).index))
    key = without_the_image(chosen, tmp_path, held)
    options: dict[str, Any] = {"max_steps": 2, "held_out": 9, "eval_every": 1}
    run = alone(setup_of(tmp_path, **options), tmp_path / "out")
    for line in run.log:
        assert line["held_out_samples"] == 8
        assert list(line["held_out_unusable"]) == [key]
        assert "gone.png" in line["held_out_unusable"][key]
    assert not any(line["unusable"] for line in run.log)
    two = together(2, tmp_path, {"two": setup_of(tmp_path, **options)})["two"]["log"]
    assert [line["held_out_unusable"] for line in two] == [line["held_out_unusable"] for line in run.log]
    assert [line["held_out_samples"] for line in two] == [8, 8]


def test_a_sample_that_cannot_be_loaded_takes_its_place_and_is_told(chosen: Path, tmp_path: Path) -> None:
    """The others of its step are trained on without it."""
    key = without_the_image(chosen, tmp_path, range(8))
    run = alone(setup_of(tmp_path, max_steps=2), tmp_path / "out")
    assert list(run.log[0]["unusable"]) == [key]
    assert "gone.png" in run.log[0]["unusable"][key]
    assert [(line["samples"], line["first"], line["end"]) for line in run.log] == [(7, 0, 8), (8, 8, 16)]
    assert isinstance(setup_of(tmp_path).source().__getitems__(range(8))[0], TrainingSample | Unusable)


def test_a_loss_that_is_no_number_stops_with_the_keys_of_its_step(chosen: Path, tmp_path: Path) -> None:
    def spoil(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["position"] == 19:
                row["token_weights"][0] = math.inf
        return rows

    folder = changed(chosen, tmp_path, spoil)
    with pytest.raises(BadBatchError, match="step 2: the loss is inf") as caught:
        alone(setup_of(folder, max_steps=5, save_every=1), tmp_path / "out")
    keys = {row["sample_key"] for p in (folder / "selection").glob("*.parquet") for row in pq.read_table(p).to_pylist()
            if 16 <= row["position"] < 24}  # fmt: skip
    assert set(caught.value.keys) == keys
    committed = sorted(path.parent.name for path in (tmp_path / "out").glob("*/commit.json"))
    assert json.loads((tmp_path / "out" / committed[-1] / "commit.json").read_text())["step"] <= 2
