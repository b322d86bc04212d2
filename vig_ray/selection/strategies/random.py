"""A random p %, the same number of samples as `vig` keeps ("Random" in the paper's Table 5), by seed and key."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("random", "a random p %, all their tokens", "chance", "p")
