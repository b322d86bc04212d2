"""A language model in vLLM: the log-probs of a plain forward, and no image machinery at its start. The real vLLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests import tiny_models
from tests.conftest import VLLM_OPTIONS
from tests.scoring.prompts import LONG
from tests.scoring.test_text_engine import plainly
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.prompt import PromptError
from vig_ray.model.text_only import text_formatter
from vig_ray.scoring.engines.load import load_engine

pytestmark = [pytest.mark.vllm, pytest.mark.vllm_v2]


def test_log_probs_are_those_of_a_plain_forward(tmp_path: Path) -> None:
    folder = tiny_models.write_language_model(str(tmp_path), AutoTokenizer.from_pretrained(CHECKPOINT))
    engine = load_engine(
        "vllm", model=folder, template="auto", max_length=511, dtype="float32", device="cpu", batch_tokens=512,
        vllm=VLLM_OPTIONS, text_only="answer",
    )  # fmt: skip
    formatter = text_formatter(folder)
    answers = ["A red circle.", LONG, "A red square.", f"{LONG} Yes.", "No."]
    prompts = [formatter.prompt([Turn("user", "<image>\n?"), Turn("assistant", answer)]) for answer in answers]
    for found, plain in zip(engine.logprobs(prompts), plainly(folder, prompts), strict=True):
        assert not isinstance(found, PromptError)
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-4)
