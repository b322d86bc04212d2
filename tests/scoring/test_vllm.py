"""vLLM as an engine: what it is sent, and how its answers are read. The real vLLM throughout.

The numbers themselves are held against the oracle in test_engines.py. `make test-vllm` runs both files on the V1 model
runner, and what differs (the mark `vllm_v2`) again on the V2 one, the way that GPUs go, with Triton interpreted.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.scoring.prompts import LONG, ask, picture
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import EngineDiedError
from vig_ray.scoring.reference import blur, make_reference

pytestmark = pytest.mark.vllm

V2 = os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1"
only_v2 = pytest.mark.skipif(not V2, reason="the V1 model runner has no such way")


@pytest.fixture
def engine(vllm_engine: Callable[[str], Any]) -> Any:
    found = vllm_engine(CHECKPOINT)
    found.max_in_flight = 256
    found.engine.reset_prefix_cache()
    return found


class Sent:
    """Records the requests that reach vLLM and the answers that come back."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[tuple[str, Any, Any]] = []
        self.answers: list[Any] = []
        self.most_in_flight = 0
        add, step = engine.engine.add_request, engine.engine.step

        def adding(name: str, request: Any, params: Any) -> Any:
            self.requests.append((name, request, params))
            result = add(name, request, params)
            self.most_in_flight = max(self.most_in_flight, engine.engine.get_num_unfinished_requests())
            return result

        def stepping() -> Any:
            outputs = step()
            self.answers += outputs
            return outputs

        monkeypatch.setattr(engine.engine, "add_request", adding)
        monkeypatch.setattr(engine.engine, "step", stepping)


