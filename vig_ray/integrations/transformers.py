"""`transformers.Trainer` with vig-ray's token weights.

    from vig_ray.integrations.transformers import ActiveTokensCollator, VigTrainer

    rows = datasets.load_dataset("json", data_files="chosen.jsonl", split="train")
    collator = ActiveTokensCollator(folder, token_weights=True)
    VigTrainer(model, arguments, train_dataset=rows, data_collator=collator).train()

`arguments`: TrainingArguments, as for any Trainer.
"""

from __future__ import annotations

from transformers import Trainer

from vig_ray.integrations.token_weights import TokenWeightsMixin
from vig_ray.training.collator import ActiveTokensCollator

__all__ = ["ActiveTokensCollator", "TokenWeightsMixin", "VigTrainer"]


class VigTrainer(TokenWeightsMixin, Trainer):  # type: ignore[misc]  # transformers isn't typed
    """A Trainer whose loss is `vig_ray.training.objective`'s, for 0/1 masks and real weights."""
