"""What a cloud does to spot machines, done to the raylets of `ray.cluster_utils.Cluster`."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.core.generated import autoscaler_pb2

# A lost machine is told sooner than after Ray's usual minute.
_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
# A head that does no work. Nobody asks its dashboard, which would be ten processes more.
HEAD = {"num_cpus": 0, "include_dashboard": False, "_system_config": _SOON}


def announce(cluster: Any, node: Any, seconds: float) -> None:
    """Tell Ray that `node` is taken away in `seconds`, as `ray drain-node` does; nothing takes it away."""
    accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
        node.node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "spot",
        int((time.time() + seconds) * 1000),
    )
    assert accepted, why
