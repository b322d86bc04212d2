"""Functions in processes of their own that are forked from one that has imported torch and transformers.

Importing them takes longer than all else in most tests here, as in `prefork.py`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

import torch

# Of this project and its dependencies only: the server may be started in any folder.
_MODULES = [
    "vig_ray.training.worker", "vig_ray.training.ray_group", "torch.distributed.fsdp", "torch.distributed.checkpoint",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto",
    "transformers.models.llava.modeling_llava", "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama", "peft",
]  # fmt: skip


def in_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call `work(rank, *arguments)` in `count` processes at once, which have this one's environment; what one of them
    raises is raised."""
    multiprocessing.set_forkserver_preload(_MODULES)
    torch.multiprocessing.start_processes(
        _begin, (dict(os.environ), os.getcwd(), work, arguments), nprocs=count, start_method="forkserver"
    )


def begun(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """`work(*arguments)` in a process of its own, which goes on beside this one; its environment and folder are this
    one's, its standard input is empty."""
    multiprocessing.set_forkserver_preload(_MODULES)
    process = multiprocessing.get_context("forkserver").Process(
        target=_begin, args=(None, dict(os.environ), os.getcwd(), work, arguments), daemon=True
    )
    process.start()
    return process


def _begin(
    rank: int | None, environment: Mapping[str, str], folder: str, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    work(*(() if rank is None else (rank,)), *arguments)
