"""The torch generator writes what transformers' own `generate` writes for each prompt by itself, in any batch."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from tests.evaluation.asked import Alone, check, generated, questions, shuffled
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.evaluation import generator_check
from vig_ray.evaluation.choosing import Choosing, draw
from vig_ray.evaluation.generation import Sampling, Written, seed_of
from vig_ray.evaluation.load import load_generator
from vig_ray.evaluation.torch_generator import TorchGenerator
from vig_ray.model.load import load_formatter, load_model, stop_ids
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.reference import blind, blur

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
OTHERS = ("gemma3", "llava_onevision")  # sliding windows, and samples made as a whole
MOST = 10


class Family:
    """A checkpoint, its generator, and its questions with what each alone is answered."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = CHECKPOINT if name == "llava" else str(folder)
        if name != "llava":
            importlib.import_module(f"tests.model.families.{name}").make(self.folder)
        self.name = name
        self.formatter: Any = load_formatter(self.folder)
        self.model = load_model(self.folder, dtype="float32", device="cpu")
        self.stops = stop_ids(self.folder, self.formatter)
        self.prompts = questions(self.formatter)
        own = copy.deepcopy(self.model)  # the tiny models' generation config is as plain as ours
        self.alone = [generated(own, self.formatter, prompt, self.stops, MOST) for prompt in self.prompts]

    def generator(self, tokens: int | None = None, **options: Any) -> TorchGenerator:
        made = TorchGenerator(
            self.model, self.formatter, stop_ids=self.stops, max_batch_tokens=tokens, **options
        )  # fmt: skip
        generator_check.make_sure(made, self.folder, self.formatter)
        return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    families: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in families:
            families[name] = Family(name, tmp_path_factory.mktemp(name))
        return families[name]

    return get


@pytest.fixture(params=[*FAMILIES, *OTHERS])
def family(request: pytest.FixtureRequest, made: Callable[[str], Family]) -> Family:
    return made(request.param)


@pytest.fixture
def llava(made: Callable[[str], Family]) -> Family:
    return made("llava")


GREEDY = Sampling(max_new_tokens=MOST)


def test_answers_are_generates_in_any_batch(family: Family) -> None:
    generator, same = family.generator(), 0
    assert generator.padded == {"by parts", "whole", "hidden"}
    assert generator.shares == (family.name != "gemma3")
    for tokens in (500, 100_000):
        generator.max_batch_tokens = tokens
        order = shuffled(len(family.prompts), tokens)
        found = generator.generate([family.prompts[i] for i in order], [GREEDY] * len(order))
        same += sum(check(found[place], family.alone[i], family.stops) for place, i in enumerate(order))
    assert same >= 2 * len(family.prompts) - 2  # the rest are ties


def test_the_answers_of_the_demo_are_texts(llava: Family) -> None:
    found = llava.generator().generate(llava.prompts, [GREEDY] * len(llava.prompts))
    written = [each for each in found if isinstance(each, Written)]
    assert len(written) == len(found)
    assert sum(each.finished for each in written) > 8
    assert "seven" in written[-2].text
    for each in written:
        assert each.text == llava.formatter.tokenizer.decode(each.token_ids.tolist()).strip()
        assert each.token_ids.dtype == np.int32


def test_no_more_tokens_than_asked_for_each(llava: Family) -> None:
    most = [1 + index % 4 for index in range(len(llava.prompts))]
    found = llava.generator().generate(llava.prompts, [Sampling(max_new_tokens=each) for each in most])
    for written, alone, each in zip(found, llava.alone, most, strict=True):
        assert isinstance(written, Written)
        assert written.token_ids.tolist() == [token for token in alone.tokens[:each] if token not in llava.stops]
        assert written.finished == (len(alone.tokens) <= each)


def test_draws_hang_on_the_prompt_and_the_seed_alone(llava: Family) -> None:
    generator = llava.generator()
    hot = [Sampling(max_new_tokens=MOST, temperature=2.0, seed=seed) for seed in (1, 2)]
    prompts = llava.prompts
    together = generator.generate([*prompts, *prompts], [*[hot[0]] * len(prompts), *[hot[1]] * len(prompts)])
    texts = [each.text for each in together if isinstance(each, Written)]
    assert sum(a != b for a, b in zip(texts, texts[len(prompts) :], strict=False)) > 3
    generator.max_batch_tokens = 1
    order = shuffled(len(prompts), 3)
    again = generator.generate([prompts[i] for i in order], [hot[0]] * len(order))
    assert [each.text for each in again if isinstance(each, Written)] == [texts[i] for i in order]
    mixed = generator.generate(prompts, [GREEDY if i % 2 else hot[0] for i in range(len(prompts))])
    for index, each in enumerate(mixed):
        assert isinstance(each, Written)
        assert each.text == texts[index] if not index % 2 else check(each, llava.alone[index], llava.stops)


