"""Before any sample: the torch engine's log-probs against one plain forward a sample, on the conversations of
`vig_ray.model.probe`, as the model's own processor gives them.

It says nothing of a model's size: what it finds is a family that can't be run in batches, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.probe import PROBES, pictures
from vig_ray.model.prompt import Formatter, Pixels, Prompt, PromptError, PromptImage
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.torch import TorchEngine, out_of_memory, plan_batches
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_SMALL = 1 << 18  # pixels of a probe's image: few enough tokens for a dozen forwards at every start
# How far apart two orders of the same sums may be, in nats: any token in float32, a prompt's mean in half precision,
# where single tokens of low probability scatter.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.03}
_ROUNDING_OF_BFLOAT16 = 0.1


def check_numbers(engine: TorchEngine, formatter: Formatter) -> float:
    """Hold the engine's batches against one plain forward a sample.

    Where they differ by more than rounding, the engine runs such samples plainly from then on, which is said. Where
    images can't be hidden, it refuses blind prompts. Returns the largest difference of a log-prob, in nats (in half
    precision, of a prompt's mean). Raises StageError where the model's own forward refuses a sample, gives no numbers
    or looks ahead, and EngineDiedError where the device fails.
    """
    pairs = probe_prompts(formatter)
    clean = [pair for pair in pairs if not pair[0].hide_images]
    plain = [_plainly(engine, as_given) for _, as_given in clean]
    _check_causality(engine, clean[0][1], plain[0])
    apart = _settle(engine, [prompt for prompt, _ in clean], plain)
    hidden = [pair for pair in pairs if pair[0].hide_images]
    try:
        plain = [_plainly(engine, as_given) for _, as_given in hidden]
    except (PromptError, StageError) as error:
        engine.no_blind = PromptError("Blind", str(error.args[-1]))
        return apart
    return max(apart, _settle(engine, [prompt for prompt, _ in hidden], plain))


def probe_prompts(formatter: Formatter) -> list[tuple[Prompt, Prompt]]:
    """Prompts of the probes whose images are small, each also with hidden images; beside each the same as the model's
    own processor gives it, where there are two ways to it."""
    as_given = getattr(formatter, "as_a_whole", formatter.prompt)

    def loaded(pixels: Pixels) -> Callable[[], Pixels]:
        return lambda: pixels

    pairs = []
    for probe in (probe for probe in PROBES if all(height * width <= _SMALL for height, width in probe.sizes)):
        images = [
            PromptImage(f"{probe.name} {number}", loaded(pixels), formatter.preprocess)
            for number, pixels in enumerate(pictures(probe))
        ]
        try:
            pair = formatter.prompt(probe.conversation, images), as_given(probe.conversation, images)
        except PromptError:  # a sample that its processor refuses is that row's error
            continue
        pairs.append(pair)
        if images:
            pairs.append((replace(pair[0], hide_images=True), replace(pair[1], hide_images=True)))
    return pairs


def _plainly(engine: TorchEngine, prompt: Prompt) -> LogProbs:
    """Raises PromptError where images can't be hidden, StageError where the forward fails, EngineDiedError."""
    try:
        logp_T = engine.run_plainly(prompt)
    except PromptError:
        raise
    except Exception as error:
        if "CUDA error" in str(error):
            raise EngineDiedError(f"the GPU failed: {one_line(error)[:300]}") from error
        kind = f"a sample of {len(prompt.images)} images"
        raise StageError(f"{engine.name}: its forward refuses {kind}: {one_line(error)[:200]}") from error
    if not np.isfinite(logp_T).all():
        raise StageError(f"{engine.name}: its log-probs in {engine.dtype} are no numbers; take another --dtype")
    return logp_T


def _check_causality(engine: TorchEngine, prompt: Prompt, logp_T: LogProbs) -> None:
    """Another last answer token must leave all before it as they are: else answers are seen before they are predicted.

    Raises StageError.
    """
    ids = prompt.token_ids.copy()
    ids[prompt.answer_positions[-1]] = ids[prompt.answer_positions[0]]
    changed_T = _plainly(engine, replace(prompt, token_ids=ids))
    apart = _distance(engine, changed_T[:-1], logp_T[:-1])
    if apart > _rounding(engine):
        raise StageError(
            f"{engine.name}: its attention looks ahead: another last token of an answer changes the log-probs of those "
            f"before it by {apart:.2g} nats, so they say nothing; it can't be scored"
        )


def _settle(engine: TorchEngine, prompts: Sequence[Prompt], plain: Sequence[LogProbs]) -> float:
    """Whether such prompts are run in batches from now on, by their plain log-probs; how far the batches are off.

    Raises StageError where the prompts are wrong one by one, too.
    """
    if any(prompt.whole is not None for prompt in prompts) or not prompts:
        return 0.0  # there are no batches of them
    apart, cause = _apart_in_batches(engine, prompts, plain)
    if apart <= _rounding(engine):
        return apart
    alone = max(
        _distance(engine, _plainly(engine, prompt), logp_T) for prompt, logp_T in zip(prompts, plain, strict=True)
    )
    if alone > _rounding(engine):
        raise StageError(
            f"{engine.name}: prompts put together from parts give other log-probs than its processor's own, by "
            f"{alone:.2g} nats; it can't be scored"
        )
    hidden = prompts[0].hide_images
    engine.plainly.add(hidden)
    which = "with images hidden, " if hidden else ""
    log.warning("%s: %ssamples are run one by one, since in batches %s", engine.name, which, cause)
    return apart


def _apart_in_batches(engine: TorchEngine, prompts: Sequence[Prompt], plain: Sequence[LogProbs]) -> tuple[float, str]:
    """How far batches of the prompts are from these log-probs, infinitely where they fail, and that in words."""
    apart = 0.0
    lengths = [len(prompt.token_ids) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: -lengths[index])
    for batch in plan_batches(lengths, order, engine.max_batch_tokens):
        try:
            together = engine.run_batch([prompts[index] for index in batch], {})
        except Exception as error:
            if out_of_memory(error):  # smaller batches will do, which are found when scoring
                continue
            return float("inf"), one_line(error)[:200]
        for index, logp_T in zip(batch, together, strict=True):
            apart = max(apart, _distance(engine, logp_T, plain[index]))
    return apart, f"they differ by {apart:.2g} nats"


def _rounding(engine: TorchEngine) -> float:
    return _ROUNDING.get(engine.dtype, _ROUNDING_OF_BFLOAT16)


def _distance(engine: TorchEngine, ours_T: LogProbs, theirs_T: LogProbs) -> float:
    apart_T = np.abs(ours_T - theirs_T)
    if np.isnan(apart_T).any():
        return float("inf")
    return float(apart_T.max() if engine.dtype == torch.float32 else apart_T.mean())
