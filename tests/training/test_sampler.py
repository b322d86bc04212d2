"""The order of samples: arithmetic that no number of workers and no interruption changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vig_ray.training.sampler import StepSampler


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(0, 3))
def test_every_epoch_has_every_position_once(samples: int, batch: int, epochs: int, seed: int) -> None:
    sampler = StepSampler(samples, batch, epochs, seed)
    steps = [sampler.positions(step) for step in range(sampler.steps)]
    assert all(len(step) == batch for step in steps[:-1])
    places = np.concatenate(steps)
    assert len(places) == samples * epochs
    for epoch in range(epochs):
        assert sorted(places[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
    assert places[:samples].tolist() == list(range(samples))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 9), st.integers(0, 7))
def test_workers_share_a_step_between_them(samples: int, batch: int, workers: int, step: int) -> None:
    sampler = StepSampler(samples, batch, 3, 0, max_steps=8)
    parts = [sampler.rank_positions(step, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(parts).tolist()) == sorted(sampler.positions(step).tolist())
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_steps_are_the_same_wherever_one_begins() -> None:
    one, other = StepSampler(23, 5, 4, 9), StepSampler(23, 5, 4, 9)
    forwards = [one.positions(step).tolist() for step in range(one.steps)]
    backwards = [other.positions(step).tolist() for step in reversed(range(other.steps))]
    assert forwards == backwards[::-1]
    assert forwards != [StepSampler(23, 5, 4, 8).positions(step).tolist() for step in range(one.steps)]


def test_max_steps_ends_early_or_goes_on_into_further_epochs() -> None:
    assert StepSampler(100, 8, 1, 0, max_steps=3).steps == 3
    longer = StepSampler(10, 8, 1, 0, max_steps=5)
    assert [len(longer.positions(step)) for step in range(longer.steps)] == [8] * 5
    assert StepSampler(100, 8, 1, 0).steps == 13
    assert len(StepSampler(100, 8, 1, 0).positions(12)) == 4
