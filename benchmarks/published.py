"""The published way to score, VisNec's loop: one sample at a time, logits of every position, a pass after the other.

It is the baseline of benchmarks/score.py, flops.py and gpu.py, and what an engine's numbers are held against there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vig_ray.model.head import token_types_argument
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt

Collate = Callable[..., dict[str, Any]]


@torch.no_grad()
def published_loop(model: Any, collate: Collate, prompts: Sequence[Prompt]) -> list[np.ndarray[Any, Any]]:
    """Log-probs of each prompt's answer tokens, float32 [T].

    Hidden images are masked positions that are computed nevertheless, without the tower.
    """
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    types = token_types_argument(model)
    found = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.token_ids).long()[None].to(device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        is_image = torch.from_numpy(prompt.image_mask).long()[None].to(device)
        if types:
            inputs[types] = is_image
        if prompt.hide_images:
            inputs["attention_mask"] = 1 - is_image
            positions = position_ids(model, prompt).to(device)
            inputs["position_ids"] = positions[None] if positions.ndim == 1 else positions[:, None]
        elif prompt.images:
            inputs |= collate([image.inputs for image in prompt.images], device, dtype)
        logits = model(**inputs).logits
        logp = torch.log_softmax(logits[0, :-1].float(), dim=-1)
        logp = logp.gather(1, ids[0, 1:, None])[:, 0]
        found.append(logp[torch.from_numpy(prompt.answer_positions).long().to(device) - 1].cpu().numpy())
    return found


def largest_difference(expected: Sequence[Any], found: Sequence[Any]) -> float:
    """The largest difference of log-probs by two ways, nats. Raises what an engine gave in a prompt's place."""
    refused = next((each for each in found if isinstance(each, Exception)), None)
    if refused is not None:
        raise refused
    return max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
