"""Everything that was scored: the baseline without selection."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("full", "every sample, all tokens", None, None)
