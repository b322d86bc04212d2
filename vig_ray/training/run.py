"""A run of training: what it is set up with, how far a worker has got, and what is told of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.errors import StageError
from vig_ray.model.load import Prompts
from vig_ray.model.prompt import Prompt
from vig_ray.training.batch import Batcher
from vig_ray.training.carry import Aligner
from vig_ray.training.check import Checked
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.documents import Recipe
from vig_ray.training.index import Index
from vig_ray.training.loader import SampleSource
from vig_ray.training.options import TrainingOptions
from vig_ray.training.sampler import Positions, StepSampler
from vig_ray.training.training_model import TrainingModel
from vig_ray.training.vdep_options import sampler_of


@dataclass(frozen=True, eq=False)
class Setup:
    """What a worker needs to know, decided once by the job. `dtype`: of the forward; `index`: all positions. `then`:
    what the selection's prompts were made with, where its weights are carried over."""

    config: TrainingOptions
    prompts: Recipe
    index: Index
    samples: str
    selection: str | None
    dtype: str
    loaders: int
    batch_tokens: int
    checkpoint_activations: bool
    then: Prompts | None = None

    @property
    def sampler(self) -> StepSampler:
        """Which positions each step trains on; the held-out ones come after all others."""
        return sampler_of(self.config, len(self.index) - self.config.held_out)

    @property
    def held_out(self) -> Positions:
        """The positions that are measured and not trained on."""
        return np.arange(self.sampler.samples, len(self.index))

    def source(self, *, images: bool = True) -> SampleSource:
        """The samples by their positions."""
        aligner = None if self.then is None else Aligner(self.then)
        return SampleSource(self.index, self.samples, self.selection, self.prompts, images=images, aligner=aligner)


class BadBatchError(StageError):
    """A step whose loss or gradient isn't a number; `keys`: the samples it was made of."""

    def __init__(self, step: int, what: str, keys: list[str]) -> None:
        super().__init__(f"step {step}: the {what}; lower --lr, or look at the samples of this step.")
        self.step, self.keys = step, keys


class Step(NamedTuple):
    """One line of the log: a step of the samples at places [`first`, `end`) of the order.

    `samples` of them were trained on, and `unusable` says of the others, by key, why not. Losses are in nats, `seconds`
    include the wait for the samples, and `tokens` are those that were computed, without padding. `vdep`: what is told
    with that objective (`vdep_log.loss_parts`).
    """

    step: int
    first: int
    end: int
    loss: float
    lr: float
    grad_norm: float
    samples: int
    active_tokens: int
    answer_tokens: int
    tokens: int
    seconds: float
    workers: int
    unusable: dict[str, str]
    held_out_active_loss: float | None = None
    held_out_answer_loss: float | None = None
    held_out_samples: int | None = None
    held_out_unusable: dict[str, str] | None = None
    vdep: dict[str, float | None] | None = None


class HeldOut(NamedTuple):
    """The held-out loss: means in nats over active tokens and over all answer tokens, None where there is none.

    `samples` of them were measured, and `unusable` says of the others, by key, why not.
    """

    active_loss: float | None
    answer_loss: float | None
    samples: int
    unusable: dict[str, str]


@dataclass(eq=False)
class Run:
    """A worker in the middle of a run. `whole_gradients`: see `memory.whole_gradients`; `checked`: before the first
    step; `mark`: what shows a prompt to be in image mode."""

    setup: Setup
    distributed: DistributedContext
    training_model: TrainingModel
    optimizer: torch.optim.Optimizer
    batcher: Batcher
    packed: bool
    sharded: bool
    whole_gradients: int = 0
    checked: Checked = field(default_factory=Checked)
    log: list[dict[str, Any]] = field(default_factory=list)
    step_began: float = 0.0
    looked: float = 0.0
    look: bool = False
    mark: Callable[[Prompt], Prompt] | None = None

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.log)
