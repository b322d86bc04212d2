"""Shares of attention on image tokens against transformers' own full matrices."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.scoring.prompts import LONG, ask, picture
from vig_ray.model import image_attention as module
from vig_ray.model.image_attention import Watch, image_attention, watched
from vig_ray.model.load import load_formatter, load_model
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines.forwards import Forwards
from vig_ray.scoring.engines.target_logprobs import TargetLogProbs

FAMILIES = ("demo", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "gemma3")
"""LLaVA; grouped heads and M-RoPE; layers that don't attend; tiles; a sliding window and images that see both ways."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """In float64: both ways then differ by the float32 that transformers' own softmax is in."""
    if request.param == "demo":
        model, formatter = request.getfixturevalue("demo_model"), request.getfixturevalue("demo_formatter")
        return copy.deepcopy(model).double(), formatter
    folder = str(tmp_path_factory.mktemp(request.param))
    importlib.import_module(f"tests.model.families.{request.param}").make(folder)
    return load_model(folder, dtype="float32", device="cpu").double(), load_formatter(folder)


def prompts_of(formatter: Any) -> list[Prompt]:
    return [ask(formatter, answer, picture(number, formatter)) for number, answer in enumerate((LONG, "Red."), 1)]


def by_full_matrices(model: Any, formatter: Any, prompt: Prompt) -> list[np.ndarray[Any, Any]]:
    """The rows' sums over image columns, [heads, T] a layer that attends."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    inputs |= formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float64)
    types = (ids == model.config.image_token_id).long()
    kind = model.config.model_type
    inputs |= {"mm_token_type_ids": types} if kind.startswith("qwen") else {}
    inputs |= {"token_type_ids": types} if kind.startswith("gemma") else {}
    with torch.no_grad():
        attentions = eager(**inputs, output_attentions=True).attentions
    queries, image = prompt.answer_positions - 1, np.flatnonzero(prompt.token_ids == model.config.image_token_id)
    return [np.asarray(one)[0][:, queries][:, :, image].sum(-1) for one in attentions if one is not None]


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
        assert 0.01 < np.max(expected) <= 1.0
        assert shares.dtype == np.float32
        np.testing.assert_allclose(shares, [share_HT.mean(0) for share_HT in expected], atol=1e-6, rtol=0)
        with watched(model, prompt.answer_positions - 1, prompt.image_mask) as watch:
            forwards.states_plainly(prompt)
        for by_head, share_HT in zip(watch.by_head(), expected, strict=True):
            np.testing.assert_allclose(by_head, share_HT, atol=1e-6, rtol=0)
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["attention"] * len(expected)
        assert watch.layers() == [number for number, kind in enumerate(kinds) if not kind.startswith("linear")]
    after = [forwards.states_plainly(prompt) for prompt in prompts]  # the model is as it was
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_no_matrix_of_all_attention_is_made() -> None:
    """The memory that 200 tokens of a prompt of 2,000 take, under a tenth of the matrices of all layers and heads."""
    heads, layers, length = 8, 4, 2000
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": length,
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlavaConfig(text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**vision), image_token_id=70)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.arange(length)[None] % 64
    is_image = np.arange(length) < 1500

    @torch.no_grad()
    def asked() -> Watch:
        with watched(model, np.arange(1799, 1999), is_image) as watch:
            model.model(ids, use_cache=False)
        return watch

    asked()  # what is loaded at the first use isn't counted
    before = grown()
    watch = asked()
    most = grown(reset=False)
    assert np.shape(watch.shares()) == (layers, 200)
    assert most - before < 0.1 * layers * heads * length * length * 4


def grown(*, reset: bool = True) -> int:
    """The most memory that this process has had, bytes; afterwards, or since the last `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    (line,) = [x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) << 10


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
