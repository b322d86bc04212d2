"""Does the true image beat another one? What clean and swapped passes tell of a group of samples.

N samples, K images that aren't theirs (the same ones for all, as `marginal` has them), losses in nats: `clean_N` with
the true image, `swapped_NK` with each other one. h_ik = 1 where sample i's loss is less with its own image than with
image k, 1/2 where they are equal. AUROC is the mean of h: the chance that a true image beats another one, 1/2 where the
model doesn't see what is asked.

Neither samples nor images are all there could be: other images would lean otherwise, and as long as there are only K of
them, no number of samples makes up for that. The variance is that of a U-statistic of two samples (DeLong et al. 1988):
of the samples' means by N plus of the images' means by K, its degrees of freedom by Satterthwaite. Where nothing is
seen, 1/2 lies outside of a 95 % interval in 5 % of the groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from vig_ray.selection.calibrate import Floats

CONFIDENCE = 0.95


@dataclass
class Beaten:
    """Sums over samples of a group, of which `Signal` is made; sums of two parts add up (`+=`).

    `samples`: N. `of_images` [K]: sums of h_ik over samples. `total`, `squares`: of the samples' means over K.
    `all_beaten`: samples whose own image beats all K. `apart`: the sum of how much less each sample's loss is with its
    own image than with the mean of the others, nats; `spread`: the sum of squares of its K + 1 losses around their
    mean.
    """

    of_images: Floats
    samples: int = 0
    total: float = 0.0
    squares: float = 0.0
    all_beaten: int = 0
    apart: float = 0.0
    spread: float = 0.0

    @classmethod
    def of(cls, clean_N: Floats, swapped_NK: Floats) -> Beaten:
        """Of some samples."""
        h_NK = np.where(clean_N[:, None] == swapped_NK, 0.5, (clean_N[:, None] < swapped_NK).astype(np.float64))
        means_N = h_NK.mean(1)
        losses = np.concatenate([clean_N[:, None], swapped_NK], axis=1)
        return cls(
            h_NK.sum(0),
            len(clean_N),
            float(means_N.sum()),
            float(np.square(means_N).sum()),
            int((h_NK == 1).all(1).sum()),
            float((swapped_NK.mean(1) - clean_N).sum()),
            float(np.square(losses - losses.mean(1, keepdims=True)).sum()),
        )

    def __iadd__(self, other: Beaten) -> Beaten:
        self.of_images = self.of_images + other.of_images
        self.samples += other.samples
        self.total += other.total
        self.squares += other.squares
        self.all_beaten += other.all_beaten
        self.apart += other.apart
        self.spread += other.spread
        return self


class Signal(NamedTuple):
    """What a group's passes tell.

    `auroc` and its 95 % interval, `low` to `high`, NaN of fewer than two samples; `above`: the share of samples whose
    own image beats all K, which is `chance` where nothing is seen; `signal`: of the variance that other images make in
    a sample's loss, and so in its gain, the share that goes with the image being its own, from 0 to 1 (omega squared of
    an analysis of variance with samples as blocks); NaN where images make no difference.
    """

    samples: int
    auroc: float
    low: float
    high: float
    above: float
    chance: float
    signal: float

    @property
    def seen(self) -> bool:
        """Whether the true image is better than another one, beyond what chance makes of it."""
        return self.low > 0.5


def signal_of(beaten: Beaten, confidence: float = CONFIDENCE) -> Signal:
    """What the sums of a group tell."""
    n, k = beaten.samples, len(beaten.of_images)
    if not n:
        return Signal(0, math.nan, math.nan, math.nan, math.nan, 1 / (k + 1), math.nan)
    auroc = beaten.total / n
    low = high = math.nan
    if n > 1:
        of_samples = max(0.0, beaten.squares - n * auroc**2) / (n - 1) / n
        of_images = float(np.var(beaten.of_images / n, ddof=1)) / k if k > 1 else 0.0
        variance = of_samples + of_images
        if variance:
            parts = of_samples**2 / (n - 1) + (of_images**2 / (k - 1) if k > 1 else 0.0)
            degrees = variance**2 / parts
            half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(variance)
            low, high = max(0.0, auroc - half), min(1.0, auroc + half)
        else:  # all beat all, or none does: the exact interval of n samples that agree, doubled on one side
            least = float(stats.beta.ppf((1 - confidence) / 2, n, 1))
            low, high = (least, 1.0) if auroc > 0.5 else (0.0, 1 - least)  # fmt: skip
            low, high = (auroc, auroc) if auroc == 0.5 else (low, high)
    return Signal(n, auroc, low, high, beaten.all_beaten / n, 1 / (k + 1), _signal(beaten))


def _signal(beaten: Beaten) -> float:
    n, k = beaten.samples, len(beaten.of_images)
    if not beaten.spread or n * k < 2:
        return math.nan
    own = beaten.apart**2 / n * k / (k + 1)
    by_chance = (beaten.spread - own) / (n * k - 1)
    return max(0.0, (own - by_chance) / (beaten.spread + by_chance)) if beaten.apart > 0 else 0.0
