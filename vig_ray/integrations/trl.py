"""TRL's `SFTTrainer` with vig-ray's token weights.

    from vig_ray.integrations.trl import ActiveTokensCollator, VigSFTTrainer

    rows = datasets.load_dataset("json", data_files="chosen.jsonl", split="train")
    collator = ActiveTokensCollator(folder, token_weights=True)
    VigSFTTrainer(folder, SFTConfig(...), train_dataset=rows, data_collator=collator).train()

TRL computes log-probs by a head of its own, without holding all logits. That is kept, and so are its metrics, which
count every active token alike.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import SFTTrainer

from vig_ray.integrations.token_weights import TokenWeightsMixin
from vig_ray.training.collator import ActiveTokensCollator

__all__ = ["ActiveTokensCollator", "TokenWeightsMixin", "VigSFTTrainer"]


class VigSFTTrainer(TokenWeightsMixin, SFTTrainer):  # type: ignore[misc]  # TRL isn't typed
    """An SFTTrainer whose loss is `vig_ray.training.objective`'s, for 0/1 masks and real weights.

    Its `loss_type` is "nll"; `max_length` doesn't cut anything, since the collator makes the batches.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = type(self).__name__
        if self.args.loss_type != "nll":
            raise ValueError(f"{name}: loss_type {self.args.loss_type} weighs tokens by itself; take nll")
        if not self.args.average_tokens_across_devices:
            raise ValueError(f"{name}: leave average_tokens_across_devices as it is, True")

    def weighted_loss(
        self, model: Any, inputs: dict[str, Any], coefficient_BL: torch.Tensor, whole: bool
    ) -> tuple[torch.Tensor, Any]:
        """As the mixin's, by TRL's own loss with its log-probs weighted."""
        # TRL multiplies by the number of processes itself.
        weighted = _WeightedLogProbs(model, coefficient_BL / self.accelerator.num_processes)
        one = torch.ones((), device=coefficient_BL.device)
        given = SFTTrainer.compute_loss(self, weighted, inputs, return_outputs=whole, num_items_in_batch=one)
        return given if whole else (given, None)


class _WeightedLogProbs:
    """A model whose log-probs are multiplied by coefficients where TRL makes a loss of them, which is their sum."""

    def __init__(self, model: Any, coefficient_BL: torch.Tensor) -> None:
        self._model, self._coefficient_BL = model, coefficient_BL

    def __call__(self, **inputs: Any) -> Any:
        outputs = self._model(**inputs)
        if "labels" not in inputs:  # logits for metrics
            return outputs
        if getattr(outputs, "log_probs", None) is None:
            raise RuntimeError("this version of TRL makes its loss in another way than 1.16, for which this is written")
        outputs.log_probs = outputs.log_probs * self._coefficient_BL[:, 1:]
        return outputs
