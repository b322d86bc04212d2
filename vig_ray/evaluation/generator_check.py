"""Before any question: what the torch generator's batches write, against one prompt alone, as its family's own
processor and `generate` have it.

Compared are the log-probs of the likeliest tokens at each step, along the tokens that the prompt alone writes. What a
family's code does is found on a small copy of the model, in float32, once for a config; what the model itself does in
its own precision, at every start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.evaluation.rows import Line, aligned, line_of
from vig_ray.evaluation.torch_generator import TorchGenerator, Way
from vig_ray.model.chat import ChatFormatter
from vig_ray.model.probe import PROBES, Probe, pictures
from vig_ray.model.prompt import Formatter, Pixels, Prompt, PromptError, PromptImage
from vig_ray.model.remember import Found, remembered
from vig_ray.model.small_copy import largest_difference, small_copy
from vig_ray.scoring.engines import EngineDiedError
from vig_ray.scoring.engines.forwards import Kind, kind, together
from vig_ray.scoring.engines.tree import out_of_memory
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

# Nats that the order of sums explains in a small model; less than the margin of any two tokens that matters.
_EXACT = 1e-4
_STEPS = 5
_LIKELIEST = 4
_ON_THE_MODEL = ("one image", "a question of several turns", "no image")
_SMALL = 1 << 18  # pixels of a probe's image
# As the scoring engine's check has them: any token in float32, the mean in half precision.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.03}
_ROUNDING_OF_BFLOAT16 = 0.1


def make_sure(generator: TorchGenerator, model: str, formatter: Formatter) -> None:
    """Check checkpoint `model`, and let `generator`, which holds it, run its prompts as they come out right.

    Raises StageError where they do in no way, or not with its decoding method, and EngineDiedError where the device
    fails.
    """
    check_ids(formatter)
    found = remembered("answers", model, formatter, lambda: settled(model, formatter))
    if found is None:
        apart = check_answers(generator, formatter)
        generator.description += f"; checked on a few questions, to {apart:.0e} nats"
    else:
        generator.shares = generator.shares and found["shares"]
        generator.padded.intersection_update(found["padded"])
        generator.rows.can_hide = generator.rows.can_hide and found["hides"]
        for line in found["told"]:
            log.warning("%s", line)
        generator.description += f"; checked on a small copy, to {found['apart']:.0e} nats"
        check_answers(generator, formatter, [probe for probe in PROBES if probe.name in _ON_THE_MODEL])
    _check_method(generator, formatter)


def _check_method(generator: TorchGenerator, formatter: Formatter) -> None:
    """Raise StageError where prompts with images can't be run by the generator's decoding method."""
    method, by_parts = generator.decoding, getattr(formatter, "by_parts", True)
    if method.acts and not (generator.shares and by_parts):
        why = "its images are computed with each question" if by_parts else "its processor makes each sample as a whole"
        raise StageError(f"--decoding {method.name}: not for {generator.name}: {why}; --decoding vcd may do")
    if method.lines > 1 and not (generator.shares or ("by parts" if by_parts else "whole") in generator.padded):
        raise StageError(f"--decoding {method.name}: not for {generator.name}, which is asked one prompt at a time")


def check_ids(formatter: Formatter) -> None:
    """Raise StageError where a question's token ids aren't those that the family's own processor gives."""
    if not isinstance(formatter, ChatFormatter):
        return
    for prompt, conversation in _questions(formatter, PROBES):
        if not np.array_equal(prompt.token_ids, formatter.given_ids(conversation, prompt.images)):
            raise StageError(
                f"the processor gives other token ids for {conversation[-1].text!r} with its generation prompt than "
                "the parts do; it can't be asked"
            )


