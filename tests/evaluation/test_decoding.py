"""Decoding methods against plain implementations: forwards of the demo model alone, attention spelled out by hand."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from tests.evaluation.asked import questions, shuffled
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.evaluation.choosing import Choosing
from vig_ray.evaluation.decoding import Decoding
from vig_ray.evaluation.generation import Sampling, Written
from vig_ray.evaluation.generator_check import make_sure
from vig_ray.evaluation.load import check_generator
from vig_ray.evaluation.torch_generator import TorchGenerator
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.reference import blind

MOST = 5
GREEDY = Sampling(max_new_tokens=MOST)


@pytest.fixture(scope="module")
def model(demo_model: Any) -> Any:
    return copy.deepcopy(demo_model)


@pytest.fixture(scope="module")
def prompts(demo_formatter: Any) -> list[Prompt]:
    """Two questions about a picture, one about another, one about both, and one about none."""
    every = questions(demo_formatter, images=2)
    return [every[place] for place in (0, 1, 3, 7, 8)]


class Kept(TorchGenerator):
    """Keeps the logits that each of a prompt's tokens is chosen by."""

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling = GREEDY) -> tuple[list[Any], list[torch.Tensor]]:
        kept: list[list[torch.Tensor]] = [[] for _ in prompts]
        whose = {id(prompt): number for number, prompt in enumerate(prompts)}

        class Noting(Choosing):
            def __init__(self, asked: Sequence[Prompt], *arguments: Any, combine: Any = None, **options: Any) -> None:
                def combined(lines: Sequence[torch.Tensor]) -> torch.Tensor:
                    logits_NV = lines[0] if combine is None else combine(lines)
                    for row, who in enumerate(self._rows):
                        if who in self._going_on:
                            kept[whose[id(asked[who])]].append(logits_NV[row].clone())
                    return logits_NV

                super().__init__(asked, *arguments, combine=combined, **options)

        with pytest.MonkeyPatch().context() as patch:
            patch.setattr("vig_ray.evaluation.torch_generator.Choosing", Noting)
            found = self.generate(prompts, [sampling] * len(prompts))
        return found, [torch.stack(each) if each else torch.zeros(0) for each in kept]


def plainly(
    prompt: Prompt, formatter: Any, next_logits: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[list[int], torch.Tensor]:
    """Greedy, by the logits that `next_logits` gives of all tokens so far, [1, L]; the answer and its logits."""
    ids, logits = torch.tensor(prompt.token_ids.tolist())[None], []
    for _ in range(MOST):
        with torch.no_grad():
            logits.append(next_logits(ids))
        ids = torch.cat([ids, logits[-1].argmax()[None, None]], dim=1)
        if int(ids[0, -1]) in formatter.stop_ids:
            break
    tokens = ids[0, len(prompt.token_ids) :].tolist()
    return [token for token in tokens if token not in formatter.stop_ids], torch.stack(logits)


def pixels_of(prompt: Prompt, formatter: Any) -> torch.Tensor:
    """By hand: from 0 to 255, less the mean, by the standard deviation."""
    mean, std = (np.array(each)[:, None, None] for each in (formatter.mean, formatter.std))
    images = [(image.inputs["pixel_values"] / 255.0 - mean) / std for image in prompt.images]
    return torch.tensor(np.stack(images), dtype=torch.float32)


def noised(prompt: Prompt, formatter: Any, steps: int) -> torch.Tensor:
    """The diffusion's closed form, its schedule spelled out; the noise is the one that the image's key stands for."""
    import hashlib

    kept = 1.0
    for step in range(steps + 1):
        kept *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(-(-6 + 12 * step / 999))))
    made = []
    for image, pixels in zip(prompt.images, pixels_of(prompt, formatter), strict=True):
        seed = hashlib.blake2b(f"{image.key}\npixel_values".encode(), digest_size=16).digest()
        noise = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(pixels.shape, dtype=np.float32)
        made.append(math.sqrt(kept) * pixels + math.sqrt(1 - kept) * torch.tensor(noise))
    return torch.stack(made)


