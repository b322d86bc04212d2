"""What `--dry-run` shows: the model's parts and what of them is trained, how many steps, and the memory it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vig_ray.errors import StageError
from vig_ray.model.load import without_weights
from vig_ray.model.prompt import Formatter
from vig_ray.training.documents import Documents, Recipe
from vig_ray.training.memory import WORKERS, How, memory_of, memory_table
from vig_ray.training.options import TrainingOptions
from vig_ray.training.parts import adapted_weights, tree
from vig_ray.training.training_model import Lora, TrainingModel
from vig_ray.training.vdep_options import mark_of, objectives_of


@dataclass(frozen=True)
class DryRun:
    """What `--dry-run` shows."""

    described: str
    samples: int
    left_out: int
    held_out: int
    steps: int
    global_batch: int
    memory: str
    untaken: int = 0
    exported: Mapping[str, int] = field(default_factory=dict)
    """Of --export-at: the folders, and after which step each is written."""

    def text(self) -> str:
        """For a person."""
        left_out = f", {self.left_out:,} with an error left out" if self.left_out else ""
        held_out = f", {self.held_out:,} held out" if self.held_out else ""
        untaken = f", {self.untaken:,} not drawn" if self.untaken else ""
        samples = f"{self.samples:,} samples{held_out}{left_out}{untaken}"
        steps = f"steps of up to {self.global_batch:,} samples: {self.steps:,}"
        exported = "".join(f"\nafter step {step:,}: {folder}" for folder, step in self.exported.items())
        return f"{self.described}\n{samples}; {steps}{exported}\n{self.memory}"


def described(config: TrainingOptions, model: str, formatter: Formatter, *, text_only: bool = False) -> str:
    """The model's parts and what of them is trained, for a person. Raises StageError where they can't be told, or where
    the objective can't be had of this model."""
    try:
        built = without_weights(model, text_only=text_only)
    except StageError:
        if config.dry_run:
            raise
        return ""  # one worker, which loads it, may train it
    objectives_of(config, built)
    mark_of(config, built, formatter)
    training_model = _training_model(config, built)
    trained = {name for name, parameter in training_model.model.named_parameters() if parameter.requires_grad}
    return tree(training_model.model, training_model.parts, trained, config.rates)


def memory_by_workers(config: TrainingOptions, recipe: Recipe) -> str:
    """The memory of a run on 1, 2, 4 and 8 workers, for a person."""
    built = without_weights(recipe.model, text_only=isinstance(recipe, Documents))
    training_model, how = _training_model(config, built), How.of(config)
    trained = {name for name, parameter in training_model.model.named_parameters() if parameter.requires_grad}
    quantised = adapted_weights(training_model.model) if config.quantise else set()
    of_workers = {
        workers: memory_of(
            training_model.model, training_model.layers(), trained, how, workers=workers, quantised=quantised
        )
        for workers in WORKERS
    }
    return memory_table(of_workers, how, "worker" if config.device == "cpu" else "GPU")


def _training_model(config: TrainingOptions, built: Any) -> TrainingModel:
    lora = Lora(config.lora_rank, config.lora_alpha) if config.lora else None
    return TrainingModel(built, pack=False, lora=lora, train=config.to_train)
