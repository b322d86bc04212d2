"""Kills of the driver and of actors in the middle: every key comes out once, with the undisturbed run's numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.conftest import ROOT, read_scores, vig
from vig_ray.demo import CHECKPOINT
from vig_ray.scoring.config import ScoreConfig


def assert_same_scores(out: Path, undisturbed: Path, keys: set[str] | None = None) -> None:
    rows, expected = read_scores(out), read_scores(undisturbed)
    expected = [row for row in expected if keys is None or row["sample_key"] in keys]
    assert [row["sample_key"] for row in rows] == [row["sample_key"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["error"] == other["error"]
        assert row["token_ids"] == other["token_ids"]
        if other["vig"] is None:
            assert row["vig"] is None
        else:
            np.testing.assert_allclose(row["clean_logprobs"], other["clean_logprobs"], atol=1e-5)
            np.testing.assert_allclose(row["reference_logprobs"], other["reference_logprobs"], atol=1e-5)


def committed_rows(out: Path) -> int:
    rows = 0
    for file in (out / ".score-checkpoint").glob("*.parquet"):
        if not file.name.endswith(".pending.parquet"):
            try:
                rows += pq.read_metadata(file).num_rows
            except OSError:  # renamed between the listing and the reading
                continue
    return rows


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """The command in a process of its own, to be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_a_killed_driver_goes_on_where_it_was(held_out: Path, tmp_path: Path) -> None:
    command = ["score", "--data", str(held_out), "--model", CHECKPOINT, "--out", str(tmp_path), "--rows-per-file", "64"]
    driver = start(command)
    deadline = time.monotonic() + 240
    # A random moment of the run: after at least so many rows were written, and then a little more.
    wanted = int(np.random.default_rng().integers(100, 1200))
    while committed_rows(tmp_path) < wanted:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _wait_for_the_last_writes(driver.pid)
    kept = committed_rows(tmp_path)
    assert wanted <= kept < 2000
    scores = tmp_path / "scores"
    assert not json.loads((scores / "stage.json").read_text())["complete"]
    committed = {
        file.stem for file in (tmp_path / ".score-checkpoint").glob("*.parquet") if ".pending" not in file.name
    }
    # Data files of committed blocks carry the checkpoint's name as their beginning; they must survive the second run.
    before = {file: file.stat().st_mtime_ns for file in scores.glob("*.parquet") if _of(file, committed)}
    assert before

    again = vig(*command)
    assert "going on" in again.stderr
    for file, written in before.items():
        assert file.stat().st_mtime_ns == written, "a block that was finished was written again"
    assert_same_scores(tmp_path, held_out)
    stage = json.loads((scores / "stage.json").read_text())
    assert stage["complete"]
    # The checkpoint was in force: the second run scored only what the first had not.
    assert stage["timing"]["rows_over_time"][-1][1] == 2000 - kept
    assert not (tmp_path / ".score-checkpoint").exists()

    third = vig(*command)
    assert "already complete" in third.stderr
    assert_same_scores(tmp_path, held_out)


def _of(file: Path, committed: set[str]) -> bool:
    return any(file.name.startswith(name) for name in committed)


def _wait_for_the_last_writes(session: int) -> None:
    """Ray's workers follow their driver within seconds; until then a block may still be committed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True).stdout
        left = [line for line in found.splitlines() if not line.startswith("Z")]
        if not any("raylet" in line or ("ray::" in line and "Agent" not in line) for line in left):
            return
        time.sleep(0.2)
    pytest.fail("workers of the killed run are still there after a minute")


def test_a_killed_driver_goes_on_on_object_storage(held_out: Path, s3) -> None:
    """There a commit is a copy and a deletion, not a rename."""
    client = s3()
    client.create_bucket(Bucket="resume")
    command = ["score", "--data", str(held_out), "--model", CHECKPOINT, "--out", "s3://resume/run"]
    command += ["--rows-per-file", "64"]

    def objects(prefix: str) -> dict[str, str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="resume", Prefix=prefix)
        return {one["Key"]: one["ETag"] for page in pages for one in page.get("Contents", [])}

    driver = start(command)
    deadline = time.monotonic() + 240
    while sum(".pending" not in key for key in objects("run/.score-checkpoint/")) < 6:
        assert driver.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()

    again = vig(*command)  # at once, while workers of the killed run may still be on their way out
    assert "going on" in again.stderr
    rows = []
    for key in objects("run/scores/"):
        if key.endswith(".parquet"):
            body = client.get_object(Bucket="resume", Key=key)["Body"].read()
            rows += pq.read_table(pa.BufferReader(body), columns=["sample_key", "vig"]).to_pylist()
    expected = {row["sample_key"]: row["vig"] for row in read_scores(held_out)}
    assert len(rows) == len(expected)
    for row in rows:
        assert row["vig"] == pytest.approx(expected.pop(row["sample_key"]), abs=1e-5)
    assert not objects("run/.score-checkpoint/")


def test_killed_actors_cost_nothing(held_out: Path, tmp_path: Path, local_ray: None) -> None:
    from vig_ray.scoring import job

    stop, killed = threading.Event(), []

    def killer() -> None:
        """Once rows are being written, kill one worker of each stage with -9."""
        while not stop.is_set() and committed_rows(tmp_path) < 128:
            time.sleep(0.05)
        for stage in ("Preparer", "Scorer"):
            found = subprocess.run(["pgrep", "-f", f"ray::.*{stage}"], capture_output=True, text=True).stdout.split()
            if found and not stop.is_set():
                os.kill(int(found[0]), signal.SIGKILL)
                killed.append(stage)

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    config = ScoreConfig(
        data=str(held_out),
        model=CHECKPOINT,
        out=str(tmp_path),
        rows_per_file=128,
        window=64,
        workers="1..2",
        prepare_workers=2,
    )
    summary = job.run(config)
    stop.set()
    thread.join()
    assert killed == ["Preparer", "Scorer"]
    assert (summary.read, summary.failed) == (2000, 0)
    assert_same_scores(tmp_path, held_out)


@pytest.mark.parametrize("changed", [{"reference": "blind"}, {"too_long": "truncate"}, {"dtype": "bfloat16"}])
def test_scores_of_other_options_are_not_mixed(held_out: Path, changed: dict[str, str]) -> None:
    arguments = [part for name, value in changed.items() for part in (f"--{name.replace('_', '-')}", value)]
    before = {file: file.stat().st_mtime_ns for file in (held_out / "scores").iterdir()}
    done = vig("score", "--data", str(held_out), "--model", CHECKPOINT, "--out", str(held_out), *arguments, check=False)
    assert done.returncode == 2
    assert next(iter(changed)) in done.stderr
    assert "--overwrite" in done.stderr
    assert {file: file.stat().st_mtime_ns for file in (held_out / "scores").iterdir()} == before
