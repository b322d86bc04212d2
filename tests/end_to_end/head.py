"""A Ray cluster's head in processes of its own, with the dashboard that takes jobs and Serve configs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.conftest import ROOT
from tests.end_to_end.server import free_port, wait_until

RAY = str(Path(sys.executable).with_name("ray"))
_HEAD_NODE = "f" * 51 + "00000"  # the id by which Ray's fake provider of machines knows the head


@dataclass(frozen=True)
class Head:
    """Where it answers: `address` to drivers, `dashboard` to HTTP, `metrics` to Prometheus."""

    address: str
    dashboard: str
    metrics: str

    def measured(self, name: str) -> float | None:
        """A metric's value, summed over its labels; None where it isn't told."""
        text = httpx.get(self.metrics, timeout=30).text
        found = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(map(float, found)) if found else None

    def ray(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run `ray WORDS`."""
        return self._run(RAY, *words)

    def serve(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run `serve WORDS`."""
        return self._run(Path(RAY).with_name("serve"), *words)

    def ended(self, job: str) -> str:
        """How a job ended, once it has."""
        from ray.job_submission import JobSubmissionClient

        client = JobSubmissionClient(self.dashboard)
        wait_until(lambda: client.get_job_status(job).is_terminal())
        return str(client.get_job_status(job))

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"RAY_ADDRESS": self.dashboard, "RAY_DASHBOARD_ADDRESS": self.dashboard}
        return subprocess.run(
            [*map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )


@contextmanager
def head(*, cpus: int = 12, scaling: Mapping[str, Any] | None = None) -> Iterator[Head]:
    """`ray start --head`, as long as the context lasts.

    `scaling`: a cluster config whose node types an autoscaler starts and stops, as raylets on this machine.
    """
    port, dashboard, metrics = free_port(), free_port(), free_port()
    words = ["start", "--head", "--block", "--port", port, "--dashboard-port", dashboard, "--num-cpus", cpus,
             "--include-dashboard", "true", "--disable-usage-stats", "--object-store-memory", 300 * 2**20,
             "--ray-client-server-port", free_port(), "--dashboard-agent-listen-port", free_port(),
             "--min-worker-port", 0, "--max-worker-port", 0, "--metrics-export-port", metrics]  # fmt: skip
    path = f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"  # a job's `python` is this one
    environment = os.environ | {"PATH": path, "RAY_metrics_report_interval_ms": "1000"}
    # Its jobs find the hook that `preforked` names, from whatever folder they run in.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        if scaling is not None:
            file = Path(folder, "scaling.json")
            file.write_text(json.dumps(_on_this_machine(scaling, port)))
            words += ["--autoscaling-config", file]
            environment |= {"RAY_enable_autoscaler_v2": "1"}  # as `ray up` sets it
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
            environment |= {"RAY_CLOUD_INSTANCE_ID": _HEAD_NODE, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_NODE}
        else:
            # A job joins the cluster that began last in its folder: with the usual one, another test's.
            words += ["--temp-dir", folder]
        process = subprocess.Popen(
            [RAY, *map(str, words)], cwd=ROOT, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        found = Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{metrics}/metrics")

        def answers() -> bool:
            assert process.poll() is None, "ray start ended"
            try:
                return httpx.get(f"{found.dashboard}/api/version").status_code == 200
            except httpx.TransportError:
                return False

        try:
            wait_until(answers)
            yield found
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(180)


def _on_this_machine(scaling: Mapping[str, Any], port: int) -> dict[str, Any]:
    """A cluster config for Ray's fake provider, which starts raylets instead of machines."""
    types = {
        "ray.head.default" if name == scaling["head_node_type"] else name: {**each, "node_config": {}}
        for name, each in scaling["available_node_types"].items()
    }
    types["ray.head.default"]["max_workers"] = 0
    provider = {
        # By its module: as "fake_multinode" Ray looks for a file that its wheel lacks.
        "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{port}", "head_node_id": _HEAD_NODE,
        "launch_multiple": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        "foreground_node_launch": True,
    }  # fmt: skip
    lists = ("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands",
             "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")  # fmt: skip
    return {
        **{name: scaling[name] for name in ("cluster_name", "max_workers", "upscaling_speed", "idle_timeout_minutes")},
        **{name: [] for name in lists},
        "available_node_types": types, "head_node_type": "ray.head.default", "provider": provider,
        "auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
        "rsync_exclude": [], "rsync_filter": [],
    }  # fmt: skip
