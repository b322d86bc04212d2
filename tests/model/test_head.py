"""Whether logits are capped, and what a forward takes: asked of models for which the truth is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from vig_ray.errors import StageError
from vig_ray.model.attention import can_pack
from vig_ray.model.head import Divisor, applied_softcap, capped, forward_arguments
from vig_ray.scoring.engines.torch import TorchEngine


class CappedGemma3(Gemma3ForConditionalGeneration):
    """Applies the cap that its config names; transformers' own doesn't."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        cap = self.config.get_text_config().final_logit_softcapping
        output.logits = torch.tanh(output.logits / cap) * cap
        return output


class ScaledGemma3(Gemma3ForConditionalGeneration):
    """Changes its logits in a way of its own."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits / 8
        return output


def load(kind: type[Any], checkpoint: str, dtype: torch.dtype, *, cap: float | None, weight: float = 1.0) -> Any:
    """`weight`: the output layer is multiplied by it; 0.02 makes logits so small that a cap of 30 hardly shows."""
    model = kind.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa").eval()
    model.config.get_text_config().final_logit_softcapping = cap
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(weight)
    return model


@pytest.mark.parametrize("weight", [0.02, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cap_is_known_by_what_the_model_does(gemma_checkpoint: str, dtype: torch.dtype, weight: float) -> None:
    for cap in (5.0, 30.0):
        named_only = load(Gemma3ForConditionalGeneration, gemma_checkpoint, dtype, cap=cap, weight=weight)
        applied = load(CappedGemma3, gemma_checkpoint, dtype, cap=cap, weight=weight)
        assert (applied_softcap(named_only), applied_softcap(applied)) == (None, cap)
        # The engine has its own product with the output layer, in float32.
        assert [TorchEngine(model, lambda *_: {}).head_logprobs.softcap for model in (named_only, applied)] == [
            None,
            cap,
        ]
    assert applied_softcap(load(Gemma3ForConditionalGeneration, gemma_checkpoint, dtype, cap=None)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_logits_changed_in_another_way_are_refused(
    gemma_checkpoint: str, dtype: torch.dtype, cap: float | None
) -> None:
    with pytest.raises(StageError, match="ScaledGemma3 changes its logits"):
        applied_softcap(load(ScaledGemma3, gemma_checkpoint, dtype, cap=cap))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_divisor_is_known_where_the_config_names_it(gemma_checkpoint: str, dtype: torch.dtype) -> None:
    named_only, applied = (
        load(kind, gemma_checkpoint, dtype, cap=None) for kind in (Gemma3ForConditionalGeneration, ScaledGemma3)
    )
    for model in (named_only, applied):
        model.config.get_text_config().logits_scaling = 8.0
    assert applied_softcap(named_only) is None
    divisor = applied_softcap(applied)
    assert isinstance(divisor, Divisor)
    assert capped(torch.tensor([16.0]), divisor).tolist() == [2.0]


def test_arguments_are_seen_through_decorators(gemma_checkpoint: str, demo_model: Any) -> None:
    """Images of Gemma 3 see both ways in full attention, too: samples must not lie end to end."""
    model = load(Gemma3ForConditionalGeneration, gemma_checkpoint, torch.float32, cap=None)
    assert "token_type_ids" in forward_arguments(model)
    text = model.config.get_text_config()
    text.layer_types, text.sliding_window = ["full_attention"] * 2, None
    assert not can_pack(model)
    assert can_pack(demo_model)
