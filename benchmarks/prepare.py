"""What preparing a sample costs a core, and how near the two blurs are: `python benchmarks/prepare.py --rounds 3`.

Two photographs at four sizes, as JPEGs of quality 90 and 4:2:0: decoded, blurred in both ways, padded and resized as
LLaVA-1.5's images are. The parts take turns; of each the least CPU time of the rounds is printed, in milliseconds, and
the same for a whole sample (decode, blur, clean and blurred image resized), with the ratio of the two blurs. Then the
mean and the largest difference, in grey levels, between either blur and the exact Gaussian, unrounded, and between
the two.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import PIL.Image
from scipy.ndimage import correlate1d
from sklearn.datasets import load_sample_images

from vig_ray.dataset.images import decode_image
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_formatter
from vig_ray.scoring.blur import blur_by, blur_kernel

SIZES = ((336, 336), (640, 480), (1024, 768), (2000, 1500))


def jpegs(width: int, height: int) -> list[bytes]:
    found = []
    for photograph in load_sample_images().images:
        file = io.BytesIO()
        PIL.Image.fromarray(photograph).resize((width, height), PIL.Image.Resampling.BICUBIC).save(
            file, "JPEG", quality=90, subsampling=2
        )
        found.append(file.getvalue())
    return found


def gaussian(side: int, kernel: int) -> np.ndarray:
    """The blur along a side as a matrix, float64 [side, side], borders reflected."""
    taps = np.exp(-0.5 * ((np.arange(kernel) - kernel // 2) / (kernel - 1)) ** 2)
    return np.asarray(correlate1d(np.eye(side), taps / taps.sum(), axis=0, mode="mirror"))


def exact(pixels: np.ndarray) -> np.ndarray:
    height, width, _ = pixels.shape
    kernel = blur_kernel(width)
    planes = gaussian(height, kernel) @ pixels.transpose(2, 0, 1).astype(np.float64) @ gaussian(width, kernel).T
    return planes.transpose(1, 2, 0)


def costs(files: list[bytes], preprocess: Callable[[np.ndarray], Any], rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time of each part, a mean over the images, the least of the rounds."""
    images = [decode_image(file) for file in files]
    parts: dict[str, Callable[[], Any]] = {
        "decode": lambda: [decode_image(file) for file in files],
        "opencv": lambda: [blur_by("opencv")(image) for image in images],
        "fast": lambda: [blur_by("fast")(image) for image in images],
        "processor": lambda: [preprocess(image) for image in images],
    }
    least = dict.fromkeys(parts, float("inf"))
    for _ in range(rounds):
        for name, part in parts.items():
            began = time.thread_time()
            part()
            least[name] = min(least[name], 1000 * (time.thread_time() - began) / len(files))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # as in the preparing stage
    formatter: Any = load_formatter(CHECKPOINT)
    formatter.side = 336
    print("CPU ms a sample    decode  blur opencv    fast   ratio  processor  sample opencv    fast   ratio")
    for width, height in SIZES:
        cost = costs(jpegs(width, height), formatter.preprocess, arguments.rounds)
        rest = cost["decode"] + 2 * cost["processor"]
        opencv, fast = rest + cost["opencv"], rest + cost["fast"]
        print(
            f"{width:5} x {height:<9} {cost['decode']:7.2f} {cost['opencv']:12.1f} {cost['fast']:7.2f} "
            f"{cost['opencv'] / cost['fast']:7.1f} {cost['processor']:10.2f} {opencv:14.1f} {fast:7.2f} "
            f"{opencv / fast:7.1f}",
            flush=True,
        )
    print("grey levels, mean / largest      fast - exact   opencv - exact    fast - opencv")
    for width, height in SIZES:
        images = [decode_image(file) for file in jpegs(width, height)]
        three = np.stack([[exact(image), blur_by("fast")(image), blur_by("opencv")(image)] for image in images])
        wanted, fast_blur, opencv_blur = three[:, 0], three[:, 1], three[:, 2]
        pairs = ((fast_blur, wanted), (opencv_blur, wanted), (fast_blur, opencv_blur))
        differences = [np.abs(one - other) for one, other in pairs]
        told = "".join(f"{each.mean():11.2f} / {each.max():.2f}" for each in differences)
        print(f"{width:5} x {height:<20} {told}", flush=True)


if __name__ == "__main__":
    main()
