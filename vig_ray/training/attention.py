"""Causal attention inside each sample of a packed row: samples laid end to end, none seeing another.

Everything but attention works token by token and needs no padding at all. Attention alone lays the samples out as a
padded batch, runs the plain causal kernel (no mask, so the fast one) and lays the result end to end again: exact,
and what padding costs it costs here only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

NAME = "vig_packed"
_SHORT = 256  # tokens up to which scores may be held whole on a CPU


class Segments:
    """Where S samples lie in a row of N tokens, and in a batch [S, longest] that pads them on the right.

    The row begins with `prefix` tokens that all samples begin with (a system prompt, say), there once for all of them;
    then come each sample's own tokens, `own[i]` of them. A state depends on the tokens before it alone, so the shared
    ones are the same in every sample, and their gradients add up.
    """

    def __init__(self, own: Sequence[int], device: Any, *, prefix: int = 0) -> None:
        longest = prefix + max(own)
        self.shape = (len(own), longest)
        starts = prefix + np.cumsum([0, *own[:-1]])
        places = np.arange(longest)
        behind = places[None, :] - prefix  # a place among the sample's own tokens
        inside = behind < np.asarray(own)[:, None]
        # A padding place holds some token of the row. It stands behind its sample, where no token looks, and its own
        # result is dropped, so neither the values nor the gradients know of it.
        padded = np.where(behind < 0, places[None, :], np.where(inside, starts[:, None] + behind, 0))
        # Of the shared tokens' results, the first sample's is as good as any.
        wanted = inside & (behind >= 0)
        wanted[0, :prefix] = True
        self._padded = torch.from_numpy(padded.ravel()).to(device)
        self._unpadded = torch.from_numpy(np.flatnonzero(wanted.ravel())).to(device)

    def pad(self, x_1HND: torch.Tensor) -> torch.Tensor:
        """[1, heads, N, D] to [S, heads, longest, D]."""
        _, heads, _, width = x_1HND.shape
        return x_1HND[0].index_select(1, self._padded).view(heads, *self.shape, width).transpose(0, 1)

    def unpad(self, x_SHLD: torch.Tensor) -> torch.Tensor:
        """[S, heads, longest, D] to [1, N, heads, D]."""
        return x_SHLD.transpose(1, 2).flatten(0, 1).index_select(0, self._unpadded)[None]


def packed_attention(
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: query [B, heads, L, D], key and value with as many heads or fewer.

    With `segments` B is 1 and the row is packed; without, B rows are padded on the right, which causality hides.
    """
    assert attention_mask is None, "causal attention over samples that start at the left needs no mask"
    if segments is not None:
        query, key, value = (segments.pad(x) for x in (query, key, value))
    found = _causal(query, key, value, dropout, scaling)
    return (segments.unpad(found) if segments is not None else found.transpose(1, 2)).contiguous(), None


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Causal attention, [B, heads, L, D]."""
    batch, heads, length, width = query.shape
    gqa = heads != key.shape[1]
    if query.device.type == "cpu" and query.dtype == torch.float32 and length <= _SHORT and not dropout:
        # Two plain products: 1.5 times as fast there as the fused kernel, forward and backward, at 50 to 100 tokens.
        if gqa:
            key, value = (x.repeat_interleave(heads // key.shape[1], dim=1) for x in (key, value))
        future = torch.full((length, length), -torch.inf).triu(1)
        scale = width**-0.5 if scaling is None else scaling
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))
        scores = torch.baddbmm(future.expand(batch * heads, -1, -1), query, key.transpose(1, 2), alpha=scale)
        return torch.bmm(scores.softmax(-1), value).view(batch, heads, length, -1)
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=gqa
    )


AttentionInterface.register(NAME, packed_attention)
