"""A cluster of several raylets on this machine, whose nodes are lost and replaced for as long as a job runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.spot import SOON, announce
from tests.end_to_end.conftest import ROOT, read_scores, vig
from vig_ray.demo import CHECKPOINT, world

ROWS = int(os.environ.get("VIG_TEST_CHAOS_ROWS", "3000"))
# Many small machines: what a lost one costs here is the start of its processes again, on the same two cores.
_NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
_NODES = 5


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that does no work, and `_NODES` machines."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args=_NODE | {"num_cpus": 0, "_system_config": SOON})
    yield found
    found.shutdown()


def test_a_scoring_job_outlives_its_machines(cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = world.write(str(tmp_path / "data"), ROWS, 81)
    words = ["--data", data, "--model", CHECKPOINT, "--rows-per-file", "100"]
    on_cluster = ["--address", cluster.address, "--workers", "1..2", "--prepare-workers", "1..2"]
    rng = random.Random(0)
    nodes = [cluster.add_node(**_NODE) for _ in range(_NODES)]
    # Into files: a pipe that nobody reads is full one day.
    with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
        job = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", "score", *words, "--out", str(tmp_path), *on_cluster],
            cwd=ROOT, stdout=stdout, stderr=stderr,
        )  # fmt: skip
    lost = 0
    while not list(tmp_path.glob("scores/*.parquet")) and job.poll() is None:
        time.sleep(0.5)
    began = time.monotonic()
    while job.poll() is None:
        time.sleep(rng.uniform(2, 8))
        node = nodes.pop(rng.randrange(len(nodes)))
        if rng.random() < 0.3:  # announced; the others go without a word
            announce(cluster, node, 3)
            time.sleep(3)
        cluster.remove_node(node, allow_graceful=False)
        lost += 1
        time.sleep(rng.uniform(0, 4))
        nodes.append(cluster.add_node(**_NODE))
    told = (tmp_path / "stderr").read_text()
    assert job.returncode == 0, told[-3000:]
    rows = read_scores(tmp_path)
    with capsys.disabled():
        print(f"\n{ROWS} samples scored while {lost} nodes were lost in {time.monotonic() - began:.0f} s")
    assert lost >= 2
    keys = Counter(row["sample_key"] for row in rows)
    assert (len(keys), set(keys.values())) == (ROWS, {1})
    # What Ray says of lost machines is not among the results.
    assert all(line.split(":")[0].split(" ")[0] in ("read", "mean", "scores") for line in lines_of(tmp_path / "stdout"))
    vig("score", *words, "--out", str(tmp_path / "undisturbed"))
    for ours, alone in zip(rows, read_scores(tmp_path / "undisturbed"), strict=True):
        assert (ours["sample_key"], ours["token_ids"]) == (alone["sample_key"], alone["token_ids"])
        assert ours["clean_logprobs"] == pytest.approx(alone["clean_logprobs"], abs=1e-5)
        assert ours["reference_logprobs"] == pytest.approx(alone["reference_logprobs"], abs=1e-5)


def lines_of(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line.strip()]
