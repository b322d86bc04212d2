"""`--engine MODULE:NAME`: an engine that isn't ours, and how what it raises is told.

The tests of kills and of `vig serve` give such an engine to the command, by PYTHONPATH.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests import gates as gating
from tests.end_to_end.conftest import read_scores
from tests.end_to_end.server import wait_until
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig


def config(out: Path, engine: str, **options: Any) -> ScoreConfig:
    return ScoreConfig(
        data=str(out), model=CHECKPOINT, out=str(out), reference=("blind",), engine=engine, batch_tokens=7, workers="1",
        prepare_workers="1", **options,
    )  # fmt: skip


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return gating.write_world(tmp_path, 40, 83)


def test_its_log_probs_are_the_scores(out: Path, local_ray: None) -> None:
    summary = job.run(config(out, "tests.engines.own:engine"))
    assert (summary.read, summary.failed) == (40, 0)
    rows = [row for row in read_scores(out) if row["vig"] is not None]
    assert len(rows) > 20
    for row in rows:
        assert np.unique(row["clean_logprobs"]).tolist() == [-1.0]
        assert (row["clean_loss"], row["vig"], len(row["clean_logprobs"])) == (1.0, 1.0, len(row["token_ids"]))
    with pytest.raises(StageError, match="engine differ"):
        job.run(config(out, "torch"))


def test_what_it_raises_is_the_one_line(out: Path, local_ray: None) -> None:
    with pytest.raises(StageError) as raised:
        job.run(config(out, "tests.engines.own:burning"))
    assert str(raised.value) == "vig score failed: RuntimeError: the board is on fire"
    # Its actors are gone while the error is still in somebody's hands: a notebook's, where a GPU would stay taken.
    wait_until(lambda: ray.available_resources().get("CPU") == 8, 60)


def test_a_module_that_is_not_there_is_told_before_anything_starts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # on a cluster only its machines need the module
    with pytest.raises(StageError, match="--engine mine:engine: ModuleNotFoundError: No module named 'mine'") as raised:
        job.check(config(out, "mine:engine"))
    assert "PYTHONPATH" in str(raised.value)
