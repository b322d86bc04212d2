"""Causal attention in rows of a tree of prompts (`vig_ray.model.packing`): a token sees its ancestors and its own run.

Each run attends to itself causally, and to each of its ancestors as a whole, by whatever kernel the device has: no
mask is ever made, and nothing is computed twice or for padding. The parts of one token are joined by the log-sum-exp
of their scores,

    out = sum_i exp(lse_i - lse) out_i    with lse = log sum_i exp(lse_i),

in float32, which is exact; backward, each part's kernel is given the joined `out` and `lse`, from which it has the
probabilities and the row sums that it needs (as in ring attention, Liu et al., arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AttentionInterface

from vig_ray.model.arrays import on_device
from vig_ray.model.head import forward_arguments
from vig_ray.model.packing import Tree

NAME = "vig_packed"
_SCORES_AT_ONCE = 1 << 26  # 256 MB of float32
_SHORT = 128 * 128  # pairs of a query and a key
Stored = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Keys and values by attention layer, [1, heads, tokens, D] each."""


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


class Above(NamedTuple):
    """Tokens `first` to `past` of a row see all the keys of an ancestor: the row's own from `key` to `key_past`, or,
    of `stored` ones, those places."""

    first: int
    past: int
    key: int
    key_past: int
    stored: Stored | None = None


@dataclass(eq=False)
class Row:
    """A row of N tokens for attention. `own`: where its runs begin, and N at the end. `above`: what they see of others.

    `keep`: the tokens from one place to another whose keys and values are stored, for later rows.
    """

    own: list[int]
    above: list[Above]
    keep: list[tuple[int, int, Stored]] = field(default_factory=list)
    _ends: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def ends(self, of: Sequence[int], device: Any) -> torch.Tensor:
        """Where segments begin, and where the last ends, int32 on `device`; the same tensor in every layer."""
        key = tuple(of)
        if key not in self._ends:
            self._ends[key] = on_device(np.array(key, dtype=np.int32), device)
        return self._ends[key]

    @property
    def longest(self) -> int:
        """Tokens of its longest run."""
        return max(past - first for first, past in self.runs)

    @property
    def runs(self) -> Iterator[tuple[int, int]]:
        """Where each run begins and ends."""
        return zip(self.own[:-1], self.own[1:], strict=True)


def row_of(
    tree: Tree,
    start: int,
    end: int,
    earlier: Mapping[int, Stored] | None = None,
    later: dict[int, Stored] | None = None,
) -> Row:
    """Tokens `start` to `end` of a tree as a row.

    `earlier`: by the number of a run, what is stored of its tokens before `start`. `later`: is given the stores of runs
    whose tokens in this row must be kept, filled when the model runs.
    """
    own, above, keep = [], [], []
    for kept in tree.kept:
        first, past = max(kept.start, start), min(kept.end, end)
        if first < past:
            above.append(Above(first - start, past - start, kept.first, kept.past, kept.kept.keys_values))
    for number, run in enumerate(tree.runs):
        if run.start >= end:
            break
        if run.past <= start:
            continue
        first, past = max(run.start, start), min(run.end, end)
        visible = min(run.past, end)
        if run.start < start:
            assert earlier is not None, "a tree in several rows needs what is stored of the earlier ones"
            above.append(Above(0, visible - start, 0, min(run.end, start) - run.start, earlier[number]))
        if first < past:
            own.append(first - start)
            if past < visible:
                above.append(Above(past - start, visible - start, first - start, past - start))
            if later is not None and (run.past > end or run.prefix is not None):
                later[number] = {}
                keep.append((first - start, past - start, later[number]))
    return Row([*own, end - start], above, keep)


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
    outside = [above.stored[id(module)] if above.stored is not None else None for above in row.above]
    if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
        assert not any(each is not None for each in outside), "no gradient goes through what is stored"
        joined: torch.Tensor = _Joined.apply(query, key, value, row, scale)  # type: ignore[no-untyped-call]
    else:
        joined, _lse = _forward(query, key, value, row, scale, outside)
    return joined.transpose(1, 2).contiguous(), None


