"""A driver that is killed while its first model is asked, and the same command again: all is there, and once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.command import call
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.server import wait_until
from tests.end_to_end.test_resume import wait_for_the_last_workers
from tests.evaluation.made import ENGINE, rows_of
from tests.gates import Gates
from vig_ray.demo import CHECKPOINT

pytestmark = pytest.mark.cluster


def committed_rows(out: Path) -> int:
    files = out.glob("evaluation/.eval-*/checkpoint/*.parquet")
    return sum(pq.read_metadata(file).num_rows for file in files if not file.name.endswith(".pending.parquet"))


def test_killed_and_given_again_nothing_is_asked_twice(
    data: Path, asked: Path, tmp_path: Path, preforked: None, local_ray: None
) -> None:
    gates = Gates(tmp_path / "gates")
    out = tmp_path / "out"
    words = [
        "eval", "--model", f"demo={CHECKPOINT}", str(data / "worse"), "--tasks", "exact,choices", "--data",
        f"exact={data / 'asked/exact.jsonl'}", f"choices={data / 'asked/choices.jsonl'}", "--out", str(out),
        "--engine", ENGINE, "--rows-per-file", "10", "--workers", "1", "--prepare-workers", "1", "--draws", "20",
    ]  # fmt: skip
    gates.close(1)  # the second batch with choices
    driver = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *words], cwd=ROOT, env=os.environ | gates.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    gates.wait_for(1)
    wait_until(lambda: committed_rows(out) >= 10)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_for_the_last_workers(driver.pid)
    before = committed_rows(out)
    files = {path: path.stat().st_mtime_ns for path in out.glob("evaluation/demo/*.parquet")}
    done = call(*words)
    assert f"going on: {before} of 48 rows" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in files} == files
    columns = ["answer", "score", "error", "expected", "finished", "new_tokens"]
    for model in ("demo", "worse"):
        rows, alone = rows_of(out, model), rows_of(asked, model)
        assert len(rows) == 48
        pd.testing.assert_frame_equal(rows[columns], alone.loc[rows.index, columns])
        for ours, theirs in zip(rows["choices"].dropna(), alone.loc[rows.index, "choices"].dropna(), strict=True):
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(one["logprob"], other["logprob"], atol=1e-4)
    assert not list(out.rglob(".eval-*"))
    again = call(*words)
    assert again.stderr.count("has answered already, nothing to ask") == 2
    assert again.stdout == done.stdout
