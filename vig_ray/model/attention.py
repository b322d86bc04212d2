"""Causal attention in rows of a tree of prompts (`vig_ray.model.packing`): a token sees its ancestors and its own run.

Each run attends to itself causally, and to each of its ancestors as a whole, by whatever kernel the device has: no
mask is ever made, and nothing is computed twice or for padding. The parts of one token are joined by the log-sum-exp
of their scores,

    out = sum_i exp(lse_i - lse) out_i    with lse = log sum_i exp(lse_i),

in float32 (the exponents in float64 on a CPU), which is exact; backward, each part's kernel is given the joined `out`
and `lse`, from which it has the probabilities and the row sums that it needs (as in ring attention, Liu et al.,
arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from vig_ray.model.head import forward_arguments
from vig_ray.model.kernels import kernel_for, precise
from vig_ray.model.row import Row
from vig_ray.model.side_by_side import put, taken

NAME = "vig_packed"


def can_pack(model: Any) -> bool:
    """Whether prompts can lie end to end in one row: causal attention over everything before, in every layer."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return (
        hasattr(model, "model")
        and kinds == {"full_attention"}
        and not getattr(text, "sliding_window", None)
        and not getattr(text, "use_bidirectional_attention", None)
        and "token_type_ids" not in forward_arguments(model)  # image tokens that see each other
        and "cross_attention_mask" not in forward_arguments(model)  # images beside the text
    )


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    row: Row | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: query [B, heads, L, D], key and value with as many heads or fewer.

    With `row` B is 1 and L tokens are a row of a tree; without, B rows are padded on the right, which causality hides.
    Returns [B, L, heads, D].
    """
    assert attention_mask is None, "causal attention in a tree needs no mask"
    assert not dropout, "training sets every dropout to 0"
    if row is None:
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2).contiguous(), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    for first, past, stored in row.keep:
        # Copies: a slice would hold on to all of the row.
        stored[id(module)] = key[:, :, first:past].clone(), value[:, :, first:past].clone()
    if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
        assert not any(above.stored for above in row.above), "no gradient goes through what is stored"
        joined: torch.Tensor = _Joined.apply(query, key, value, row, scale)  # type: ignore[no-untyped-call]
    else:
        joined, _lse = _forward(query, key, value, row, scale, id(module))
    return joined.transpose(1, 2).contiguous(), None


def _forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float, layer: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The joined output [1, heads, N, D] and log-sum-exps [1, heads, N], float32. `layer`: of what is stored."""
    kernel = kernel_for(query, value)
    split = kernel.split(query, row)
    out, lse = kernel.own(query, key, value, row, scale)
    out, lse = (out.float(), precise(lse)) if row.above else (out, lse)
    for batch in split.above:
        place = batch.queries.place
        part, part_lse = kernel.batch(query, key, value, batch, scale)
        so_far, lse_so_far = taken(out, place), taken(lse, place)
        _join(so_far, lse_so_far, part, part_lse)
        put(out, place, so_far)
        put(lse, place, lse_so_far)
    for first, past, start, end, stored in split.above_alone:
        keys, values = (key, value) if stored is None or layer is None else stored[layer]
        part, part_lse = kernel.whole(
            query[:, :, first:past], keys[:, :, start:end], values[:, :, start:end], row, scale
        )
        _join(out[:, :, first:past], lse[:, :, first:past], part, part_lse)
    return out.to(query.dtype), lse.float()


def _join(out: torch.Tensor, lse: torch.Tensor, part: torch.Tensor, part_lse: torch.Tensor) -> None:
    """Join a part [1, heads, M, D] and its log-sum-exp [1, heads, M] to `out` and `lse`, in place."""
    joined = torch.logaddexp(lse, part_lse)
    # out + (part - out) w, with w the part's share of the whole.
    out.lerp_(part.float(), torch.exp(part_lse - joined).unsqueeze(-1).float())
    lse.copy_(joined)


class _Joined(torch.autograd.Function):
    """`_forward` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> torch.Tensor:
        out, lse = _forward(query, key, value, row, scale, None)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.row, ctx.scale = row, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        row: Row = ctx.row
        kernel = kernel_for(query, value)
        grads = kernel.own_backward(grad, query, key, value, out, lse, row, ctx.scale)
        dq, dk, dv = grads
        for first, past, start, end, _ in row.above:
            queries = (slice(None), slice(None), slice(first, past))
            keys = (slice(None), slice(None), slice(start, end))
            parts = kernel.whole_backward(
                grad[queries], query[queries], key[keys], value[keys], out[queries], lse[queries], row, ctx.scale
            )
            dq[queries] += parts[0]
            dk[keys] += parts[1]
            dv[keys] += parts[2]
        return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype), None, None


# Without a mask function of that name, transformers makes no mask and passes None (its docs, "Attention backends").
AttentionInterface.register(NAME, packed_attention)
