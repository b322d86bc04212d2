"""Which samples each optimizer step trains on: arithmetic on positions, the same on any number of workers.

Step s takes the indices [s B, (s + 1) B) of a sequence of epochs. The first epoch is `selection/`'s own order, its
`position` column; each later one is shuffled anew from the seed. Nothing else decides the order: neither the number
of workers nor how often a run was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vig_ray.training.objective import Mode

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepSampler:
    """The steps of a run over `samples` positions in global batches of `batch`; the last one takes what is left.

    `max_steps` ends the run earlier, or, where it asks for more than `epochs` has, goes on into further epochs.
    """

    samples: int
    batch: int
    epochs: int
    seed: int
    max_steps: int | None = None
    _shuffled: dict[int, Positions] = field(default_factory=dict, compare=False, repr=False)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.max_steps or -(-self.samples * self.epochs // self.batch)

    def positions(self, step: int) -> Positions:
        """The positions of one step, int64 [at most `batch`]."""
        end = (step + 1) * self.batch
        if self.max_steps is None:
            end = min(end, self.samples * self.epochs)
        return self._of_order(np.arange(step * self.batch, end))

    def modes(self, step: int) -> list[Mode]:
        """What each of a step's samples is trained on."""
        return ["text"] * len(self.positions(step))

    @property
    def used(self) -> Positions:
        """Every position that the run trains on, rising."""
        return np.arange(min(self.samples, self.steps * self.batch))

    def rank_positions(self, step: int, rank: int, workers: int) -> Positions:
        """The positions of one step that one of `workers` trains on; together they are all of them, each once."""
        return self.positions(step)[rank::workers]

    def rank_modes(self, step: int, rank: int, workers: int) -> list[Mode]:
        """The modes of `rank_positions`."""
        return self.modes(step)[rank::workers]

    def _of_order(self, indices: Positions) -> Positions:
        """The positions at these places of the sequence of epochs."""
        epochs = indices // self.samples
        positions = np.empty(len(indices), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            inside = epochs == epoch
            positions[inside] = self._epoch(epoch)[indices[inside] % self.samples] if epoch else indices[inside]
        return positions

    def _epoch(self, epoch: int) -> Positions:
        if epoch not in self._shuffled:
            self._shuffled.clear()
            self._shuffled[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        return self._shuffled[epoch]
