"""Kills of the driver and of actors in the middle: every key comes out once, with the undisturbed run's numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import gates as gating
from tests import prefork
from tests.end_to_end.conftest import HELD_OUT_SEED, ROOT, read_scores, vig
from tests.end_to_end.server import wait_until
from tests.end_to_end.test_demo_truth import GOLDEN
from tests.gates import Gates
from tests.image_store import hold_images, image_store
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.scoring import job
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.stage import read_stage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("preforked")]

ROWS, BATCH = 300, 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 samples: the first of the held-out demo, so that the golden scores hold for them."""
    return gating.write_world(tmp_path_factory.mktemp("world"), ROWS, HELD_OUT_SEED)


def command(world: Path, out: object) -> list[str]:
    """One engine that scores blocks of 32 rows, one a batch."""
    return ["score", "--data", str(world), "--model", CHECKPOINT, "--out", str(out), "--blur", "opencv",
            "--rows-per-file", str(BATCH), "--workers", "1", "--prepare-workers", "1", *gating.ENGINE]  # fmt: skip


def killed_at(gates: Gates, number: int, words: list[str], committed: Callable[[], bool]) -> int:
    """Run `vig WORDS` up to batch `number` and until `committed`, kill it there; its process."""
    gates.close(number)
    driver = subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", *words], cwd=ROOT, env=os.environ | gates.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    gates.wait_for(number)
    wait_until(committed)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    return driver.pid


def wait_for_the_last_workers(session: int) -> None:
    """Ray's workers follow their driver within seconds."""

    def none_left() -> bool:
        listed = subprocess.run(["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True).stdout
        left = [line for line in listed.splitlines() if not line.startswith("Z")]
        return not any("raylet" in line or ("ray::" in line and "Agent" not in line) for line in left)

    wait_until(none_left)


class Resumed(NamedTuple):
    """A run that was killed after five of its ten batches and given again; `files`: what was there in between."""

    out: Path
    told: str
    files: dict[Path, int]
    batches: int


@pytest.fixture(scope="module")
def resumed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    out = tmp_path_factory.mktemp("resumed")
    gates = Gates(out / "gates")
    words = command(world, out)
    session = killed_at(gates, 5, words, lambda: gating.committed_rows(out) == 5 * BATCH)
    wait_for_the_last_workers(session)
    assert not read_stage(str(out / "scores"))["complete"]  # type: ignore[index]
    assert gating.committed_rows(out) == 5 * BATCH
    files = {file: file.stat().st_mtime_ns for file in out.glob("scores/*.parquet")}
    gates.open()
    again = vig(*words, **gates.environment)
    return Resumed(out, again.stderr, files, len(gates.begun()))


def test_a_killed_driver_goes_on_where_it_was(world: Path, resumed: Resumed) -> None:
    assert f"going on: {5 * BATCH} of {ROWS} rows" in resumed.told
    assert sum(pq.read_metadata(file).num_rows for file in resumed.files) == 5 * BATCH
    assert {file: file.stat().st_mtime_ns for file in resumed.files} == resumed.files
    assert resumed.batches == 5 + 1 + 5  # the first run's, the one that it was killed in, and the second run's
    gating.assert_as_expected(read_scores(resumed.out), gating.expected_scores(world, blur="opencv"))
    assert read_stage(str(resumed.out / "scores"))["complete"]  # type: ignore[index]
    assert not list(resumed.out.glob(".score-*"))
    third = vig(*command(world, resumed.out), PYTHONPATH=gating.PYTHONPATH)
    assert "already complete" in third.stderr
    gating.assert_as_expected(read_scores(resumed.out), gating.expected_scores(world, blur="opencv"))


@pytest.mark.long
@pytest.mark.parametrize("changed", [{"max_image_pixels": 999}, {"too_long": "truncate"}, {"dtype": "bfloat16"}])
def test_scores_of_other_options_are_not_mixed(
    world: Path, resumed: Resumed, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.stat().st_mtime_ns for file in (resumed.out / "scores").iterdir()}
    own_engine: dict[str, Any] = {"engine": gating.ENGINE[1], "rows_per_file": BATCH}
    config = ScoreConfig(data=str(world), model=CHECKPOINT, out=str(resumed.out), **own_engine, **changed)
    monkeypatch.syspath_prepend(str(gating.ENGINES))
    with pytest.raises(StageError, match="--overwrite") as refused:
        job.run(config)
    assert next(iter(changed)) in str(refused.value)
    assert {file: file.stat().st_mtime_ns for file in (resumed.out / "scores").iterdir()} == before


@pytest.mark.long
def test_a_killed_driver_goes_on_on_object_storage(world: Path, tmp_path: Path, s3: Callable[[], Any]) -> None:
    """There a commit is a copy and a deletion, not a rename."""
    client = s3()
    client.create_bucket(Bucket="resume")
    gates = Gates(tmp_path / "gates")
    words = command(world, "s3://resume/run")

    def objects(prefix: str) -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="resume", Prefix=prefix)
        return [listed["Key"] for page in pages for listed in page.get("Contents", []) if listed["Size"]]

    def committed() -> int:
        return sum("/checkpoint/" in key and ".pending" not in key for key in objects("run/.score-"))

    killed_at(gates, 4, words, lambda: committed() == 4)
    gates.open()
    again = vig(*words, **gates.environment)  # at once, while workers of the killed run may still be on their way out
    assert f"going on: {4 * BATCH} of {ROWS} rows" in again.stderr
    rows: list[dict[str, Any]] = []
    for key in objects("run/scores/"):
        if key.endswith(".parquet"):
            body = client.get_object(Bucket="resume", Key=key)["Body"].read()
            rows += pq.read_table(pa.BufferReader(body)).to_pylist()
    rows.sort(key=lambda row: str(row["sample_key"]))
    gating.assert_as_expected(rows, gating.expected_scores(world, blur="opencv"))
    assert not objects("run/.score-")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gates]:
    """Gates of engines that a Ray in this process starts."""
    import ray

    from vig_ray import cluster

    gates = Gates(tmp_path / "gates")
    for name, value in gates.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(gating.ENGINES))
    ray.shutdown()
    cluster.start(num_cpus=8, object_store_memory=300 * 2**20)
    yield gates
    ray.shutdown()


