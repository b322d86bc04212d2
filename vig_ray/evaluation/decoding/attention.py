"""Attention that a decoding method changes, through transformers' own registry of attention functions.

Behind the image, the output of some queries is replaced; all else is computed by PyTorch's kernel, as without a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack

NAME = "vig_decoding"
Change = Callable[[int, torch.Tensor], torch.Tensor | None]
"""From a layer's number and the scores of its last queries, float32 [R, heads, N, K], hidden keys at -inf, to their
probabilities; None where it leaves the layer as it is."""


class Changing:
    """Which queries' probabilities `change` decides: the last `last` of each row, None for all."""

    def __init__(self, change: Change, last: int | None) -> None:
        self.change, self.last = change, last


_changing: ContextVar[Changing | None] = ContextVar("changing", default=None)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls in each layer; query [R, heads, L, D], key and value [R, heads or fewer, K, D]."""
    attend: Callable[..., tuple[torch.Tensor, None]] = AttentionInterface()["sdpa"]
    out, _ = attend(module, query, key, value, attention_mask, scaling=scaling, **arguments)  # [R, L, heads, D]
    changing = _changing.get()
    if changing is None:
        return out, None
    last = query.shape[2] if changing.last is None else min(changing.last, query.shape[2])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = _scores(query[:, :, -last:], key, attention_mask, scale)
    probs = changing.change(int(module.layer_idx), scores)  # type: ignore[arg-type]
    if probs is None:
        return out, None
    values = value.float().repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    changed = (probs @ values).transpose(1, 2).to(out.dtype)
    return torch.cat([out[:, : out.shape[1] - last], changed], dim=1), None


def _scores(last: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    """The scores of the last N queries on K keys, float32 [R, heads, N, K]; -inf where a query doesn't see."""
    count, keys = last.shape[2], key.shape[2]
    keys_of_heads = key.float().repeat_interleave(last.shape[1] // key.shape[1], dim=1)
    scores = (last.float() @ keys_of_heads.transpose(2, 3)) * scale
    if mask is None:
        seen_up_to = torch.arange(keys - count, keys, device=key.device)[:, None]
        return scores.masked_fill(torch.arange(keys, device=key.device) > seen_up_to, -torch.inf)
    of_last = mask[:, :, -count:, :keys]
    hidden = ~of_last if of_last.dtype == torch.bool else of_last < 0
    return scores.masked_fill(hidden, -torch.inf)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """Meanwhile the part of `model` that reads text attends through this module."""
    before = getattr(model.config.get_text_config(), "_attn_implementation", None) or "sdpa"
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


@contextmanager
def changed(changing: Changing) -> Iterator[None]:
    """Meanwhile `changing` decides."""
    token = _changing.set(changing)
    try:
        yield
    finally:
        _changing.reset(token)


def check_attention(name: str, model: Any) -> None:
    """Raise StageError where the layers of `model` aren't of the kind that can be changed so."""
    if not can_pack(model):
        raise StageError(
            f"--decoding {name}: {type(model).__name__} has layers other than full causal attention over images and "
            "text in one row; --decoding vcd may do"
        )
