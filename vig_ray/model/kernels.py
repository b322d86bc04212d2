"""Attention kernels for rows of a tree: each run on itself, and queries on all keys of an ancestor, with log-sum-exps.

Backward, a kernel is given the joined output and log-sum-exp of all that a query sees, and gives the part of the
gradients that comes through its keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vig_ray.model.row import Row

_SCORES_AT_ONCE = 1 << 26  # 256 MB of float32
_SHORT = 128 * 128  # pairs of a query and a key
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Plain:
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
            lses.append((precise(most) + precise(total).log()).squeeze(-1))
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


class Cpu(Plain):
    """PyTorch's flash attention for CPUs; plain products where they are short, which is nearer to the exact numbers,
    since that kernel has a fast exponential of its own."""

    def _is_short(self, query: torch.Tensor, key: torch.Tensor) -> bool:
        return query.dtype == torch.float32 and query.shape[2] * key.shape[2] <= _SHORT

    def one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Plain.one`."""
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
        """See `Plain.one_backward`."""
        if self._is_short(query, key):
            return super().one_backward(grad, query, key, value, out, lse, scale, causal=causal)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
        return dq.float(), dk.float(), dv.float()  # added up in float32


class Flash(Plain):
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
        """See `Plain.own`."""
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
        """See `Plain.own_backward`."""
        ends = row.ends(row.own, query.device)
        return self._call_backward(
            grad, query, key, value, out, lse, scale, (ends, ends), (row.longest, row.longest), causal=True
        )

    def whole(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Plain.whole`."""
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
        """See `Plain.whole_backward`."""
        lengths = query.shape[2], key.shape[2]
        ends = [row.ends((0, length), query.device) for length in lengths]
        return self._call_backward(grad, query, key, value, out, lse, scale, ends, lengths, causal=False)


def kernel_for(query: torch.Tensor, value: torch.Tensor) -> Plain:
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


_PLAIN, _CPU, _FLASH = Plain(), Cpu(), Flash()


def _repeated(x: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Keys or values with as many heads as the queries."""
    if query.shape[1] == x.shape[1]:
        return x
    return x.repeat_interleave(query.shape[1] // x.shape[1], dim=1)


def _summed(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of what `_repeated` repeated."""
    return gradient.view(*x.shape[:2], -1, *gradient.shape[2:]).sum(2)


def precise(x: torch.Tensor) -> torch.Tensor:
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
