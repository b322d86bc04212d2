"""The tasks, by name; a module of `tasks/` is imported only when its task is asked for."""

from __future__ import annotations

import importlib
from typing import cast

from vig_ray.errors import StageError
from vig_ray.evaluation.task import Task

TASKS: dict[str, str] = {
    "choices": "choices:Choices",
    "exact": "exact:Exact",
    "held-out": "held_out:HeldOut",
}
"""From a task's name to MODULE:NAME of its class."""


def task(name: str) -> Task:
    """The task of that name. Raises StageError for one that isn't there."""
    if name not in TASKS:
        raise StageError(f"--tasks {name}: no such task; there are {', '.join(sorted(TASKS))}, and lmms:NAME")
    module, _, made = TASKS[name].partition(":")
    return cast(Task, getattr(importlib.import_module(f"vig_ray.evaluation.tasks.{module}"), made)())
