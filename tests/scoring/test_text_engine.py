"""Language models in the torch engine: its log-probs, packed and in batches, against transformers' plain forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny_models
from tests.scoring.prompts import LONG
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.text_only import text_formatter
from vig_ray.scoring.engines.load import load_engine

ANSWERS = ["A red circle.", "A red square is on the left.", LONG, f"{LONG} {LONG} Yes.", "No.", "A red circle."]


def plainly(folder: str, prompts: Any) -> list[np.ndarray[Any, Any]]:
    """Log-probs of each prompt's answer tokens: one forward a prompt, full logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor(prompt.token_ids.tolist())[None]
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        found.append(np.array([float(logp[place - 1, ids[0, place]]) for place in prompt.answer_positions]))
    return found


def demo_like() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def byte_level() -> Any:
    return tiny_models.byte_level(["<|end|>"], eos="<|end|>")


@pytest.mark.parametrize(
    ("kind", "tokenizer", "packed"),
    [("llama", demo_like, True), ("qwen2", byte_level, True), ("mistral", demo_like, False)],
)
def test_log_probs_are_those_of_a_plain_forward(tmp_path: Path, kind: str, tokenizer: Any, packed: bool) -> None:
    folder = tiny_models.write_language_model(str(tmp_path), tokenizer(), kind)
    options: dict[str, Any] = {"template": "auto", "max_length": None, "dtype": "float32", "device": "cpu"}
    for context in ("answer", "conversation"):
        formatter = text_formatter(folder, context)  # type: ignore[arg-type]
        prompts = [
            formatter.prompt([Turn("user", f"<image>\n{'What?' * (number % 3)}"), Turn("assistant", answer)])
            for number, answer in enumerate(ANSWERS)
        ]
        engine: Any = load_engine("torch", model=folder, text_only=context, batch_tokens=64, **options)  # type: ignore[arg-type]
        assert (engine.packed == {"by parts", "hidden"}) == packed
        assert not engine.plainly
        for once, plain in zip(engine.logprobs(prompts), plainly(folder, prompts), strict=True):
            np.testing.assert_allclose(once, plain, atol=1e-5 * max(1, np.abs(plain).max() / 10))
