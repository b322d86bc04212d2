"""Faults put on purpose into prompts, arrays, batches and training: each is caught at the start, for every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.family import (
    FROM_PARTS,
    IN_BATCHES,
    ONE_BY_ONE,
    SAMPLES,
    TOLERANCE,
    TRAINED,
    WHOLE,
    Family,
    apart,
    of,
)
from vig_ray.errors import StageError
from vig_ray.model.arrays import of_whole
from vig_ray.model.probe import differences
from vig_ray.model.prompt import Prompt, PromptError, PromptImage
from vig_ray.scoring.engines.check import check_numbers
from vig_ray.training.batch import Batch, Batcher
from vig_ray.training.check import settled


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

    monkeypatch.setattr("vig_ray.scoring.engines.forwards.of_whole", faulty)
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
    monkeypatch.setattr(family.engine, "packed", set(family.engine.packed))
    right = family.engine.vision_arguments

    def faulty(images: Sequence[PromptImage], *given: Any) -> Any:
        return right([*images[1:], *images[:1]], *given)

    monkeypatch.setattr(family.engine, "vision_arguments", faulty)
    monkeypatch.setattr(family.engine._features, "_shared", family.engine._features._shared)
    check_numbers(family.engine, family.formatter)
    assert "by parts" in family.engine.plainly
    assert "by parts" not in family.engine.packed
    prompt = family.prompt("one image", SAMPLES["one image"])
    (ours,) = family.engine.logprobs([prompt])
    assert apart(ours, family.logprobs(family.inputs(SAMPLES["one image"]), prompt)) < TOLERANCE


@of(TRAINED)
def test_a_fault_in_training_is_caught_at_the_start(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token too few in what is trained on: each answer is predicted from one state earlier."""
    right = Batcher.__call__

    def faulty(self: Batcher, *given: Any) -> Batch:
        batch = right(self, *given)
        (part,) = batch.parts
        return replace(batch, parts=(part._replace(state_index_N=(part.state_index_N - 1).clamp(min=0)),))

    monkeypatch.setattr(Batcher, "__call__", faulty)
    with pytest.raises(StageError, match="training computes other log-probs"):
        settled(family.folder, family.formatter)
