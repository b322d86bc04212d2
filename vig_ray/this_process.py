"""A stage in the very process that calls it, without a Ray."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch

from vig_ray.cluster import Machines
from vig_ray.model.load import without_bars


@contextmanager
def this_process() -> Iterator[Machines]:
    """This machine as a process without a Ray sees it; what a stage set for the process is taken back at the end."""
    threads = cv2.getNumThreads()
    try:
        with without_bars():
            yield Machines(os.cpu_count() or 1, torch.cuda.device_count())
    finally:
        cv2.setNumThreads(threads)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
