"""Every family against its own processor and forward, one sample at a time: ids, answers, clean, blurred, blind.

The oracle is transformers' alone: `apply_chat_template(tokenize=True)`, then `model(**inputs)`.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model import families
from tests.oracle import blurred
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.errors import StageError
from vig_ray.model.arrays import of_whole
from vig_ray.model.head import applied_softcap
from vig_ray.model.load import load_formatter
from vig_ray.model.probe import differences
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines.check import check_numbers
from vig_ray.scoring.engines.load import engine_for, load_engine
from vig_ray.scoring.reference import blind, blur
from vig_ray.training.batch import Batch, Batcher, TrainingSample, plan_by_kind
from vig_ray.training.check import make_sure, settled
from vig_ray.training.collator import ActiveTokensCollator
from vig_ray.training.training_model import TrainingModel, can_pack

# Refused at the start: with which words.
NO_TEMPLATE = "the checkpoint has no chat template"
NOT_SCORED = {
    "blip_2": NO_TEMPLATE,
    "florence2": NO_TEMPLATE,
    "fuyu": NO_TEMPLATE,
    "got_ocr2": NO_TEMPLATE,
    "instructblip": NO_TEMPLATE,
    "kosmos2": "its config names no image token",
    "paligemma": "its attention looks ahead",
}
NAMES = [each.name for each in pkgutil.iter_modules(families.__path__) if each.name not in ("base", *NOT_SCORED)]
TOLERANCE = 1e-5  # or of a log-prob below -10, 1e-6 of it: float32 has steps of 1e-6 there
# Whose samples go through their processor as a whole, and whose are run one by one; all others must be scored from
# parts, in batches.
WHOLE = (
    "ernie4_5_vl_moe",
    "gemma3n",
    "idefics2",
    "lfm2_vl",
    "llava_onevision",
    "minicpmv4_6",
    "mllama",
    "perception_lm",
)
ONE_BY_ONE = ("llama4", "minicpmv4_6", "perception_lm")
TRAINED = [name for name in NAMES if name != "llama4"]
FROM_PARTS = [name for name in NAMES if name not in WHOLE]
IN_BATCHES = [name for name in FROM_PARTS if name not in ONE_BY_ONE]
# Samples that a family's own processor refuses: images of different numbers of tiles.
REFUSES = {"perception_lm": ("two images",)}
# Where images are read beside the text, no position can be hidden.
NO_BLIND = ("mllama",)


class Sample(NamedTuple):
    """Turns, the first a question, and the sizes of the images (width, height) at its marks."""

    turns: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


I = IMAGE_MARK  # noqa: E741
SAMPLES = {
    "one image": Sample((f"{I}\nWhat is on the left?", "A red circle."), ((100, 80),)),
    "two turns": Sample((f"{I}\nWhat?", "12 beans.", "And on the right?", "Où est le café? 红色 😀"), ((70, 90),)),
    "two images": Sample((f"{I} and {I}: which is red?", "The first."), ((100, 80), (60, 200))),
    "text": Sample(("What is red?", "The circle."), ()),
    "wide": Sample((f"{I}\nWhat?", "A line."), ((300, 60),)),
    "large": Sample((f"{I}\nWhat?", "A square."), ((640, 480),)),
    "tall": Sample((f"{I}\nWhat?", "A tower."), ((60, 200),)),
    "a later image": Sample((f"{I}\nWhat?", "One.", f"And {I}?", "Two."), ((64, 64), (90, 60))),
}


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def apart(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs) / 10)).max())


class Family:
    """A checkpoint, by vig-ray and by transformers alone."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, str(folder)
        importlib.import_module(f"tests.model.families.{name}").make(str(folder))
        self.formatter: Any = load_formatter(str(folder))
        self.engine: Any = load_engine(
            "torch", model=str(folder), template="auto", max_length=None, dtype="float32", device="cpu"
        )
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.samples = {key: sample for key, sample in SAMPLES.items() if key not in REFUSES.get(name, ())}

    def pictures(self, sample: Sample) -> list[Image.Image]:
        return [picture(size, seed) for seed, size in enumerate(sample.sizes)]

    def prompt(self, name: str, sample: Sample) -> Prompt:
        turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(sample.turns)]
        images = [
            PromptImage(f"{name} {i}", lambda p=p: np.asarray(p), self.formatter.preprocess)  # type: ignore[misc]
            for i, p in enumerate(self.pictures(sample))
        ]
        return self.formatter.prompt(turns, images)

    def inputs(self, sample: Sample, *, blur: bool = False) -> Any:
        """What transformers' own processor makes of the sample."""
        messages = self.messages(sample, blur=blur)
        return self.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")

    def messages(self, sample: Sample, *, blur: bool = False) -> list[dict[str, Any]]:
        """The sample with its pictures in its content lists."""
        pictures = iter(map(blurred, self.pictures(sample)) if blur else self.pictures(sample))
        messages = []
        for number, text in enumerate(sample.turns):
            content: list[dict[str, Any]] = []
            for index, piece in enumerate(text.split(I)):
                content += [{"type": "image", "image": next(pictures)}] if index else []
                content += [{"type": "text", "text": piece}] if piece else []
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        return messages

    @torch.no_grad()
    def logprobs(self, inputs: Any, prompt: Prompt, *, hidden: bool = False) -> np.ndarray[Any, Any]:
        inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
        ids = inputs["input_ids"][0]
        if hidden:
            image = inputs["input_ids"] == self.model.config.image_token_id
            inputs["attention_mask"] = (~image).long()
            base = getattr(self.model, "model", self.model)
            if hasattr(base, "get_rope_index") and "image_grid_thw" in inputs:
                inputs["position_ids"] = base.get_rope_index(
                    inputs["input_ids"], mm_token_type_ids=image.int(), image_grid_thw=inputs["image_grid_thw"]
                )[0]
            else:
                inputs["position_ids"] = torch.arange(len(ids))[None]
        everything = self.model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
        return np.array([everything[p - 1, ids[p]] for p in prompt.answer_positions.tolist()], dtype=np.float32)


