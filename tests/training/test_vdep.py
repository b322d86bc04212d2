"""VDEP's loss and gradients against equation 11 by plain forwards: packed and padded, in all modes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.scoring.prompts import LONG, ask, picture
from tests.training.plain_vdep import Given, terms
from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT
from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack
from vig_ray.model.load import load_formatter, load_model, without_weights
from vig_ray.model.prompt import truncate
from vig_ray.training.batch import Batch, Batcher, TrainingSample, trimmed, weights_of
from vig_ray.training.config import TrainConfig
from vig_ray.training.hybrid import in_modes, with_first_token
from vig_ray.training.loader import Unusable
from vig_ray.training.objective import Mode, Sums, Totals, coefficients
from vig_ray.training.training_model import TrainingModel
from vig_ray.training.vdep_options import mark_of, objectives_of

ALPHA = 0.25


def config_of(checkpoint: str = "-", **options: Any) -> TrainConfig:
    return TrainConfig(model=checkpoint, samples="-", out="-", **{"objective": "vdep", "vdep_alpha": ALPHA, **options})


def some_samples(formatter: Any) -> list[TrainingSample]:
    """In each mode with an image; two images, side by side and in later turns; none; and one sample in two modes."""
    one, other = picture(1, formatter), picture(2, formatter)
    turns = [
        Turn("user", "<image>\n<image>\nCompare the images."), Turn("assistant", "The circle is red."),
    ]  # fmt: skip
    later = [
        Turn("user", "Hello."), Turn("assistant", "Hello."),
        Turn("user", "<image>\nWhat is this?"), Turn("assistant", "A blue square."),
    ]  # fmt: skip
    prompts: list[tuple[Any, Mode]] = [
        (ask(formatter, LONG, one), "text"),
        (ask(formatter, LONG, one), "image"),
        (ask(formatter, "Red.", other), "joint"),
        (formatter.prompt(turns, [one, other]), "image"),
        (formatter.prompt(later, [other]), "image"),
        (ask(formatter, LONG, None), "text"),
    ]
    rng = np.random.default_rng(0)
    samples = []
    for number, (prompt, mode) in enumerate(prompts):
        weights = rng.choice([0, 1, 0.5], len(prompt.answer_positions)).astype(np.float32)
        samples.append(TrainingSample(number, str(number), prompt, weights, mode))
    return samples


def in_batches(
    samples: Sequence[TrainingSample], batcher: Batcher, objectives: Any, normalisation: Any, each: int
) -> list[Batch]:
    """Microbatches of `each` samples of a global batch, and an empty one."""
    totals = [Totals.of([weights_of(objective, sample) for sample in samples]) for objective in objectives]
    needed = [sample for sample in (trimmed(sample, objectives) for sample in samples) if sample is not None]
    batches = []
    for start in range(0, len(needed), each):
        chosen = needed[start : start + each]
        shares = [
            [coefficients(weights_of(objective, sample), of_all, normalisation) for sample in chosen]
            for objective, of_all in zip(objectives, totals, strict=True)
        ]
        batches.append(batcher(chosen, *shares))
    return [*batches, batcher.empty()]


def assert_as_plain(
    checkpoint: str, formatter: Any, *, packed: bool, each: int = 9, normalisation: str = "tokens", **options: Any
) -> None:
    """Loss, its parts, the embeddings' variance and every gradient, relative to the largest of its tensor."""
    config = config_of(checkpoint, **options)
    samples = some_samples(formatter)
    plain = load_model(checkpoint, dtype="float32", device="cpu").train()
    types = [each for each in inspect.signature(plain.forward).parameters if each.endswith("token_type_ids")]
    given = [
        Given(
            sample.prompt.token_ids.tolist(),
            sample.prompt.answer_positions.tolist(),
            sample.weights_T.tolist(),
            formatter.collate([image.inputs for image in sample.prompt.images], "cpu", torch.float32)
            if sample.prompt.images
            else {},
            sample.mode,
            {name: torch.from_numpy(sample.prompt.image_mask.astype(np.int64))[None] for name in types},
        )
        for sample in samples
    ]
    expected = terms(
        plain,
        given,
        reduction=config.vdep_reduction,
        shift=config.vdep_shift,
        live=config.vdep_target == "live",
        layer=-1 if config.vdep_layer is None else config.vdep_layer,
        by_sample=normalisation == "samples",
    )
    loss = expected.text + ALPHA * expected.image
    loss.backward()
    model = load_model(checkpoint, dtype="float32", device="cpu")
    objectives = objectives_of(config, model)
    training_model = TrainingModel(
        model,
        pack=can_pack(model),
        objectives=objectives,
        checkpoint_activations=config.activation_checkpointing == "on",
    )
    batcher = Batcher(model, formatter.collate, device="cpu", dtype=torch.float32, packed=packed, objectives=objectives)
    sums, whole = Sums(2, torch.device("cpu")), 0.0
    for batch in in_batches(samples, batcher, objectives, normalisation, each):
        part, _ = training_model(batch, sums)
        part.backward()
        whole += part.item()
    (text, image), variance = sums.total(lambda tensor: tensor)
    assert whole == pytest.approx(loss.item(), rel=1e-5)
    assert (text, image) == pytest.approx((expected.text.item(), expected.image.item()), rel=1e-5)
    assert variance == pytest.approx(expected.embeddings.var(dim=0, unbiased=False).mean().item(), rel=1e-4)
    theirs = dict(plain.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or theirs[name].grad is None:
            continue
        scale = float(theirs[name].grad.abs().max())
        away = float((parameter.grad - theirs[name].grad).abs().max())
        assert away <= 1e-5 * scale + 1e-9, f"{name}: {away:.2e} of {scale:.2e}"
        compared += 1
    assert compared > 10


WAYS: dict[str, dict[str, Any]] = {
    "as it is by default": {},
    "one sample a microbatch": {"each": 1},
    "two a microbatch, mean over samples": {"each": 2, "normalisation": "samples"},
    "same position, mean over the width": {"vdep_shift": 0, "vdep_reduction": "mean"},
    "live targets": {"vdep_target": "live"},
    "live targets of the same position, activations computed again": {
        "vdep_target": "live", "vdep_shift": 0, "activation_checkpointing": "on",
    },
    "states of the first layer": {"vdep_layer": 1, "activation_checkpointing": "on"},
    "states of the last layer, by its number": {"vdep_layer": 3},
}  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_those_of_equation_11(demo_formatter: Any, way: str, packed: bool) -> None:
    assert_as_plain(CHECKPOINT, demo_formatter, packed=packed, **WAYS[way])


def test_other_models(qwen_checkpoint: str, gemma_checkpoint: str) -> None:
    """Positions in three dimensions; images that see both ways, which can only be reconstructed."""
    for packed in (True, False):
        assert_as_plain(qwen_checkpoint, load_formatter(qwen_checkpoint), packed=packed)
    assert_as_plain(gemma_checkpoint, load_formatter(gemma_checkpoint), packed=False, vdep_shift=0)


def test_an_image_that_two_samples_share_is_computed_once_and_counts_for_each(
    demo_model: Any, demo_formatter: Any
) -> None:
    samples = some_samples(demo_formatter)[:2]
    objectives = objectives_of(config_of(), demo_model)
    batcher = Batcher(
        demo_model, demo_formatter.collate, device="cpu", dtype=torch.float32, packed=True, objectives=objectives
    )
    tokens = {}
    for modes in (("text", "image"), ("joint", "image"), ("joint", "joint")):
        chosen = [replace(sample, mode=mode) for sample, mode in zip(samples, modes, strict=True)]
        batch = in_batches(chosen, batcher, objectives, "tokens", 9)[0]
        positions = int(samples[0].prompt.image_mask.sum())
        assert batch.images == 1
        of_images = len(batch.parts[1].state_index_N)
        assert of_images == positions * sum(mode != "text" for mode in modes)
        assert len(set(batch.parts[1].state_index_N.tolist())) == positions
        tokens[modes] = batch.tokens
    assert len(set(tokens.values())) == 1


def test_nothing_is_computed_behind_the_images_of_a_sample_in_image_mode(demo_model: Any, demo_formatter: Any) -> None:
    """And the last layer's MLP for the states alone that something is predicted from."""
    sample = some_samples(demo_formatter)[1]
    objectives = objectives_of(config_of(), demo_model)
    shorter = trimmed(sample, objectives)
    assert shorter is not None
    last = int(np.flatnonzero(sample.prompt.image_mask)[-1])
    assert len(shorter.prompt.token_ids) == last + 1
    batcher = Batcher(
        demo_model, demo_formatter.collate, device="cpu", dtype=torch.float32, packed=True, objectives=objectives
    )
    batch = in_batches([sample], batcher, objectives, "tokens", 1)[0]
    images = np.flatnonzero(sample.prompt.image_mask)
    assert batch.unique_state_index_K.tolist() == (images - 1).tolist()
    assert batch.parts[1].target_N.tolist() == images.tolist()
    assert not len(batch.parts[0].state_index_N)
    earlier = objectives_of(config_of(vdep_layer=1), demo_model)
    batcher = Batcher(
        demo_model, demo_formatter.collate, device="cpu", dtype=torch.float32, packed=True, objectives=earlier
    )
    assert not len(in_batches([sample], batcher, earlier, "tokens", 1)[0].unique_state_index_K)


def test_the_mode_token_is_put_behind_the_beginning(demo_model: Any, demo_formatter: Any) -> None:
    prompt = some_samples(demo_formatter)[4].prompt
    marked = with_first_token(prompt, 77, demo_formatter.tokenizer.bos_token_id, 999)
    bos, *rest = prompt.token_ids.tolist()
    assert marked.token_ids.tolist() == [bos, 77, *rest]
    assert marked.answer_ids.tolist() == prompt.answer_ids.tolist()
    assert marked.token_ids[marked.image_mask].tolist() == prompt.token_ids[prompt.image_mask].tolist()
    ((first, past),) = marked.image_spans.tolist()
    assert marked.image_mask[first:past].all()
    assert with_first_token(prompt, 77, None, 999).token_ids.tolist() == [77, bos, *rest]


def test_a_mode_token_that_makes_a_sample_too_long_cuts_its_end(demo_model: Any, demo_formatter: Any) -> None:
    two_images, later = some_samples(demo_formatter)[3:5]

    def in_image_mode(sample: TrainingSample, limit: int) -> Any:
        mark = mark_of(config_of(vdep_mode_token="</s>"), demo_model, load_formatter(CHECKPOINT, max_length=limit))
        cut = truncate(sample.prompt, limit)
        loaded = TrainingSample(3, "3", cut, sample.weights_T[: len(cut.answer_positions)])
        text, image = in_modes([loaded] * 2, ["text", "image"], mark)
        assert isinstance(text, TrainingSample)
        assert text.prompt is cut
        return image

    ids, answers = two_images.prompt.token_ids, two_images.prompt.answer_positions
    for limit in (len(ids) + 1, len(ids), len(ids) - 1):
        image = in_image_mode(two_images, limit)
        assert image.prompt.token_ids.tolist() == [ids[0], 2, *ids[1 : limit - 1]]
        assert image.mode == "image"
        assert len(image.weights_T) == len(image.prompt.answer_positions) == (answers < limit - 1).sum()
    assert in_image_mode(two_images, int(answers[0]) + 1) == Unusable(
        "3", f"TooLong: {answers[0] + 1} tokens, and the limit of {answers[0]} leaves no answer, beside the mode token"
    )
    end = int(later.prompt.image_spans[-1, 1])
    assert in_image_mode(later, end + 1).mode == "image"
    left = in_image_mode(later, end)  # it has no image beside the mark, and isn't marked
    assert (left.mode, len(left.prompt.token_ids), len(left.prompt.images)) == ("text", end, 1)


def test_a_mode_token_needs_a_row_that_no_text_comes_to(demo_model: Any, demo_formatter: Any) -> None:
    assert mark_of(config_of(), demo_model, demo_formatter) is None
    known = demo_formatter.tokenizer.convert_tokens_to_ids("</s>")
    prompt = some_samples(demo_formatter)[0].prompt
    mark = mark_of(config_of(vdep_mode_token="</s>"), demo_model, demo_formatter)
    assert mark is not None
    assert mark(prompt).token_ids[1] == known
    with pytest.raises(StageError, match=r"--vdep-mode-token <auto_image>: not a token of the tokenizer, and all \d+ "):
        mark_of(config_of(vdep_mode_token="<auto_image>"), demo_model, demo_formatter)
    larger = load_model(CHECKPOINT, dtype="float32", device="cpu")
    larger.resize_token_embeddings(len(demo_formatter.tokenizer) + 3, mean_resizing=False)
    mark = mark_of(config_of(vdep_mode_token="<auto_image>"), larger, demo_formatter)
    assert mark is not None
    assert mark(prompt).token_ids[1] == len(demo_formatter.tokenizer)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("qwen3_vl", {}, "is given other things than embeddings .deepstack_visual_embeds, visual_pos_masks."),
        ("granite4_vision", {}, "is given other things than embeddings .deepstack_features, vision_mask."),
        ("mllama", {}, "is given other things than embeddings .cross_attention_mask"),
        ("gemma3", {}, "--vdep-shift 1: in Gemma3.* the tokens of an image see each other"),
        ("llava_next", {"vdep_layer": 9}, "--vdep-layer 9: LlavaNext.* has [1-8] layers"),
    ],
)
def test_what_is_not_right_for_a_model_is_refused(name: str, options: Any, told: str, tmp_path: Path) -> None:
    importlib.import_module(f"tests.model.families.{name}").make(str(tmp_path))
    model = without_weights(str(tmp_path))
    with pytest.raises(StageError, match=told):
        objectives_of(config_of(**options), model)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"objective": "next-token"}, "--vdep-alpha has no effect without --objective vdep"),
        ({"vdep_batches": "joint", "vdep_ratio": 0.5}, "--vdep-ratio has no effect with --vdep-batches joint"),
        ({"vdep_batches": "joint", "vdep_mode_token": "x"}, "--vdep-mode-token has no effect with"),
        ({"vdep_shift": 2}, "vdep_shift"),
        ({"vdep_ratio": 0}, "vdep_ratio"),
        ({"vdep_ratio": float("inf")}, "vdep_ratio"),
    ],
)
def test_options_that_make_no_sense(options: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config_of(**options)