def settled(model: str, formatter: Formatter) -> Found:
    """How prompts of checkpoint `model` must be run, found on a small copy of it; None where there can be none.

    Raises StageError where they come out right in no way.
    """
    made = small_copy(model)
    if made is None:
        return None
    generator = TorchGenerator(made, formatter)
    check = _Check(generator, exact=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(threads, (os.cpu_count() or 1) // 2))  # Ray gives an actor with a GPU one
    try:
        apart = check.run(formatter, PROBES)
    except _ForwardError as error:
        log.info("%s: no small copy of it can write: %s", model, error)
        return None
    finally:
        torch.set_num_threads(threads)
    ways = {"shares": generator.shares, "padded": sorted(generator.padded), "hides": generator.rows.can_hide}
    return {**ways, "apart": apart, "told": check.told}


def check_answers(generator: TorchGenerator, formatter: Formatter, probes: Sequence[Probe] = PROBES) -> float:
    """Hold the generator's ways against one prompt alone; those that differ by more than rounding it takes no more,
    which is said. Returns the largest difference of a log-prob, nats (in half precision, of a mean).

    Raises StageError where the model's own `generate` refuses a question or gives no numbers, and EngineDiedError.
    """
    check = _Check(generator, exact=False)
    apart = check.run(formatter, probes)
    for line in check.told:
        log.warning("%s", line)
    return apart


class _ForwardError(StageError):
    """The model's own `generate` doesn't take a prompt of its own processor."""


@dataclass
class _Steps:
    """What a prompt alone writes: its tokens, its likeliest ones a step and their log-probs [steps, likeliest]."""

    tokens: list[int] = field(default_factory=list)
    likeliest: list[torch.Tensor] = field(default_factory=list)
    logp: list[npt.NDArray[np.float32]] = field(default_factory=list)


@dataclass
class _Check:
    """One check of a generator. `exact`: of a small model in float32. `told`: what a person should know of it."""

    generator: TorchGenerator
    exact: bool

    def __post_init__(self) -> None:
        self.told: list[str] = []

    def run(self, formatter: Formatter, probes: Sequence[Probe]) -> float:
        """See `check_answers`; what is to be told is left in `told`."""
        asked = list(_questions(formatter, probes))
        as_given = [_as_given(formatter, prompt, conversation) for prompt, conversation in asked]
        plain = [self._alone(prompt) for prompt in as_given]
        apart = 0.0
        kinds: tuple[Kind, ...] = ("by parts", "whole")
        for which in kinds:
            places = [place for place, (prompt, _) in enumerate(asked) if kind(prompt) == which]
            apart = max(apart, self._settle(which, [asked[p][0] for p in places], [plain[p] for p in places]))
        with_images = [place for place, (prompt, _) in enumerate(asked) if prompt.images and prompt.whole is None]
        if not self.generator.rows.can_hide or not with_images:
            return apart
        try:
            plain = [self._alone(_hidden(as_given[place])) for place in with_images]
        except StageError:
            self.generator.rows.can_hide = False
            return apart
        return max(apart, self._settle("hidden", [_hidden(asked[place][0]) for place in with_images], plain))

    def _settle(self, which: Kind, prompts: Sequence[Prompt], plain: Sequence[_Steps]) -> float:
        """Let the generator run such prompts in a way that is right; how far it is off."""
        generator = self.generator
        if not prompts:
            return 0.0
        apart = 0.0
        lines = [line_of(prompt) for prompt in prompts]
        begun = [place for place, line in enumerate(lines) if line.prefix]
        if which == "by parts" and generator.shares and begun:
            groups = [begun, begun[:1] * 2]  # with one prefix, and with several
            apart, cause = self._in_groups(lines, plain, groups, "behind prefixes")
            if apart > self._rounding:
                generator.shares, apart = False, 0.0
                self.told.append(f"{generator.name}: images are computed again for each question, since {cause}")
        order = sorted(range(len(prompts)), key=lambda place: _company(prompts[place]))
        groups = [list(group) for _, group in groupby(order, key=lambda place: _company(prompts[place]))]
        groups += [group * 2 for group in groups if len(group) == 1]  # one alone would say nothing
        padded, cause = self._in_groups([Line(prompt) for prompt in prompts], plain, groups, "padded")
        if padded <= self._rounding:
            return max(apart, padded)
        if which == "hidden":
            generator.rows.can_hide = False
            return apart
        generator.padded.discard(which)
        self.told.append(f"{generator.name}: questions are answered one by one, since in batches {cause}")
        alone = max(
            self._apart([self._forced([Line(prompt)], [steps], "alone")[0]], [steps])
            for prompt, steps in zip(prompts, plain, strict=True)
        )
        if alone > self._rounding:
            raise StageError(
                f"{generator.name}: prompts put together from parts are answered otherwise than its processor's own, "
                f"by {alone:.2g} nats; it can't be asked"
            )
        return max(apart, alone)

    def _in_groups(
        self, lines: Sequence[Line], plain: Sequence[_Steps], groups: Sequence[Sequence[int]], way: Way
    ) -> tuple[float, str]:
        """How far lines in these groups are from what they give alone, infinitely where they fail, and in words."""
        apart = 0.0
        for group in groups:
            steps = [plain[place] for place in group]
            try:
                found = self._forced([lines[place] for place in group], steps, way)
            except Exception as error:
                if out_of_memory(error):  # smaller batches will do, which are found when asking
                    continue
                return float("inf"), f"they fail: {one_line(error)[:200]}"
            finally:
                self.generator.rows.features.forget()
            apart = max(apart, self._apart(found, steps))
        return apart, f"they differ by {apart:.2g} nats"

    def _alone(self, prompt: Prompt) -> _Steps:
        """What a prompt writes by itself. Raises StageError where it can't."""
        steps = _Steps()

        def choose(logits_1V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            logp_V = logits_1V[0].log_softmax(-1)
            steps.likeliest.append(logp_V.topk(_LIKELIEST).indices)
            steps.logp.append(np.asarray(logp_V[steps.likeliest[-1]].cpu()))
            steps.tokens.append(int(steps.likeliest[-1][0]))
            ended = len(steps.tokens) == _STEPS
            return steps.likeliest[-1][:1], torch.arange(0, device=logits_1V.device) if ended else None

        try:
            self.generator.write([Line(prompt)], "alone", choose, most=_STEPS)
        except Exception as error:
            if "CUDA error" in str(error):
                raise EngineDiedError(f"the GPU failed: {one_line(error)[:300]}") from error
            raise _ForwardError(
                f"{self.generator.name}: its own generate fails on a question of its own processor: "
                f"{type(error).__name__}: {one_line(error)[:300]}"
            ) from error
        if not all(np.isfinite(logp).all() for logp in steps.logp):
            raise StageError(f"{self.generator.name} gives no numbers in {self.generator.dtype}; try another --dtype")
        return steps

    def _forced(self, lines: Sequence[Line], plain: Sequence[_Steps], way: Way) -> list[list[npt.NDArray[np.float32]]]:
        """The log-probs of the likeliest tokens, a step each, of lines that write together what each writes alone.

        Every second one ends early, so that rows are left out on the way.
        """
        found: list[list[npt.NDArray[np.float32]]] = [[] for _ in lines]
        rows = list(range(len(lines)))
        ends = [_STEPS - 2 * (place % 2) for place in range(len(lines))]

        def choose(logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            logp_RV = logits_RV.log_softmax(-1)
            step = max(len(found[who]) for who in rows)
            for row, who in enumerate(rows):
                found[who].append(np.asarray(logp_RV[row, plain[who].likeliest[step]].cpu()))
            tokens = torch.tensor([plain[who].tokens[step] for who in rows], device=logits_RV.device)
            kept = [row for row, who in enumerate(rows) if ends[who] > step + 1]
            if len(kept) == len(rows):
                return tokens, None
            rows[:] = [rows[row] for row in kept]
            return tokens, torch.tensor(kept, dtype=torch.int64, device=logits_RV.device)

        self.generator.write(lines, way, choose, most=_STEPS)
        return found

    def _apart(self, found: Sequence[Sequence[npt.NDArray[np.float32]]], plain: Sequence[_Steps]) -> float:
        """How far log-probs are from those that each prompt gives alone; in half precision, a prompt's mean."""
        apart = 0.0
        for ours, steps in zip(found, plain, strict=True):
            pairs = list(zip(ours, steps.logp, strict=False))  # those that end early have fewer
            if self.exact:
                apart = max(apart, *(largest_difference(*pair) for pair in pairs))
                continue
            away = np.abs(np.stack([mine - theirs for mine, theirs in pairs]))
            if np.isnan(away).any():
                return float("inf")
            # In half precision, of the token that is written: others of low probability scatter.
            apart = max(apart, float(away.max() if self.generator.dtype == torch.float32 else away[:, 0].mean()))
        return apart

    @property
    def _rounding(self) -> float:
        return _EXACT if self.exact else _ROUNDING.get(self.generator.dtype, _ROUNDING_OF_BFLOAT16)


def _company(prompt: Prompt) -> tuple[Any, ...]:
    """What prompts of one padded batch have in common."""
    return (*together(prompt), len(prompt.token_ids) if aligned(prompt) else 0)


def _hidden(prompt: Prompt) -> Prompt:
    return replace(prompt, hide_images=True)


def _questions(formatter: Formatter, probes: Sequence[Probe]) -> Iterator[tuple[Prompt, tuple[Turn, ...]]]:
    """The probes whose images are small, without their last answers, and each one's conversation."""

    def loaded(pixels: Pixels) -> Callable[[], Pixels]:
        return lambda: pixels

    for probe in probes:
        if any(height * width > _SMALL for height, width in probe.sizes):
            continue
        images = [
            PromptImage(f"{probe.name} {number}", loaded(pixels), formatter.preprocess)
            for number, pixels in enumerate(pictures(probe))
        ]
        try:
            yield formatter.question(probe.conversation[:-1], images), probe.conversation[:-1]
        except PromptError:  # a sample that its processor refuses is that row's error
            continue


def _as_given(formatter: Formatter, prompt: Prompt, conversation: Sequence[Turn]) -> Prompt:
    """The question as the model's own processor gives it, where there are two ways to it."""
    if isinstance(formatter, ChatFormatter):
        return formatter.question_as_a_whole(conversation, prompt.images)
    return prompt
