"""Before the first step: what training computes of a few conversations against the model's own forward, on a small copy
of the model (`vig_ray.model.small_copy`), packed and padded as the run will have it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.arrays import of_whole
from vig_ray.model.attention import can_pack
from vig_ray.model.head import applied_softcap
from vig_ray.model.probe import probe_prompts
from vig_ray.model.prompt import Formatter, Prompt
from vig_ray.model.remember import Found, remembered
from vig_ray.model.small_copy import EXACT, largest_difference, small_copy
from vig_ray.model.text_only import TextOnly
from vig_ray.storage import one_line
from vig_ray.training.batch import Batcher, TrainingSample, plan_by_kind
from vig_ray.training.training_model import TrainingModel

log = logging.getLogger(__name__)

_MANY = 1 << 30


class Checked(NamedTuple):
    """What was found: whether samples that go through the processor as a whole may be batched, and how far training's
    log-probs are from the model's own, nats; None where it couldn't be checked."""

    whole_together: bool = False
    apart: float | None = None


def make_sure(model: str, formatter: Formatter) -> Checked:
    """Check checkpoint `model`.

    Raises StageError where training computes other log-probs than the model's own forward.
    """
    found = remembered("training", model, formatter, lambda: settled(model, formatter))
    if found is None:
        log.warning("%s: what training computes could not be checked before it begins", model)
        return Checked()
    return Checked(bool(found["whole_together"]), float(found["apart"]))


def settled(model: str, formatter: Formatter) -> Found:
    """How samples of checkpoint `model` must be batched; None where there can be no small copy. Raises StageError."""
    made = small_copy(model, text_only=isinstance(formatter, TextOnly))
    if made is None or not hasattr(made, "model"):  # which is refused by itself
        return None
    prompts = [(prompt, given) for prompt, given in probe_prompts(formatter) if not prompt.hide_images]
    try:
        expected = [_plainly(made, formatter, given) for _, given in prompts]
    except Exception as error:  # a config of layers that look at others
        log.info("%s: no small copy of it can be run: %s", model, one_line(error)[:200])
        return None
    _check_causality(made, formatter, prompts[0][1], expected[0])
    ours = [prompt for prompt, _ in prompts]
    packed = can_pack(made)
    training_model = TrainingModel(made, pack=packed, softcap=applied_softcap(made), train=("language",)).eval()
    worst = 0.0
    for how in {packed, False}:
        batcher = Batcher(made, formatter.collate, device="cpu", dtype=torch.float32, packed=how)
        away, cause = _apart(training_model, batcher, ours, expected, whole_together=False)
        if away > EXACT:
            raise StageError(
                f"{type(made).__name__}: training computes other log-probs than its own forward ({cause}); it can be "
                "scored, not trained"
            )
        worst = max(worst, away)
    together, _ = _apart(training_model, batcher, ours, expected, whole_together=True)
    return {"whole_together": together <= EXACT, "apart": worst}


@torch.no_grad()
def _plainly(model: Any, formatter: Formatter, prompt: Prompt) -> np.ndarray[Any, Any]:
    """-log q of a prompt's answer tokens by the model's own forward, float64 [T]."""
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(prompt.token_ids.astype(np.int64))[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if prompt.whole is not None:
        inputs |= of_whole([prompt], "cpu", torch.float32)
    elif prompt.images:
        inputs |= formatter.collate([image.inputs for image in prompt.images], "cpu", torch.float32)
    accepted = inspect.signature(model.forward).parameters
    logits_LV = model(**{name: value for name, value in inputs.items() if name in accepted}).logits[0].double()
    places = torch.from_numpy(prompt.answer_positions.astype(np.int64))
    logp_TV = logits_LV[places - 1].log_softmax(-1)
    return np.asarray(-logp_TV.gather(1, inputs["input_ids"][0, places][:, None])[:, 0])


def _check_causality(model: Any, formatter: Formatter, prompt: Prompt, nll_T: np.ndarray[Any, Any]) -> None:
    """Another last answer token must change nothing before it: else a model learns to copy what it sees.

    Raises StageError.
    """
    ids = prompt.token_ids.copy()
    ids[prompt.answer_positions[-1]] = ids[prompt.answer_positions[0]]
    away = largest_difference(_plainly(model, formatter, replace(prompt, token_ids=ids))[:-1], nll_T[:-1])
    if away > EXACT:
        raise StageError(
            f"{type(model).__name__}: its attention looks ahead: another last token of an answer changes the log-probs "
            f"of those before it by {away:.2g} nats; training would teach it to copy"
        )


def _apart(
    training_model: TrainingModel,
    batcher: Batcher,
    prompts: Sequence[Prompt],
    expected: Sequence[np.ndarray[Any, Any]],
    *,
    whole_together: bool,
) -> tuple[float, str]:
    """How far training's log-probs are from these, infinitely where it fails, and that in words."""
    ones = [np.ones(len(prompt.answer_positions), dtype=np.float32) for prompt in prompts]
    samples = [TrainingSample(place, str(place), prompt, ones[place]) for place, prompt in enumerate(prompts)]
    plan = plan_by_kind(samples, max_tokens=_MANY, packed=batcher.packed, whole_together=whole_together)
    worst = 0.0
    for members in plan:
        try:
            with torch.no_grad():
                _, nll_N = training_model(batcher([samples[at] for at in members], [ones[at] for at in members]))
        except Exception as error:  # whatever a model says of a batch
            return float("inf"), one_line(error)[:200]
        theirs = np.concatenate([expected[at] for at in members])
        worst = max(worst, largest_difference(nll_N.double().numpy(), theirs))
    return worst, f"they differ by {worst:.2g} nats"