def of(names: Sequence[str]) -> pytest.MarkDecorator:
    """A test of these families."""
    return pytest.mark.parametrize("family", names, indirect=True, scope="module")


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp(request.param))


def test_it_goes_the_way_that_it_can(family: Family) -> None:
    """Never the slower one unseen."""
    assert family.formatter.by_parts == (family.name not in WHOLE)
    assert ("whole" if family.name in WHOLE else "by parts") not in family.engine.plainly or family.name in ONE_BY_ONE
    assert "hidden" not in family.engine.plainly or family.name in (*WHOLE, *ONE_BY_ONE)
    assert "small copy, to" in family.engine.description
    assert (family.engine.no_blind is not None) == (family.name in NO_BLIND)


@pytest.mark.parametrize("sample", SAMPLES)
def test_ids_and_answers_are_the_processors(family: Family, sample: str) -> None:
    if sample not in family.samples:
        with pytest.raises(PromptError, match="Processor: the processor refuses this sample"):
            family.prompt(sample, SAMPLES[sample])
        return
    prompt = family.prompt(sample, SAMPLES[sample])
    assert prompt.token_ids.tolist() == family.inputs(SAMPLES[sample])["input_ids"][0].tolist()
    for number, answer in enumerate(SAMPLES[sample].turns[1::2]):
        said = family.processor.tokenizer.decode(prompt.answer_ids[prompt.turns == number].tolist())
        assert said.strip() == f"{answer}<|im_end|>" if family.name != "gemma3" else f"{answer}<end_of_turn>"


def test_numbers_are_the_models(family: Family) -> None:
    """All samples at once, each also blurred and blind."""
    names = list(family.samples)
    prompts = {name: family.prompt(name, SAMPLES[name]) for name in names}
    with_images = [name for name in names if SAMPLES[name].sizes]
    asked = [*prompts.values(), *(blur(prompts[name]) for name in with_images)]
    hidden = [blind(prompts[name]) for name in with_images]
    scored = family.engine.logprobs([*asked, *hidden])
    worst = 0.0
    for name, ours in zip(names, scored, strict=False):
        theirs = family.logprobs(family.inputs(SAMPLES[name]), prompts[name])
        worst = max(worst, apart(ours, theirs))
    for name, ours in zip(with_images, scored[len(names) :], strict=False):
        theirs = family.logprobs(family.inputs(SAMPLES[name], blur=True), prompts[name])
        worst = max(worst, apart(ours, theirs))
    for name, ours in zip(with_images, scored[len(asked) :], strict=True):
        if family.name in NO_BLIND:
            assert isinstance(ours, PromptError)
            assert ours.kind == "Blind"
            continue
        theirs = family.logprobs(family.inputs(SAMPLES[name]), prompts[name], hidden=True)
        worst = max(worst, apart(ours, theirs))
    print(f"{family.name}: largest difference of a log-prob {worst:.1e}")
    assert worst < TOLERANCE


