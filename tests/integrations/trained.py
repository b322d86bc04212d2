"""One step of a real Trainer, as its users start it, and what it left: the loss it logged and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, TrainerCallback, TrainingArguments
from trl import SFTConfig

from tests.integrations.made import Expected, Row
from vig_ray.integrations.transformers import ActiveTokensCollator, VigTrainer
from vig_ray.integrations.trl import VigSFTTrainer


@functools.cache
def collator_of(checkpoint: str) -> ActiveTokensCollator:
    return ActiveTokensCollator(checkpoint, token_weights=True)


class _KeepGradients(TrainerCallback):
    gradients: dict[str, torch.Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }


def trainer_of(kind: str, checkpoint: str, rows: Sequence[Row], folder: Path, **options: Any) -> Any:
    """A `VigTrainer` or, for "trl", a `VigSFTTrainer` of the checkpoint on these rows, on a CPU, in float64, in which
    gradients can be compared on any processor."""
    normalisation = options.pop("normalisation", "tokens")
    given: dict[str, Any] = {
        "output_dir": str(folder / "trained"),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    make, config = (VigSFTTrainer, SFTConfig) if kind == "trl" else (VigTrainer, TrainingArguments)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float64)
    if options.pop("lora", False):
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    dataset = datasets.Dataset.from_list(list(rows))
    return make(
        model,
        config(**(given | options)),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=collator_of(checkpoint),
        normalisation=normalisation,
    )


def one_step(kind: str, checkpoint: str, rows: Sequence[Row], folder: Path, **options: Any) -> Expected:
    """The loss and gradients of the first step."""
    trainer = trainer_of(kind, checkpoint, rows, folder, **options)
    kept = _KeepGradients()
    trainer.add_callback(kept)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Expected(losses[0], kept.gradients)
