"""A stage's time is the sum over its tries, whether they were killed, failed or came to the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vig_ray.errors import StageError
from vig_ray.study import record as records
from vig_ray.study import spent
from vig_ray.study.graph import Node
from vig_ray.study.record import Record
from vig_ray.study.runner import Progress, take_what_is_there
from vig_ray.study.spent import Spent

NAME = "train-0123456789"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(spent.time, "monotonic", lambda: now[0])
    return now


def test_tries_add_up_also_those_that_were_killed(tmp_path: Path, clock: list[float]) -> None:
    out, file = str(tmp_path), tmp_path / "runs" / NAME / spent.FILE
    with spent.counted(out, NAME, gpus=2, attempt="first"):
        assert spent.read(out, NAME).attempt == "first"  # whoever asked for it sees that it has begun
        clock[0] += 100
        with spent.counted(out, "other", gpus=0):
            pass
    as_killed = file.read_bytes()  # what is there of a try whose process is gone
    assert spent.read(out, NAME) == Spent(100, 200, "first")

    def wrong() -> None:
        with spent.counted(out, NAME, gpus=1):
            clock[0] += 30
            raise RuntimeError

    with pytest.raises(RuntimeError):
        wrong()
    assert spent.read(out, NAME) == Spent(130, 230)
    file.write_bytes(as_killed)  # as though that one had been killed before it was noted
    with spent.counted(out, NAME, gpus=0) as so_far:
        clock[0] += 5
        assert so_far() == Spent(105, 200)


def test_it_is_kept_while_the_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spent, "EVERY_S", 0.01)
    with spent.counted(str(tmp_path), NAME, gpus=0):
        first = spent.read(str(tmp_path), NAME)
        while spent.read(str(tmp_path), NAME) == first:
            pass


def test_a_failure_s_record_counts_for_the_next_try(tmp_path: Path, clock: list[float]) -> None:
    out = str(tmp_path)
    records.write(out, Record(NAME, "train", "train", "", "failed", "", seconds=40.0, gpus=2))
    with spent.counted(out, NAME, gpus=1) as so_far:
        clock[0] += 2
        assert so_far() == Spent(42, 82)
    spent.forget(out, NAME)
    spent.forget(out, NAME)
    assert spent.read(out, NAME) == Spent(40, 80)


def test_a_budget_counts_tries_that_came_to_nothing(tmp_path: Path, clock: list[float]) -> None:
    nodes = [Node(name, "train", "train", {}) for name in (NAME, "train-done", "train-new")]
    with spent.counted(str(tmp_path), NAME, gpus=1):
        clock[0] += 3600
    records.write(str(tmp_path), Record("train-done", "train", "train", "", "done", "", seconds=7200.0, gpus=4))
    progress = Progress()
    take_what_is_there(progress, nodes, str(tmp_path))
    assert progress.hours() == (3, 9)
    progress.records[NAME] = Record(NAME, "train", "train", "", "done", "", 5400.0, 1, gpu_seconds=5400.0)
    assert progress.hours() == (3.5, 9.5)  # its record has the earlier try in it


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "runs" / NAME / spent.FILE
    file.parent.mkdir(parents=True)
    for text in ("{", json.dumps({"hours": 3})):
        file.write_text(text)
        with pytest.raises(StageError, match=r"spent\.json: can't be read .*; delete it"):
            spent.read(str(tmp_path), NAME)
