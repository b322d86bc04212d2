"""What K other images gain over each other, from losses that scores/ hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def null_gains_of(swapped_NK: Floats, tokens_N: Floats) -> Floats:
    """What each of the K images gains over the mean of the others, float64 [N, K]; nothing of K = 1."""
    k = swapped_NK.shape[1]
    if k == 1:
        return np.zeros((len(swapped_NK), 0))
    others = [_marginal(np.delete(swapped_NK, each, axis=1), tokens_N) for each in range(k)]
    return np.stack(others, axis=1) - swapped_NK


def _marginal(swapped_NK: Floats, tokens_N: Floats) -> Floats:
    """-log of the mean over K of the answers' probabilities, by their tokens: `vig_ray.scoring.gain.marginal_loss`."""
    logp = -swapped_NK * tokens_N[:, None]
    most = logp.max(1, keepdims=True)
    found: Floats = -(most[:, 0] + np.log(np.exp(logp - most).mean(1))) / tokens_N
    return found
