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
_MOST_SHORT = 256  # tokens up to which scores may be held whole on a CPU


class Segments:
    """Where S samples lie in a row of N tokens, and in a batch [S, longest] that pads them on the right.

    The row begins with `prefix` tokens that all samples begin with (a system prompt, say), there once for all of them;
    then come each sample's own tokens, `lengths[i]` of them. A state depends on the tokens before it alone, so the
    shared ones are the same in every sample, and their gradients add up.
    """

    def __init__(self, lengths: Sequence[int], device: Any, *, prefix: int = 0) -> None:
        longest = prefix + max(lengths)
        self.prefix, self.longest = prefix, longest
        starts = prefix + np.cumsum([0, *lengths[:-1]])
        places = np.arange(longest)
        behind = places[None, :] - prefix  # a place among the sample's own tokens
        inside = behind < np.asarray(lengths)[:, None]
        # A padding place holds some token of the row. It stands behind its sample, where no token looks, and its own
        # result is dropped, so neither the values nor the gradients know of it.
        padded = np.where(behind < 0, places[None, :], np.where(inside, starts[:, None] + behind, 0))
        wanted = inside & (behind >= 0)
        self._padded_SL = torch.from_numpy(padded).to(device)
        self._unshared = torch.from_numpy(np.flatnonzero(wanted[:, prefix:])).to(device)
        # Of the shared tokens' results, the first sample's is as good as any.
        wanted[0, :prefix] = True
        self._all = torch.from_numpy(np.flatnonzero(wanted)).to(device)

    def pad(self, x_1HND: torch.Tensor, *, unshared: bool = False) -> torch.Tensor:
        """[1, heads, N, D] to [S, heads, longest, D]; `unshared`: without the prefix."""
        _, heads, _, width = x_1HND.shape
        at_SL = self._padded_SL[:, self.prefix :] if unshared else self._padded_SL
        return x_1HND[0].index_select(1, at_SL.flatten()).view(heads, *at_SL.shape, width).transpose(0, 1)

    def unpad(self, x_SHLD: torch.Tensor, *, unshared: bool = False) -> torch.Tensor:
        """[S, heads, longest, D] to [1, N, heads, D]; `unshared`: both without the prefix."""
        return x_SHLD.transpose(1, 2).flatten(0, 1).index_select(0, self._unshared if unshared else self._all)[None]


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
    longest = segments.longest if segments is not None else query.shape[2]
    short = query.device.type == "cpu" and query.dtype == torch.float32 and longest <= _MOST_SHORT and not dropout
    if segments is None:
        output = _short(query, key, value, scaling) if short else _fused(query, key, value, scaling, dropout)
        return output.transpose(1, 2).contiguous(), None
    keys, values = segments.pad(key), segments.pad(value)
    if not short:
        return segments.unpad(_fused(segments.pad(query), keys, values, scaling, dropout)).contiguous(), None
    unshared = segments.unpad(_short(segments.pad(query, unshared=True), keys, values, scaling), unshared=True)
    if not segments.prefix:
        return unshared, None
    shared_query, shared_key, shared_value = (x[:, :, : segments.prefix] for x in (query, key, value))
    shared = _short(shared_query, shared_key, shared_value, scaling).transpose(1, 2)
    return torch.cat([shared, unshared], dim=1), None


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, dropout: float
) -> torch.Tensor:
    """Causal attention, [B, heads, L, D], by a fused kernel."""
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """The same for short samples on a CPU, by two plain products: 1.5 times as fast there, forward and backward.

    With fewer queries than keys, they are those of the last keys.
    """
    batch, heads, length, width = query.shape
    if heads != key.shape[1]:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    future = torch.full((length, key.shape[2]), -torch.inf).triu(1 + key.shape[2] - length)
    scale = width**-0.5 if scaling is None else scaling
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    scores = torch.baddbmm(future.expand(batch * heads, -1, -1), query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(scores.softmax(-1), value).view(batch, heads, length, -1)


# Without a mask function of that name, transformers makes no mask and passes None (its docs, "Attention backends").
AttentionInterface.register(NAME, packed_attention)
