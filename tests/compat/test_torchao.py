"""torchao is as vig_ray/compat/torchao.py takes it to be. What fails here names what a release has changed."""

from __future__ import annotations

import copy

import pytest
import torch
import torchao.optim
from torchao.optim.subclass_8bit import OptimState8bit

from vig_ray.compat.torchao import AdamW8bit
from vig_ray.training.optimizer import block_of

OPTIONS = {"betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize(("shape", "block"), [((40, 512), 256), ((64, 384), 128), ((96, 64), 64), ((16, 2, 128), 256)])
def test_a_step_is_that_of_its_own_optimizer(shape: tuple[int, ...], block: int) -> None:
    """Where both have the same blocks: the same weights and the same codes, to the last bit."""
    generator = torch.Generator().manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape, generator=generator))
    theirs = copy.deepcopy(ours)
    group = {"lr": 1e-2, "weight_decay": 0.1}
    assert block_of(ours.shape) == block
    one = AdamW8bit([{"params": [ours], **group}], block_of, **OPTIONS)
    other = torchao.optim.AdamW8bit([{"params": [theirs], **group}], block_size=block, **OPTIONS)
    for _ in range(6):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        one.step()
        with torch.compiler.set_stance("force_eager"):
            other.step()
    assert torch.equal(ours, theirs)
    for moment in ("exp_avg", "exp_avg_sq"):
        mine, its = one.state[ours][moment], other.state[theirs][moment]
        assert isinstance(mine, OptimState8bit)
        assert torch.equal(mine.codes, its.codes)
        assert torch.equal(mine.scale, its.scale)


def test_the_parts_of_a_moment_are_the_moment_itself() -> None:
    """Filled from a checkpoint in place, they fill it."""
    parameter = torch.nn.Parameter(torch.zeros(32, 256))
    small = torch.nn.Parameter(torch.zeros(7))
    optimizer = AdamW8bit([{"params": [parameter, small]}], block_of, lr=1e-3)
    parameter.grad, small.grad = torch.ones(32, 256), torch.ones(7)
    optimizer.step()
    state = {"state": {"w": optimizer.state[parameter], "b": optimizer.state[small]}, "param_groups": []}
    parts = optimizer.in_parts(state)["state"]
    assert set(parts["w"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert [tuple(parts["w"]["exp_avg"][name].shape) for name in ("codes", "scales")] == [(32, 256), (32, 1)]
    assert parts["b"] == optimizer.state[small]
    parts["w"]["exp_avg"]["codes"].fill_(255)
    parts["w"]["exp_avg"]["scales"].fill_(3.0)
    assert torch.equal(optimizer.state[parameter]["exp_avg"].dequantize(), torch.full((32, 256), 3.0))


@pytest.mark.parametrize(
    ("shape", "block"), [((4096,), None), ((1, 4096), 256), ((1, 2048), None), ((1024, 3, 14, 14), None)]
)
def test_what_stays_in_float32(shape: tuple[int, ...], block: int | None) -> None:
    assert block_of(torch.Size(shape)) == block
