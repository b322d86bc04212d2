"""Every family against its own processor and forward, one sample at a time: ids, answers, clean, blurred, blind; what
training computes; what the collator for other trainers gives."""

from __future__ import annotations

import copy
import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.family import (
    NO_BLIND,
    NOT_SCORED,
    ONE_BY_ONE,
    SAMPLES,
    TOLERANCE,
    TRAINED,
    WHOLE,
    Family,
    I,
    apart,
    asked,
    of,
    picture,
)
from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack
from vig_ray.model.head import applied_softcap
from vig_ray.model.prompt import PromptError
from vig_ray.scoring.engines.load import engine_for, load_engine
from vig_ray.scoring.reference import blind, blur
from vig_ray.training.batch import Batcher, TrainingSample, plan_by_kind
from vig_ray.training.check import make_sure
from vig_ray.training.collator import ActiveTokensCollator
from vig_ray.training.training_model import TrainingModel


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


def test_a_question_ends_where_the_answer_begins(family: Family) -> None:
    """By the processor's own generation prompt; arrays, too, where samples go through it as a whole."""
    for name, sample in SAMPLES.items():
        if name not in family.samples:
            continue
        question, theirs = family.prompt(name, asked(sample)), family.inputs(asked(sample))
        assert question.token_ids.tolist() == theirs["input_ids"][0].tolist(), name
        assert len(question.answer_positions) == len(question.turns) == len(question.answer_chars) == 0
        answered = family.prompt(name, sample)
        begins = answered.answer_positions[answered.turns == answered.turns[-1]][0]
        assert question.token_ids.tolist() == answered.token_ids[:begins].tolist(), name
        assert question.image_spans.tolist() == answered.image_spans.tolist()
        assert question.images == () or question.image_mask.any()
        for key, array in (question.whole.arrays if question.whole else {}).items():
            assert np.array_equal(array, np.asarray(theirs[key])), (name, key)
    before_written, before_trained = family.formatter.before_answers()
    assert before_written == before_trained


def test_numbers_are_the_models(family: Family) -> None:
    """All samples at once, each also blurred and blind."""
    names = list(family.samples)
    prompts = {name: family.prompt(name, SAMPLES[name]) for name in names}
    with_images = [name for name in names if SAMPLES[name].sizes]
    asked = [*prompts.values(), *(blur(prompts[name]) for name in with_images)]
    hidden = [blind(prompts[name]) for name in with_images]
    scored = family.engine.logprobs([*asked, *hidden])
    cases: list[tuple[str, Any, dict[str, bool]]] = [
        (name, ours, {}) for name, ours in zip(names, scored, strict=False)
    ]
    cases += [(name, ours, {"blur": True}) for name, ours in zip(with_images, scored[len(names) :], strict=False)]
    for name, ours in zip(with_images, scored[len(asked) :], strict=True):
        if family.name in NO_BLIND:
            assert isinstance(ours, PromptError)
            assert ours.kind == "Blind"
        else:
            cases.append((name, ours, {"hidden": True}))

    def by_the_model(name: str, *, blur: bool = False, hidden: bool = False, exact: bool = False) -> Any:
        inputs = family.inputs(SAMPLES[name], blur=blur)
        return family.logprobs(inputs, prompts[name], hidden=hidden, exact=exact)

    theirs = [by_the_model(name, **how) for name, _, how in cases]
    worst = max(apart(ours, other) for (_, ours, _), other in zip(cases, theirs, strict=True))
    print(f"{family.name}: largest difference of a log-prob {worst:.1e}")
    if worst >= TOLERANCE:  # float32 itself may be off by more: then as near to the exact numbers as the model's own
        exact = [by_the_model(name, **how, exact=True) for name, _, how in cases]
        rounding = max(apart(other, truth) for other, truth in zip(theirs, exact, strict=True))
        worst = max(apart(ours, truth) for (_, ours, _), truth in zip(cases, exact, strict=True))
        print(f"{family.name}: from float64 {worst:.1e}, the model's own forward {rounding:.1e}")
        assert worst < max(TOLERANCE, 1.5 * rounding)


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
    for engine in ("vllm", "mine:engine"):
        with pytest.raises(StageError, match="m: its processor makes each sample as a whole"):
            engine_for(engine, family.formatter, "m")
    with pytest.raises(PromptError, match="ImageCount: 1 <image> in the conversation, and 0 images"):
        family.formatter.prompt([Turn("user", f"{I}?"), Turn("assistant", "No.")], [])


@of(WHOLE)
def test_whole_samples_are_pickled_without_their_pixels(family: Family) -> None:
    prompt = family.prompt("one image", SAMPLES["one image"])
    pair = pickle.loads(pickle.dumps((prompt, blur(prompt))))
    assert not any(image.inputs for one in pair for image in one.images)
    for ours, theirs in zip(family.engine.logprobs(pair), family.engine.logprobs([prompt, blur(prompt)]), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", NOT_SCORED)
def test_a_family_that_cannot_be_right_is_refused(name: str, tmp_path: Path) -> None:
    importlib.import_module(f"tests.model.families.{name}").make(str(tmp_path))
    with pytest.raises(StageError, match=NOT_SCORED[name]):
        load_engine("torch", model=str(tmp_path), template="auto", max_length=None, dtype="float32", device="cpu")
