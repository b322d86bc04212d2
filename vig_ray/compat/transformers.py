"""The inside of transformers. tests/compat/test_transformers.py fails where a release changes any of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def image_options(processor: Any) -> dict[str, Any]:
    """What a processor gives its image processor when nobody says otherwise: SmolVLM's asks for rows and columns, say.

    The whole processor merges them from several places at each call; we take single images through it. Checked against
    transformers 5.19.0.
    """
    kinds = getattr(processor, "valid_processor_kwargs", None)
    if kinds is None or not hasattr(processor, "_merge_kwargs"):
        return {"return_tensors": "pt"}
    given = {"tokenizer_init_kwargs": processor.tokenizer.init_kwargs, "return_tensors": "pt"}
    return dict(processor._merge_kwargs(kinds, **given)["images_kwargs"])


def process_image(processor: Any, picture: Any, options: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """One PIL image through the image half of a processor's call: its tensors, and the text that stands for it, None
    where the processor has no such text.

    Some processors change the options there (Pixtral's takes patches of merged size). Checked against transformers
    5.19.0.
    """
    tensors, replacements = processor._process_images([picture], **options)
    return dict(tensors), str(replacements[0]) if replacements else None


def unfilled(make: Callable[[], Any]) -> Any:
    """The model that `make` makes, its parameters whatever the memory held. Checked against transformers 5.19.0."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = make()
    model.tie_weights()
    return model


_SPARED = "_vig_ray_spares_its_mlp"


def spare_last_mlp(layer: torch.nn.Module) -> bool:
    """Let the last decoder layer run its MLP for the K tokens only whose states are asked for.

    `unique_state_index_K`, int64, is an argument of the model's forward: each token's place in [B * L] once. Others'
    last states are then wrong.

    Exact, since an MLP works token by token. Returns False where this layer's is of another kind and stays as it is.

    It leans on how transformers writes decoders: the forward hands arguments that it doesn't know down to its layers,
    which call their `mlp` once, with the hidden states [B, L, D] alone. Checked against transformers 5.19.0.
    """
    mlp = getattr(layer, "mlp", None)
    if mlp is None or not all(
        isinstance(part, torch.nn.Linear) for part in mlp.modules() if list(part.parameters(recurse=False))
    ):
        return False
    if getattr(layer, _SPARED, False):  # by another engine over the same model
        return True
    setattr(layer, _SPARED, True)
    needed: list[torch.Tensor | None] = [None]
    shape = [torch.Size()]

    # By the layer's own call, which is repeated where activations are computed again.
    def entered(_: Any, __: Any, options: dict[str, Any]) -> None:
        needed[0] = options.get("unique_state_index_K")

    def left(*_: Any) -> None:
        needed[0] = None

    def pick(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        index_K = needed[0]
        if index_K is None:
            return None
        (hidden_BLD,) = arguments
        shape[0] = hidden_BLD.shape
        return (hidden_BLD.flatten(0, 1)[index_K],)

    def put_back(_: Any, __: Any, out_KD: torch.Tensor) -> torch.Tensor | None:
        index_K = needed[0]
        if index_K is None:
            return None
        batch, length, width = shape[0]
        return out_KD.new_zeros(batch * length, width).index_copy(0, index_K, out_KD).view(batch, length, width)

    layer.register_forward_pre_hook(entered, with_kwargs=True)
    layer.register_forward_hook(left, always_call=True)
    mlp.register_forward_pre_hook(pick)
    mlp.register_forward_hook(put_back)
    return True
