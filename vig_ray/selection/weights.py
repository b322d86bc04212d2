"""Weights of answer tokens, from their log-probs; pure functions.

The tokens of several samples lie end to end, N in all; `lengths` [rows] says how many each sample has.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Weights = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]


def mask(gain_N: Floats, threshold_N: Floats) -> Weights:
    """1 for the tokens with VIG_t >= tau, 0 for the others, float32 [N]: equation 9 of VIG (arXiv 2602.17186)."""
    return (np.asarray(gain_N, dtype=np.float64) >= threshold_N).astype(np.float32)


def prior(reference_logp_N: Floats, lengths: Lengths, alpha: float) -> Weights:
    """PRIOR's weights, float32 [N]; those of a sample sum to its number of tokens.

    w_t = (1 - p_ref(a_t | before))^alpha (PRIOR, equation 3), times T / sum of the sample's w (equation 4). Where the
    reference is sure of every token of a sample, all w are 0 and can't be normalised: its weights are 1.
    """
    # 1 - exp(x) without the cancellation near x = 0, which is where most text lies.
    unsure_N = -np.expm1(np.minimum(np.asarray(reference_logp_N, dtype=np.float64), 0.0))
    return normalised(unsure_N ** _exponent(alpha), lengths)


def rare(count_N: npt.NDArray[np.integer], lengths: Lengths, alpha: float) -> Weights:
    """Weights by inverse frequency, float32 [N]: w_t = count(a_t)^-alpha, times T / sum of the sample's w.

    PRIOR's "rare word weighting" (section 3.4) names the inverse token frequency and no formula. The size of the corpus
    is the same for all tokens and drops out.
    """
    return normalised(np.asarray(count_N, dtype=np.float64) ** -_exponent(alpha), lengths)


def attention(share_N: Floats, lengths: Lengths, alpha: float) -> Weights:
    """Weights by the share of attention on image tokens, float32 [N]: w_t = share_t^alpha, times T / sum of w."""
    return normalised(np.asarray(share_N, dtype=np.float64) ** _exponent(alpha), lengths)


def relevance(logit_N: Floats, lengths: Lengths, alpha: float) -> Weights:
    """Weights by relevance to the image, float32 [N]: w_t = softmax of alpha * logit over the sample, times T.

    Tokens without a logit (NaN), such as the end of a turn, weigh 1, and the others of the sample sum to their number.
    """
    logits = np.asarray(logit_N, dtype=np.float64)
    told = np.isfinite(logits)
    of_sample = np.repeat(np.arange(len(lengths)), lengths)
    own = np.bincount(of_sample[told], minlength=len(lengths)).astype(np.int64)
    most = np.full(len(lengths), -np.inf)
    np.maximum.at(most, of_sample[told], logits[told])
    weights = np.ones(len(logits), dtype=np.float32)
    weights[told] = normalised(np.exp(_exponent(alpha) * (logits[told] - most[of_sample[told]])), own)
    return weights


def normalised(weight_N: Floats, lengths: Lengths) -> Weights:
    """Weights times T / sum of the sample's, float32 [N] (PRIOR, equation 4); 1 where a sample's are all 0."""
    sums = sums_of(weight_N, lengths)
    scale = np.divide(lengths, sums, out=np.zeros(len(lengths)), where=sums > 0)
    even = np.repeat(sums <= 0, lengths)
    return np.where(even, 1.0, weight_N * np.repeat(scale, lengths)).astype(np.float32)


def _exponent(alpha: float) -> float:
    if alpha < 0:
        raise ValueError(f"alpha must not be negative, and is {alpha}")
    return alpha


def sums_of(values_N: Floats, lengths: Lengths) -> npt.NDArray[np.float64]:
    """The sum of each sample's values, float64 [rows]; 0 for a sample without tokens."""
    sums = np.zeros(len(lengths))
    filled = lengths > 0
    starts = (np.cumsum(lengths) - lengths)[filled]
    if len(starts):
        sums[filled] = np.add.reduceat(np.asarray(values_N, dtype=np.float64), starts)
    return sums
