"""cluster.yaml's node types under Ray's own autoscaler: machines come for a scoring job, and go when it is done."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from tests.end_to_end.conftest import ROOT, read_scores
from tests.end_to_end.head import Head, head
from tests.end_to_end.server import wait_until
from vig_ray.demo import CHECKPOINT, world

ROWS = 900


def machines(cluster: Head) -> Counter[str]:
    """How many machines of each type are alive, by their resources: Ray's fake provider gives no other sign."""
    listed = httpx.get(f"{cluster.dashboard}/api/v0/nodes", timeout=30).json()["data"]["result"]["result"]
    types = Counter[str]()
    for node in listed:
        if node["state"] == "ALIVE":
            own = node["resources_total"]
            types["head" if node["is_head_node"] else f"CPU {own['CPU']:.0f}, GPU {own.get('GPU', 0):.0f}"] += 1
    return types


@pytest.mark.cluster
def test_machines_come_with_the_work_and_go_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preforked: None
) -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config["idle_timeout_minutes"] = 0.2
    data = world.write(str(tmp_path / "data"), ROWS, 82)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmarks"))
    monkeypatch.setenv("VIG_SLEEP_MS", "60")
    with head(cpus=0, scaling=config) as cluster, (tmp_path / "told").open("w") as told:
        wait_until(lambda: machines(cluster) == {"head": 1})
        # GPUs are waited for; this machine's raylets only say that they have some.
        job = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", "score", "--address", cluster.address, "--data", data,
             "--model", CHECKPOINT, "--out", str(tmp_path), "--device", "cuda", "--dtype", "float32",
             "--engine", "sleeping:engine", "--workers", "1..2", "--prepare-workers", "1..2",
             "--rows-per-file", "50", "--window", "50"],
            cwd=ROOT, stdout=told, stderr=told,
        )  # fmt: skip
        most = Counter[str]()

        def ended() -> bool:
            nonlocal most
            most |= machines(cluster)
            return job.poll() is not None

        wait_until(ended, 300)
        assert job.returncode == 0, (tmp_path / "told").read_text()
        # One more engine found no GPU free, so another machine came for it; spot before on-demand. A third may be seen
        # where a slow machine's engines begin late: one goes, idle for too long, while the next one comes.
        assert most.keys() == {"head", "CPU 4, GPU 1"}
        assert most["head"] == 1
        assert most["CPU 4, GPU 1"] in (2, 3)
        wait_until(lambda: machines(cluster) == {"head": 1}, 120)
    assert len(read_scores(tmp_path)) == ROWS
    for row in read_scores(tmp_path):
        assert row["error"] is None
        if row["vig"] is not None:  # what benchmarks/sleeping.py makes up
            assert row["vig"] == pytest.approx(np.mean(np.array(row["token_ids"]) % 100) / 100, abs=1e-6)