def test_draws_are_the_same_in_any_batch_and_order(family: Family) -> None:
    """All together, in small batches in another order, and each by itself."""
    generator, count = family.generator(), len(family.prompts)
    hot = Sampling(max_new_tokens=MOST, temperature=1.5, top_p=0.95, seed=7)
    found: list[dict[int, list[int]]] = []
    for tokens, order in ((100_000, list(range(count))), (700, shuffled(count, 1)), (1, shuffled(count, 2))):
        generator.max_batch_tokens = tokens
        written = generator.generate([family.prompts[i] for i in order], [hot] * count)
        found.append({i: each.token_ids.tolist() for i, each in zip(order, written, strict=True)})  # type: ignore[union-attr]
    assert found[0] == found[1] == found[2]
    assert len({tuple(tokens) for tokens in found[0].values()}) > count // 2  # they aren't all the same anyway


def test_a_draw_hangs_on_the_tokens_the_images_keys_and_the_seed(llava: Family) -> None:
    """Not on the place of a question, nor on what else it is in its benchmark; pixels are known by their keys."""
    generator, prompt = llava.generator(), llava.prompts[0]
    other = replace(prompt, images=(prompt.images[0].derive("elsewhere", lambda pixels: pixels),))
    hot = [Sampling(max_new_tokens=MOST, temperature=2.0, seed=seed) for seed in range(12)]
    shorter = [replace(each, max_new_tokens=3) for each in hot]
    prompts = [*[prompt] * 12, *[other] * 12, *[replace(prompt)] * 12, *[prompt] * 12]
    written = generator.generate(prompts, [*hot, *hot, *hot, *shorter])
    tokens = [each.token_ids.tolist() for each in written if isinstance(each, Written)]
    own, of_other_key, again, begun = (tokens[start : start + 12] for start in range(0, 48, 12))
    assert own == again
    assert own != of_other_key
    assert begun == [each[:3] for each in own]
    assert len({tuple(each) for each in own}) > 3  # by the seed
    seeds = {seed_of(each, seed) for each in (prompt, other, llava.prompts[1]) for seed in range(2)}
    assert len(seeds) == 6
    assert seed_of(replace(prompt), 1) == seed_of(prompt, 1)


def test_a_draw_is_of_the_warped_distribution() -> None:
    """By transformers' own nucleus, and each token as wide as it is likely."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3
    for temperature, top_p in ((1.0, 1.0), (0.7, 0.9), (2.0, 0.3), (1.0, 1e-6)):
        sampling = Sampling(temperature=temperature, top_p=top_p)
        kept = logits[None] / temperature
        warped = (TopPLogitsWarper(top_p)(None, kept) if top_p < 1 else kept).softmax(-1)[0]
        grid = (np.arange(4_000) + 0.5) / 4_000
        counts = np.bincount([draw(logits, sampling, u) for u in grid], minlength=50) / len(grid)
        np.testing.assert_allclose(counts, warped.numpy(), atol=6e-4)


@pytest.mark.parametrize(
    ("sampling", "told"),
    [
        (Sampling(max_new_tokens=0), "max_new_tokens 0"),
        (Sampling(temperature=-1), "temperature -1: takes a number from 0 to 2"),
        (Sampling(temperature=2.5), r"temperature 2\.5"),
        (Sampling(temperature=1.0, top_p=0.0), r"top_p 0\.0"),
    ],
)
def test_what_cannot_be_drawn_by(llava: Family, sampling: Sampling, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        llava.generator().generate(llava.prompts[:1], [sampling])


def test_a_prompt_that_cannot_be_run_costs_only_itself(llava: Family) -> None:
    formatter, prompts = llava.formatter, llava.prompts[:2]
    long = formatter.question([Turn("user", "word " * 3000)], [])
    answered = formatter.prompt([Turn("user", "What?"), Turn("assistant", "A circle.")], [])
    alien = replace(
        prompts[0], token_ids=np.where(np.arange(len(prompts[0].token_ids)) == 3, 10**6, prompts[0].token_ids)
    )
    found = llava.generator().generate([prompts[0], long, alien, answered, prompts[1]], [GREEDY] * 5)
    assert str(found[1]).startswith("TooLong: ")
    assert isinstance(found[2], PromptError)
    assert str(found[3]).startswith("Question: the prompt has its answer")
    for place, index in ((0, 0), (4, 1)):
        assert check(found[place], llava.alone[index], llava.stops)


def test_an_answer_ends_where_the_model_has_no_more_places(llava: Family) -> None:
    generator = llava.generator()
    generator.room = len(llava.prompts[0].token_ids) + 2
    (found, long) = generator.generate([llava.prompts[0], llava.prompts[9]], [GREEDY] * 2)
    assert isinstance(found, Written)
    assert (found.token_ids.tolist(), found.finished) == (llava.alone[0].tokens[:2], False)
    assert str(long).startswith("TooLong: ")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_hidden_and_blurred_images(name: str, made: Callable[[str], Family]) -> None:
    """As one forward a token with a mask over the image, by transformers alone; a blurred image is another image."""
    family = made(name)
    generator, prompts = family.generator(), family.prompts[1:4]
    found = generator.generate([blind(p) for p in prompts] + [blur(p) for p in prompts], [GREEDY] * 6)
    for prompt, written in zip(prompts, found, strict=False):
        assert isinstance(written, Written)
        check(written, hidden(family.model, family.formatter, prompt, family.stops), family.stops)
    for prompt, written in zip(prompts, found[3:], strict=True):
        check(written, generated(family.model, family.formatter, blur(prompt), family.stops, MOST), family.stops)


def hidden(model: Any, formatter: Any, prompt: Prompt, stops: Any) -> Alone:
    """Greedy by whole forwards, image positions masked and the text where it was."""
    ids = torch.tensor(prompt.token_ids.tolist())[None]
    length, image = ids.shape[1], torch.as_tensor(prompt.image_mask)[None]
    vision = formatter.collate([each.inputs for each in prompt.images], "cpu", torch.float32)
    positions = torch.arange(length)[None]
    more: dict[str, Any] = {}
    if model.config.model_type == "qwen2_5_vl":
        more["mm_token_type_ids"] = image.int()
        positions = model.model.get_rope_index(ids, image_grid_thw=vision["image_grid_thw"], **more)[0]
    logits = []
    for _ in range(MOST):
        pad = (0, ids.shape[1] - length)
        more = {name: torch.nn.functional.pad(image.int(), pad) for name in more}
        new = positions[..., -1:] + 1 + torch.arange(pad[1])
        with torch.no_grad():
            out = model(
                input_ids=ids, attention_mask=torch.nn.functional.pad((~image).long(), pad, value=1), **vision, **more,
                position_ids=torch.cat([positions, new], dim=-1), use_cache=False,
            )  # fmt: skip
        logits.append(out.logits[0, -1])
        ids = torch.cat([ids, logits[-1].argmax()[None, None]], dim=1)
        if int(ids[0, -1]) in stops:
            break
    return Alone(ids[0, length:].tolist(), torch.stack(logits))


def test_memory_that_is_short_is_made_do_with(llava: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are too large for the device are run in halves, and what doesn't fit by itself is its own error."""
    from vig_ray.evaluation import torch_generator

    def short(model: Any, ids: torch.Tensor, *arguments: Any, most: int, **options: Any) -> None:
        if len(ids) * (ids.shape[1] + most) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        write(model, ids, *arguments, most=most, **options)

    write, generator = torch_generator.write, llava.generator()
    limit = 3 * (max(len(prompt.token_ids) for prompt in llava.prompts) + MOST)
    monkeypatch.setattr(torch_generator, "write", short)
    found = generator.generate(llava.prompts, [GREEDY] * len(llava.prompts))
    assert all(check(*pair, llava.stops) for pair in zip(found, llava.alone, strict=True))
    assert generator.max_batch_tokens < 8192
    (error,) = generator.generate(llava.prompts[:1], [Sampling(max_new_tokens=limit)])
    assert str(error).startswith("OutOfMemory: ")