def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: Row,
    scale: float,
    outside: Sequence[tuple[torch.Tensor, torch.Tensor] | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The joined output [1, heads, N, D] and log-sum-exps [1, heads, N], float32."""
    kernel = _kernel(query, value)
    out, lse = kernel.own(query, key, value, row, scale)
    out, lse = (out.float(), _precise(lse)) if row.above else (out, lse)
    for above, given in zip(row.above, outside, strict=True):
        first, past, start, end, _ = above
        keys, values = (key, value) if given is None else given
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
        out, lse = _forward(query, key, value, row, scale, [None] * len(row.above))
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.row, ctx.scale = row, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        row: Row = ctx.row
        kernel = _kernel(query, value)
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


Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Plain:
    """Plain products in float32, some queries at a time; on any device, for any type."""

    def one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [1, heads, M, D] on keys [1, fewer heads, K, D]: the output, float32, and its log-sum-exps, in
        float64 on a CPU."""
        value = _repeated(value, query).float()
        outputs, lses = [], []
        for first, past in _slices(query, key):
            scores = _scores(query[:, :, first:past], key, scale, first if causal else None)
            # Divided by the sum, not by the exponential of a log-sum-exp, which rounds as large scores do.
            most = scores.amax(-1, keepdim=True)
            weights = scores.sub_(most).exp_()
            total = weights.sum(-1, keepdim=True)
            outputs.append(weights @ value / total)
            lses.append((_precise(most) + _precise(total).log()).squeeze(-1))
        return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)

    def one_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        scale: float,
        *,
        causal: bool,
    ) -> Three:
        """The part of the gradients that comes through these keys, given the joined output and log-sum-exps."""
        keys, values = _repeated(key, query).float(), _repeated(value, query).float()
        dk, dv, dq = torch.zeros_like(keys), torch.zeros_like(values), []
        row_sums = (grad.float() * out.float()).sum(-1, keepdim=True)
        for first, past in _slices(query, key):
            queries, grads = query[:, :, first:past], grad[:, :, first:past].float()
            scores = _scores(queries, key, scale, first if causal else None)
            probabilities = torch.exp(scores - lse[:, :, first:past].unsqueeze(-1))
            d_scores = probabilities * (grads @ values.transpose(-1, -2) - row_sums[:, :, first:past])
            dq.append(d_scores @ keys * scale)
            dk += d_scores.transpose(-1, -2) @ queries.float() * scale
            dv += probabilities.transpose(-1, -2) @ grads
        return torch.cat(dq, dim=2), _summed(dk, key), _summed(dv, value)

    def own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each run on itself, causally."""
        parts = [self.one(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scale, causal=True) for a, b in row.runs]
        return torch.cat([part for part, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)

    def own_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        row: Row,
        scale: float,
    ) -> Three:
        """The gradients of `own`."""
        parts = []
        for a, b in row.runs:
            own = [each[:, :, a:b] for each in (grad, query, key, value, out, lse)]
            parts.append(self.one_backward(own[0], own[1], own[2], own[3], own[4], own[5], scale, causal=True))
        dq, dk, dv = (torch.cat(each, dim=2) for each in zip(*parts, strict=True))
        return dq, dk, dv

    def whole(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        row: Row,  # noqa: ARG002
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All queries on all keys."""
        return self.one(query, key, value, scale, causal=False)

    def whole_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        row: Row,  # noqa: ARG002
        scale: float,
    ) -> Three:
        """The gradients of `whole`."""
        return self.one_backward(grad, query, key, value, out, lse, scale, causal=False)


class _Cpu(_Plain):
    """PyTorch's flash attention for CPUs; plain products where they are short, which is nearer to the exact numbers,
    since that kernel has a fast exponential of its own."""

    def _is_short(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        return query.dtype == torch.float32 and query.shape[2] * key.shape[2] <= _SHORT

    def one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._is_short(query, key):
            return super().one(query, key, value, scale, causal=causal)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
        return out, lse

    def one_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        scale: float,
        *,
        causal: bool,
    ) -> Three:
        if self._is_short(query, key):
            return super().one_backward(grad, query, key, value, out, lse, scale, causal=causal)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
        return dq.float(), dk.float(), dv.float()  # added up in float32


