"""Writing checkpoints in the layout that the hub, transformers and vLLM read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file

# transformers 5 names tensors by its module tree; the hub's LLaVA checkpoints, and vLLM, keep the older names.
_HUB_LAYOUT = (
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^model\.vision_tower\."), "vision_tower."),
    (re.compile(r"^model\.multi_modal_projector\."), "multi_modal_projector."),
)
CLIP_NAME = "mm_vision_tower"
"""In a LLaVA's config: the CLIP on the hub whose weights the vision tower has, as `vig assemble` notes it."""
_SHARD_BYTES = 5 * 10**9


def hub_name(name: str) -> str:
    """A LLaVA parameter's name in transformers 5 to its name in the hub's layout."""
    for pattern, prefix in _HUB_LAYOUT:
        renamed, count = pattern.subn(prefix, name)
        if count:
            return renamed
    return name


def save_checkpoint(model: Any, processor: Any, out: str, *, state: Mapping[str, Any] | None = None) -> None:
    """Write a LLaVA model's config, weights (safetensors, at most 5 GB a file) and processor to folder `out`.

    `state`: the weights, by the model's names, where they aren't the model's own.
    """
    os.makedirs(out, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(out)
    processor.save_pretrained(out)
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name, tensor in (model.state_dict() if state is None else state).items():
        size += tensor.nbytes
        if size > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = tensor.nbytes
        shards[-1][hub_name(name)] = tensor.detach().cpu().contiguous()
    if len(shards) == 1:
        save_file(shards[0], os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
        return
    where, total = {}, 0
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, os.path.join(out, file), metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        total += sum(tensor.nbytes for tensor in shard.values())
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as file_:
        json.dump({"metadata": {"total_size": total}, "weight_map": where}, file_, indent=2, sort_keys=True)
