"""VisNec's clusters, ranked by the loss with the image alone ("Multimodal" in its Table 6)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy(
    "clean-loss", "top r % by the loss with the image, of each cluster", "clean_loss", "r", clustered=True
)
