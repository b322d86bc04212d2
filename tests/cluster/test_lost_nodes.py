"""A cluster of several raylets on this machine, whose nodes are lost and replaced while a scoring job runs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import gates as gating
from tests.cluster.spot import HEAD, announce
from tests.end_to_end.conftest import ROOT, read_scores
from tests.end_to_end.server import wait_until
from tests.gates import Gates
from vig_ray.demo import CHECKPOINT

BATCH = 25
# Many small machines: what a lost one costs here is the start of its processes again, on the same two cores.
_NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}


@pytest.fixture
def gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gates:
    """In the environment of this process, which the machines' processes inherit."""
    made = Gates(tmp_path / "gates")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def cluster(gates: Gates, preforked: None) -> Iterator[Any]:
    """A head that does no work."""
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args=_NODE | HEAD)
    yield started
    started.shutdown()


@contextmanager
def scoring(cluster: Any, out: Path, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """`vig score` of the world in `out` on the cluster; at the context's end it must end well."""
    given: Mapping[str, object] = {
        "data": out, "out": out, "model": CHECKPOINT, "address": cluster.address, "rows_per_file": BATCH,
        "engine": "gated:engine",
    } | options  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    # Into files: a pipe that nobody reads is full one day.
    with (out / "stdout").open("w") as stdout, (out / "stderr").open("w") as stderr:
        job = subprocess.Popen(
            [sys.executable, "-m", "vig_ray.cli", "score", *words], cwd=ROOT, stdout=stdout, stderr=stderr
        )
        try:
            yield job
            assert job.wait(300) == 0, (out / "stderr").read_text()[-3000:]
        finally:
            job.kill()
            job.wait()


def assert_scored(out: Path) -> None:
    gating.assert_as_expected(read_scores(out), gating.expected_scores(out))
    # What Ray says of lost machines is not among the results.
    lines = [line for line in (out / "stdout").read_text().splitlines() if line.strip()]
    assert all(line.split(":")[0].split(" ")[0] in ("read", "mean", "scores") for line in lines)


@pytest.mark.cluster
def test_machines_lost_under_an_engine_and_added(cluster: Any, gates: Gates, tmp_path: Path) -> None:
    """Twice it is the engine's own machine, in the middle of a batch: without a word, and announced."""
    gating.write_world(tmp_path)
    nodes = [cluster.add_node(**_NODE) for _ in range(3)]

    def lose_the_engines_machine(number: int, announced_s: float | None = None) -> None:
        begun = gates.wait_for(number)
        lost = next(node for node in nodes if node.node_id == begun.node)
        if announced_s is not None:
            announce(cluster, lost, announced_s)
        cluster.remove_node(lost, allow_graceful=False)
        nodes.remove(lost)
        wait_until(lambda: gating.gone(begun.pid))
        gates.open(number)

    gates.close(2, 6)
    with scoring(cluster, tmp_path, workers=1, prepare_workers="1..2"):
        lose_the_engines_machine(2)
        nodes.append(cluster.add_node(**_NODE))
        lose_the_engines_machine(6, announced_s=5)
    assert_scored(tmp_path)
    assert len({begun.node for begun in gates.begun()}) == 3


@pytest.mark.long
def test_machines_that_come_and_go_for_its_whole_length(cluster: Any, gates: Gates, tmp_path: Path) -> None:
    """One of five is lost at any moment around every twentieth batch, and another one comes some time later."""
    rows = int(os.environ.get("VIG_TEST_CHAOS_ROWS", "3000"))
    gating.write_world(tmp_path, rows)
    rng = random.Random(0)
    nodes = [cluster.add_node(**_NODE) for _ in range(5)]
    stops = range(5, rows // BATCH, 20)
    gates.close(*stops)
    with scoring(cluster, tmp_path, workers="1..2", prepare_workers="1..2"):
        for number in stops:
            gates.wait_for(number)
            delay = threading.Timer(rng.uniform(0, 8), gates.open, [number])
            delay.start()
            time.sleep(rng.uniform(0, 8))
            node = nodes.pop(rng.randrange(len(nodes)))
            if rng.random() < 0.3:  # announced; the others go without a word
                announce(cluster, node, 3)
                time.sleep(3)
            cluster.remove_node(node, allow_graceful=False)
            time.sleep(rng.uniform(0, 4))
            nodes.append(cluster.add_node(**_NODE))
    assert_scored(tmp_path)