class _Flash(_Plain):
    """Flash attention on a GPU, in half precision; all runs of a row in one call."""

    def _call(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, ends: Sequence[torch.Tensor],
        longest: tuple[int, int], *, causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        tokens_first = [each[0].transpose(0, 1) for each in (query, key, value)]  # [tokens, heads, D]
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *tokens_first, *ends, *longest, 0.0, causal, False, scale=scale
        )
        return out.transpose(0, 1)[None], lse[None]

    def _call_backward(
        self, grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor,
        lse: torch.Tensor, scale: float, ends: Sequence[torch.Tensor], longest: tuple[int, int], *, causal: bool,
    ) -> Three:  # fmt: skip
        tokens_first = [each[0].transpose(0, 1).contiguous() for each in (grad, query, key, value, out)]
        drawn = torch.zeros(2, dtype=torch.uint64, device=query.device)  # nothing is dropped
        unused = torch.empty(0, device=query.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            *tokens_first, lse[0].contiguous(), *ends, *longest, 0.0, causal, drawn, unused, scale=scale
        )
        back = [each.transpose(0, 1)[None].float() for each in (dq, dk, dv)]
        return back[0], back[1], back[2]

    def own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ends = row.ends(row.own, query.device)
        out, lse = self._call(query, key, value, scale, (ends, ends), (row.longest, row.longest), causal=True)
        return out, lse

    def own_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        row: Row,
        scale: float,
    ) -> Three:
        ends = row.ends(row.own, query.device)
        return self._call_backward(
            grad, query, key, value, out, lse, scale, (ends, ends), (row.longest, row.longest), causal=True
        )

    def whole(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = query.shape[2], key.shape[2]
        ends = [row.ends((0, length), query.device) for length in lengths]
        return self._call(query, key, value, scale, ends, lengths, causal=False)

    def whole_backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        row: Row,
        scale: float,
    ) -> Three:
        lengths = query.shape[2], key.shape[2]
        ends = [row.ends((0, length), query.device) for length in lengths]
        return self._call_backward(grad, query, key, value, out, lse, scale, ends, lengths, causal=False)


def _kernel(query: torch.Tensor, value: torch.Tensor) -> _Plain:
    """The attention kernel for the device and type of these queries and values, [1, heads, N, D]."""
    if query.shape[-1] != value.shape[-1]:  # multi-head latent attention
        return _PLAIN
    if query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16):
        return _CPU
    half = query.dtype in (torch.float16, torch.bfloat16)
    # Where flash attention is: from Ampere on, and backward, not on every GPU above a head's width of 192.
    if query.device.type == "cuda" and half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 192:
        return _FLASH if torch.cuda.get_device_capability(query.device) >= (8, 0) else _PLAIN
    return _PLAIN


_PLAIN, _CPU, _FLASH = _Plain(), _Cpu(), _Flash()


def _repeated(x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values with as many heads as the queries."""
    if query.shape[1] == x.shape[1]:
        return x
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _summed(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of what `_repeated` repeated."""
    return gradient.view(*x.shape[:2], -1, *gradient.shape[2:]).sum(2)


def _precise(x: torch.Tensor) -> torch.Tensor:
    """In float64 on a CPU, where that costs nothing to speak of."""
    return x.double() if x.device.type == "cpu" else x


def _slices(query: torch.Tensor, key: torch.Tensor) -> list[tuple[int, int]]:
    """Queries from one place to another, so many that their scores take bounded memory."""
    length = query.shape[2]
    step = max(1, _SCORES_AT_ONCE // (query.shape[1] * key.shape[2]))
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, causal_from: int | None) -> torch.Tensor:
    """Scores [1, heads, M, K], float32. `causal_from`: the place of the first query among the keys, which hides those
    behind each query; None where all are seen."""
    scores = query.float() @ _repeated(key, query).float().transpose(-1, -2) * scale
    if causal_from is None:
        return scores
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + causal_from)
    return scores.masked_fill(future, -torch.inf)


# Without a mask function of that name, transformers makes no mask and passes None (its docs, "Attention backends").
AttentionInterface.register(NAME, packed_attention)
