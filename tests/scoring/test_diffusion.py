"""VCD's noise against its equations, written out with torch in float64, and scipy's normal distribution."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.scoring.prompts import ask, picture
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references.diffusion import diffused, signal_and_noise


def by_the_book(step: int) -> tuple[float, float]:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e, beta from 1e-5 to 5e-3 along a sigmoid from -6 to 6."""
    kept = 1.0
    for i in range(step + 1):
        along = torch.sigmoid(torch.tensor(-6 + 12 * i / 999, dtype=torch.float64)).item()
        kept *= 1 - (along * (0.5e-2 - 1e-5) + 1e-5)
    return kept**0.5, (1 - kept) ** 0.5


@pytest.mark.parametrize("step", [0, 1, 500, 999])
def test_the_schedule(step: int) -> None:
    assert signal_and_noise(step) == pytest.approx(by_the_book(step), rel=1e-12)


def test_what_is_added_is_a_standard_normal_that_the_key_decides() -> None:
    x = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    signal, noise = by_the_book(500)
    e, other = ((diffused(x, key) - signal * x.astype(np.float64)) / noise for key in ("a", "b"))
    assert stats.kstest(e.ravel(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(e.ravel(), x.ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(e.ravel(), other.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(diffused(x, "a"), diffused(x, "a"))
    assert diffused(x, "a").dtype == np.float32


def test_what_was_filled_up_with_zeros_stays_so() -> None:
    x = np.ones((2, 5, 8), dtype=np.float32)
    x[1, 3:] = 0
    x[0, 0, 0] = 0
    made = diffused(x, "a")
    assert not made[1, 3:].any()
    assert made[0].all()
    assert made[1, :3].all()


def test_llavas_pixels_are_diffused_after_normalising(demo_formatter: Any) -> None:
    """And reach the model as they are, beside clean ones in one batch, from another process as well."""
    prompt = ask(demo_formatter, "A red circle.", picture(3, demo_formatter))
    noisy = make_reference("vcd", formatter=demo_formatter).without_image(prompt)
    assert noisy.images[0].key == "picture-3#vcd"
    assert noisy.token_ids is prompt.token_ids
    clean = demo_formatter.collate([prompt.images[0].inputs], "cpu", torch.float32)["pixel_values"]
    signal, noise = by_the_book(500)
    both = demo_formatter.collate([prompt.images[0].inputs, noisy.images[0].inputs], "cpu", torch.float32)
    assert torch.equal(both["pixel_values"][:1], clean)
    e = (both["pixel_values"][1].double() - signal * clean[0].double()) / noise
    assert stats.kstest(e.numpy().ravel(), "norm").pvalue > 0.01
    sent = pickle.loads(pickle.dumps(noisy))
    alone = demo_formatter.collate([sent.images[0].inputs], "cpu", torch.float32)["pixel_values"]
    assert torch.equal(alone[0], both["pixel_values"][1])


def test_an_image_is_diffused_once_for_all_its_samples(demo_formatter: Any) -> None:
    shared = picture(3, demo_formatter)
    without = make_reference("vcd", formatter=demo_formatter).without_image
    one, other = (without(ask(demo_formatter, answer, shared)) for answer in ("A red circle.", "A cross."))
    assert one.images[0] is other.images[0]
    again = make_reference("vcd", formatter=demo_formatter).without_image(
        ask(demo_formatter, "A.", picture(3, demo_formatter))
    )
    for name, array in one.images[0].inputs.items():
        np.testing.assert_array_equal(array, again.images[0].inputs[name])
