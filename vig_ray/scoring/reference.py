"""References: what stands for "no image". Each is a function from a prompt to the prompt without its image.

    blur    VIG: the image blurred until no visual cue is left, at its original size, before padding and resizing
            (Xing et al., arXiv 2503.13891, which VIG's appendix B follows)
    blind   VisNec: every image position is padding with attention 0, the text keeps its positions

The rest of the pipeline doesn't know which one is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.scoring.blur import blur_opencv


def blur(prompt: Prompt) -> Prompt:
    """The prompt with every image blurred."""
    images = tuple(image.derive("blur", blur_opencv) for image in prompt.images)
    return replace(prompt, images=images, whole=prompt.whole and prompt.whole.of(images))


def blind(prompt: Prompt) -> Prompt:
    """The prompt with its image positions masked from attention."""
    return replace(prompt, hide_images=True)


@dataclass(frozen=True)
class Reference:
    """A reference by name, with the parameters that the record holds."""

    name: str
    without_image: Callable[[Prompt], Prompt]
    parameters: dict[str, Any]


REFERENCES = {
    "blur": Reference(
        "blur", blur, {"kernel_by_width": {"2000": 501, "800": 301, "500": 201, "0": 101}, "sigma": "kernel - 1"}
    ),
    "blind": Reference("blind", blind, {}),
}


def make_reference(name: str, *, formatter: Formatter) -> Reference:  # noqa: ARG001
    """The reference called `name`, for prompts that `formatter` makes."""
    return REFERENCES[name]
