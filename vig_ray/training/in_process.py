"""One worker in this very process, without a Ray: a run of minutes, of which a study has hundreds.

Starting Ray Train's workers takes longer than such a run. Order, checkpoints and what is written are the same: a run
that began here may go on by Ray, and the other way about.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from vig_ray.errors import StageError
from vig_ray.progress import RowProgress
from vig_ray.stage import Claim
from vig_ray.storage import join
from vig_ray.training.checkpoints import CheckpointManager
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.finish import export_due, finish, write_bad_batch
from vig_ray.training.metrics import JobMetricsLogger, line_of
from vig_ray.training.run import BadBatchError, Setup
from vig_ray.training.worker import train


class _ByBar:
    """See `metrics.Shown`; `workers`: what trains, in words."""

    def __init__(self, bar: RowProgress) -> None:
        self._bar, self.workers = bar, ""

    def started(self, done: int, _: int, workers: str) -> None:
        """See `metrics.Shown`."""
        self.workers = workers
        self._bar.say(f"{'going on' if done else 'training'} at step {done:,}: {workers}")
        self._bar.restart(done)

    def checked(self, done: int, total: int) -> None:
        """See `metrics.Shown`."""
        self._bar.update(0, f"comparing tokens: {done:,} of {total:,} samples")

    def step(self, done: int, figures: Mapping[str, float]) -> None:
        """See `metrics.Shown`."""
        self._bar.update(done, line_of(figures))


def train_here(setup: Setup, output: Claim, *, on_gpu: bool) -> str:
    """Train to the end; returns what trained, in words. Raises StageError where training can't go on."""
    config, directory = setup.config, output.directory
    alone = DistributedContext(0, 1, torch.device("cuda" if on_gpu else "cpu"))
    manager = CheckpointManager(join(directory, "checkpoints"), keep=config.keep, distributed=alone, run=output.run)
    with RowProgress("train", setup.sampler.steps, units="steps", brief=True) as bar:
        by_bar = _ByBar(bar)
        name = config.name or directory.split("/")[-2]
        metrics = JobMetricsLogger(by_bar, out=directory, name=name, identity=output.run)
        try:
            run = train(setup, alone, manager, metrics, after_step=partial(export_due, output=output))
            finish(run, output)
        except BadBatchError as error:
            raise StageError(write_bad_batch(error, output)) from error
    return by_bar.workers
