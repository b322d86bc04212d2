"""`serve run` and `serve deploy serve.yaml` on a Ray cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from serve_app.schema import EXAMPLE_QA
from tests.end_to_end.conftest import ROOT
from tests.end_to_end.head import Head
from tests.end_to_end.server import free_port, wait_until
from vig_ray.demo import CHECKPOINT

pytestmark = pytest.mark.cluster

SERVE = Path(sys.executable).with_name("serve")


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def serve_answers(cluster: Head) -> bool:
    """Whether the dashboard's part for Serve has joined the cluster. Asked before that, it does, and where the cluster
    has only just begun it may be lost meanwhile, with the request; Ray then begins it again."""
    try:
        return httpx.get(f"{cluster.dashboard}/api/serve/applications/", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def deploy(cluster: Head, config: Path) -> None:
    """`serve deploy`, once more where the dashboard was lost with the request."""
    for _ in range(3):
        done = cluster.serve("deploy", config)
        if done.returncode == 0:
            return
        assert "ConnectionError" in done.stderr, done.stderr
    raise AssertionError(done.stderr)


@pytest.fixture
def cluster(ray_head: Head) -> Iterator[Head]:
    """The cluster, without Serve at the end."""
    wait_until(lambda: serve_answers(ray_head))
    yield ray_head
    done = ray_head.serve("shutdown", "-y")
    assert done.returncode == 0, done.stderr


def test_serve_yaml_is_deployed_with_its_keys_and_ranges(tmp_path: Path, cluster: Head) -> None:
    config = yaml.safe_load((ROOT / "serve.yaml").read_text())
    (tmp_path / "keys").write_text("a-key\n")
    config["http_options"] = {"host": "127.0.0.1", "port": (port := free_port())}
    config["applications"][0]["args"] |= {"model": CHECKPOINT, "device": "cpu", "keys": str(tmp_path / "keys")}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    deploy(cluster, tmp_path / "serve.yaml")
    wait_until(lambda: ready(url))
    assert httpx.post(f"{url}/v1/score", json=EXAMPLE_QA, timeout=60).status_code == 401
    key = {"Authorization": "Bearer a-key"}
    answer = httpx.post(f"{url}/v1/score", json=EXAMPLE_QA, headers=key, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["tau"] == 0.1
    status = yaml.safe_load(cluster.serve("status").stdout)
    deployed = status["applications"]["vig"]
    assert deployed["status"] == "RUNNING"
    assert set(deployed["deployments"]) == {"Scorer", "Ingress"}
    # `serve run` beside it, under a prefix of its own.
    beside = subprocess.Popen(
        [SERVE, "run", "serve_app.app:build", f"model={CHECKPOINT}", "--address", cluster.address,
         "--name", "beside", "--route-prefix", "/beside"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: ready(f"{url}/beside"))
        answer_beside = httpx.post(f"{url}/beside/v1/score", json=EXAMPLE_QA, timeout=60)
        assert answer_beside.json()["vig"] == pytest.approx(answer.json()["vig"], abs=1e-5)
    finally:
        # Not by Ctrl-C: `serve run` then shuts down all of Serve, the application under test too, in its own time.
        beside.kill()
        beside.wait()
    # A wrong option ends in words.
    config["applications"][0]["args"]["tau"] = "high"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(config))
    deploy(cluster, tmp_path / "wrong.yaml")
    wait_until(lambda: "tau: " in cluster.serve("status").stdout)