@pytest.mark.parametrize(("alpha", "beta", "steps"), [(1.0, 0.1, 500), (2.5, 0.0, 999)])
def test_vcd_is_the_contrast_of_two_plain_runs(
    alpha: float, beta: float, steps: int, model: Any, demo_formatter: Any, prompts: list[Prompt]
) -> None:
    method = Decoding.of(f"vcd,alpha={alpha},beta={beta},steps={steps}")
    generator = Kept(model, demo_formatter, decoding=method, max_batch_tokens=700)
    order = shuffled(len(prompts), 1)
    given = pickle.loads(pickle.dumps([prompts[i] for i in order]))  # as they come to a worker: arrays without pixels
    found, logits = generator.answers(given)
    for written, ours, index in zip(found, logits, order, strict=True):
        prompt = prompts[index]
        pixels = [pixels_of(prompt, demo_formatter), noised(prompt, demo_formatter, steps)] if prompt.images else []

        def contrast(ids: torch.Tensor, pixels: Sequence[torch.Tensor] = pixels) -> torch.Tensor:
            if not pixels:
                return model(input_ids=ids).logits[0, -1]
            clean, dirty = (model(input_ids=ids, pixel_values=each).logits[0, -1] for each in pixels)
            likely = clean.softmax(-1) >= beta * clean.softmax(-1).max()
            return torch.where(likely, (1 + alpha) * clean - alpha * dirty, torch.tensor(-torch.inf))

        tokens, theirs = plainly(prompt, demo_formatter, contrast)
        assert written.token_ids.tolist() == tokens
        assert_same(ours, theirs)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5 of the largest; what isn't to be chosen, in both."""
    assert torch.equal(ours.isinf(), theirs.isinf())
    away = (ours - theirs)[~ours.isinf()].abs().max() / max(1.0, float(theirs[~theirs.isinf()].abs().max()))
    assert away < 1e-5


CHANGE: list[Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]] = []
"""From a layer and its scores, [1, heads, L, K], to their probabilities; what `by_hand` goes by."""


def by_hand(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any) -> Any:
    """The language model's attention in full matrices."""
    assert mask is None
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    ahead = torch.ones(scores.shape[-2:]).triu(scores.shape[-1] - scores.shape[-2] + 1).bool()
    return (CHANGE[-1](module, scores.masked_fill(ahead, -torch.inf)) @ value).transpose(1, 2), None


AttentionInterface.register("by_hand", by_hand)


@pytest.fixture(scope="module")
def handmade(demo_model: Any) -> Any:
    model = copy.deepcopy(demo_model)
    model.set_attn_implementation({"text_config": "by_hand"})
    return model


class InSteps:
    """The last logits of a prompt that is read and then written on token by token, with a cache."""

    def __init__(self, model: Any, prompt: Prompt, formatter: Any, change: Callable[[Any, torch.Tensor], Any]) -> None:
        self._model, self._change = model, change
        self._arguments = {"pixel_values": pixels_of(prompt, formatter)} if prompt.images else {}
        self._read, self._cache = 0, None

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        CHANGE.append(self._change)
        out = self._model(
            input_ids=ids[:, self._read :], past_key_values=self._cache, use_cache=True, **self._arguments
        )
        CHANGE.pop()
        self._read, self._cache, self._arguments = ids.shape[1], out.past_key_values, {}
        return out.logits[0, -1]


