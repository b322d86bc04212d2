"""vLLM writes what the torch generator writes, or parts from it where two tokens are as likely but for rounding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.evaluation.asked import check, generated, questions, shuffled
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.evaluation import vllm_generator
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.torch_generator import TorchGenerator
from vig_ray.evaluation.vllm_generator import VllmGenerator
from vig_ray.model.load import load_formatter, load_model, stop_ids
from vig_ray.scoring.engines import vllm_start
from vig_ray.scoring.reference import blind

pytestmark = pytest.mark.vllm

MOST = 12
NOT_FINITE = "NotFinite: logits overflow; --dtype bfloat16 or float32 has the range"
GREEDY = Sampling(max_new_tokens=MOST)


class Both:
    """A checkpoint's two generators, and its questions."""

    def __init__(self, folder: str, engine: Any) -> None:
        self.formatter: Any = load_formatter(folder, max_length=1023)
        self.stops = stop_ids(folder, self.formatter)
        self.model = load_model(folder, dtype="float32", device="cpu")
        self.torch = TorchGenerator(self.model, self.formatter, stop_ids=self.stops)
        engine.max_in_flight = 256
        engine.engine.reset_prefix_cache()
        self.vllm = VllmGenerator(engine, self.formatter, self.stops)
        self.prompts = questions(self.formatter)


@pytest.fixture(params=["llava", "qwen"])
def both(request: pytest.FixtureRequest, vllm_engine: Callable[[str], Any], qwen_checkpoint: str) -> Both:
    folder = CHECKPOINT if request.param == "llava" else qwen_checkpoint
    return Both(folder, vllm_engine(folder))


@pytest.mark.vllm_v2
def test_answers_are_the_torch_generators(both: Both) -> None:
    prompts, count = both.prompts, len(both.prompts)
    order = shuffled(count, 5)
    found = both.vllm.generate([prompts[i] for i in order], [GREEDY] * count)
    ours = dict(zip(order, found, strict=True))
    by_torch = both.torch.generate(prompts, [GREEDY] * count)
    same = 0
    for index, prompt in enumerate(prompts):
        alone = generated(both.model, both.formatter, prompt, both.stops, MOST)
        check(by_torch[index], alone, both.stops)
        if check(ours[index], alone, both.stops):
            same += 1
            assert ours[index].text == by_torch[index].text
            assert ours[index].finished == by_torch[index].finished
    assert same > count // 2
    few = both.vllm.generate(prompts[:3], [Sampling(max_new_tokens=each) for each in (1, 2, 3)])
    assert [len(each.token_ids) for each in few] == [1, 2, 3]
    assert [each.token_ids.tolist() for each in few] == [ours[i].token_ids[: i + 1].tolist() for i in range(3)]
    assert "vLLM" in both.vllm.description


def test_draws_hang_on_the_prompt_and_the_seed_alone(both: Both) -> None:
    prompts = both.prompts
    hot = [Sampling(max_new_tokens=MOST, temperature=2.0, seed=seed) for seed in (1, 2)]
    found = both.vllm.generate([*prompts, *prompts], [*[hot[0]] * len(prompts), *[hot[1]] * len(prompts)])
    texts = [each.text for each in found if isinstance(each, Written)]
    assert len(texts) == 2 * len(prompts)
    assert sum(a != b for a, b in zip(texts, texts[len(prompts) :], strict=False)) > 3
    again = [both.vllm.generate([prompt], [hot[0]])[0].text for prompt in prompts[:4]]
    assert again == texts[:4]
    order = shuffled(len(prompts), 4)
    both.vllm.engine.max_in_flight = 3  # smaller batches, of others, in another order
    turned = both.vllm.generate([prompts[i] for i in order], [hot[0]] * len(order))
    assert [each.text for each in turned] == [texts[i] for i in order]