def test_killed_actors_cost_nothing(
    world: Path, tmp_path: Path, here: Gates, demo_model: Any, demo_formatter: Any
) -> None:
    """The real engine: one is killed in its fourth batch, and the process that prepares in an image of the seventh."""
    with image_store() as store:
        keys = [str(row["sample_key"]) for row in gating.expected_scores(world)]
        data = hold_images(world, tmp_path / "elsewhere", store, {"late": keys[6 * BATCH :]})
        here.close(3)
        failures: list[BaseException] = []

        def score() -> None:
            try:
                words = {"data": data, "model": CHECKPOINT, "out": tmp_path, "engine": "gated:torch_engine"}
                numbers: dict[str, Any] = {"rows_per_file": BATCH, "workers": 1, "prepare_workers": 1, "blur": "opencv"}
                job.run(ScoreConfig(**{name: str(value) for name, value in words.items()}, **numbers))
            except BaseException as error:
                failures.append(error)

        run = threading.Thread(target=score, daemon=True)
        run.start()
        here.wait_for(3)
        store.wait_for("late")
        (preparer,) = (
            process for process in prefork.descendants(os.getpid())
            if "ray::" in (name := " ".join(process.cmdline())) and "Preparer" in name
        )  # fmt: skip
        preparer.kill()
        here.kill_at(3)
        store.wait_for("late", times=2)  # by the process that took the killed one's place
        store.let_go("late")
        run.join()
    assert not failures
    rows = read_scores(tmp_path)
    assert len({begun.pid for begun in here.begun()}) == 2
    undisturbed = TorchEngine(demo_model, demo_formatter.collate)
    gating.assert_as_expected(rows, gating.expected_scores(world, undisturbed.logprobs, blur="opencv"), atol=1e-5)
    golden = json.loads(GOLDEN.read_text())
    scored_then = [row for row in rows if row["sample_key"] in golden]
    assert len(scored_then) >= 8
    for row in scored_then:
        for name in ("clean_logprobs", "blur_logprobs"):
            np.testing.assert_allclose(row[name], golden[row["sample_key"]][name], atol=1e-5)
