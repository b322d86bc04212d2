"""`vcd`: each image under the noise of a diffusion, as visual contrastive decoding has it.

Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", arXiv 2311.16922: the forward diffusion process, with the schedule and the step of its released code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Formatter, ImageInputs, Prompt

STEPS, STEP = 1000, 500
LOWEST, HIGHEST = 1e-5, 5e-3
"""Of the steps' variances."""


def signal_and_noise(step: int = STEP) -> tuple[float, float]:
    """How much of the image is left after a number of steps, and how much noise is in it: sqrt(a), sqrt(1 - a).

    a = prod_{i=0}^{step} (1 - beta_i), beta_i = 1e-5 + (5e-3 - 1e-5) sigmoid(-6 + 12 i / 999), i from 0 to 999.
    """
    betas = LOWEST + (HIGHEST - LOWEST) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, STEPS)))
    kept = float(np.prod(1.0 - betas[: step + 1]))
    return float(np.sqrt(kept)), float(np.sqrt(1.0 - kept))


def diffused(pixels: npt.NDArray[Any], seed: str, step: int = STEP) -> npt.NDArray[Any]:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) e, e of a standard normal that `seed` decides; `pixels`, x_0, are normalised.

    Rows of nothing but zeros, along the last dimension, are what a processor filled up with, and stay zeros: some
    models tell by them that there is nothing.
    """
    signal, noise = signal_and_noise(step)
    digest = hashlib.blake2b(seed.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    e = rng.standard_normal(pixels.shape, dtype=np.float32)
    noisy = (signal * pixels + noise * e).astype(pixels.dtype)
    return np.where(pixels.any(axis=-1, keepdims=True), noisy, pixels)


def vcd(formatter: Formatter, step: int = STEP) -> Callable[[Prompt], Prompt]:
    """The reference: a prompt to the prompt whose images are diffused by so many steps, after preprocessing.

    An image's noise is decided by its key, so each run has the same. Where the processor makes samples as a whole, the
    arrays are all images', and all their keys decide. Raises PromptError where the processor doesn't normalise.
    """

    def changed_by(key: str) -> Callable[[ImageInputs], ImageInputs]:
        def change(inputs: ImageInputs) -> ImageInputs:
            return {
                name: diffused(array, f"{key}\n{name}", step) if np.issubdtype(array.dtype, np.floating) else array
                for name, array in formatter.normalised(inputs).items()
            }

        return change

    def without_image(prompt: Prompt) -> Prompt:
        name = "vcd" if step == STEP else f"vcd-{step}"
        images = tuple(image.derive_inputs(name, changed_by(image.key)) for image in prompt.images)
        every = "\n".join(image.key for image in prompt.images)
        return replace(prompt, images=images, whole=prompt.whole and prompt.whole.changed(changed_by(every)))

    return without_image
