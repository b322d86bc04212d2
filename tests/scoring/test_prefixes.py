"""Prompts that begin alike follow one another, and what the prefix cache had of them is counted. No vLLM needed."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import ray

from tests.scoring.prompts import ask, picture
from vig_ray.dataset.schema import Turn
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.row_counter import RowCounter
from vig_ray.scoring import score
from vig_ray.scoring.engines.prefixes import PrefixUse, order_by_prefix, told
from vig_ray.scoring.prepared import pack
from vig_ray.scoring.reference import blur, make_reference
from vig_ray.scoring.schema import groups_schema, prepared_schema
from vig_ray.scoring.score import Scorer

Symbols = list[tuple[int, str]]


def symbols(prompt: Prompt) -> Symbols:
    """What a cache compares prompts by, place by place: the token, and the key of the image that lies there."""
    keys = [""] * len(prompt.token_ids)
    for image, (first, past) in zip(prompt.images, prompt.image_spans.tolist(), strict=True):
        keys[first:past] = [image.key] * (past - first)
    return list(zip(prompt.token_ids.tolist(), keys, strict=True))


def shared(one: Symbols, other: Symbols) -> int:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(list(same))


def made_prompt(rng: random.Random) -> Prompt:
    """A prompt of few tokens, with images of few keys, so that many begin alike."""
    ids, spans, images = [1], [], []
    for _ in range(rng.randint(0, 5)):
        if rng.random() < 0.4:
            key = rng.choice(["a", "a#blur", "b"])
            images.append(PromptImage(key, lambda: np.zeros((1, 1, 3), np.uint8), lambda pixels: {"x": pixels}))
            spans.append((len(ids), len(ids) + 3))
            ids += [9, 9, 9]
        else:
            ids += rng.choices([2, 3, 300], k=rng.randint(1, 2))
    token_ids = np.array(ids, dtype=np.int32)
    return Prompt(
        token_ids, token_ids[:0], token_ids[:0], token_ids == 9, np.array(spans, np.int32).reshape(-1, 2), tuple(images)
    )


@pytest.mark.parametrize("seed", range(20))
def test_none_before_it_shares_more_with_a_prompt_than_its_predecessor(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [made_prompt(rng) for _ in range(60)]
    order = order_by_prefix(prompts)
    assert sorted(order) == list(range(len(prompts)))
    spelled = [symbols(prompts[number]) for number in order]
    for place in range(1, len(spelled)):
        best = max(shared(spelled[place], other) for other in spelled[:place])
        assert shared(spelled[place], spelled[place - 1]) == best
    # Each prompt, and each beginning up to and with an image, once and not in several places.
    for end in range(1, 12):
        runs = [tuple(one[:end]) for one in spelled]
        changes = sum(one != other for one, other in itertools.pairwise(runs))
        assert changes == len(set(runs)) - 1


def test_equal_prompts_stay_in_the_order_given() -> None:
    prompts = [made_prompt(random.Random(number % 3)) for number in range(12)]
    order = order_by_prefix(prompts)
    assert all(one < other for one, other in itertools.pairwise(order) if one % 3 == other % 3)


def test_each_pass_of_an_image_is_one_run(demo_formatter: Any) -> None:
    """As a window has them: each sample's passes side by side, three images, one picture for all, no picture."""
    images = [picture(number, demo_formatter) for number in range(3)]
    mean, no_image = (make_reference(name, formatter=demo_formatter).without_image for name in ("mean", "no-image"))
    samples = [
        ask(demo_formatter, "A red circle.", images[number % 3], f"{number % 4} circles?") for number in range(24)
    ]
    samples.append(demo_formatter.prompt([Turn("user", "How many days?"), Turn("assistant", "Seven.")], []))
    prompts = [each for sample in samples for each in (sample, blur(sample), mean(sample), no_image(sample))]
    keys = [[image.key for image in prompts[number].images] for number in order_by_prefix(prompts)]
    assert 1 + sum(one != other for one, other in itertools.pairwise(keys)) == 8  # 3, 3 blurred, 1, text


def test_what_the_cache_had_is_counted_and_told() -> None:
    use = PrefixUse()
    for tokens, cached in ((600, 0), (620, 576), (10, 0)):
        use.add(tokens, cached)
    assert use.take() == (1230, 576)
    assert use.take() == (0, 0)
    assert told(1230, 576) == "prefix cache: had 46.8 % of 1,230 prompt tokens"


class Caching:
    """An engine that had half of every prompt."""

    description = "caching"

    def __init__(self) -> None:
        self.prefix_use = PrefixUse()

    def logprobs(self, prompts: Any) -> Any:
        for prompt in prompts:
            self.prefix_use.add(len(prompt.token_ids), len(prompt.token_ids) // 2)
        return [np.full(len(prompt.answer_positions), -1.0, np.float32) for prompt in prompts]


def test_the_stage_sums_what_its_engines_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = RowCounter.__ray_metadata__.modified_class("score")

    class Remote:
        def __getattr__(self, name: str) -> Any:
            return type("Method", (), {"remote": staticmethod(getattr(counter, name))})

    monkeypatch.setattr(ray, "get", lambda value: value)
    assert "prompt_tokens" not in counter.timing()
    ids = np.array([1, 2, 3, 4], dtype=np.int32)
    prompt = Prompt(ids, np.array([3]), np.array([0]), ids == 0, np.zeros((0, 2), np.int32), ())
    row = dict.fromkeys(prepared_schema().names) | {
        "sample_key": "made/0", "num_truncated_tokens": 0, "token_ids": [4], "turn": [0],
        "prompts": (prompt, prompt),
    }  # fmt: skip
    block = pack([row, row], groups_schema())
    for engine in (Caching(), Caching()):
        monkeypatch.setattr(score, "load_engine", lambda *, found=engine: found)
        scorer = Scorer(engine={}, passes=("clean", "blur"), references=("blur",), progress=Remote())
        for _ in range(2):
            scorer(block)
    counted = counter.timing()
    assert (counted["prompt_tokens"], counted["cached_prompt_tokens"]) == (2 * 2 * 2 * 2 * 4, 2 * 2 * 2 * 2 * 2)
