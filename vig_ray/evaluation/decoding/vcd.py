"""VCD: what the image says against what a noised one says.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", CVPR 2024, arXiv 2311.16922, equations 3 and 5, with the schedule of its released code (the `vcd` reference):

    logits = (1 + alpha) logits(y | image, text) - alpha logits(y | noised image, text)

for tokens whose probability with the clean image is at least beta times the likeliest one's; no other is chosen. Its
authors draw from these at temperature 1. The noise is decided by the image's key, so each run has the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from vig_ray.evaluation.decoding import Decoding, number
from vig_ray.evaluation.rows import Line, line_of
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.scoring.references.diffusion import STEP, STEPS, vcd


@dataclass(frozen=True)
class Vcd(Decoding):
    """`alpha`: how much is taken off. `beta`: the least share of the likeliest token's probability. `steps`: of the
    diffusion, of 1,000."""

    name: ClassVar[str] = "vcd"

    alpha: float = field(default=1.0, metadata=number(0))
    beta: float = field(default=0.1, metadata=number(0, 1))
    steps: int = field(default=STEP, metadata=number(0, STEPS - 1, whole=True))

    @property
    def lines(self) -> int:
        """Clean and noised."""
        return 2

    def lines_of(self, prompt: Prompt, formatter: Formatter) -> tuple[Line, ...]:
        """Raises PromptError where the model's processor leaves it to the model to normalise pixels."""
        return line_of(prompt), line_of(vcd(formatter, self.steps)(prompt))

    def combine(self, logits: Sequence[torch.Tensor]) -> torch.Tensor:
        """See the module."""
        clean_NV, noised_NV = logits
        return plausible(clean_NV, (1 + self.alpha) * clean_NV - self.alpha * noised_NV, self.beta)


def plausible(clean_NV: torch.Tensor, changed_NV: torch.Tensor, beta: float) -> torch.Tensor:
    """`changed_NV` where the clean logits or log-probs are within log(beta) of the greatest, -inf elsewhere."""
    if not beta:
        return changed_NV
    least_N1 = clean_NV.max(dim=-1, keepdim=True).values + math.log(beta)
    return changed_NV.masked_fill(clean_NV < least_N1, -torch.inf)
