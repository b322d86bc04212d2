"""The tasks, by name; a module of `tasks/` is imported only when its task is asked for."""

from __future__ import annotations

import importlib
from typing import Any, cast

from vig_ray.errors import StageError
from vig_ray.evaluation.task import Task

TASKS: dict[str, str] = {
    "amber": "amber:Amber",
    "attention": "attention:Attention",
    "chair": "chair:Chair",
    "chartqa": "chartqa:ChartQA",
    "choices": "choices:Choices",
    "docvqa": "docvqa:DocVQA",
    "exact": "exact:Exact",
    "gqa": "gqa:GQA",
    "hallusionbench": "hallusionbench:HallusionBench",
    "held-out": "held_out:HeldOut",
    "llava-bench": "llava_bench:LLaVABench",
    "mm-vet": "mm_vet:MMVet",
    "mmbench": "mmbench:MMBench",
    "mme": "mme:Mme",
    "mmhal": "mmhal:MMHal",
    "mmstar": "mmstar:MmStar",
    "pope": "pope:Pope",
    "scienceqa": "scienceqa:ScienceQA",
    "seed": "seed:Seed",
    "textvqa": "textvqa:TextVQA",
    "vqav2": "vqav2:VQAv2",
}
"""From a task's name to MODULE:NAME of its class."""
AROUND: dict[str, str] = {
    "attention": "attention:Attention",
    "blind-faith": "blind_faith:BlindFaith",
    "swap": "swap:Swap",
}
"""The same of tasks around another, as in swap:gqa; the class is called with the other."""


def task(name: str) -> Task:
    """The task of that name; of OUTER:INNER the one around the other. Raises StageError for one that isn't there."""
    outer, colon, inner = name.partition(":")
    if colon and outer in AROUND:
        if inner.partition(":")[0] in (*AROUND, "lmms"):
            raise StageError(f"--tasks {name}: takes one of {', '.join(sorted(TASKS))} behind {outer}:")
        return cast(Task, _named(AROUND[outer])(task(inner)))
    if name not in TASKS:
        around = ", ".join(f"{each}:TASK" for each in sorted(AROUND))
        raise StageError(f"--tasks {name}: no such task; there are {', '.join(sorted(TASKS))}, {around}, and lmms:NAME")
    return cast(Task, _named(TASKS[name])())


def _named(spelled: str) -> Any:
    module, _, made = spelled.partition(":")
    return getattr(importlib.import_module(f"vig_ray.evaluation.tasks.{module}"), made)
