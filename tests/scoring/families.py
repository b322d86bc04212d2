"""The model families that engines are held against a plain forward on, and the prompts of these tests."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vig_ray.dataset.schema import Turn
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptImage

# Log-probs near -10 in float32 have steps of 1e-6, and the order of summing depends on batches and threads. vLLM: other
# kernels, and for Qwen2.5-VL another attention in the tower.
TOLERANCE = {
    "torch": {"llava": 1e-5, "qwen": 1e-5, "gemma": 1e-5},
    "vllm": {"llava": 1e-4, "qwen": 1e-3},
}


@dataclass
class Family:
    """A model with what makes its prompts, and transformers' own image processor."""

    name: str
    folder: str
    model: Any
    formatter: Any
    image_processor: Any

    def image(self, key: str, picture: Image.Image) -> PromptImage:
        return PromptImage(key, lambda: np.asarray(picture), self.formatter.preprocess)


def family_of(name: str, folders: dict[str, str]) -> Family:
    """The family of a name, loaded."""
    from transformers import AutoImageProcessor

    model = load_model(folders[name], dtype="float32", device="cpu")
    # LLaVA's images are resized by Pillow, as in LLaVA; others by what transformers finds, torchvision if it is there.
    backend = {"backend": "pil"} if name == "llava" else {}
    processor = AutoImageProcessor.from_pretrained(folders[name], **backend)
    return Family(name, folders[name], model, load_formatter(folders[name]), processor)


def conversations(rng: random.Random) -> list[tuple[list[Turn], list[int]]]:
    """(turns, numbers of the pictures they use): one turn, many turns, two images, text only, long."""
    long = " ".join(rng.choice(["A red circle on the left.", "The square is blue."]) for _ in range(40))
    return [
        ([Turn("user", "<image>\nWhat color is the circle?"), Turn("assistant", "The circle is red.")], [0]),
        (
            [
                Turn("user", "<image>Where is it?"),
                Turn("assistant", "It is on the left."),
                Turn("user", "Sure?"),
                Turn("assistant", "Yes."),
            ],
            [0],
        ),
        (
            [
                Turn("user", "<image><image>\nCompare."),
                Turn("assistant", "A green cross."),
                Turn("user", "Why?"),
                Turn("assistant", "No."),
            ],
            [1, 2],
        ),
        ([Turn("user", "How many days are in a week?"), Turn("assistant", "A week has seven days.")], []),
        ([Turn("user", "<image>\nDescribe the image."), Turn("assistant", long)], [2]),
        ([Turn("user", "<image>\nDescribe the image."), Turn("assistant", "Où? 😀 \n\t ok")], [3]),
    ]


def make(family: Family, pictures: list[Image.Image]) -> list[tuple[Prompt, list[Image.Image]]]:
    """The prompts of `conversations`, each with its pictures."""
    made = []
    shared = [family.image(f"picture-{i}", picture) for i, picture in enumerate(pictures)]
    for turns, numbers in conversations(random.Random(0)):
        prompt = family.formatter.prompt(turns, [shared[i] for i in numbers])
        made.append((prompt, [pictures[i] for i in numbers]))
    return made
