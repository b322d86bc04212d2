"""`--engine MODULE:NAME`: an engine that isn't ours, and how what it raises is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.conftest import read_scores, vig
from vig_ray.demo import CHECKPOINT, world

ENGINE = """
import os
import numpy as np

class Engine:
    description = "one of my own"

    def logprobs(self, prompts):
        if os.environ.get("OWN_ENGINE_FAILS"):
            raise RuntimeError("the board is\\n  on fire")
        return [np.full(len(prompt.answer_positions), -1.0 - prompt.hide_images, np.float32) for prompt in prompts]

def engine(*, model, dtype, device, batch_tokens, **others):
    assert batch_tokens == 7 and dtype == "float32" and device == "cpu" and os.path.isdir(model)
    return Engine()
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.py").write_text(ENGINE)
    data = world.write(str(tmp_path / "data"), 40, 83)
    return ["score", "--data", data, "--model", CHECKPOINT, "--out", str(tmp_path), "--reference", "blind",
            "--engine", "mine:engine", "--batch-tokens", "7", "--workers", "1", "--prepare-workers", "1"]  # fmt: skip


def test_its_log_probs_are_the_scores(words: list[str], tmp_path: Path) -> None:
    done = vig(*words, PYTHONPATH=str(tmp_path))
    assert "engine: one of my own" in done.stderr
    rows = [row for row in read_scores(tmp_path) if row["vig"] is not None]
    assert len(rows) > 20
    for row in rows:
        assert np.unique(row["clean_logprobs"]).tolist() == [-1.0]
        assert (row["clean_loss"], row["vig"], len(row["clean_logprobs"])) == (1.0, 1.0, len(row["token_ids"]))
    other = vig(*words[:-8], "--engine", "torch", check=False)
    assert "engine differ" in other.stderr


def test_what_it_raises_is_the_one_line(words: list[str], tmp_path: Path) -> None:
    failed = vig(*words, check=False, PYTHONPATH=str(tmp_path), OWN_ENGINE_FAILS="1")
    assert failed.returncode == 2
    assert failed.stderr.strip().splitlines()[-1] == "vig: scoring failed: RuntimeError: the board is on fire"
    nowhere = vig(*words, check=False)
    assert nowhere.returncode == 2
    assert "--engine mine:engine: ModuleNotFoundError: No module named 'mine'" in nowhere.stderr
    assert "PYTHONPATH" in nowhere.stderr
