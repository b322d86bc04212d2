"""The mathematics of Visual Information Gain; pure functions of log-probs.

Source: Hwang and Lee, "Selective Training for Large Vision Language Models via Visual Information Gain",
arXiv 2602.17186. T is the number of answer tokens of a sample; log-probs are natural logarithms, gains are in nats.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def token_gain(clean_logp_T: Floats, reference_logp_T: Floats) -> npt.NDArray[np.float64]:
    """VIG_{i,t}, how much the image raises each answer token's log-prob, float64 [T] (terms of equation 6).

    [-log q(a_t | a_<t, Q)] - [-log q(a_t | a_<t, Q, z_v)], with q(. | Q) read from the reference pass.
    Raises ValueError where the two passes don't hold the same tokens.
    """
    clean, reference = np.asarray(clean_logp_T, dtype=np.float64), np.asarray(reference_logp_T, dtype=np.float64)
    if clean.shape != reference.shape or clean.ndim != 1:
        raise ValueError(f"clean and reference passes of one sample differ in shape: {clean.shape}, {reference.shape}")
    return clean - reference


def loss(logp_T: Floats) -> float:
    """L(A | .), the mean negative log-prob of a sample's answer tokens (equation 1)."""
    logp = np.asarray(logp_T, dtype=np.float64)
    if logp.size == 0:
        raise ValueError("a sample without answer tokens has no loss")
    return -float(logp.mean())


def perplexity(logp_T: Floats) -> float:
    """PPL = exp(L) (below equation 2); infinity where the loss is too large for a float."""
    value = loss(logp_T)
    return math.exp(value) if value < 700 else math.inf


def sample_gain(clean_logp_T: Floats, reference_logp_T: Floats) -> float:
    """VIG_i, the mean token gain of a sample (equations 3, 6 and 7).

    Equal to log(PPL(A | Q) / PPL(A | Q, I)) of equation 2. With the blind reference it is VisNec's score.
    """
    return loss(reference_logp_T) - loss(clean_logp_T)
