"""bitsandbytes' linear layer in 4 bits, less what is in a trainer's way. tests/compat/test_bitsandbytes.py fails where
a release changes any of it. Checked against bitsandbytes 0.50.2."""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch


class Nf4Linear(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """A linear layer whose weight, frozen, is kept in nf4 with double quantisation (QLoRA, section 3), on the device
    where it is. Products are computed in `dtype`, with a copy of the weight that exists for one product.

    64 weights share a scale of 8 bits, 256 scales one of float32.
    """

    def __init__(self, linear: torch.nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        weight = bitsandbytes.nn.Params4bit(
            linear.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=self
        )
        self.weight = weight.to(linear.weight.device)
        self.bias = linear.bias
        # Else some CPUs lay the weights out anew in evaluation mode, as only evaluation can read them.
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As of any linear layer: a checkpoint has no frozen weight, and so no use for its scales."""
        torch.nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)
