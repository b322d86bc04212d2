"""The next token of each row of a batch: the likeliest, or one that is drawn by a seed of the row's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import torch

from vig_ray.evaluation.generation import Sampling, seed_of
from vig_ray.model.prompt import Prompt

Combine = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""From the logits of each prompt's lines, [N, V] a line, to those that its next token is chosen by, [N, V]."""
_FEWER = 0.5  # of the rows going on: then the others are no longer computed


class Choosing:
    """What N prompts write, each by `lines` rows of a batch: first the N prompts' first lines, then their second ones.

    All lines of a prompt go on with the same token. `followers` are told which rows are left, whenever there are fewer.
    A prompt whose logits overflow ends there: what would be chosen of them is no answer.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[Sampling],
        stop_ids: Collection[int],
        *,
        lines: int = 1,
        combine: Combine | None = None,
    ) -> None:
        self.written: list[list[int]] = [[] for _ in prompts]
        self.finished = [False] * len(prompts)
        self.overflowed = [False] * len(prompts)
        self.followers: list[Callable[[torch.Tensor], None]] = []
        self._sampling, self._stops = sampling, frozenset(stop_ids)
        self._lines, self._combine = lines, combine
        self._draws = [
            random.Random(seed_of(prompt, each.seed)) if each.temperature else None
            for prompt, each in zip(prompts, sampling, strict=True)
        ]
        self._rows = list(range(len(prompts)))  # whose each row of the batch is
        self._going_on = set(self._rows)

    def __call__(self, logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See `vig_ray.compat.generation.Choose`."""
        of_lines = logits_RV.chunk(self._lines)
        sound_N = logits_RV.amax(-1).isfinite().view(self._lines, -1).all(0)  # NaN is the greatest wherever it is
        logits_NV = of_lines[0] if self._combine is None else self._combine(of_lines)
        tokens_N = logits_NV.argmax(-1)
        for who, sound in zip(self._rows, sound_N.tolist(), strict=True):
            if not sound and who in self._going_on:
                self.overflowed[who] = True
                self._going_on.discard(who)
        for row, who in enumerate(self._rows):
            drawn = self._draws[who]
            if drawn is not None and who in self._going_on:
                tokens_N[row] = draw(logits_NV[row], self._sampling[who], drawn.random())
        for who, token in zip(self._rows, tokens_N.tolist(), strict=True):
            if who in self._going_on:
                self._write(who, token)
        return tokens_N.repeat(self._lines), self._fewer(logits_RV.device)

    def _write(self, who: int, token: int) -> None:
        if token in self._stops:
            self.finished[who] = True
            self._going_on.discard(who)
            return
        self.written[who].append(token)
        if len(self.written[who]) >= self._sampling[who].max_new_tokens:
            self._going_on.discard(who)

    def _fewer(self, device: torch.device) -> torch.Tensor | None:
        """The rows to compute further where many have ended."""
        count = len(self._rows)
        if len(self._going_on) > _FEWER * count:
            return None
        kept = [row for row, who in enumerate(self._rows) if who in self._going_on]
        self._rows = [self._rows[row] for row in kept]
        rows = torch.tensor([line * count + row for line in range(self._lines) for row in kept], dtype=torch.int64)
        rows = rows.to(device)
        for follower in self.followers if kept else ():
            follower(rows)
        return rows


def draw(logits_V: torch.Tensor, sampling: Sampling, uniform: float) -> int:
    """The token that `uniform`, in [0, 1), falls on where the likeliest tokens lie in a row, each as wide as it is
    likely: those of the smallest set of `top_p` of all probability, at `temperature`."""
    probs, tokens = (logits_V.double() / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    kept = int(((before < sampling.top_p) & (probs > 0)).sum())
    ends = probs[:kept].cumsum(-1)
    place = int(torch.searchsorted(ends, uniform * ends[-1], right=True))
    return int(tokens[min(place, kept - 1)])
