"""EL2N, a baseline of VisNec: the top r % of all samples by the error's L2 norm (Paul et al., arXiv 2107.07075)."""

from __future__ import annotations

from vig_ray.selection.strategy import Strategy

STRATEGY = Strategy("el2n", "top r % by EL2N of the answer", "el2n", "r", measure="el2n")
