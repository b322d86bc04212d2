"""vLLM writes what the torch generator writes, or parts from it where two tokens are as likely but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.evaluation.asked import check, generated, questions, shuffled
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation import vllm_generator
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.torch_generator import TorchGenerator
from vig_ray.evaluation.vllm_generator import VllmGenerator
from vig_ray.model.load import load_formatter, load_model, stop_ids
from vig_ray.scoring.reference import blind

pytestmark = pytest.mark.vllm

MOST = 12
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


def test_what_it_cannot_take_is_that_prompts_error(both: Both) -> None:
    long = both.formatter.question([Turn("user", "word " * 1100)], [])
    prompts = [blind(both.prompts[0]), long, both.prompts[0]]
    hidden, too_long, written = both.vllm.generate(prompts, [GREEDY] * 3)
    assert str(hidden).startswith("Blind: ")
    assert str(too_long).startswith("TooLong: ")
    assert isinstance(written, Written)
    with pytest.raises(ValueError, match="top_p 2"):
        both.vllm.generate(prompts[2:], [Sampling(temperature=1.0, top_p=2.0)])


def test_there_must_be_room_for_an_answer() -> None:
    formatter = load_formatter(CHECKPOINT)
    with pytest.raises(StageError, match=r"--max-new-tokens 5000: .* takes 2048 tokens, question and answer together"):
        vllm_generator.start(
            CHECKPOINT, formatter, [2], dtype="float32", device="cpu", batch_tokens=None, threads=None, options={},
            max_new_tokens=5000,
        )  # fmt: skip
