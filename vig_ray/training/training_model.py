"""The model in training: what is frozen, what LoRA adds, and the forward from a batch to its part of the loss."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch

from vig_ray.compat.transformers import spare_last_mlp
from vig_ray.errors import StageError
from vig_ray.model.attention import NAME
from vig_ray.model.head import capped, forward_arguments
from vig_ray.training.batch import Batch
from vig_ray.training.objective import weighted_cross_entropy
from vig_ray.training.parts import Part, parts_of, trained_names, whole_modules

TRAINED: tuple[Part, ...] = ("projector", "language")
"""What LLaVA-1.5's instruction tuning trains."""


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


def _drop_nothing(model: Any) -> None:
    """Set every probability of dropout to 0: of modules, and of what draws by itself, as attention does."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout1d | torch.nn.Dropout2d | torch.nn.Dropout3d):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _with_gradient(_module: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
    return output + output.new_zeros((), requires_grad=True) if torch.is_grad_enabled() else output


def refuse_uneven(model: Any, workers: int) -> None:
    """Raise StageError where several workers would run different layers: each layer's exchange waits for all of them.

    Cross-attention to images (Mllama) is left out where a microbatch has none.
    """
    if workers > 1 and "cross_attention_mask" in forward_arguments(model):
        raise StageError(
            f"{type(model).__name__}: leaves out the layers that read images where a batch has none, so that several "
            "workers would wait for each other; train with --workers 1"
        )


class TrainingModel(torch.nn.Module):
    """A transformers image-text-to-text model whose forward takes a `Batch` and gives its part of the loss.

    `train`: the parts that are trained, with `lora` of the language model adapters on its linear layers. What is frozen
    is kept in `dtype`, that of forward and backward; a frozen tower or projector stays in evaluation mode. Nothing is
    dropped out, whatever the checkpoint says, so that a resumed run repeats exactly. `pack`: use `packed_attention`,
    which takes padded batches too. `softcap`: what `applied_softcap` says of the model.

    `parts`: each parameter's part by its name in `model`. Raises StageError where the model's parts can't be told.
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
        train: Collection[Part] = TRAINED,
    ) -> None:
        super().__init__()
        if not hasattr(model, "model"):  # Llama 4
            raise StageError(
                f"{type(model).__name__}: has no part that gives states without logits; it can't be trained"
            )
        parts_of(model)  # which refuses what it doesn't know, before anything is changed
        self.model = model
        if pack:
            model.set_attn_implementation({"text_config": NAME})
        if lora is not None:
            _add_adapters(model, lora)
        self.parts = parts_of(model)
        trained = trained_names(model, self.parts, train, lora=lora is not None)
        if not trained:
            raise StageError(f"{type(model).__name__}: nothing to train of its {', '.join(train)}")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
            if name not in trained:
                parameter.data = parameter.data.to(dtype)
        # Not the language model, which is without statistics and is recomputed in training mode alone.
        beside: tuple[Part, ...] = ("tower", "projector", "unused")
        paths = [path for part in beside for path in whole_modules(model, self.parts, part)]
        reading = [model.get_submodule(path) for path in paths]
        self._frozen = [module for module in reading if not any(each.requires_grad for each in module.parameters())]
        _drop_nothing(model)
        embeddings = model.get_input_embeddings()
        if not any(parameter.requires_grad for parameter in embeddings.parameters()):
            # Else a worker that sees no image goes back through fewer layers, or none, than the others, whose
            # exchanges of gradients then wait for it, or meet another layer's.
            embeddings.register_forward_hook(_with_gradient)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._softcap = softcap
        self._sparing = pack and spare_last_mlp(self.layers()[-1])
        self.train()
        if checkpoint_activations:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def train(self, mode: bool = True) -> TrainingModel:
        """Training mode, but not for a frozen tower or projector: its statistics and noise stay as they are."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

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
        # Every rank must bring the same gradients to each exchange. So what no image came to brings zeros, and so does
        # what no image ever comes to: layers of a tower behind the one that is read.
        idle = [
            parameter.flatten()[0]
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and self.parts[name] != "language"
        ]
        return loss + 0.0 * sum(idle, torch.zeros((), device=loss.device)), nll_N

    def _logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        return capped(self.model.get_output_embeddings()(hidden_ND), self._softcap)
