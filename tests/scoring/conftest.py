"""What the suite of all engines and that of the torch engine share."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from vig_ray.demo import CHECKPOINT, world


@pytest.fixture(scope="session")
def folders(qwen_checkpoint: str, gemma_checkpoint: str) -> dict[str, str]:
    return {"llava": CHECKPOINT, "qwen": qwen_checkpoint, "gemma": gemma_checkpoint}


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = random.Random(5)
    return [world.draw(world.random_scene(rng)) for _ in range(4)]
