"""What a dataset decides of references: made once, by the driver of a job, and handed to whoever prepares prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vig_ray.options import BlurName
from vig_ray.scoring.blur import blur_by
from vig_ray.scoring.reference import blur_mean_parameters
from vig_ray.scoring.references.average import IMAGES, blur_mean_image, to_png
from vig_ray.scoring.references.drawing import draw_by_source, draw_for_all
from vig_ray.scoring.references.other_images import Drawn

OF_DATA = ("blur-mean", "marginal", "swap")
"""The references that a dataset decides."""


@dataclass(frozen=True)
class OfData:
    """`average`: the picture of blur-mean, a PNG. `drawn`: the images of marginal and swap, by the reference. Each is
    there where it is asked for. `images`: how many marginal is of."""

    average: bytes | None = None
    drawn: Mapping[str, Drawn] = field(default_factory=dict)
    images: int = 0

    def parameters(self, blur: BlurName) -> dict[str, dict[str, Any]]:
        """What a record holds of each, by the reference."""
        known = {name: drawn.parameters() for name, drawn in self.drawn.items()}
        if "marginal" in known:
            known["marginal"] = {"images": self.images} | known["marginal"]
        return known | ({} if self.average is None else {"blur-mean": blur_mean_parameters(self.average, blur)})


def of_data(
    samples: str, references: Sequence[str], *, blur: BlurName, images: int, seed: int, max_pixels: int
) -> OfData:
    """What the samples decide of these references. `images`, `seed`: of marginal and swap.

    Raises StageError where there are too few images that can be read.
    """
    average, drawn = None, {}
    if "blur-mean" in references:
        average = to_png(blur_mean_image(samples, IMAGES, blur_by(blur), max_pixels=max_pixels))
    if "marginal" in references:
        drawn["marginal"] = draw_for_all(samples, images, seed, max_pixels=max_pixels)
    if "swap" in references:
        drawn["swap"] = draw_by_source(samples, seed, max_pixels=max_pixels)
    return OfData(average, drawn, images)