def test_what_it_cannot_take_is_that_prompts_error(both: Both) -> None:
    long = both.formatter.question([Turn("user", "word " * 1100)], [])
    prompts = [blind(both.prompts[0]), long, both.prompts[0]]
    hidden, too_long, written = both.vllm.generate(prompts, [GREEDY] * 3)
    assert str(hidden).startswith("Blind: ")
    assert str(too_long).startswith("TooLong: ")
    assert isinstance(written, Written)
    with pytest.raises(ValueError, match="top_p 2"):
        both.vllm.generate(prompts[2:], [Sampling(temperature=1.0, top_p=2.0)])


def test_an_answer_ends_where_the_context_does_as_by_torch(both: Both) -> None:
    """More new tokens are allowed than the context has: the answer is cut there, and said not to be finished."""
    room = both.vllm.engine.max_length
    both.torch.room = room
    words = next(
        count
        for count in range(room, 0, -1)
        if len(both.formatter.question([Turn("user", "word " * count)], []).token_ids) <= room - 3
    )
    long = both.formatter.question([Turn("user", "word " * words)], [])
    left = room - len(long.token_ids)
    endless = Sampling(max_new_tokens=5000)
    stops = both.vllm.stop_ids, both.torch.stop_ids
    both.vllm.stop_ids, both.torch.stop_ids = [], frozenset()  # what is cut must not have ended by itself
    try:
        found = [each.generate([long], [endless])[0] for each in (both.vllm, both.torch)]
    finally:
        both.vllm.stop_ids, both.torch.stop_ids = stops
    for written in found:
        assert isinstance(written, Written), written
        assert (len(written.token_ids), written.finished) == (left, False)
    assert found[0].token_ids.tolist() == found[1].token_ids.tolist()


def test_vllm_starts_for_answers_longer_than_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does; what such answers are is the test above."""
    started: dict[str, Any] = {}

    def start(*_: Any, options: dict[str, Any], **__: Any) -> Any:
        started.update(options)
        return SimpleNamespace(running="vLLM")

    monkeypatch.setattr(vllm_start, "start", start)
    for most, limit, room in ((5000, None, 2048), (2048, 100, 2048), (64, 100, 164)):
        formatter = load_formatter(CHECKPOINT, max_length=limit)
        vllm_generator.start(
            CHECKPOINT, formatter, [2], dtype="float32", device="cpu", batch_tokens=None, threads=None, options={},
            max_new_tokens=most,
        )  # fmt: skip
        assert started["max_model_len"] == room


@pytest.mark.vllm_v2
def test_logits_that_overflow_are_no_answer(tmp_path: Path, vllm_engine: Callable[[str], Any]) -> None:
    """A model that has no number for one word: whoever is asked with it has no answer, by either engine.

    Others have theirs. On a CPU vLLM may give one of them the cache's block that held what was no number, and reads it
    with a weight of 0, which is no number either: then that is told, too, and nothing false is written.
    """
    shutil.copytree(CHECKPOINT, tmp_path / "broken")
    folder = str(tmp_path / "broken")
    weights = safetensors.torch.load_file(f"{folder}/model.safetensors")
    formatter: Any = load_formatter(folder)
    broken, sound = (formatter.question([Turn("user", text)], []) for text in ("Is it purple?", "Is it seven?"))
    (word, *_) = set(broken.token_ids.tolist()) - set(sound.token_ids.tolist())
    (name,) = (each for each in weights if each.endswith("embed_tokens.weight"))
    weights[name][word] = torch.nan
    safetensors.torch.save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    both = Both(folder, vllm_engine(folder))
    for sampling in (GREEDY, Sampling(max_new_tokens=MOST, temperature=1.0, seed=3)):
        for generator in (both.torch, both.vllm):
            (alone,) = generator.generate([sound], [sampling])
            assert isinstance(alone, Written)
            first, none, last = generator.generate([sound, broken, sound], [sampling] * 3)
            assert str(none) == NOT_FINITE
            told = {NOT_FINITE, alone.text} if generator is both.vllm else {alone.text}
            assert {each.text if isinstance(each, Written) else str(each) for each in (first, last)} <= told
            both.vllm.engine.engine.reset_prefix_cache()
