"""Rare word weighting, which PRIOR compares with (its section 3.4): every sample, tokens by inverse frequency."""

from __future__ import annotations

from vig_ray.selection import weights
from vig_ray.selection.strategy import Settings, Strategy, Tokens


def weigh(tokens: Tokens, settings: Settings) -> weights.Weights:
    """w_t = count^-alpha, normalised to the number of tokens, float32 [N]."""
    assert settings.counts is not None
    return weights.rare(settings.counts.of(tokens.columns["token_ids"]), tokens.lengths, settings.alpha)


STRATEGY = Strategy(
    "rare",
    "every sample, tokens weighted by their inverse frequency",
    None,
    None,
    weigh=weigh,
    reads=("token_ids",),
    shares=True,
    counts=True,
)
