"""Attention kernels for rows of a tree: each run on itself, and queries on all keys of an ancestor, with log-sum-exps.

Backward, a kernel is given the joined output and log-sum-exp of all that a query sees, and gives the part of the
gradients that comes through its keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vig_ray.model.row import Row, Split
from vig_ray.model.side_by_side import Batch, put

_SCORES_AT_ONCE = 1 << 26  # 256 MB of float32
_SHORT = 128 * 128  # pairs of a query and a key
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Plain:
    """Plain products in float32, some queries at a time; on any device, for any type."""

    def split(self, query: torch.Tensor, row: Row) -> Split:
        """What of a row is computed side by side, and what by a call each."""
        return row.split(_SHORT, query.device)

    def one(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [1, heads, M, D] on keys [1, fewer heads, K, D]: the output, float32, and its log-sum-exps, in
        float64 on a CPU."""
        outputs, lses = [], []
        for first, past in _slices(query, key):
            hidden = _future(first, past, key.shape[2], query.device) if causal else None
            output, lse = _attended(query[:, :, first:past], key, value, scale, hidden)
            outputs.append(output)
            lses.append(lse)
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
        dq, dks, dvs = [], [], []
        for first, past in _slices(query, key):
            of = [each[:, :, first:past] for each in (grad, query, out, lse)]
            hidden = _future(first, past, key.shape[2], query.device) if causal else None
            parts = _attended_backward(of[0], of[1], key, value, of[2], of[3], scale, hidden)
            dq.append(parts[0])
            dks.append(parts[1])
            dvs.append(parts[2])
        return torch.cat(dq, dim=2), torch.stack(dks).sum(0), torch.stack(dvs).sum(0)

    def batch(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: Batch, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Short stretches of a row, side by side: output and log-sum-exps at the places of its queries."""
        keys, values = batch.keys.gather(key), batch.keys.gather(value)
        out, lse = _attended(batch.queries.gather(query), keys, values, scale, batch.hidden)
        return batch.queries.pick(out), batch.queries.pick(lse)

    def own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: Row, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each run on itself, causally."""
        split = self.split(query, row)
        out = _tokens_first(query, value.shape[-1])
        lse = precise(_tokens_first(query))
        for batch in split.own:
            part, part_lse = self.batch(query, key, value, batch, scale)
            put(out, batch.queries.place, part)
            put(lse, batch.queries.place, part_lse)
        for a, b, _, _ in split.own_alone:
            part, part_lse = self.one(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scale, causal=True)
            out[:, :, a:b], lse[:, :, a:b] = part, part_lse
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
    """PyTorch's flash attention for CPUs; forward, plain products where they are short, which is nearer to the exact
    numbers, since that kernel has a fast exponential of its own."""

    def split(self, query: torch.Tensor, row: Row) -> Split:
        """See `Plain.split`."""
        return row.split(_SHORT if query.dtype == torch.float32 else 0, query.device)

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
        """See `Plain.one_backward`. Short ones too: it is several times as fast, and near enough for a gradient."""
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
        return dq.float(), dk.float(), dv.float()  # added up in float32


class Flash(Plain):
    """Flash attention on a GPU, in half precision; all runs of a row in one call."""

    def split(self, query: torch.Tensor, row: Row) -> Split:
        """See `Plain.split`."""
        return row.split(0, query.device)

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


def _future(first: int, past: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which of so many keys come after each of the queries from `first` to `past`, bool [M, K]."""
    return torch.ones(past - first, keys, dtype=torch.bool, device=device).triu(1 + first)


def _scores(query: torch.Tensor, key: torch.Tensor, scale: float, hidden: torch.Tensor | None) -> torch.Tensor:
    """Scores [B, heads, M, K], float32; -inf where they are hidden."""
    scores = query.float() @ _repeated(key, query).float().transpose(-1, -2) * scale
    return scores if hidden is None else scores.masked_fill_(hidden, -torch.inf)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, hidden: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [B, heads, M, D] on keys [B, fewer heads, K, D]: the output, float32, and its log-sum-exps."""
    scores = _scores(query, key, scale, hidden)
    # Divided by the sum, not by the exponential of a log-sum-exp, which rounds as large scores do.
    most = scores.amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    lse = (precise(most) + precise(total).log()).squeeze(-1)
    return weights @ _repeated(value, query).float() / total, lse


def _attended_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    hidden: torch.Tensor | None,
) -> Three:
    """The gradients of queries, keys and values, float32, given the joined output and log-sum-exps."""
    probabilities = _scores(query, key, scale, hidden).sub_(lse.unsqueeze(-1)).exp_()
    grad = grad.float()
    row_sums = (grad * out.float()).sum(-1, keepdim=True)
    dv = probabilities.transpose(-1, -2) @ grad
    d_scores = probabilities * (grad @ _repeated(value, query).float().transpose(-1, -2) - row_sums) * scale
    dk = d_scores.transpose(-1, -2) @ query.float()
    return d_scores @ _repeated(key, query).float(), _summed(dk, key), _summed(dv, value)


def _tokens_first(x: torch.Tensor, *width: int) -> torch.Tensor:
    """Room for float32 [1, heads, N, ...] of the heads and tokens of `x`, a token's numbers next to each other."""
    return x.new_empty(1, x.shape[2], x.shape[1], *width, dtype=torch.float32).transpose(1, 2)