@pytest.fixture
def sent(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(engine, monkeypatch)


@pytest.mark.vllm_v2
def test_the_description_says_which_way_it_takes(engine: Any) -> None:
    assert ("answer rows only" in engine.description) == V2
    assert ("V2 model runner" if V2 else "V1 model runner") in engine.description


@pytest.mark.vllm_v2
def test_tokens_and_images_arrive_as_they_were_prepared(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    image = picture(1, demo_formatter)
    prompt = ask(demo_formatter, "A red circle.", image)
    engine.logprobs([prompt, blur(prompt)])
    (_, clean, _), (_, blurry, _) = sent.requests
    for answer in sent.answers:
        assert list(answer.prompt_token_ids) == prompt.token_ids.tolist()
    assert clean["mm_hashes"] != blurry["mm_hashes"]
    (place,) = clean["mm_placeholders"]["image"]
    assert prompt.image_mask[place.offset : place.offset + place.length].all()
    assert prompt.image_mask.sum() == place.length
    pixels = clean["mm_kwargs"]["image"][0].get_data()["pixel_values"]
    expected = demo_formatter.collate([image.inputs], "cpu", torch.float32)["pixel_values"][0]
    assert torch.equal(pixels, expected)


@pytest.mark.vllm_v2
def test_what_is_asked_for(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    prompt = ask(demo_formatter, "A red circle.", picture(1, demo_formatter))
    (found,) = engine.logprobs([prompt])
    ((_, _, params),) = sent.requests
    (answer,) = sent.answers
    assert (params.max_tokens, params.temperature, params.detokenize) == (1, 0, False)
    first, last = int(prompt.answer_positions[0]), len(prompt.token_ids)
    if not V2:
        assert (params.prompt_logprobs, params.flat_logprobs) == (0, True)
        assert params.skip_reading_prefix_cache
        return
    assert params.prompt_logprobs is None
    assert params.prompt_logprob_start == first - 1
    assert params.prompt_logprob_token_ids.tolist() == [[token] for token in prompt.token_ids[first:].tolist()]
    assert not params.skip_reading_prefix_cache
    assert answer.prompt_token_id_logprobs.shape == (last - first, 1)
    assert answer.prompt_token_id_logprobs.dtype == np.float32
    assert answer.prompt_logprobs is None
    np.testing.assert_array_equal(found, answer.prompt_token_id_logprobs[prompt.answer_positions - first, 0])


def test_samples_of_one_image_follow_each_other(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    images = [picture(number, demo_formatter) for number in range(3)]
    prompts = [ask(demo_formatter, f"{'A red circle. ' * (1 + i % 4)}", images[i % 3]) for i in range(12)]
    pairs = [each for prompt in prompts for each in (prompt, blur(prompt))]
    engine.logprobs(pairs)
    hashes = [request["mm_hashes"]["image"][0] for _, request, _ in sent.requests][: len(pairs)]
    changes = sum(one != other for one, other in itertools.pairwise(hashes))
    assert changes == 5  # three images, clean and blurred: six runs


@pytest.mark.vllm_v2
@only_v2
def test_an_images_prefix_is_computed_once(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    image = picture(2, demo_formatter)
    prompts = [ask(demo_formatter, LONG, image, f"{word}: what is it?") for word in ("Left", "Right", "Both")]
    first = engine.logprobs(prompts)
    cached = [answer.num_cached_tokens for answer in sent.answers]
    assert sum(count > 0 for count in cached) == 2
    assert max(cached) >= 32
    engine.engine.reset_prefix_cache()
    for one, other in zip(first, [engine.logprobs([prompt])[0] for prompt in prompts], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.vllm_v2
@only_v2
def test_one_picture_for_all_is_computed_once(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    """With `mean` samples of different images begin alike up to their questions' last words, wherever they lie in a
    window; with their own images, up to the image. vLLM's cache has whole blocks."""
    mean = make_reference("mean", formatter=demo_formatter).without_image
    question = "What is on the left of the red circle, and what is on the right of the blue square? Picture"
    prompts = [
        ask(demo_formatter, LONG, picture(number, demo_formatter), f"{question} {word}.")
        for number, word in enumerate(("left", "right", "both"))
    ]
    engine.logprobs([each for prompt in prompts for each in (prompt, mean(prompt))])
    same = np.array([prompt.token_ids[:100] for prompt in prompts]).T
    alike = next(place for place, tokens in enumerate(same) if len(set(tokens)) > 1)
    first, past = prompts[0].image_spans[0].tolist()
    assert past <= alike // 32 * 32, "the whole image was meant to be in blocks that are shared"
    keys = {name: request["mm_hashes"]["image"][0] for name, request, _ in sent.requests}
    cached: dict[str, list[int]] = {"mean": [], "picture": []}
    for answer in sent.answers:
        cached["mean" if keys[answer.request_id].startswith("mean#") else "picture"].append(answer.num_cached_tokens)
    assert sorted(cached["mean"]) == [0, alike // 32 * 32, alike // 32 * 32]
    assert cached["picture"] == [first // 32 * 32] * 3


@pytest.mark.vllm_v2
def test_what_the_cache_had_is_what_vllm_says(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    engine.prefix_use.take()
    image = picture(2, demo_formatter)
    prompts = [ask(demo_formatter, LONG, image, f"{word}: what is it?") for word in ("Left", "Right", "Both")]
    prompts.append(ask(demo_formatter, "word " * 1100, None))  # refused: never sent
    engine.logprobs(prompts)
    assert engine.prefix_use.take() == (
        sum(len(answer.prompt_token_ids) for answer in sent.answers),
        sum(answer.num_cached_tokens for answer in sent.answers),
    )
    assert len(sent.answers) == 3
    assert (sum(answer.num_cached_tokens for answer in sent.answers) > 0) == V2


@pytest.mark.vllm_v2
@only_v2
def test_a_cached_prefix_that_reaches_into_the_answer_is_asked_for_again(
    engine: Any, sent: Sent, demo_formatter: Any
) -> None:
    image = picture(2, demo_formatter)
    prompts = [ask(demo_formatter, f"{LONG} {end}", image) for end in ("Yes.", "No.", "Both.")]
    together = engine.logprobs(prompts)
    without_answer = [answer for answer in sent.answers if answer.prompt_token_id_logprobs is None]
    assert without_answer, "the prompts were meant to share more than their questions"
    assert len(sent.requests) == len(prompts) + len(without_answer)
    assert all(params.skip_reading_prefix_cache for _, _, params in sent.requests[len(prompts) :])
    for prompt, one in zip(prompts, together, strict=True):
        engine.engine.reset_prefix_cache()
        np.testing.assert_allclose(one, engine.logprobs([prompt])[0], atol=1e-5)


def test_the_whole_prompt_is_never_read_from_the_cache(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    prompt = ask(demo_formatter, LONG, picture(2, demo_formatter))
    engine.logprobs([prompt])
    engine.logprobs([prompt])
    assert [answer.num_cached_tokens for answer in sent.answers] == [0, 0]


def test_no_more_in_flight_than_allowed(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    engine.max_in_flight = 4
    prompts = [ask(demo_formatter, f"{number} days.", None, "How many?") for number in range(15)]
    found = engine.logprobs(prompts)
    assert sent.most_in_flight == 4
    engine.max_in_flight = 256
    for one, other in zip(found, engine.logprobs(prompts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_vllm_refuses_costs_only_itself(engine: Any, demo_formatter: Any) -> None:
    good = ask(demo_formatter, "Seven.", None, "How many days?")
    expected = engine.logprobs([good])[0]
    long = ask(demo_formatter, "word " * 1100, None)
    alien = replace(good, token_ids=np.where(np.arange(len(good.token_ids)) == 3, 10**6, good.token_ids))
    found = engine.logprobs([long, good, alien, good])
    assert str(found[0]).startswith("TooLong: ")
    assert "max_model_len" in str(found[0])
    assert isinstance(found[2], PromptError)
    assert "1000000" in str(found[2])
    for index in (1, 3):
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


def test_an_interrupted_call_leaves_nothing_behind(
    engine: Any, demo_formatter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = ask(demo_formatter, "Seven.", None, "How many days?")
    expected = engine.logprobs([prompt])[0]
    with monkeypatch.context() as patched:
        patched.setattr(engine.engine, "step", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.logprobs([prompt] * 3)
    assert not engine.engine.has_unfinished_requests()
    np.testing.assert_allclose(engine.logprobs([prompt])[0], expected, atol=1e-5)


def test_an_error_inside_vllm_is_the_engines_death(
    engine: Any, demo_formatter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(engine.engine, "step", failing)
        with pytest.raises(EngineDiedError, match=r"OutOfMemoryError.*--batch-tokens.*gpu_memory_utilization"):
            engine.logprobs([ask(demo_formatter, "Seven.", None)])
    engine.engine.abort_request([str(number) for number in range(10_000)])  # this engine was well, and serves others


def test_images_of_several_tiles_keep_their_mask() -> None:
    """Text of the processor's own between an image's features is told to vLLM as not being features."""
    from vig_ray.scoring.engines.vllm import _placed

    tiles = PromptImage("tiles", lambda: np.zeros((2, 2, 3), np.uint8), lambda pixels: {"pixel_values": pixels})
    ids = np.array([1, 9, 9, 5, 9, 9, 2, 3], dtype=np.int32)
    mask = ids == 9
    prompt = Prompt(ids, ids[7:], ids[:1] * 0, mask, np.array([[1, 6]], dtype=np.int32), (tiles,))
    (place,) = _placed(prompt, {"tiles": "item"})
    assert (place.item, place.key, place.start, place.length) == ("item", "tiles", 1, 5)
    assert place.features.tolist() == [True, True, False, True, True]


def test_two_images_side_by_side_are_told_apart(engine: Any, sent: Sent, demo_formatter: Any) -> None:
    images = [picture(number, demo_formatter) for number in (1, 2)]
    turns = [Turn("user", "<image><image>\nCompare."), Turn("assistant", "A red circle.")]
    engine.logprobs([demo_formatter.prompt(turns, images)])
    ((_, request, _),) = sent.requests
    first, second = request["mm_placeholders"]["image"]
    assert first.length == second.length == demo_formatter.num_image_tokens
    assert first.offset + first.length <= second.offset
    assert request["mm_hashes"]["image"] == ["picture-1", "picture-2"]
