"""VisNec: within each cluster of questions, the top r % of the samples whose score is above 0.

Section 3.2 and equation 6 of arXiv 2603.01195. Its score is the sample gain with the blind reference.
"""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy(
    "visnec", "top r % by VIG of each cluster of questions, those above 0", "vig", "r", positive=True, clustered=True
)
