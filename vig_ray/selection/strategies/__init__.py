"""Selection strategies, one a file: how samples are ranked, how many are kept, and what their tokens weigh."""

from __future__ import annotations

from vig_ray.selection.strategies import (
    attention,
    clean_loss,
    clip,
    clip_score,
    el2n,
    full,
    ifd,
    prior,
    random,
    rare,
    reference_loss,
    top,
    vig,
    vig_samples,
    visnec,
)
from vig_ray.selection.strategy import Strategy

_MODULES = (
    vig, vig_samples, full, random, visnec, top, reference_loss, clean_loss, clip_score, ifd, el2n,
    prior, rare, clip, attention,
)  # fmt: skip


def strategies() -> dict[str, Strategy]:
    """Every strategy by its name."""
    return {module.STRATEGY.name: module.STRATEGY for module in _MODULES}
