"""An engine whose log-probs are known beforehand and that waits at gates.

`--engine gated:engine`, with this folder on PYTHONPATH. GATES names a folder that all engines of a run share; without
it nothing waits. Each batch that any of them begins takes the next number: a file NUMBER, with the engine's process and
node. While NUMBER.closed lies beside it, the engine waits; where NUMBER.fails does, it raises what torch raises
where a GPU fails. `tests.gates.Gates` is the test's side of that folder.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

GATES = "VIG_TEST_GATES"


def logprobs_of(prompt: Any) -> npt.NDArray[np.float32]:
    """log q of each answer token, float32 [T]: a function of its id, and of the pixels of all the prompt's images."""
    ids = prompt.token_ids[prompt.answer_positions]
    brightness = 0.0
    if not prompt.hide_images:
        for place, image in enumerate(prompt.images, 1):
            square = float(np.mean(np.square(image.inputs["pixel_values"], dtype=np.float64)))
            brightness += place * math.log1p(square)
    return (-0.01 * (1 + ids % 100) * (1 + brightness)).astype(np.float32)


class Gated:
    """See the module."""

    def __init__(self, compute: Callable[[Sequence[Any]], list[Any]], description: str) -> None:
        self._compute, self.description = compute, description
        folder = os.environ.get(GATES)
        self._gates = Path(folder) if folder else None

    def logprobs(self, prompts: Sequence[Any]) -> list[Any]:
        """What `compute` gives, once the gate of this batch is open."""
        if self._gates is not None and prompts:
            self._wait_at(self._gates, len(prompts))
        return self._compute(prompts)

    def _wait_at(self, gates: Path, prompts: int) -> None:
        begun = json.dumps({"pid": os.getpid(), "node": _node(), "prompts": prompts})
        for number in itertools.count():
            try:
                with open(gates / str(number), "x") as file:
                    file.write(begun)
                break
            except FileExistsError:
                continue
        while (gates / f"{number}.closed").exists():
            time.sleep(0.02)
        if (gates / f"{number}.fails").exists():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def engine(**_: Any) -> Gated:
    """What `--engine gated:engine` names: values by `logprobs_of`."""
    return Gated(lambda prompts: [logprobs_of(prompt) for prompt in prompts], "gated")


def torch_engine(**options: Any) -> Gated:
    """What `--engine gated:torch_engine` names: the project's own torch engine behind the same gates."""
    from vig_ray.scoring.engines.load import load_engine

    torch = load_engine("torch", **options)
    return Gated(torch.logprobs, f"gated, {torch.description}")
