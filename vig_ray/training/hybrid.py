"""Which samples of a step VDEP trains in image mode and which in text mode (section 4.3 of its paper): arithmetic on
positions, like the order of samples itself, so that neither the number of workers nor a restart changes it.

Of every 1 + ratio samples, `ratio` are in image mode, step by step and to a sample over the whole run. Plain: a sample
is trained on once an epoch, and which of a step's samples are in image mode is drawn anew for each step. Doubled: an
epoch has each sample once in text mode, in the usual order, and in image mode `ratio` times as many, in an order of
their own; both are taken side by side, so that with ratio 1 each sample comes once in each mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from vig_ray.model.prompt import Prompt, PromptError, truncate
from vig_ray.training.batch import TrainingSample
from vig_ray.training.loader import Loaded, Unusable
from vig_ray.training.objective import Mode
from vig_ray.training.sampler import Positions, StepSampler

# Beside the sampler's own draws, from [seed, epoch].
_MODES, _IMAGE_ORDER = 1, 2


@dataclass(frozen=True)
class HybridSampler(StepSampler):
    """As `StepSampler`, with modes. `ratio`: samples in image mode for each in text mode."""

    ratio: float = 1.0
    doubled: bool = False
    _image_orders: dict[int, Positions] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or -(-self._samples_in_all // self.batch)

    @property
    def used(self) -> Positions:
        """Every position that the run trains on, rising."""
        if not self.doubled:
            return super().used
        _, end = self._places(self.steps - 1)
        images = min(self._images(end), self.samples)
        text = np.arange(min(end - self._images(end), self.samples))
        return np.union1d(text, self._image_order(0)[:images])

    def positions(self, step: int) -> Positions:
        """The positions of one step, int64 [at most `batch`]; of a doubled run, those in image mode last."""
        if not self.doubled:
            return super().positions(step)
        start, end = self._places(step)
        images = np.arange(self._images(start), self._images(end))
        text = np.arange(start - self._images(start), end - self._images(end))
        epochs = images // self.samples
        chosen = np.empty(len(images), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen[epochs == epoch] = self._image_order(epoch)[images[epochs == epoch] % self.samples]
        return np.concatenate([self._of_order(text), chosen])

    def modes(self, step: int) -> list[Mode]:
        """The mode of each of a step's positions, where the sample there has an image."""
        start, end = self._places(step)
        images = self._images(end) - self._images(start)
        count = end - start
        drawn = np.arange(count - images, count)
        if not self.doubled:
            drawn = np.random.default_rng([self.seed, step, _MODES]).permutation(count)[:images]
        modes: list[Mode] = ["text"] * count
        for place in drawn.tolist():
            modes[place] = "image"
        return modes

    @property
    def _samples_in_all(self) -> int:
        once = self.samples * self.epochs
        return int(once * (1 + self._exact_ratio)) if self.doubled else once

    @property
    def _exact_ratio(self) -> Fraction:
        return Fraction(str(self.ratio))  # as it is written: 0.8 is 4/5

    def _places(self, step: int) -> tuple[int, int]:
        """The first of a step's places in the run, and the one past its last."""
        end = (step + 1) * self.batch
        return step * self.batch, end if self.max_steps else min(end, self._samples_in_all)

    def _images(self, end: int) -> int:
        """How many of the run's first `end` samples are in image mode."""
        return int(end * self._exact_ratio / (1 + self._exact_ratio))

    def _image_order(self, epoch: int) -> Positions:
        if epoch not in self._image_orders:
            self._image_orders.clear()
            generator = np.random.default_rng([self.seed, epoch, _IMAGE_ORDER])
            self._image_orders[epoch] = generator.permutation(self.samples)
        return self._image_orders[epoch]


@dataclass(frozen=True)
class JointSampler(StepSampler):
    """As `StepSampler`; every sample is trained on its answers and on its images."""

    def modes(self, step: int) -> list[Mode]:
        """The mode of each of a step's positions, where the sample there has an image."""
        return ["joint"] * len(self.positions(step))


def in_modes(loaded: Sequence[Loaded], modes: Sequence[Mode], mark: Callable[[Prompt], Prompt] | None) -> list[Loaded]:
    """What was loaded, each sample in its mode (`in_mode`); one that `mark` makes too long can't be trained on."""
    found: list[Loaded] = []
    for each, mode in zip(loaded, modes, strict=True):
        try:
            found.append(in_mode(each, mode, mark) if isinstance(each, TrainingSample) else each)
        except PromptError as error:
            found.append(Unusable(each.key, f"{error}, beside the mode token"))
    return found


def in_mode(sample: TrainingSample, mode: Mode, mark: Callable[[Prompt], Prompt] | None) -> TrainingSample:
    """The sample as it is trained on in `mode`; a sample without an image is in text mode. `mark`: what shows a prompt
    to be in image mode, None for nothing.

    Raises PromptError where the mark makes it too long, and what is left within the limit has no answer token.
    """
    if not sample.prompt.image_mask.any():
        return sample
    if mark is None or mode != "image":
        return replace(sample, mode=mode)
    prompt = mark(sample.prompt)
    if not prompt.image_mask.any():  # its image ended at the limit
        return sample
    return replace(sample, prompt=prompt, weights_T=sample.weights_T[: len(prompt.answer_positions)], mode=mode)


def with_first_token(prompt: Prompt, token: int, bos: int | None, max_length: int) -> Prompt:
    """The prompt with one more token at its beginning, behind the BOS token where it begins with that.

    It is cut like any other where that makes it longer than `max_length`; raises PromptError where no answer is left.
    """
    prompt = truncate(prompt, max_length - 1)
    at = int(len(prompt.token_ids) > 0 and prompt.token_ids[0] == bos)
    return replace(
        prompt,
        token_ids=np.insert(prompt.token_ids, at, token),
        image_mask=np.insert(prompt.image_mask, at, False),
        answer_positions=prompt.answer_positions + (prompt.answer_positions >= at).astype(np.int32),
        image_spans=prompt.image_spans + (prompt.image_spans >= at).astype(np.int32),
    )
