"""VisNec without clusters: the top r % of the samples whose score is above 0 ("Top-VisNec" in its Table 7)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("top", "top r % by VIG, those above 0", "vig", "r", positive=True)