def test_it_says_how_it_was_checked_and_a_way_that_is_wrong_is_not_taken(
    llava: Family, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generator = load_generator("torch", model=CHECKPOINT, dtype="float32", device="cpu")
    assert "checked on a small copy, to " in generator.description

    def wrong(lines: Any, spread: Any) -> Any:
        ids, arguments = behind(lines, spread)
        arguments["position_ids"] = arguments["position_ids"] + 1 * (arguments["position_ids"] > 20)
        return ids, arguments

    generator = TorchGenerator(llava.model, llava.formatter)
    behind = generator.rows.behind_prefixes
    monkeypatch.setattr(generator.rows, "behind_prefixes", wrong)
    apart = generator_check.check_answers(generator, llava.formatter)
    assert apart < 1e-4
    assert not generator.shares
    assert "images are computed again for each question, since they differ by" in caplog.text

    def padded(prompts: Any) -> Any:
        ids, arguments = plainly(prompts)
        return ids, arguments | {"attention_mask": torch.ones_like(ids)}

    plainly = generator.rows.padded
    monkeypatch.setattr(generator.rows, "padded", padded)
    generator_check.check_answers(generator, llava.formatter)
    assert "by parts" not in generator.padded
    assert "questions are answered one by one, since in batches they differ by" in caplog.text
    found = generator.generate(llava.prompts, [GREEDY] * len(llava.prompts))
    assert all(check(*pair, llava.stops) for pair in zip(found, llava.alone, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_overflow_are_no_answer_and_the_others_go_on(llava: Family, temperature: float) -> None:
    """As in float16: from its second token on one prompt of a batch has nothing to choose from."""
    sampling = [Sampling(max_new_tokens=4, temperature=temperature)] * 2
    choosing = Choosing(llava.prompts[:2], sampling, llava.stops)
    logits = torch.zeros((2, 8))
    logits[:, 5] = 9.0
    choosing(logits)
    broken = logits.clone()
    broken[1, 3] = torch.nan
    _, left = choosing(broken)
    assert left is not None
    assert left.tolist() == [0]
    choosing(logits[:1])
    assert choosing.overflowed == [False, True]
    assert len(choosing.written[0]) == 3
    assert len(choosing.written[1]) == 1
