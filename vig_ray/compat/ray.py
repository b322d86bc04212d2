"""Ray's inside, as of ray 2.60.0."""

from __future__ import annotations


def started_here() -> bool:
    """Whether this process started the Ray that it uses, instead of joining one. Ray must be initialized.

    Ray has no public word for it. It matters since such a Ray is one machine that never gets another.
    """
    from ray._private import worker

    node = worker._global_node
    return node is not None and bool(node.is_head())
