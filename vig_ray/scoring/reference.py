"""References: what stands for "no image". Each is a function from a prompt to the prompt without its image.

    blur        VIG: the image blurred until no visual cue is left, at its original size, before padding and resizing
                (Xing et al., arXiv 2503.13891, which VIG's appendix B follows)
    blind       VisNec: every image position is padding with attention 0, the text keeps its positions
    no-image    the image's positions left out, the text moved up
    mean        one picture for all samples: the image processor's mean colour
    blur-mean   one picture for all samples: the mean of the dataset's blurred images
    noise       one picture for all samples: uniform noise
    vcd         the image under half the steps of a diffusion (Leng et al., arXiv 2311.16922)
    marginal    other images of the dataset, the same ones for all samples; the mean of the probabilities with them
    swap        another image of the sample's source

The last two are made of the conversation anew (`vig_ray.scoring.references.other_images`), and `marginal` of several
prompts. The rest of the pipeline doesn't know which one is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2

from vig_ray.dataset.images import decode_image
from vig_ray.errors import StageError
from vig_ray.model.prompt import Formatter, Prompt, PromptError
from vig_ray.scoring.blur import blur_by, blur_parameters
from vig_ray.scoring.references import diffusion
from vig_ray.scoring.references.no_image import no_image
from vig_ray.scoring.references.same_picture import (
    SIDE,
    SamePicture,
    mean_colour,
    noise_picture,
    picture_digest,
    plain,
    resized,
)

if TYPE_CHECKING:  # a GPU's machine may be without pydantic
    from vig_ray.options import BlurName, ReferenceName

_NOISE_SEED = 0


def blur(prompt: Prompt, by: BlurName = "opencv") -> Prompt:
    """The prompt with every image blurred."""
    images = tuple(image.derive("blur", blur_by(by)) for image in prompt.images)
    return replace(prompt, images=images, whole=prompt.whole and prompt.whole.of(images))


def blind(prompt: Prompt) -> Prompt:
    """The prompt with its image positions masked from attention."""
    return replace(prompt, hide_images=True)


@dataclass(frozen=True)
class Reference:
    """A reference by name, with the parameters that the record holds.

    `needs_hiding`: its prompts have hidden images, which not every engine can run.
    """

    name: str
    without_image: Callable[[Prompt], Prompt]
    parameters: dict[str, Any] = field(default_factory=dict)
    needs_hiding: bool = False


REFERENCES = {
    "blind": Reference("blind", blind, needs_hiding=True),
    "no-image": Reference("no-image", no_image),
}
"""Those that are the same for all models and datasets."""
_blurred = blur  # whose name is an option's below


def make_reference(
    name: ReferenceName,
    *,
    formatter: Formatter,
    blur: BlurName = "fast",
    average: bytes | None = None,
) -> Reference:
    """The reference called `name`, for prompts that `formatter` makes.

    `blur`: how the blur is computed. `average`: the PNG of `blur_mean_image`, for blur-mean. Raises StageError where
    the model can't have this reference, or the average is missing.
    """
    if name == "blur":
        return Reference(name, partial(_blurred, by=blur), blur_parameters(blur))
    if name == "mean":
        colour = mean_colour(formatter)
        return Reference(name, SamePicture(name, plain(colour), formatter), {"colour": list(colour)})
    if name == "noise":
        picture = noise_picture(_NOISE_SEED)
        parameters = {"seed": _NOISE_SEED, "side": SIDE, "picture": picture_digest(picture)}
        return Reference(name, SamePicture(name, resized(picture, cv2.INTER_NEAREST_EXACT), formatter), parameters)
    if name == "blur-mean":
        if average is None:
            raise StageError("--reference blur-mean: is the mean of a dataset's images, and there is no dataset here")
        make = resized(decode_image(average), cv2.INTER_LINEAR)
        return Reference(name, SamePicture(name, make, formatter), blur_mean_parameters(average, blur))
    if name == "vcd":
        try:
            formatter.normalised({})
        except PromptError as error:
            raise StageError(f"--reference vcd: {error.args[1]}") from error
        parameters = {"steps": diffusion.STEPS, "step": diffusion.STEP}
        return Reference(name, diffusion.vcd(formatter), parameters)
    return REFERENCES[name]


def blur_mean_parameters(average: bytes, blur: BlurName) -> dict[str, Any]:
    """What a record holds of blur-mean."""
    return {"side": SIDE, "blur": blur, "picture": picture_digest(decode_image(average))}
