"""The mathematics of Visual Information Gain; pure functions of log-probs.

Source: Hwang and Lee, "Selective Training for Large Vision Language Models via Visual Information Gain",
arXiv 2602.17186. T is the number of answer tokens of a sample; log-probs are natural logarithms, gains are in nats.

The paper reads q(. | Q) from one pass with a blurred image. `marginal` reads it from K passes with other images, whose
mean it is where the image is unknown: q(a | Q) = E_I[q(a | Q, I)], so that the gain is the pointwise mutual information
of the answer and the image.
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


def marginal_logprobs(logp_KT: Floats) -> npt.NDArray[np.float64]:
    """log of the mean over K images of each token's probability given the text before it, float64 [T]."""
    return _log_mean_exp(_of_images(logp_KT))


def marginal_loss(logp_KT: Floats) -> float:
    """The loss of the whole answer where the image is one of K: -log of its mean probability over them, by T.

    What a sample's gain takes. It isn't the mean of `marginal_logprobs`, in which each token has all K images anew.
    """
    logp = _of_images(logp_KT)
    return -_log_mean_exp(logp.sum(1)).item() / int(logp.shape[1])


def marginal_error(logp_KT: Floats) -> float:
    """The Monte-Carlo standard error of `marginal_loss`, nats: what other K images would have made of it.

    Of the logarithm of a mean, by the delta method: the standard deviation of the K probabilities over their mean and
    sqrt(K), by T. It is at most about 1 / T: where one image has all the probability, the error is told too small.
    """
    logp = _of_images(logp_KT)
    images, tokens = logp.shape
    answers = logp.sum(1)
    p = np.exp(answers - answers.max())
    return float(p.std(ddof=1) / p.mean()) / math.sqrt(images) / int(tokens)


def null_gains(logp_KT: Floats) -> npt.NDArray[np.float64]:
    """What each of K images, none of them the sample's, gains over the others: float64 [K, T], nats.

    Log-prob with image k minus the log of the mean probability over the other K - 1: what `token_gain` is where the
    image has nothing to do with the answer.
    """
    logp = _of_images(logp_KT)
    others = (np.delete(logp, k, axis=0) for k in range(len(logp)))
    return logp - np.stack([_log_mean_exp(each) for each in others])


def _of_images(logp_KT: Floats) -> npt.NDArray[np.float64]:
    logp = np.asarray(logp_KT, dtype=np.float64)
    if logp.ndim != 2 or len(logp) < 2 or logp.shape[1] == 0:
        raise ValueError(f"log-probs of at least two images and one token, [K, T], have the shape {logp.shape}")
    return logp


def _log_mean_exp(values: Floats) -> npt.NDArray[np.float64]:
    """Of the first dimension."""
    most = values.max(0)
    found: npt.NDArray[np.float64] = most + np.log(np.exp(values - most).mean(0))
    return found
