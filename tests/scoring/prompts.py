"""Small prompts for the tests of engines."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from vig_ray.dataset.schema import Turn
from vig_ray.demo import world
from vig_ray.model.prompt import Prompt, PromptImage

LONG = "The red circle is on the left of the blue square, and the blue square is on the right of the red circle."


def picture(number: int, formatter: Any) -> PromptImage:
    """One of the demo world's pictures, called picture-NUMBER."""
    scene = world.draw(world.random_scene(random.Random(number)))
    return PromptImage(f"picture-{number}", lambda: np.asarray(scene), formatter.preprocess)


def ask(formatter: Any, answer: str, image: PromptImage | None, question: str = "Describe the image.") -> Prompt:
    """A conversation of one turn, with an image or without."""
    mark = "<image>\n" if image else ""
    turns = [Turn("user", f"{mark}{question}"), Turn("assistant", answer)]
    return formatter.prompt(turns, [image] if image else [])
