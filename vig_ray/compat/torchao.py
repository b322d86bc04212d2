"""torchao's AdamW with moments in 8 bits, made the same on any number of workers, so that its state can be cut anew for
another number. tests/compat/test_torchao.py fails where a release changes any of it. Checked against torchao 0.18.0."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torchao.optim
from torch.distributed.tensor import DTensor
from torchao.optim.subclass_8bit import OptimState8bit

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW8bit(torchao.optim.AdamW8bit):  # type: ignore[misc]
    """AdamW whose moments are kept in 8 bits, each block of a row with a scale of its own (Dettmers et al., "8-bit
    Optimizers via Block-wise Quantization").

    `block_of`: elements a block of a parameter of a shape, a divisor of its rows' length; None: it stays in float32.
    So no block reaches from one row into the next, and workers, who share a matrix by rows, have the blocks that one
    worker would have. torchao itself cuts each worker's share into blocks of 256, or keeps it in float32 where that
    doesn't come out even.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], block_of: Callable[[torch.Size], int | None], **options: Any
    ) -> None:
        self._block_of = block_of
        super().__init__(groups, **options)

    def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
        local, block = _local(p), self._block_of(p.shape)
        if block is None or not local.numel():
            return torch.zeros_like(p)
        zeros = OptimState8bit.zeros(local.shape, signed, block, local.device, dtype=local.dtype)
        return _sharded_as(p, zeros, p.shape)

    def step(self, closure: Any = None) -> Any:
        """One update. On a GPU torch compiles it, so that no float32 copy of a moment ever exists; on a CPU it doesn't,
        for which it would need a C++ compiler."""
        if self.param_groups[0]["params"][0].device.type != "cpu":
            return super().step(closure)
        with torch.compiler.set_stance("force_eager"):
            return super().step(closure)

    def in_parts(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state, as `torch.distributed.checkpoint.state_dict` gives it, with two tensors in the place of each moment
        in 8 bits: `codes`, uint8, of the parameter's shape, and `scales`, float32 [rows, blocks a row].

        They share the moment's memory and are sharded by rows as the parameter is, so that any number of workers can
        load what any other saved.
        """
        with torch.no_grad():
            of_parameter = {
                name: {key: self._in_parts(value) if key in _MOMENTS else value for key, value in moments.items()}
                for name, moments in state["state"].items()
            }
        return {**state, "state": of_parameter}

    def _in_parts(self, moment: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        block = self._block_of(moment.shape)
        if block is None:
            return moment
        local, blocks = _local(moment), moment.shape[1:].numel() // block
        if isinstance(local, OptimState8bit):
            codes, scales = local.codes, local.scale.view(-1, blocks)
        else:  # a worker that has none of the rows
            codes, scales = local.to(torch.uint8), local.new_zeros((0, blocks))
        return {
            "codes": _sharded_as(moment, codes, moment.shape),
            "scales": _sharded_as(moment, scales, torch.Size([moment.shape[0], blocks])),
        }


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_as(parameter: torch.Tensor, local: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A worker's part of a tensor of `shape` as such a part; itself where `parameter` isn't shared among workers."""
    if not isinstance(parameter, DTensor):
        return local
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
