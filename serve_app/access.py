"""What an operator's files say of keys and policies, read where the application is built and given to each ingress."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from serve_app.gates import Policy, read_policies
from serve_app.keys import Key, read_keys
from serve_app.options import AppConfig
from vig_ray.errors import StageError


class Access(NamedTuple):
    """`keys`: None for a server without keys. `processes`: the most that share a key's limits."""

    keys: tuple[Key, ...] | None = None
    policies: Mapping[str, Policy] = {}
    processes: int = 1


def read_access(config: AppConfig, *, processes: int = 1) -> Access:
    """What the files of `config.keys` and `config.policies` say. Raises StageError."""
    policies = read_policies(config.policies)
    if config.keys is None:
        return Access(None, policies, processes)
    keys = read_keys(config.keys, policies)
    if not keys:
        raise StageError(f"--keys {config.keys}: holds no key")
    return Access(keys, policies, processes)