@of(TRAINED)
def test_training_computes_the_same(family: Family) -> None:
    """All samples, those of a kind in one batch, packed where the model can be, and padded: -log q of every answer
    token."""
    prompts = {name: family.prompt(name, SAMPLES[name]) for name in family.samples}
    expected = [-family.logprobs(family.inputs(SAMPLES[name]), prompt) for name, prompt in prompts.items()]
    together = make_sure(family.folder, family.formatter).whole_together
    for packed in {can_pack(family.model), False}:
        model = copy.deepcopy(family.model)
        training_model = TrainingModel(model, pack=packed, softcap=applied_softcap(model))
        weights = [np.ones(len(prompt.answer_positions), dtype=np.float32) for prompt in prompts.values()]
        samples = [
            TrainingSample(number, name, prompt, weights[number])
            for number, (name, prompt) in enumerate(prompts.items())
        ]
        batcher = Batcher(model, family.formatter.collate, device="cpu", dtype=torch.float32, packed=packed)
        for members in plan_by_kind(samples, max_tokens=100_000, packed=packed, whole_together=together):
            theirs = np.concatenate([expected[number] for number in members])
            loss, nll_N = training_model(batcher([samples[n] for n in members], [weights[n] for n in members]))
            assert apart(nll_N.detach().numpy(), theirs) < 2 * TOLERANCE, packed
            loss.backward()
            assert loss.item() == pytest.approx(theirs.sum(), rel=1e-5)


@of(TRAINED)
def test_a_fault_in_training_is_caught_at_the_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token too few in what is trained on: each answer is predicted from one state earlier."""
    right = Batcher.__call__

    def faulty(self: Batcher, *given: Any) -> Batch:
        batch = right(self, *given)
        return replace(batch, state_index_N=(batch.state_index_N - 1).clamp(min=0))

    monkeypatch.setattr(Batcher, "__call__", faulty)
    with pytest.raises(StageError, match="training computes other log-probs"):
        settled(family.folder, family.formatter)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The samples as `vig export-data --format messages` writes them."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = {}
    for name, sample in SAMPLES.items():
        paths = []
        for number, size in enumerate(sample.sizes):
            paths.append(str(folder / f"{name} {number}.png"))
            picture(size, number).save(paths[-1])
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(sample.turns)]
        rows[name] = {"sample_key": name, "messages": messages, "images": paths}
    return rows


@pytest.mark.parametrize("names", [("one image", "two turns"), ("text",), ("two images", "a later image"), None])
def test_the_collator_gives_what_the_processor_gives(
    family: Family, names: tuple[str, ...] | None, rows: dict[str, dict[str, Any]]
) -> None:
    """And labels: the answers and their ends. Where the processor takes no such batch, it says so."""
    chosen = [name for name in names or SAMPLES if name in family.samples]
    if not chosen:
        return
    collator = ActiveTokensCollator(family.folder)
    padding = {"padding": True, "padding_side": "right"}
    conversations = [family.messages(SAMPLES[name]) for name in chosen]
    try:
        expected = dict(
            family.processor.apply_chat_template(
                conversations, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=padding
            )
        )
    except Exception:
        with pytest.raises(ValueError, match="the processor doesn't take these samples together"):
            collator([rows[name] for name in chosen])
        return
    batch = collator([rows[name] for name in chosen])
    labels = batch.pop("labels")
    unused = getattr(family.processor, "unused_input_names", ())
    assert batch.keys() == {name for name in expected if name not in unused}
    for name, tensor in batch.items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(expected[name])), name
    for row, name in zip(labels, chosen, strict=True):
        prompt = family.prompt(name, SAMPLES[name])
        assert torch.nonzero(row != -100)[:, 0].tolist() == prompt.answer_positions.tolist()
        assert row[row != -100].tolist() == prompt.answer_ids.tolist()


@of(WHOLE)
def test_who_cannot_take_whole_samples_says_so(family: Family) -> None:
    """Instead of taking them without their images."""
    assert engine_for("auto", family.formatter, "m") == engine_for("torch", family.formatter, "m") == "torch"
    for asked in ("vllm", "mine:engine"):
        with pytest.raises(StageError, match="m: its processor makes each sample as a whole"):
            engine_for(asked, family.formatter, "m")
    with pytest.raises(PromptError, match="ImageCount: 1 <image> in the conversation, and 0 images"):
        family.formatter.prompt([Turn("user", f"{I}?"), Turn("assistant", "No.")], [])


@of(WHOLE)
def test_whole_samples_are_pickled_without_their_pixels(family: Family) -> None:
    prompt = family.prompt("one image", SAMPLES["one image"])
    pair = pickle.loads(pickle.dumps((prompt, blur(prompt))))
    assert not any(image.inputs for one in pair for image in one.images)
    for ours, theirs in zip(family.engine.logprobs(pair), family.engine.logprobs([prompt, blur(prompt)]), strict=True):
        assert np.array_equal(ours, theirs)


def dropped(prompt: Prompt) -> Prompt:
    """A token of the question is missing."""
    at = int(prompt.answer_positions[0]) - 1
    ids, mask = np.delete(prompt.token_ids, at), np.delete(prompt.image_mask, at)
    return replace(prompt, token_ids=ids, image_mask=mask, answer_positions=prompt.answer_positions - 1)


def unmarked(prompt: Prompt) -> Prompt:
    """The end of a turn isn't trained."""
    return replace(prompt, answer_positions=prompt.answer_positions[:-1], turns=prompt.turns[:-1])


