"""Questions for the tests of generators, and what transformers alone answers to them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.scoring.prompts import picture
from vig_ray.dataset.schema import Turn
from vig_ray.evaluation.generation import Written
from vig_ray.model.prompt import Prompt, PromptError, PromptImage

MARGIN = 1e-3
QUESTIONS = ("What is on the left?", "Describe the image.", "Is there a red circle in the image?")


def questions(formatter: Any, images: int = 3) -> list[Prompt]:
    """Several questions about each of some pictures, of two pictures, in a later turn, and of none."""
    # Under keys of their own: an engine of vLLM that other tests have asked knows pictures by theirs.
    pictures = [
        PromptImage(f"asked-{number}", lambda number=number: picture(number, formatter).pixels, formatter.preprocess)
        for number in range(images)
    ]
    asked = [
        formatter.question([Turn("user", f"<image>\n{text}")], [image]) for image in pictures for text in QUESTIONS
    ]
    later = [Turn("user", "<image>\nWhat color is it?"), Turn("assistant", "It is red."), Turn("user", "Where is it?")]
    asked.append(formatter.question(later, pictures[:1]))
    asked.append(formatter.question([Turn("user", "<image><image>\nCompare.")], pictures[:2]))
    asked += [
        formatter.question([Turn("user", text)], []) for text in ("How many days are in a week?", "What is the sky?")
    ]
    return asked


def shuffled(count: int, seed: int) -> list[int]:
    """A permutation."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


class Alone(NamedTuple):
    """What a prompt by itself has: its answer's tokens with the one that ended it, and the logits of each, [n, V]."""

    tokens: list[int]
    logits: torch.Tensor


def generated(model: Any, formatter: Any, prompt: Prompt, stops: Sequence[int], most: int = 12) -> Alone:
    """By transformers' own `generate`, greedy, the arrays as the formatter's or the processor's call has them."""
    ids = torch.tensor(prompt.token_ids.tolist())[None]
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if prompt.whole is not None:
        inputs |= {name: torch.as_tensor(array) for name, array in prompt.whole.arrays.items()}
    elif prompt.images:
        inputs |= formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
    types = {"qwen2_5_vl": "mm_token_type_ids", "qwen3_vl": "mm_token_type_ids", "gemma3": "token_type_ids"}
    if (name := types.get(model.config.model_type)) is not None:
        inputs[name] = torch.as_tensor(prompt.image_mask.astype(np.int64))[None]
    out = model.generate(
        **inputs, do_sample=False, max_new_tokens=most, eos_token_id=list(stops), pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return Alone(out.sequences[0, ids.shape[1] :].tolist(), torch.cat(out.logits))


def check(written: Written | PromptError, alone: Alone, stops: Sequence[int]) -> bool:
    """Hold an answer against the one that the prompt has by itself; whether they are the same.

    Where they part, the two tokens were as likely but for rounding.
    """
    assert isinstance(written, Written), written
    expected = alone.tokens[:-1] if alone.tokens[-1] in stops else alone.tokens
    ours = written.token_ids.tolist()
    if ours == expected:
        assert written.finished == (alone.tokens[-1] in stops)
        return True
    place = next(i for i, pair in enumerate(zip([*ours, -1], [*expected, -1], strict=False)) if pair[0] != pair[1])
    first, second = alone.logits[place].topk(2).values.tolist()
    assert first - second < MARGIN, (place, ours, expected)
    return False
