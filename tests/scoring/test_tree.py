"""Prompts run as a tree by the torch engine: what is kept from call to call, failures, memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.scoring.prompts import ask, picture
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines.torch import TorchEngine

WORDS = ["red", "blue", "green", "yellow", "circle", "square", "left", "right"]
QUESTIONS = ["What colour is the circle on the left", "Describe the image in one sentence"]


def pairs(formatter: Any, count: int, constant: PromptImage) -> list[Prompt]:
    """Samples, each with its own image and, as under a constant reference, with one that is the same for all."""
    made = []
    for number in range(count):
        question = f"{QUESTIONS[number % 2]} {WORDS[number // 2 % 8]} {WORDS[number // 3 % 8]}"
        answer = f"{WORDS[number % 4]} {WORDS[number // 4 % 4]}"
        made += [ask(formatter, answer, image, question) for image in (picture(10 + number, formatter), constant)]
    return made


def broken(formatter: Any) -> Prompt:
    bad = PromptImage("bad", lambda: None, lambda _: {"pixel_values": np.zeros((3, 7, 7), np.uint8)})  # type: ignore[arg-type, return-value]
    return replace(ask(formatter, "red", picture(2, formatter), "What colour?"), images=(bad,))


def assert_plain(engine: TorchEngine, prompts: list[Prompt], found: list[Any]) -> None:
    for prompt, logp_T in zip(prompts, found, strict=True):
        assert isinstance(logp_T, np.ndarray), logp_T
        np.testing.assert_allclose(logp_T, engine.run_plainly(prompt), atol=2e-5, rtol=0)


@pytest.mark.parametrize("most", [15, 40, 2048])
def test_a_failure_in_the_middle_spoils_no_prefix(
    most: int, demo_formatter: Any, demo_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`most` tokens are kept: with few, a prefix is too long while another that builds on it would do."""
    monkeypatch.setattr("vig_ray.scoring.engines.tree._KEPT_TOKENS", most)
    engine = TorchEngine(demo_model, demo_formatter.collate, max_batch_tokens=64)
    prompts = pairs(demo_formatter, 16, picture(1, demo_formatter))
    for _ in range(2):
        *found, failed = engine.logprobs([*prompts, broken(demo_formatter)])
        assert isinstance(failed, PromptError)
        assert_plain(engine, prompts, found)


def test_a_constant_picture_is_computed_once_for_all_calls(demo_formatter: Any, demo_model: Any) -> None:
    engine = TorchEngine(demo_model, demo_formatter.collate)
    constant = picture(1, demo_formatter)
    tokens: list[int] = []
    handle = demo_model.get_input_embeddings().register_forward_hook(lambda *given: tokens.append(given[2].shape[1]))
    try:
        first = pairs(demo_formatter, 16, constant)[1::2]
        engine.logprobs(first)
        before = sum(tokens)
        tokens.clear()
        again = [ask(demo_formatter, "blue left", constant, f"{WORDS[number]}?") for number in range(8)]
        found = engine.logprobs(again)
    finally:
        handle.remove()
    assert before > sum(tokens)
    # What comes before the question, the system prompt and the image, was there.
    assert sum(tokens) <= sum(len(prompt.token_ids) - int(prompt.image_spans[0, 1]) for prompt in again)
    assert_plain(engine, again, found)


def test_the_models_own_attention_is_left_as_it_was(demo_formatter: Any, demo_model: Any) -> None:
    prompt = ask(demo_formatter, "red", picture(1, demo_formatter), "What colour?")
    ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None]
    masked = torch.ones_like(ids)
    masked[0, 5:9] = 0
    with torch.no_grad():
        before = demo_model.model.language_model(input_ids=ids % 90, attention_mask=masked).last_hidden_state
        TorchEngine(demo_model, demo_formatter.collate).logprobs([prompt])
        after = demo_model.model.language_model(input_ids=ids % 90, attention_mask=masked).last_hidden_state
    assert torch.equal(before, after)


def test_memory_is_asked_for_in_the_size_of_what_failed(demo_formatter: Any, demo_model: Any) -> None:
    engine = TorchEngine(demo_model, demo_formatter.collate, max_batch_tokens=512)
    assert engine.halve_batches(2880)  # an image that can't be cut: the bound doesn't rise
    assert engine.max_batch_tokens == 256
    engine.max_batch_tokens = 16384
    assert engine.halve_batches(70)  # the short end of a tree
    assert engine.max_batch_tokens == 8192
    engine.max_batch_tokens = 40
    assert not engine.halve_batches(40)