@pytest.mark.parametrize("spec", ["pai,alpha=0.6,gamma=1.5,start=1", "pai,alpha=2,gamma=1,start=0,end=2", "pai"])
def test_pai_is_attention_raised_by_hand_and_the_texts_contrast(
    spec: str, model: Any, handmade: Any, demo_formatter: Any, prompts: list[Prompt]
) -> None:
    method: Any = Decoding.of(spec)
    found, logits = Kept(model, demo_formatter, decoding=method, max_batch_tokens=1000).answers(prompts)
    differing = 0
    for written, ours, prompt in zip(found, logits, prompts, strict=True):
        image = torch.as_tensor(prompt.image_mask)

        def raised(layer: Any, scores: torch.Tensor, image: torch.Tensor = image) -> torch.Tensor:
            if method.start <= layer.layer_idx < (method.end or 99):
                places = torch.cat([image, torch.zeros(scores.shape[-1] - len(image), dtype=torch.bool)])
                last = scores[:, :, -1]
                scores[:, :, -1] = torch.where(places, last + method.alpha * last.abs(), last)
            return scores.softmax(-1)

        in_steps = InSteps(handmade, prompt, demo_formatter, raised)

        def step(ids: torch.Tensor, prompt: Prompt = prompt, in_steps: Any = in_steps) -> torch.Tensor:
            with_image = in_steps(ids)
            if method.gamma == 1 or not prompt.images:
                return with_image
            with_image = with_image.log_softmax(-1)
            begin = len(prompt.token_ids)
            kept = ids[:, :begin][:, ~torch.as_tensor(prompt.image_mask)]
            text = model(input_ids=torch.cat([kept, ids[:, begin:]], 1)).logits[0, -1].log_softmax(-1)
            mixed = method.gamma * (with_image - text) + text
            likely = with_image.exp() >= method.beta * with_image.exp().max()
            return torch.where(likely, mixed, torch.tensor(-torch.inf))

        tokens, theirs = plainly(prompt, demo_formatter, step)
        assert written.token_ids.tolist() == tokens
        assert_same(ours, theirs)
        pixels = {"pixel_values": pixels_of(prompt, demo_formatter)} if prompt.images else {}
        _, usual = plainly(prompt, demo_formatter, lambda ids, p=pixels: model(input_ids=ids, **p).logits[0, -1])
        differing += not torch.allclose(usual[0].log_softmax(-1), theirs[0].log_softmax(-1), atol=1e-3)
    assert differing == sum(bool(prompt.images) for prompt in prompts)


@pytest.mark.parametrize("spec", ["tau=1.9,rho=0.6,least=0.05,p=0.3,start=0", "tau=1.5,rho=1,least=0,p=0.6,start=1"])
def test_var_is_attention_handed_on_by_hand(
    spec: str, model: Any, handmade: Any, demo_formatter: Any, prompts: list[Prompt]
) -> None:
    method: Any = Decoding.of(f"var,sinks=3+70+101,{spec}")
    found, logits = Kept(model, demo_formatter, decoding=method, max_batch_tokens=1000).answers(prompts)
    differing, states = 0, {}

    def noting(number: int) -> Any:
        def note(_: Any, arguments: Any) -> None:
            states.setdefault(number, []).append(arguments[0][0])

        return note

    layers = handmade.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(noting(number)) for number, layer in enumerate(layers)]
    for written, ours, prompt in zip(found, logits, prompts, strict=True):
        states.clear()
        image = set(np.flatnonzero(prompt.image_mask).tolist())
        counts = {"sinks": 0, "changed": 0}

        def handed_on(layer: Any, scores: torch.Tensor, image: set[int] = image, counts: Any = counts) -> torch.Tensor:
            probs = scores.softmax(-1)
            if not method.start <= layer.layer_idx < len(layers) - 1 or not image:
                return probs
            inputs = torch.cat(states[layer.layer_idx])
            sizes = inputs / inputs.pow(2).mean(-1, keepdim=True).sqrt()
            sinks = {t for t, state in enumerate(sizes) if any(abs(state[d]) > method.tau for d in (3, 70, 101))}
            counts["sinks"] += len(sinks & image)
            keys, queries = probs.shape[-1], probs.shape[-2]
            for head in range(probs.shape[1]):
                for row in range(queries):
                    if row + keys - queries <= max(image) or not sinks & image:
                        continue
                    own = probs[0, head, row].clone()
                    on_image = sum(own[t] for t in image)
                    if on_image < method.least or sum(own[t] for t in image & sinks) / on_image > method.rho:
                        continue
                    free, rest = (1 - method.p) * sum(own[t] for t in sinks), sum(own[t] for t in image - sinks)
                    counts["changed"] += 1
                    for t in range(keys):
                        share = free * own[t] / rest if t in image - sinks else 0.0
                        probs[0, head, row, t] = share + (method.p if t in sinks else 1) * own[t]
            return probs

        tokens, theirs = plainly(prompt, demo_formatter, InSteps(handmade, prompt, demo_formatter, handed_on))
        assert written.token_ids.tolist() == tokens
        assert_same(ours, theirs)
        differing += bool(counts["sinks"] and counts["changed"])
    for hook in hooks:
        hook.remove()
    assert differing == sum(bool(prompt.images) for prompt in prompts)


