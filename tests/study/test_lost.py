"""A study that is killed at random and given again, and one whose machines are lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.spot import HEAD
from tests.command import call
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.server import wait_until
from tests.end_to_end.test_resume import wait_for_the_last_workers
from tests.study import made

pytestmark = pytest.mark.cluster

TRAINING = {"train": {"max_steps": 6, "save_every": 1}}


def begun(path: Path, out: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vig_ray.cli", "study", str(path), "--out", str(out), *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=(out.parent / "stderr").open("w"), start_new_session=True,
    )  # fmt: skip


def whole_files(out: Path) -> dict[Path, tuple[int, bytes]]:
    """When and what was written of the stages that are done."""
    found = {}
    for name, record in made.records(out).items():
        if record["state"] == "done":
            for file in (out / "runs" / name).rglob("*"):
                if file.is_file():
                    found[file] = file.stat().st_mtime_ns, file.read_bytes()
    return found


@pytest.mark.long
def test_killed_at_random_and_given_again(tmp_path: Path, preforked: None, local_ray: None) -> None:
    path, out = made.write(tmp_path, stages=TRAINING), tmp_path / "out"
    whole = tmp_path / "whole"
    call("study", str(path), "--out", str(whole))
    chance = random.Random(5)
    seen: dict[Path, tuple[int, bytes]] = {}
    spent: dict[str, float] = {}
    for least in (1, 4, 7):
        driver = begun(path, out)
        wait_until(lambda least=least: len(made.records(out)) >= least)
        time.sleep(chance.uniform(0, 4))
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        wait_for_the_last_workers(driver.pid)
        found = whole_files(out)
        assert {file: found[file] for file in seen} == seen  # byte for byte, and not written again
        seen = found
        spent |= {file.parent.name: json.loads(file.read_text())["seconds"] for file in out.glob("runs/*/spent.json")}
    driver = begun(path, out)
    assert driver.wait(240) == 0, (tmp_path / "stderr").read_text()
    found = whole_files(out)
    assert {file: found[file] for file in seen} == seen
    assert made.results(out)["cost"]["ran"] <= 13 - 7
    kept = made.records(out)  # the time of a stage is that of its tries together
    assert all(kept[name]["seconds"] >= seconds for name, seconds in spent.items())
    assert not list(out.glob("runs/*/spent.json"))
    assert made.numbers(out) == pytest.approx(made.numbers(whole), abs=1e-4)
    losses = [
        {file.parent.parent.name: file.read_text().count("\n") for file in folder.glob("runs/*/training/log.jsonl")}
        for folder in (out, whole)
    ]
    assert losses[0] == losses[1]  # as many steps, none twice
    assert len(losses[0]) == 4


@pytest.fixture
def cluster(preforked: None) -> Iterator[Any]:
    """A head that does no work, and four machines."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    of_one = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    started = Cluster(initialize_head=True, head_node_args=of_one | HEAD)
    started.machines = [started.add_node(**of_one) for _ in range(4)]
    yield started
    started.shutdown()


@pytest.mark.long
def test_a_lost_machine_costs_its_runs_alone(tmp_path: Path, cluster: Any) -> None:
    """Runs go side by side on four machines; one is lost while it trains."""
    path, out = made.write(tmp_path, stages={"train": {"max_steps": 40, "save_every": 5}}), tmp_path / "out"
    driver = begun(path, out, "--address", cluster.address)

    def training() -> list[str]:
        return [folder.parent.name for folder in out.glob("runs/train-*/training")]

    wait_until(lambda: len(training()) == 4 or driver.poll() is not None)  # all at a time
    assert driver.poll() is None, (tmp_path / "stderr").read_text()
    assert not [name for name in made.records(out) if name.startswith("train")]
    done = set(made.records(out))
    cluster.remove_node(cluster.machines[0], allow_graceful=False)
    assert driver.wait(300) == 0, (tmp_path / "stderr").read_text()
    kept = made.records(out)
    lost = cluster.machines[0].node_id[:12]
    trained = {record["machine"].split()[1] for name, record in kept.items() if name.startswith("train")}
    assert lost not in trained
    assert len({record["machine"] for record in kept.values()}) >= 3
    results = made.results(out)
    assert not results["failed"]
    assert results["cost"]["ran"] == 13
    assert done <= set(kept)
    # By one machine, undisturbed: the same numbers.
    alone = tmp_path / "alone"
    other = begun(path, alone)
    assert other.wait(240) == 0, (tmp_path / "stderr").read_text()
    assert made.numbers(out) == pytest.approx(made.numbers(alone), abs=1e-4)
