"""Shared by all tests: the demo checkpoint, a tiny Qwen2.5-VL, and the oracle that every engine is held against."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from pathlib import Path

import pytest
import torch

from tests import tiny_models
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_formatter, load_model

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def demo_formatter():
    return load_formatter(CHECKPOINT)


@pytest.fixture(scope="session")
def demo_model():
    return load_model(CHECKPOINT, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def gemma_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("models") / "gemma"
    tiny_models.write_gemma(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("models") / "qwen"
    tiny_models.write_qwen(str(folder))
    return str(folder)