def test_draws_are_of_what_the_method_gives(model: Any, demo_formatter: Any, prompts: list[Prompt]) -> None:
    """The same in any batch, and none of a token that the method leaves out."""
    generator = Kept(model, demo_formatter, decoding=Decoding.of("vcd,beta=0.5"))
    hot = Sampling(max_new_tokens=MOST, temperature=2.0, seed=4)
    found, logits = generator.answers(prompts, hot)
    for prompt, written, each in zip(prompts, found, logits, strict=True):
        for token, logits_V in zip(written.token_ids.tolist(), each, strict=False):
            assert not logits_V[token].isinf()
        assert generator.answers([prompt], hot)[0][0].text == written.text


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("vdc", "no such method; did you mean vcd\\?; there are vcd, pai, var, and plain"),
        ("lacing", "no such method; there are vcd, pai, var, and plain"),
        ("vcd,alpa=1", "vcd takes alpha, beta, steps, not 'alpa=1'; did you mean alpha\\?"),
        ("vcd,alpha", "vcd takes alpha, beta, steps, not 'alpha'"),
        ("vcd,alpha=x", "alpha takes a number from 0, not 'x'"),
        ("vcd,alpha=-1", "alpha takes a number from 0, not '-1'"),
        ("vcd,beta=2", "beta takes a number from 0 to 1, not '2'"),
        ("vcd,alpha=inf", "alpha takes a number from 0, not 'inf'"),
        ("vcd,alpha=nan", "alpha takes a number from 0, not 'nan'"),
        ("vcd,steps=1000", "steps takes a whole number from 0 to 999, not '1000'"),
        ("vcd,steps=1.5", "steps takes a whole number"),
        ("vcd,alpha=1,alpha=2", "alpha is given twice"),
        ("plain,alpha=1", "no such method"),
        ("pai,gamma=0.5", "gamma takes a number from 1"),
        ("var", "name the language model's sink dimensions, as sinks=1415"),
        ("var,sinks=a", "sinks takes dimensions with"),
    ],
)
def test_a_spec_that_says_nothing_is_refused(spec: str, told: str) -> None:
    with pytest.raises(StageError, match=f"--decoding {spec}: .*{told}|--decoding {spec}: {told}"):
        Decoding.of(spec)


def test_a_spec_is_told_whole_and_read_again() -> None:
    assert Decoding.of("vcd, steps=300").spec == "vcd,alpha=1,beta=0.1,steps=300"
    for spec in (None, "", "plain", "vcd", "pai,alpha=0.123456789,end=20", "vcd,beta=0", "var,sinks=1415+2533"):
        method = Decoding.of(spec)
        assert Decoding.of(method.spec) == method


def test_what_cannot_be_run_so_says_why(
    model: Any, demo_formatter: Any, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"pai.*no layer from start to end; the model has 3"):
        TorchGenerator(model, demo_formatter, decoding=Decoding.of("pai,start=3"))
    with pytest.raises(StageError, match=r"var.*the model's states have 128 dimensions"):
        TorchGenerator(model, demo_formatter, decoding=Decoding.of("var,sinks=128,start=0"))
    with pytest.raises(StageError, match=r"--decoding vcd: vLLM has no decoding methods.*take --engine torch"):
        check_generator("vllm", "vcd", joins_cluster=True)
    with pytest.raises(StageError, match="--engine mine:engine: an engine of your own gives log-probs alone"):
        check_generator("mine:engine", None, joins_cluster=True)
    generator = TorchGenerator(model, demo_formatter, decoding=Decoding.of("pai"))
    hidden, text = generator.generate([blind(prompts[0]), prompts[-1]], [GREEDY] * 2)
    assert isinstance(hidden, Written)
    assert isinstance(text, Written)
    monkeypatch.setattr(demo_formatter, "by_parts", False, raising=False)
    with pytest.raises(
        StageError, match=r"--decoding pai: not for Llava.*: its processor makes each sample as a whole"
    ):
        make_sure(generator, CHECKPOINT, demo_formatter)
    plain = load_formatter(CHECKPOINT, "plain")
    generator = TorchGenerator(model, plain, decoding=Decoding.of("pai"))
    (error,) = generator.generate([plain.question([Turn("user", "<image>")], prompts[0].images)], [GREEDY])
    assert isinstance(error, PromptError)
    assert "nothing stands behind the image" in str(error)
