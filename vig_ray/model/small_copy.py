"""A model of the same classes and widths as a checkpoint's, with two layers and random weights, in float32 on the CPU.

What a model's code does with a batch, with padding or with hidden positions is the same however many layers there are
and whatever their weights, and in float32 it shows to 1e-5. So a family is checked on this.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vig_ray.compat.transformers import unfilled
from vig_ray.model.checkpoint import local_folder, read_config, read_text_config, trusted
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_COUNTS = ("num_hidden_layers", "depth", "num_layers", "n_layers", "num_global_layers", "encoder_layers")
# Lists that name layers by their numbers.
_NUMBERS = (
    "cross_attention_layers", "moe_layers", "mlp_only_layers", "deepstack_visual_indexes", "fullatt_block_indexes",
    "intermediate_layers_indices", "deepstack_layer_map",
)  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_FEW_EXPERTS = 8
_NOISE = 1 << 20
_SHARE_OF_MEMORY = 0.5  # of what is free


EXACT = 2e-5
"""The `largest_difference` of the copy's log-probs by two ways that the order of sums explains."""


def largest_difference(ours_T: npt.NDArray[Any], theirs_T: npt.NDArray[Any]) -> float:
    """The largest difference of log-probs, nats; below -10 by a tenth of them, where float32 has steps of 1e-6.

    Infinite where one is no number.
    """
    away_T = np.abs(ours_T - theirs_T) / np.maximum(1.0, np.abs(theirs_T) / 10)
    return float("inf") if np.isnan(away_T).any() else float(away_T.max(initial=0.0))


def small_copy(model: str, *, text_only: bool = False) -> Any:
    """The small copy of checkpoint `model`, in evaluation mode; None where its config can't be made smaller.

    `text_only`: it is a language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    folder = local_folder(model, weights=False)
    config = copy.deepcopy(read_text_config(folder) if text_only else read_config(folder))

    def made() -> Any:
        return (AutoModelForCausalLM if text_only else AutoModelForImageTextToText).from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=trusted(folder)
        )

    try:
        import psutil

        _shrink(config, deepest=_deepest_feature(config))
        with torch.device("meta"):
            size = 4 * sum(each.numel() for each in made().parameters())
        free = psutil.virtual_memory().available
        if size > _SHARE_OF_MEMORY * free:
            log.warning(
                "%s: no room for a small copy to check the family on (%.0f GB, and %.0f GB of memory are free)",
                model, size / 1e9, free / 1e9,
            )  # fmt: skip
            return None
        return _filled(unfilled(made)).eval()
    except Exception as error:  # whatever a config says when it is cut down
        log.debug("%s: no small copy: %s", model, one_line(error)[:300])
        return None


def _deepest_feature(config: Any) -> int:
    """How many layers the tower needs for the features that are read of it."""
    read = [getattr(config, name, None) for name in ("vision_feature_layer", "vision_feature_layers")]
    layers = [layer for each in read for layer in (each if isinstance(each, list | tuple) else [each])]
    return max((-layer if layer < 0 else layer + 1 for layer in layers if isinstance(layer, int)), default=0)


def _shrink(config: Any, *, deepest: int, least: int = 2) -> None:
    """Cut a config and those inside it down to so few layers that each kind of them is left."""
    for part in (value for value in vars(config).values() if hasattr(value, "to_dict")):
        _shrink(part, deepest=deepest, least=least)
    for name in _EXPERTS:
        experts = getattr(config, name, None)
        if isinstance(experts, int) and experts > _FEW_EXPERTS and getattr(config, "n_group", 1) in (None, 1):
            setattr(config, name, max(_FEW_EXPERTS, getattr(config, "num_experts_per_tok", None) or 1))
    counts = {name: getattr(config, name) for name in _COUNTS if isinstance(getattr(config, name, None), int)}
    if not counts:
        return
    before = max(counts.values())
    is_text = hasattr(config, "vocab_size")
    numbers = {
        name: list(getattr(config, name)) for name in _NUMBERS if isinstance(getattr(config, name, None), list | tuple)
    }
    lists = {
        name: value for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == before
    }
    after = least if is_text else max(least, deepest)
    for value in lists.values():  # kinds of layers: all that there are
        kinds = {str(kind) for kind in value}
        after = max(after, next(n for n in range(1, before + 1) if {str(kind) for kind in value[:n]} == kinds))
    after = max(after, (getattr(config, "first_k_dense_replace", None) or 0) + 1)
    if is_text:
        after = max([after, *(min(value) + 1 for value in numbers.values() if value)])
    else:
        after = max([after, *(len(value) + 1 for value in numbers.values())])  # one of those that aren't named, too
    after = min(after, before)
    # One more that takes its keys and values from the last of its kind (Gemma 3n), where there are such.
    shared = 1 if getattr(config, "num_kv_shared_layers", 0) else 0
    if shared:
        config.num_kv_shared_layers = shared
    for name, value in lists.items():
        setattr(config, name, [*value[:after], *value[after - 1 : after] * shared])
    for name, count in counts.items():
        setattr(config, name, min(count, after) + shared)
    for name, value in numbers.items():
        kept = [number for number in value if number < after] if is_text else list(range(after - len(value), after))
        setattr(config, name, type(getattr(config, name))(kept))
    if isinstance(getattr(config, "insert_layer_id", None), int):  # MiniCPM-V: a merger behind that layer
        config.insert_layer_id = min(config.insert_layer_id, after - 1)


@torch.no_grad()
def _filled(model: torch.nn.Module) -> torch.nn.Module:
    """With weights as large as those of a trained model, so that a fault shows, the same each time.

    Noise is laid out again and again, since making as much as a vocabulary takes would cost ten times as long.
    """
    noise = torch.randn(_NOISE, generator=torch.Generator().manual_seed(0))
    start = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        if parameter.ndim < 2 and ("norm" in name or name.endswith("bias") or size == 1):
            # A gate of zero would shut the image out.
            parameter.fill_(0.0 if name.endswith("bias") else 0.7 if size == 1 else 1.0)
            continue
        flat = parameter.view(-1)
        scale = parameter[0].numel() ** -0.5 if parameter.ndim >= 2 else 0.1
        for begin in range(0, size, _NOISE):
            part = flat[begin : begin + _NOISE]
            part.copy_(noise.roll(start)[: len(part)]).mul_(scale)
            start += 7919
    return model
