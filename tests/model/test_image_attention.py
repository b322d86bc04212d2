"""Shares of attention on image tokens against transformers' own full matrices."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.scoring.prompts import LONG, ask, picture
from vig_ray.model import image_attention as module
from vig_ray.model.image_attention import Watch, image_attention
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines.forwards import Forwards
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs


@pytest.fixture(scope="module", params=["demo", "qwen", "gemma"])
def family(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """LLaVA; grouped heads and M-RoPE; a sliding window and images that see both ways."""
    if request.param == "demo":
        return copy.deepcopy(request.getfixturevalue("demo_model")), request.getfixturevalue("demo_formatter")
    folder = request.getfixturevalue(f"{request.param}_checkpoint")
    return load_model(folder, dtype="float32", device="cpu"), load_formatter(folder)


def prompts_of(formatter: Any) -> list[Prompt]:
    return [ask(formatter, answer, picture(number, formatter)) for number, answer in enumerate((LONG, "Red."), 1)]


def by_full_matrices(model: Any, formatter: Any, prompt: Prompt) -> np.ndarray[Any, Any]:
    """The mean over heads of the rows' sums over image columns, [layers, T]."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    inputs |= formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
    types = (ids == model.config.image_token_id).long()
    kind = model.config.model_type
    inputs |= {"mm_token_type_ids": types} if kind.startswith("qwen") else {}
    inputs |= {"token_type_ids": types} if kind.startswith("gemma") else {}
    with torch.no_grad():
        attentions = eager(**inputs, output_attentions=True).attentions
    queries, image = prompt.answer_positions - 1, np.flatnonzero(prompt.token_ids == model.config.image_token_id)
    return np.stack([np.asarray(one)[0][:, queries][:, :, image].sum(-1).mean(0) for one in attentions])


@pytest.mark.parametrize("at_once", [1 << 24, 1])
def test_shares_are_those_of_the_full_matrices(
    family: tuple[Any, Any], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, formatter = family
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    forwards = Forwards(model, formatter.collate, TargetLogProbs(model))
    prompts = prompts_of(formatter)
    before = [forwards.states_plainly(prompt) for prompt in prompts]
    told = image_attention(model, prompts, forwards.states_plainly)
    for prompt, shares in zip(prompts, told, strict=True):
        expected = by_full_matrices(model, formatter, prompt)
        assert shares.shape == expected.shape
        assert shares.dtype == np.float32
        assert 0.01 < expected.max() <= 1.0
        np.testing.assert_allclose(shares, expected, atol=1e-5)
    after = [forwards.states_plainly(prompt) for prompt in prompts]  # the model is as it was
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_what_cannot_be_told_is_refused(demo_model: Any, demo_formatter: Any) -> None:
    (prompt, _) = prompts_of(demo_formatter)
    with pytest.raises(PromptError, match="AttentionInterface"):
        image_attention(demo_model, [prompt], lambda _: None)  # no layer was called
    watch = Watch(np.array([1]), np.array([True, False, False]))
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one whole sample"):
        watch.see(query, torch.zeros(1, 2, 5, 4), None, 1.0, causal=True)
    with pytest.raises(ValueError, match="one whole sample"):
        watch.see(query.expand(2, -1, -1, -1), query.expand(2, -1, -1, -1), None, 1.0, causal=True)
    watch.see(query, query, None, 1.0, causal=True)  # the second of three equal keys sees two, one of them an image
    watch.see(query, query, None, 1.0, causal=False)
    np.testing.assert_allclose(watch.shares(), [[1 / 2], [1 / 3]], rtol=1e-6)