def swapped(prompt: Prompt) -> Prompt:
    """The first image's pixels stand where the last one's should."""
    return replace(prompt, images=(*prompt.images[1:], *prompt.images[:1]))


@of(FROM_PARTS)
@pytest.mark.parametrize("fault", [dropped, unmarked, swapped])
def test_a_fault_in_the_prompt_is_caught_at_the_start(
    family: Family, fault: Callable[[Prompt], Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = family.formatter.from_parts
    assert differences(family.formatter) == []
    monkeypatch.setattr(family.formatter, "from_parts", lambda *sample: fault(right(*sample)))
    assert differences(family.formatter)


@of(WHOLE)
@pytest.mark.parametrize("fault", [dropped, unmarked])
def test_a_fault_in_a_whole_prompt_is_caught_at_the_start(
    family: Family, fault: Callable[[Prompt], Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = family.formatter.as_a_whole
    assert differences(family.formatter)
    monkeypatch.setattr(family.formatter, "as_a_whole", lambda *sample: fault(right(*sample)))
    with pytest.raises(PromptError, match="Processor: "):
        differences(family.formatter)


@of([name for name in WHOLE if name not in ONE_BY_ONE])
def test_a_fault_in_batches_of_whole_samples_is_caught_at_the_start(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays swapped between the samples of a batch: they are run, and trained on, one by one."""

    def faulty(prompts: Sequence[Prompt], *to: Any) -> dict[str, Any]:
        return of_whole([*prompts[1:], *prompts[:1]], *to)

    monkeypatch.setattr("vig_ray.scoring.engines.torch.of_whole", faulty)
    monkeypatch.setattr("vig_ray.training.batch.of_whole", faulty)
    monkeypatch.setattr(family.engine, "plainly", set())  # put back at the end
    check_numbers(family.engine, family.formatter)
    assert "whole" in family.engine.plainly
    found = settled(family.folder, family.formatter)
    assert found is not None
    assert not found["whole_together"]


@of(FROM_PARTS)
def test_a_fault_in_the_arrays_is_caught_at_the_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    right = family.formatter.collate
    for name in right([family.formatter.preprocess(np.zeros((64, 64, 3), np.uint8))], "cpu", torch.float32):
        faulty = lambda *given, name=name: {k: v for k, v in right(*given).items() if k != name}  # noqa: E731
        monkeypatch.setattr(family.formatter, "collate", faulty)
        assert differences(family.formatter), name


@of(IN_BATCHES)
def test_a_fault_in_the_batches_is_caught_at_the_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images swapped on their way into a batch: samples are run one by one, and come out right."""
    monkeypatch.setattr(family.engine, "plainly", set())  # put back at the end
    right = family.engine._vision_inputs

    def faulty(prompts: Sequence[Prompt], features: dict[str, Any]) -> Any:
        turned = [replace(prompt, images=prompt.images) for prompt in prompts]
        with_image = [prompt for prompt in turned if prompt.images]
        images = [image for prompt in with_image for image in prompt.images]
        order = iter([*images[1:], *images[:1]])
        alike = [replace(p, images=tuple(next(order) for _ in p.images)) for p in with_image]
        return right(alike, features)

    monkeypatch.setattr(family.engine, "_vision_inputs", faulty)
    monkeypatch.setattr(family.engine, "_shares_images", family.engine._shares_images)
    check_numbers(family.engine, family.formatter)
    assert "by parts" in family.engine.plainly
    prompt = family.prompt("one image", SAMPLES["one image"])
    (ours,) = family.engine.logprobs([prompt])
    assert apart(ours, family.logprobs(family.inputs(SAMPLES["one image"]), prompt)) < TOLERANCE


@pytest.mark.parametrize("name", NOT_SCORED)
def test_a_family_that_cannot_be_right_is_refused(name: str, tmp_path: Path) -> None:
    importlib.import_module(f"tests.model.families.{name}").make(str(tmp_path))
    with pytest.raises(StageError, match=NOT_SCORED[name]):
        load_engine("torch", model=str(tmp_path), template="auto", max_length=None, dtype="float32", device="cpu")
