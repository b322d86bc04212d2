"""CLIP-Score, a baseline of VisNec: the top r % of all samples by CLIPScore (Hessel et al., arXiv 2104.08718)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("clip-score", "top r % by CLIPScore of image and answer", "clip_score", "r", measure="clip-score")
