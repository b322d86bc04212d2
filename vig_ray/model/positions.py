"""Position ids of a prompt, as the model counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vig_ray.model.prompt import Prompt


def position_ids(model: Any, prompt: Prompt) -> torch.Tensor:
    """int64 [L], or [3, L] where positions have time, height and width (M-RoPE); images included."""
    if not hasattr(model.model, "get_rope_index") or not prompt.images:
        return torch.arange(len(prompt.token_ids))
    grid = np.concatenate([image.inputs["image_grid_thw"] for image in prompt.images])
    ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
    position_ids_3BT: torch.Tensor = model.model.get_rope_index(
        input_ids=ids,
        mm_token_type_ids=torch.from_numpy(prompt.image_mask.astype(np.int64))[None],
        image_grid_thw=torch.from_numpy(grid),
        attention_mask=torch.ones_like(ids),
    )[0]
    return position_ids_3BT[:, 0].cpu()
