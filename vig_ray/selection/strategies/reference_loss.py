"""VisNec's clusters, ranked by the loss without the image alone ("Text" in its Table 6)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy(
    "reference-loss", "top r % by the loss without the image, of each cluster", "reference_loss", "r", clustered=True
)
