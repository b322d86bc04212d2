"""VIG at the sample level only: all tokens of the top p % ("SS" in the paper's Table 5)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("vig-samples", "top p % by VIG, all their tokens", "vig", "p")
