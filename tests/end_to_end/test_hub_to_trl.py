"""From a repository of the hub, through score, select and export, to a training step of TRL's."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.hub import Hub, hub
from tests.integrations.made import expected, plain
from tests.integrations.trained import one_step
from vig_ray.api import score, select
from vig_ray.demo import CHECKPOINT, world
from vig_ray.selection.export import ExportDataConfig
from vig_ray.selection.export import run as export_data

ROWS = 24


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[Hub, str]]:
    """A private repository in FineVision's layout, two files of rows with embedded images; and its commit."""
    features = datasets.Features(
        {
            "images": [datasets.Image()],
            "texts": [{"user": datasets.Value("string"), "assistant": datasets.Value("string")}],
            "source": datasets.Value("string"),
            "visual_dependency_ratings": [datasets.Value("int64")],
            "visual_dependency_min": datasets.Value("int64"),
        }
    )
    told = json.loads(Path(world.write(str(tmp_path / "world"), ROWS, seed=11)).read_text())
    rows = [_row(row, number, tmp_path / "world") for number, row in enumerate(told)]
    files = {}
    for part in range(2):
        written = io.BytesIO()
        datasets.Dataset.from_list(rows[part::2], features=features).to_parquet(written)
        files[f"coloured/train-{part:05d}-of-00002.parquet"] = written.getvalue()
    card = "---\nconfigs:\n- config_name: coloured\n  data_files: coloured/train-*.parquet\n---\n"
    with hub(tmp_path / "hub") as server:
        commit = server.commit("org/shapes", {"README.md": card.encode(), **files}, private=True)
        yield server, commit


def _row(row: dict[str, Any], number: int, folder: Path) -> dict[str, Any]:
    turns = row["conversations"]
    pairs = [
        {"user": asked["value"].replace("<image>\n", ""), "assistant": answered["value"]}
        for asked, answered in zip(turns[::2], turns[1::2], strict=True)
    ]
    image = row.get("image")
    return {
        "images": [] if image is None else [{"bytes": (folder / image).read_bytes(), "path": None}],
        "texts": pairs,
        "source": "shapes",
        "visual_dependency_ratings": [number % 5 + 1 for _ in pairs],
        "visual_dependency_min": number % 5 + 1,
    }


def test_a_repository_to_a_step_of_trl(
    repository: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, commit = repository
    monkeypatch.setenv("HF_TOKEN", server.token)
    monkeypatch.chdir(tmp_path)
    scores = score("hf://datasets/org/shapes:coloured", model=CHECKPOINT, out="run", keep="*_min")
    record = json.loads(Path("run/samples.stage.json").read_text())
    assert all(f"@{commit}/" in each["path"] for each in record["inputs"])
    assert scores.summary.read == ROWS
    selection = select(scores, strategy="vig", p=70, out="run")
    export_data(ExportDataConfig(selection="run", samples="run/samples", out="chosen.jsonl"))

    chosen = [json.loads(line) for line in Path("chosen.jsonl").read_text().splitlines()]
    assert {row["sample_key"] for row in chosen} == set(selection.table()["sample_key"].to_pylist())
    kept = pq.read_table("run/scores", columns=["sample_key", "kept"]).to_pylist()
    ratings = {row["sample_key"]: json.loads(row["kept"][0]["value"]) for row in kept}
    assert all(row["kept"] == {"visual_dependency_min": ratings[row["sample_key"]]} for row in chosen)

    rows = [{name: row[name] for name in ("messages", "images")} for row in chosen]
    weights = [
        row.get("token_weights") or [1.0] * len(plain(CHECKPOINT, whole).answers)
        for row, whole in zip(chosen, rows, strict=True)
    ]
    rows = [row | {"token_weights": each} for row, each in zip(rows, weights, strict=True)]
    assert 0 < sum(map(sum, weights)) < sum(map(len, weights))
    theirs = expected(CHECKPOINT, rows)
    found = one_step(
        "trl", CHECKPOINT, rows, tmp_path, per_device_train_batch_size=len(rows), gradient_accumulation_steps=1
    )
    assert found.loss == pytest.approx(theirs.loss, abs=1e-5)
    for name, gradient in theirs.gradients.items():
        np.testing.assert_allclose(found.gradients[name].numpy(), gradient.numpy(), atol=1e-5, rtol=0)
