"""bitsandbytes is as vig_ray/compat/bitsandbytes.py takes it to be. What fails here names what a release changed."""

from __future__ import annotations

import bitsandbytes.functional as functional
import pytest
import torch

from vig_ray.compat.bitsandbytes import Nf4Linear

LEVELS = [  # of nf4: QLoRA, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_product_and_its_gradient_are_those_of_the_dequantised_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(192, 96, bias=False).to(dtype)
    packed, state = functional.quantize_4bit(linear.weight.detach(), compress_statistics=True, quant_type="nf4")
    weight = functional.dequantize_4bit(packed, state)
    layer = Nf4Linear(linear, dtype)
    ours = torch.randn(5, 192).to(dtype).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    found, expected = layer(ours), torch.nn.functional.linear(theirs, weight)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found, expected, atol=tolerance)
    found.float().square().sum().backward()
    expected.float().square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=10 * tolerance)
    assert not layer.weight.requires_grad


def test_the_weight_is_the_nearest_of_16_levels() -> None:
    """By the paper: each block of 64 divided by its largest, to the nearest level. The scale is quantised too."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 256, bias=False)
    layer = Nf4Linear(linear, torch.float32)
    found = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scale = linear.weight.detach().abs().amax(1, keepdim=True)
    levels = torch.tensor(LEVELS)
    nearest = ((linear.weight.detach() / scale)[..., None] - levels).abs().argmin(-1)
    assert torch.allclose(found, levels[nearest] * scale, atol=0.02 * float(scale.max()))


def test_it_stays_as_it_is_in_evaluation_and_is_no_more_than_a_weight_to_a_checkpoint() -> None:
    torch.manual_seed(0)
    layer = Nf4Linear(torch.nn.Linear(128, 64), torch.float32)
    before = layer.weight.data.clone()
    inputs = torch.randn(3, 128)
    with torch.no_grad():
        trained = layer(inputs)
        assert torch.equal(layer.eval()(inputs), trained)
    assert torch.equal(layer.weight.data, before)
    assert set(layer.state_dict()) == {"weight", "bias"}
