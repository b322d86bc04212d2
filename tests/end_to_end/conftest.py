"""Runs the command line as a user does, each command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.command import call
from tests.conftest import made_once
from vig_ray.demo import CHECKPOINT, world

HELD_OUT_SEED = 20_000
ROOT = Path(__file__).parents[2]


def vig(*arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `vig ARGUMENTS`; with `check`, a status other than 0 fails the test with what was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "vig_ray.cli", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        timeout=500,
    )
    if check and done.returncode != 0:
        pytest.fail(f"vig {' '.join(map(str, arguments))}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def read_scores(out: Path | str) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(Path(out, "scores").glob("*.parquet")):
        rows += pq.read_table(file).to_pylist()
    return sorted(rows, key=lambda row: row["sample_key"])


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory, start_ray: Callable[[], None]) -> Path:
    """2,000 demo samples that the demo model was not trained on, scored by the command line, blurred by OpenCV."""

    def make(out: Path) -> None:
        start_ray()
        data = world.write(str(out / "data"), 2000, HELD_OUT_SEED)
        line = ("--data", data, "--model", CHECKPOINT, "--out", str(out), "--blur", "opencv")
        done = call("score", *line, "--workers", "2", "--prepare-workers", "1")
        (out / "printed.txt").write_text(done.stdout)
        (out / "progress.txt").write_text(done.stderr)

    return made_once(tmp_path_factory, "held-out", make)


@pytest.fixture(scope="module")
def ray_head(preforked: None) -> Iterator[Any]:
    """One cluster's head for a file's tests that submit jobs or deploy to a cluster; idle, it would cost the others."""
    from tests.end_to_end.head import head

    with head() as started:
        yield started


@pytest.fixture(scope="module")
def server(preforked: None) -> Iterator[Any]:
    """One `vig serve` with two torch engines for a file's tests that leave it alive."""
    from tests.end_to_end.server import Server

    started = Server("--workers", 2, "--max-answer-tokens", 64, "--queue", 4000, "--timeout", 300)
    yield started
    assert "Traceback" not in started.stop()
