"""The model in training: what is frozen, what LoRA adds, and the forward from a batch to its part of the loss."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

from vig_ray.compat.transformers import spare_last_mlp
from vig_ray.errors import StageError
from vig_ray.model.head import capped, forward_arguments
from vig_ray.training.attention import NAME
from vig_ray.training.batch import Batch
from vig_ray.training.objective import weighted_cross_entropy

# What has no part in reading images stays as it is, too: hearing, and the half of Janus that makes images.
_VISION = re.compile(
    r"(^|\.)(?:vision_tower|vision_model|visual|vision_encoder|high_res_vision_\w+|audio_tower|embed_audio|vqmodel"
    r"|generation_(?:embeddings|aligner|head))(?:\.|$)"
)
_PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|mm_projector|merger|deepstack_merger_list|connector|aligner|embed_vision"
    r"|image_newline|visual_embeddings_table)(?:\.|$)"
)


def is_projector(name: str) -> bool:
    """Whether a parameter leads from the vision tower to the language model."""
    return bool(_PROJECTOR.search(name))


def projector_module(name: str) -> str:
    """The projector's own name in that of one of its parameters."""
    match = _PROJECTOR.search(name)
    assert match is not None
    return match[2]


def is_tower(name: str) -> bool:
    """Whether a parameter is the vision tower's own."""
    return bool(_VISION.search(name)) and not is_projector(name)


def check_parts(model: Any) -> None:
    """Every parameter must be known as the vision tower's, the projector's or the language model's.

    Raises StageError naming the first that isn't: it would be trained, or not, by chance.
    """
    if not hasattr(model, "model"):  # Llama 4
        raise StageError(f"{type(model).__name__}: has no part that gives states without logits; it can't be trained")
    layers = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    language = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for name, parameter in model.named_parameters():
        known = id(parameter) in language
        if known == (is_tower(name) or is_projector(name)):
            what = "both the language model's and the vision tower's" if known else "no part that vig-ray knows"
            raise StageError(f"{type(model).__name__}: the parameter {name} is {what}; it can be scored, not trained")


def is_adapter(name: str) -> bool:
    """Whether a parameter is LoRA's."""
    return ".lora_" in name


def beside_adapters(name: str) -> bool:
    """Whether a parameter is trained with LoRA: adapters, and the projector but for a row's end, which is no module, so
    that PEFT can't keep it."""
    return is_adapter(name) or (is_projector(name) and not name.endswith("image_newline"))


class Lora(NamedTuple):
    """Adapters of rank `rank`, scaled by `alpha` / `rank`. Without dropout: a resumed run repeats exactly."""

    rank: int
    alpha: float


def _add_adapters(model: Any, lora: Lora) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    linear = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) in inside
    ]
    inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=linear), model)


def can_pack(model: Any) -> bool:
    """Whether samples can lie end to end in one row: causal attention over everything before, in every layer."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return (
        kinds == {"full_attention"}
        and not getattr(text, "sliding_window", None)
        and not getattr(text, "use_bidirectional_attention", None)
        and "token_type_ids" not in forward_arguments(model)  # image tokens that see each other
    )


class TrainingModel(torch.nn.Module):
    """A transformers image-text-to-text model whose forward takes a `Batch` and gives its part of the loss.

    The vision tower is frozen, as LLaVA-1.5's instruction tuning has it; projector and language model are trained, or
    with `lora` the projector and adapters on the language model's linear layers. What is frozen is kept in `dtype`,
    that of forward and backward. `pack`: use `packed_attention`, which takes padded batches too. `softcap`: what
    `applied_softcap` says of the model.
    """

    def __init__(
        self,
        model: Any,
        *,
        pack: bool,
        checkpoint_activations: bool = False,
        lora: Lora | None = None,
        dtype: torch.dtype = torch.float32,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        check_parts(model)
        self.model = model
        if pack:
            model.set_attn_implementation({"text_config": NAME})
        if lora is not None:
            _add_adapters(model, lora)
        for name, parameter in model.named_parameters():
            trained = beside_adapters(name) if lora is not None else not is_tower(name)
            parameter.requires_grad_(trained)
            if not trained:
                parameter.data = parameter.data.to(dtype)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._softcap = softcap
        self._sparing = pack and spare_last_mlp(self.layers()[-1])
        model.train()
        if checkpoint_activations:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def layers(self) -> list[torch.nn.Module]:
        """The decoder layers of the language model, the units that FSDP shards."""
        return list(self.model.get_decoder().layers)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's part of the loss, a scalar, and -log q of each active token, float32 [N]."""
        # Terms on the last states of other tokens would need all of them.
        spared = {"unique_state_index_K": batch.unique_state_index_K} if self._sparing else {}
        hidden_BLD = self.model.model(**batch.inputs, **spared).last_hidden_state
        hidden_ND = hidden_BLD.flatten(0, 1)[batch.state_index_N]
        loss, nll_N = weighted_cross_entropy(
            hidden_ND, self._logits, batch.target_N, batch.coefficient_N, vocabulary=self._vocabulary
        )
        # Further terms on hidden states are added here: they are sums over the same batch.
        if not batch.images:
            # Every rank must bring the same gradients to each exchange, so a projector that saw no image brings zeros.
            idle = [
                p.flatten()[0] for name, p in self.model.named_parameters() if p.requires_grad and is_projector(name)
            ]
            loss = loss + 0.0 * sum(idle, torch.zeros((), device=loss.device))
        return loss, nll_N

    def _logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return capped(self.model.get_output_embeddings()(hidden_ND), self._softcap)
