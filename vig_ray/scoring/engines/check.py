"""Before any sample: the torch engine's log-probs against one plain forward a sample, on the conversations of
`vig_ray.model.probe`, as the model's own processor gives them.

What a family's code does with batches and hidden images is found on a small copy of the model, in float32, once for a
config (`settled`); what the model itself does in its own precision, at every start (`check_numbers`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.probe import PROBES, Probe, probe_prompts
from vig_ray.model.prompt import Formatter, Prompt, PromptError
from vig_ray.model.remember import Found, remembered
from vig_ray.model.small_copy import EXACT, largest_difference, small_copy
from vig_ray.model.text_only import TextOnly
from vig_ray.scoring.engines import EngineDiedError, LogProbs
from vig_ray.scoring.engines.forwards import kind, plan_batches, together
from vig_ray.scoring.engines.torch import TorchEngine
from vig_ray.scoring.engines.tree import out_of_memory
from vig_ray.scoring.references.no_image import no_image
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

_ON_THE_MODEL = ("one image", "a question of several turns", "two images")
# How far apart two orders of the same sums may be in a model of any size, in nats: any token in float32, a prompt's
# mean in half precision, where single tokens of low probability scatter.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.03}
_ROUNDING_OF_BFLOAT16 = 0.1
_SHORT_ROW = 48  # tokens: nearly every run is cut


def make_sure(engine: TorchEngine, model: str, formatter: Formatter) -> None:
    """Check checkpoint `model`, and let `engine`, which holds it, run its samples as they come out right.

    Raises StageError where they don't in any way, and EngineDiedError where the device fails.
    """
    found = remembered("scoring", model, formatter, lambda: settled(model, formatter))
    if found is None:
        apart = check_numbers(engine, formatter)
        engine.description += f"; checked on a few conversations, to {apart:.0e} nats"
        return
    engine.packed.intersection_update(found["packed"])
    engine.plainly.update(found["plainly"])
    engine.no_blind = PromptError("Blind", found["no_blind"]) if found["no_blind"] else None
    for line in found["told"]:
        log.warning("%s", line)
    engine.description += f"; checked on a small copy, to {found['apart']:.0e} nats"
    check_numbers(engine, formatter, probes=[probe for probe in PROBES if probe.name in _ON_THE_MODEL])


def settled(model: str, formatter: Formatter) -> Found:
    """How samples of checkpoint `model` must be run, found on a small copy of it; None where there can be none.

    Raises StageError where they come out right in no way.
    """
    made = small_copy(model, text_only=isinstance(formatter, TextOnly))
    if made is None:
        return None
    engine = TorchEngine(made, formatter.collate)
    check = _Check(engine, exact=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, (os.cpu_count() or 1) // 2))  # Ray gives an actor with a GPU one
    try:
        apart = check.run(formatter, PROBES)
    except _ForwardError as error:
        log.info("%s: no small copy of it can be run: %s", model, error)  # a config of layers that look at others
        return None
    finally:
        torch.set_num_threads(threads)
    no_blind = str(engine.no_blind.args[1]) if engine.no_blind else None
    ways = {"packed": sorted(engine.packed), "plainly": sorted(engine.plainly)}
    return {**ways, "no_blind": no_blind, "apart": apart, "told": check.told}


def check_numbers(engine: TorchEngine, formatter: Formatter, *, probes: Sequence[Probe] = PROBES) -> float:
    """Hold the engine's batches against one plain forward a sample.

    Where they differ by more than rounding, the engine runs such samples plainly from then on, which is said. Where
    images can't be hidden, it refuses blind prompts. Returns the largest difference of a log-prob, in nats (in half
    precision, of a prompt's mean). Raises StageError where the model's own forward refuses a sample, gives no numbers
    or looks ahead, and EngineDiedError where the device fails.
    """
    check = _Check(engine, exact=False)
    apart = check.run(formatter, probes)
    for line in check.told:
        log.warning("%s", line)
    return apart


class _ForwardError(StageError):
    """The model's own forward doesn't take a sample of its own processor."""


@dataclass
class _Check:
    """One check of an engine. `exact`: of a small model in float32. `told`: what a person should know of it."""

    engine: TorchEngine
    exact: bool

    def __post_init__(self) -> None:
        self.told: list[str] = []

    def run(self, formatter: Formatter, probes: Sequence[Probe]) -> float:
        """See `check_numbers`; what is to be told is left in `told`."""
        pairs = probe_prompts(formatter, probes)
        pairs += [(_other_answer(prompt), _other_answer(as_given)) for prompt, as_given in pairs]
        clean = [pair for pair in pairs if not pair[0].hide_images]
        plain = [self._plainly(as_given) for _, as_given in clean]
        self._causal(clean[0][1], plain[0])
        apart = 0.0
        for which in ("by parts", "whole"):
            chosen = [place for place, (prompt, _) in enumerate(clean) if kind(prompt) == which]
            apart = max(apart, self._settle([clean[place][0] for place in chosen], [plain[place] for place in chosen]))
        apart = max(apart, self._without_images([prompt for prompt, _ in clean if prompt.whole and prompt.images]))
        hidden = [pair for pair in pairs if pair[0].hide_images]
        try:
            plain = [self._plainly(as_given) for _, as_given in hidden]
        except (PromptError, StageError) as error:
            self.engine.no_blind = PromptError("Blind", str(error.args[-1]))
            return apart
        return max(apart, self._settle([prompt for prompt, _ in hidden], plain))

    def _without_images(self, prompts: Sequence[Prompt]) -> float:
        """Samples of a processor that makes them as a whole, as the no-image reference leaves them: they are run as if
        they were made from parts. How far batches of them are off."""
        try:
            without = [no_image(prompt) for prompt in prompts]
            plain = [self._plainly(prompt) for prompt in without]
        except (PromptError, StageError):  # a forward that needs an image refuses each such row by itself
            return 0.0
        return self._settle(without, plain)

    def _plainly(self, prompt: Prompt) -> LogProbs:
        """Raises PromptError where images can't be hidden, StageError where the forward fails, EngineDiedError."""
        engine = self.engine
        try:
            logp_T = engine.run_plainly(prompt)
        except PromptError:
            raise
        except Exception as error:
            if "CUDA error" in str(error):
                raise EngineDiedError(f"the GPU failed: {one_line(error)[:300]}") from error
            which = f"a sample of {len(prompt.images)} images"
            raise _ForwardError(f"{engine.name}: its forward refuses {which}: {one_line(error)[:200]}") from error
        if not np.isfinite(logp_T).all():
            raise StageError(f"{engine.name}: its log-probs in {engine.dtype} are no numbers; take another --dtype")
        return logp_T

    def _causal(self, prompt: Prompt, logp_T: LogProbs) -> None:
        """Another last answer token must leave all before it as they are: else answers are seen before they are
        predicted. Raises StageError."""
        ids = prompt.token_ids.copy()
        ids[prompt.answer_positions[-1]] = ids[prompt.answer_positions[0]]
        changed_T = self._plainly(replace(prompt, token_ids=ids))
        apart = self._distance(changed_T[:-1], logp_T[:-1])
        if apart > self._rounding:
            raise StageError(
                f"{self.engine.name}: its attention looks ahead: another last token of an answer changes the log-probs "
                f"of those before it by {apart:.2g} nats, so they say nothing; it can't be scored"
            )

    def _settle(self, prompts: Sequence[Prompt], plain: Sequence[LogProbs]) -> float:
        """Whether such prompts are run in batches from now on, by their plain log-probs; how far the batches are off.

        Raises StageError where the prompts are wrong one by one, too.
        """
        if not prompts:
            return 0.0
        which = kind(prompts[0])
        if which == "hidden" and any(prompt.whole is not None for prompt in prompts):
            self.engine.plainly.add(which)  # what of a sample's arrays belongs to its images, only its model knows
            return 0.0
        if which in self.engine.plainly:
            return 0.0
        if which in self.engine.packed:
            apart, cause = self._as_trees(prompts, plain)
            if apart <= self._rounding:
                return apart
            self.engine.packed.discard(which)
            self.told.append(f"{self.engine.name}: prompts share no prefixes, since as a tree {cause}")
        apart, cause = self._in_batches(prompts, plain)
        if apart <= self._rounding:
            return apart
        alone = max(
            self._distance(self._plainly(prompt), logp_T) for prompt, logp_T in zip(prompts, plain, strict=True)
        )
        if alone > self._rounding:
            raise StageError(
                f"{self.engine.name}: prompts put together from parts give other log-probs than its processor's own, "
                f"by {alone:.2g} nats; it can't be scored"
            )
        self.engine.plainly.add(which)
        hidden = "with images hidden, " if which == "hidden" else ""
        self.told.append(f"{self.engine.name}: {hidden}samples are run one by one, since in batches {cause}")
        return alone

    def _as_trees(self, prompts: Sequence[Prompt], plain: Sequence[LogProbs]) -> tuple[float, str]:
        """How far the prompts are from these log-probs as a tree: in one row, in several, and with kept prefixes."""
        engine, apart = self.engine, 0.0
        most = engine.max_batch_tokens
        try:
            for tokens in (most, _SHORT_ROW, _SHORT_ROW):
                engine.max_batch_tokens = tokens
                for logp_T, plain_T in zip(engine.run_batch(prompts), plain, strict=True):
                    apart = max(apart, self._distance(logp_T, plain_T))
        except Exception as error:
            if out_of_memory(error):  # smaller rows will do, which are found when scoring
                return apart, ""
            return float("inf"), f"they fail: {one_line(error)[:200]}"
        finally:
            engine.max_batch_tokens = most
            engine.forget_images()
        return apart, f"they differ by {apart:.2g} nats"

    def _in_batches(self, prompts: Sequence[Prompt], plain: Sequence[LogProbs]) -> tuple[float, str]:
        """How far batches of the prompts are from these log-probs, infinitely where they fail, and that in words."""
        engine, apart = self.engine, 0.0
        lengths = [len(prompt.token_ids) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: (*together(prompts[index]), -lengths[index]))
        groups = [list(group) for _, group in groupby(order, key=lambda index: together(prompts[index]))]
        # Two in a batch at least: one alone would say nothing.
        budget = max(engine.max_batch_tokens, 2 * max(lengths))
        for batch in (batch for group in groups for batch in plan_batches(lengths, group, budget)):
            try:
                found = engine.run_batch([prompts[index] for index in batch])
                engine.forget_images()
            except Exception as error:
                engine.forget_images()
                if out_of_memory(error):  # smaller batches will do, which are found when scoring
                    continue
                return float("inf"), f"they fail: {one_line(error)[:200]}"
            for index, logp_T in zip(batch, found, strict=True):
                apart = max(apart, self._distance(logp_T, plain[index]))
        return apart, f"they differ by {apart:.2g} nats"

    @property
    def _rounding(self) -> float:
        return EXACT if self.exact else _ROUNDING.get(self.engine.dtype, _ROUNDING_OF_BFLOAT16)

    def _distance(self, ours_T: LogProbs, theirs_T: LogProbs) -> float:
        if self.exact:
            return largest_difference(ours_T, theirs_T)
        apart_T = np.abs(ours_T - theirs_T)
        if np.isnan(apart_T).any():
            return float("inf")
        return float(apart_T.max() if self.engine.dtype == torch.float32 else apart_T.mean())


def _other_answer(prompt: Prompt) -> Prompt:
    """The prompt with its answer tokens in another order: what comes before is shared, and nothing behind."""
    ids = prompt.token_ids.copy()
    ids[prompt.answer_positions] = np.roll(prompt.answer_ids, 1)
    return replace(prompt, token_ids=ids)
