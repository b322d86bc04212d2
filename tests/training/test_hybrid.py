"""Which samples are in image mode: arithmetic that no number of workers and no interruption changes."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vig_ray.training.hybrid import HybridSampler, JointSampler
from vig_ray.training.sampler import StepSampler

RATIOS = st.sampled_from([0.5, 0.8, 1.0, 2.0, 0.1])
Pairs = list[tuple[int, str]]


def pairs(sampler: StepSampler, step: int) -> Pairs:
    return list(zip(sampler.positions(step).tolist(), sampler.modes(step), strict=True))


@given(st.integers(1, 40), st.integers(1, 16), RATIOS, st.integers(0, 3), st.booleans())
def test_the_share_of_image_mode_is_kept_from_step_to_step(
    samples: int, batch: int, ratio: float, seed: int, doubled: bool
) -> None:
    sampler = HybridSampler(samples, batch, 2, seed, ratio=ratio, doubled=doubled)
    share = Fraction(str(ratio)) / (1 + Fraction(str(ratio)))
    so_far = images = 0
    for step in range(sampler.steps):
        modes = sampler.modes(step)
        assert len(modes) == len(sampler.positions(step))
        so_far, images = so_far + len(modes), images + modes.count("image")
        assert images == math.floor(so_far * share)
    assert sampler.used.tolist() == sorted({at for step in range(sampler.steps) for at, _ in pairs(sampler, step)})


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 3), st.integers(1, 3))
def test_doubled_data_has_each_sample_once_in_each_mode(samples: int, batch: int, seed: int, epochs: int) -> None:
    sampler = HybridSampler(samples, batch, epochs, seed, ratio=1.0, doubled=True)
    assert sampler.steps == math.ceil(2 * samples * epochs / batch)
    every = [pair for step in range(sampler.steps) for pair in pairs(sampler, step)]
    for mode in ("text", "image"):
        of_mode = [position for position, its in every if its == mode]
        for epoch in range(epochs):
            assert sorted(of_mode[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
        assert len(of_mode) == samples * epochs
    # Text mode goes by the usual order.
    plain = StepSampler(samples, batch, epochs, seed)
    usual = [position for step in range(plain.steps) for position in plain.positions(step).tolist()]
    assert [position for position, its in every if its == "text"] == usual


@given(st.integers(2, 40), RATIOS)
def test_other_ratios_of_doubled_data_add_as_many_samples_in_image_mode(samples: int, ratio: float) -> None:
    sampler = HybridSampler(samples, 7, 1, 0, ratio=ratio, doubled=True)
    modes = [mode for step in range(sampler.steps) for mode in sampler.modes(step)]
    assert modes.count("text") == samples
    assert modes.count("image") == math.floor(samples * Fraction(str(ratio)))


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 9), st.integers(0, 7), st.booleans())
def test_modes_are_the_same_for_any_number_of_workers(
    samples: int, batch: int, workers: int, step: int, doubled: bool
) -> None:
    sampler = HybridSampler(samples, batch, 1, 0, 8, doubled=doubled)
    shared: Pairs = []
    for rank in range(workers):
        positions = sampler.rank_positions(step, rank, workers).tolist()
        shared += zip(positions, sampler.rank_modes(step, rank, workers), strict=True)
    assert sorted(shared) == sorted(pairs(sampler, step))


def test_modes_are_the_same_wherever_one_begins() -> None:
    for doubled in (False, True):
        one, other = (HybridSampler(23, 6, 4, 9, doubled=doubled) for _ in range(2))
        forwards = [pairs(one, step) for step in range(one.steps)]
        backwards = [pairs(other, step) for step in reversed(range(other.steps))]
        assert forwards == backwards[::-1]
        another = HybridSampler(23, 6, 4, 8, doubled=doubled)
        assert forwards != [pairs(another, step) for step in range(another.steps)]


def test_plain_data_are_in_the_usual_order_and_modes_are_drawn_anew() -> None:
    plain, hybrid = StepSampler(20, 8, 3, 1), HybridSampler(20, 8, 3, 1)
    assert hybrid.steps == plain.steps
    modes = [hybrid.modes(step) for step in range(hybrid.steps)]
    assert all(hybrid.positions(step).tolist() == plain.positions(step).tolist() for step in range(plain.steps))
    assert all(of_step.count("image") == 4 for of_step in modes[:7])
    assert any(one != other for one, other in pairwise(modes[:7]))


def test_joint_and_plain_have_one_mode() -> None:
    assert JointSampler(5, 4, 1, 0).modes(1) == ["joint"]
    assert StepSampler(5, 4, 1, 0).modes(0) == ["text"] * 4
