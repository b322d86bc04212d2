"""An evaluation whose questions, pictures and answers lie on an S3-compatible server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.command import call
from tests.evaluation.made import rows_of
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation import job
from vig_ray.evaluation.config import EvalConfig

TASKS = "choices,swap:exact,attention:exact"
FILES = {
    "choices": "asked/choices.jsonl", "exact": "asked/exact.jsonl", "swap:exact": "asked/exact.jsonl",
    "attention:exact": "asked/exact.jsonl",
}  # fmt: skip
WRITTEN = {"attention:exact.queries": "written"}


@pytest.fixture(scope="module")
def client(data: Path, s3: Callable[[], Any]) -> Any:
    """A bucket with the questions and their pictures."""
    made = s3()
    made.create_bucket(Bucket="asked")
    for file in (data / "asked").rglob("*"):
        if file.is_file():
            made.upload_file(str(file), "asked", f"data/{file.relative_to(data)}")
    return made


def at(folder: str, out: str, tasks: str = TASKS, limit: int = 2) -> EvalConfig:
    options = {"limit": limit, "draws": 20, "rows_per_file": 4, "task_options": WRITTEN if "attention" in tasks else {}}
    paths = {task: f"{folder}/{FILES[task]}" for task in tasks.split(",")}
    given: dict[str, Any] = {"model": f"demo={CHECKPOINT}", "tasks": tasks, "data": paths, "out": out, **options}
    return EvalConfig(**given)


def fetched(client: Any, prefix: str, folder: Path) -> list[str]:
    """What lies below a key, copied to a folder; the names."""
    names = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="asked", Prefix=f"{prefix}/"):
        for one in page.get("Contents", ()):
            name = one["Key"].removeprefix(f"{prefix}/")
            if name and not name.endswith("/"):  # which stand for folders
                names.append(name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                client.download_file("asked", one["Key"], str(folder / name))
    return names


def test_answers_and_numbers_are_those_of_a_disk(client: Any, data: Path, tmp_path: Path) -> None:
    """In two goes, as a table grows; the second copies what the first has answered."""
    for tasks in ("choices", TASKS):
        here = job.run(at(str(data), str(tmp_path / "here"), tasks), in_process=True)
        there = job.run(at("s3://asked/data", "s3://asked/out", tasks), in_process=True)
    assert there.json() == here.json()
    names = fetched(client, "out", tmp_path / "there")
    assert not [name for name in names if "unfinished" in name]
    assert rows_of(tmp_path / "there", "demo")["answer"].equals(rows_of(tmp_path / "here", "demo")["answer"])
    written = json.loads((tmp_path / "there/evaluation/summary.json").read_text())
    assert written == here.json()
    curves = [pq.read_table(tmp_path / side / "evaluation/attention.parquet") for side in ("here", "there")]
    assert curves[0].equals(curves[1])
    again = job.run(at("s3://asked/data", "s3://asked/out"), in_process=True)  # nothing is left to ask
    assert again.json() == here.json()
    with pytest.raises(StageError, match=r"s3://asked/out/evaluation/demo: its answers of choices are to other"):
        job.run(at("s3://asked/data", "s3://asked/out", "choices", limit=1), in_process=True)


@pytest.mark.long
def test_a_command_writes_there(client: Any, tmp_path: Path, local_ray: None) -> None:
    line = ("eval", "--model", f"demo={CHECKPOINT}", "--tasks", "exact", "--limit", "2", "--workers", "1")
    line += ("--data", "s3://asked/data/asked/exact.jsonl", "--prepare-workers", "1", "--draws", "20")
    call(*line, "--out", "s3://asked/by-command")
    fetched(client, "by-command", tmp_path)
    rows = rows_of(tmp_path, "demo")
    assert (len(rows), rows["error"].notna().sum()) == (2, 0)
    assert "nothing to ask" in call(*line, "--out", "s3://asked/by-command").stderr


def test_what_is_not_there_is_one_line(client: Any, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"s3://asked/gone/asked/exact\.jsonl"):
        job.run(at("s3://asked/gone", str(tmp_path), "exact"), in_process=True)
    with pytest.raises(StageError, match="s3://no-such-bucket"):
        job.run(at("s3://asked/data", "s3://no-such-bucket/out", "exact"), in_process=True)
