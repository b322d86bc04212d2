"""Questions about the demo world asked of two models, once for all tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import made_once
from tests.evaluation.made import config_of, rows_of, write_questions, write_worse_model
from vig_ray.demo import CHECKPOINT, world
from vig_ray.evaluation import job


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """asked/ with choices.jsonl and exact.jsonl, own/ with samples, and worse/, a model. Not to be changed."""

    def make(folder: Path) -> None:
        write_questions(folder / "asked", 24)
        world.write(str(folder / "own"), 24, seed=3)
        write_worse_model(folder / "worse")

    return made_once(tmp_path_factory, "asked-data", make)


@pytest.fixture(scope="session")
def asked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models asked in three goes: one task, then with the others, then with another model. Not to be changed."""

    def make(out: Path) -> None:
        both = (f"demo={CHECKPOINT}", str(data / "worse"))
        job.run(config_of(data, out, both[:1], "choices"), in_process=True)
        first = rows_of(out, "demo")
        job.run(config_of(data, out, both[:1], "choices,exact,held-out"), in_process=True)
        assert len(rows_of(out, "demo")) > len(first)
        pd.testing.assert_frame_equal(rows_of(out, "demo").loc[first.index], first)  # carried over, not asked again
        job.run(config_of(data, out, both, "choices,exact,held-out"), in_process=True)

    return made_once(tmp_path_factory, "asked", make)
