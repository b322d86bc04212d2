"""What the fast blur changes in the scores: `python benchmarks/blur.py`.

Demo samples, their scenes drawn at larger sizes, are scored by the demo model with both blurs. Printed for each size:
the mean and the largest difference of the samples' VIG, nats, and Spearman's correlation of the two rankings.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.demo import CHECKPOINT, world
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.gain import sample_gain
from vig_ray.scoring.reference import blur


def prompts(formatter: Any, count: int, size: tuple[int, int]) -> list[Prompt]:
    """Samples with an image, each scene drawn at `size`."""
    made = []
    for number, sample in world.samples(count, seed=5):
        if sample.scene is not None:
            picture = partial(drawn, sample.scene, size)
            turns = []
            for place, turn in enumerate(sample.turns):
                turns += [Turn("user", f"{IMAGE_MARK}\n{turn.question}" if place == 0 else turn.question)]
                turns += [Turn("assistant", turn.answer)]
            made.append(formatter.prompt(turns, [PromptImage(str(number), picture, formatter.preprocess)]))
    return made


def drawn(scene: world.Scene, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(world.draw(scene, size=size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    formatter = load_formatter(CHECKPOINT)
    engine = TorchEngine(load_model(CHECKPOINT, dtype="float32", device="cpu"), formatter.collate)
    print(f"torch {torch.__version__}, demo model, --blur fast against --blur opencv", flush=True)
    for size in ((640, 480), (1024, 768)):
        clean = prompts(formatter, options.samples, size)
        clean_logp = engine.logprobs(clean)
        gains = []
        for by in ("opencv", "fast"):
            found = engine.logprobs([blur(prompt, by) for prompt in clean])
            gains.append([sample_gain(a, b) for a, b in zip(clean_logp, found, strict=True)])
        opencv, fast = np.asarray(gains)
        apart = np.abs(fast - opencv)
        print(
            f"{size[0]} x {size[1]}: {len(clean)} samples, VIG {opencv.mean():.3f} nats on average; apart "
            f"{apart.mean():.1e} on average, {apart.max():.1e} at most; Spearman {spearmanr(opencv, fast)[0]:.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
