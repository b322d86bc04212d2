"""cluster.yaml's node types under Ray's own autoscaler: machines come for a scoring job, and go when it is done."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests import gates as gating
from tests.end_to_end.conftest import ROOT, read_scores
from tests.end_to_end.head import Head, head
from tests.end_to_end.server import wait_until
from tests.gates import Gates
from vig_ray.demo import CHECKPOINT


def machines(cluster: Head) -> Counter[str]:
    """How many machines of each type are alive, by their resources: Ray's fake provider gives no other sign."""
    listed = httpx.get(f"{cluster.dashboard}/api/v0/nodes", timeout=30).json()["data"]["result"]["result"]
    types = Counter[str]()
    for node in listed:
        if node["state"] == "ALIVE":
            has = node["resources_total"]
            types["head" if node["is_head_node"] else f"CPU {has['CPU']:.0f}, GPU {has.get('GPU', 0):.0f}"] += 1
    return types


@pytest.mark.cluster
def test_machines_come_with_the_work_and_go_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config["idle_timeout_minutes"] = 0.1
    gating.write_world(tmp_path)
    gates = Gates(tmp_path / "gates")
    for name, value in gates.environment.items():
        monkeypatch.setenv(name, value)
    gates.close(0, 1)
    with head(cpus=0, scaling=config) as cluster, (tmp_path / "told").open("w") as told:
        wait_until(lambda: machines(cluster) == {"head": 1})
        # GPUs are waited for; this machine's raylets only say that they have some.
        job = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", "score", "--address", cluster.address, "--data", str(tmp_path),
             "--model", CHECKPOINT, "--out", str(tmp_path), "--device", "cuda", "--dtype", "float32",
             *gating.ENGINE, "--workers", "1..2", "--prepare-workers", "1..2",
             "--rows-per-file", "10", "--window", "10"],
            cwd=ROOT, stdout=told, stderr=told,
        )  # fmt: skip
        try:
            # The first engine is busy with its batch, and one more finds no GPU free: another machine comes for it.
            wait_until(lambda: len(gates.begun()) == 2 or job.poll() is not None)
            assert job.poll() is None, (tmp_path / "told").read_text()
            first, second = gates.begun()
            assert first.node != second.node
            gates.open()
            most = Counter[str]()

            def ended() -> bool:
                nonlocal most
                most |= machines(cluster)
                return job.poll() is not None

            wait_until(ended)
            assert job.returncode == 0, (tmp_path / "told").read_text()
            assert most == {"head": 1, "CPU 4, GPU 1": 2}  # spot before on-demand
        finally:
            job.kill()
            job.wait()
        wait_until(lambda: machines(cluster) == {"head": 1})
    gating.assert_as_expected(read_scores(tmp_path), gating.expected_scores(tmp_path))
