"""What training writes, loaded by vLLM: it computes the model that was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.runs import alone, left_by, setup_of
from vig_ray.demo import CHECKPOINT
from vig_ray.model.load import load_model
from vig_ray.scoring.engines.torch import TorchEngine

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("options", [{}, {"lora": True, "lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-2}])
def test_vllm_computes_what_was_trained(
    chosen: Path, tmp_path: Path, vllm_engine: Callable[[str], Any], demo_formatter: Any, options: dict[str, Any]
) -> None:
    run = alone(setup_of(chosen, max_steps=3, **options), tmp_path / "training" / "checkpoints")
    left_by(run, tmp_path)
    prompts = [sample.prompt for sample in run.setup.source().__getitems__(range(8))]  # type: ignore[union-attr]
    run.training_model.model.eval()
    expected = np.concatenate(TorchEngine(run.training_model.model, demo_formatter.collate).logprobs(prompts))
    found = np.concatenate(vllm_engine(str(tmp_path / "model")).logprobs(prompts))
    aligned = load_model(CHECKPOINT, dtype="float32", device="cpu")
    before = np.concatenate(TorchEngine(aligned, demo_formatter.collate).logprobs(prompts))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(before - expected).max() > 0.01
