"""What a model does after its output layer, and what its forward takes: facts that no config states reliably."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from vig_ray.errors import StageError

_PROBE_TOKENS = 8
# How far apart two ways to the same logits may be, as a share of the largest one: what rounding explains.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}


def forward_arguments(model: Any) -> frozenset[str]:
    """The names of the arguments that the forward of `model` takes: without its head, where it can be had so.

    Read from the signature, which looks through decorators; a function's code object is the outermost decorator's.
    """
    return frozenset(inspect.signature(getattr(model, "model", model).forward).parameters)


def token_types_argument(model: Any) -> str | None:
    """The argument that says which tokens are an image's, None where the model takes none."""
    accepted = forward_arguments(model)
    return next((name for name in ("mm_token_type_ids", "token_type_ids") if name in accepted), None)


class Divisor(float):
    """In the place of a soft cap: logits are divided by it (Granite's `logits_scaling`)."""


@torch.no_grad()
def applied_softcap(model: Any, head: Callable[[torch.Tensor], torch.Tensor] | None = None) -> float | None:
    """The soft cap c of the logits, c tanh(logits / c), if the model's own forward applies one, a `Divisor` if it
    divides them by what its config names, else None.

    A config's `final_logit_softcapping` is no proof: Gemma 2 applies it, Gemma 3 with images names it and doesn't. So
    the model is asked once, in evaluation mode, on a few tokens, with its output layer's result enlarged to twice the
    named cap: there the two answers are far apart in any precision, while logits below the cap may differ by less than
    bfloat16 can tell. The nearest answer is taken. `head`: from hidden states [N, D] to uncapped logits [N, V], by
    default the model's output layer.

    Raises StageError where neither answer comes near: the model changes its logits in another way.
    """
    text = model.config.get_text_config()
    named = getattr(text, "final_logit_softcapping", None)
    output_layer = model.get_output_embeddings()
    image_token = getattr(model.config, "image_token_id", None)
    tokens = [token for token in range(min(97, text.vocab_size)) if token != image_token]
    ids = torch.tensor([tokens[:_PROBE_TOKENS]], device=next(model.parameters()).device)
    types = token_types_argument(model)
    inputs = {"input_ids": ids, "use_cache": False} | ({types: torch.zeros_like(ids)} if types else {})
    was_training = model.training
    model.eval()
    try:
        raw = (head or output_layer)(model.model(**inputs).last_hidden_state[0]).float()
        scale = 2.0 * named / float(raw.abs().max()) if named and raw.any() else 1.0
        hook = output_layer.register_forward_hook(lambda _, __, logits: logits * scale)
        try:
            model_logits = model(**inputs).logits[0].float()
        finally:
            hook.remove()
    finally:
        model.train(was_training)
    divisor = getattr(text, "logits_scaling", None)
    possible: list[float | None] = [named, None, Divisor(divisor) if divisor else None]
    distances = [float((capped(raw * scale, cap) - model_logits).abs().max()) for cap in possible]
    best = min(distances)
    nearest = possible[distances.index(best)]
    largest = max(1.0, float(model_logits.abs().max()))
    if best > _ROUNDING.get(model.dtype, 0.05) * largest:
        raise StageError(
            f"{type(model).__name__} changes its logits after the output layer in a way that vig-ray doesn't know "
            f"(they differ by {best:.3g}); it can't be trained, nor scored with --engine torch"
        )
    return nearest


def capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """c tanh(logits / c) in float32; as they are where c is None; logits / c for a `Divisor`."""
    if isinstance(softcap, Divisor):
        return logits.float() / softcap
    return logits if softcap is None else torch.tanh(logits.float() / softcap) * softcap
