"""A training run's config, checked against what is really there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vig_ray.dataset.importing import chosen_rows
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint, is_local
from vig_ray.model.load import Prompts, load_formatter, tell, template_fingerprint
from vig_ray.stage import read_stage
from vig_ray.storage import absolute, check_writable, join
from vig_ray.tables.directories import samples_beside, selection_directory
from vig_ray.training.carry import prompts_then
from vig_ray.training.config import VDEP_OPTIONS, TrainConfig
from vig_ray.training.documents import Recipe
from vig_ray.training.drawn import Drawn
from vig_ray.training.dry_run import described
from vig_ray.training.optimizer import check_packages
from vig_ray.training.options import TrainingOptions
from vig_ray.training.training_model import TRAINED

log = logging.getLogger(__name__)

# What a run may be gone on with though it differs: it changes how the work is done, not what comes out.
HOW = {
    "out", "workers", "device", "batch_tokens", "micro_batch", "packing", "activation_checkpointing", "gradient_sync",
    "loaders", "save_every", "keep", "max_failures", "resize_every", "watch", "name", "address", "overwrite", "samples",
    "selection", "model", "dtype", "dry_run", "trust_remote_code", "vdep_norms_every", "offload_optimizer",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there. `record`: the selection's, {} without one.

    `then`: what the selection's prompts were made with, where its weights are carried over. `batch_tokens`: of a
    microbatch, None for the device's default. `drawn`: the samples that are taken, None for all.
    """

    config: TrainingOptions
    prompts: Recipe
    samples: str
    selection: str | None
    record: dict[str, Any]
    identity: dict[str, Any]
    out: str
    described: str
    batch_tokens: int | None
    then: Prompts | None = None
    stage: str = "train"
    drawn: Drawn | None = None


def check(config: TrainConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    selection: str | None = None
    record: dict[str, Any] = {}
    if config.selection is not None:
        selection, record = selection_directory(config.selection)
        samples = samples_beside(selection, config.samples, record["identity"]["scores"])
    else:
        samples = samples_beside(config.samples, config.samples, {})
    assert samples is not None  # one was given
    of_then = _prompts_of(record, config)
    # Workers may have another working directory.
    samples, selection = absolute(samples), selection and absolute(selection)
    model = absolute(config.model) if is_local(config.model) else config.model
    prompts = Prompts(
        model,
        config.template or of_then.get("template") or config.usual_template,
        config.max_length or of_then.get("max_length"),
        of_then.get("end_of_turn") if config.end_of_turn is None else config.end_of_turn,
        config.trust_remote_code,
    )
    check_writable(config.out)
    check_packages(config)
    formatter = load_formatter(*prompts)
    parts = described(config, prompts.model, formatter)
    tell(prompts.model, formatter)
    template = template_fingerprint(formatter)
    if record and record.get("template") != template and config.align is None:
        log.warning(
            "%s was made with another prompt or tokenizer than %s has; before the first step the tokens of every "
            "sample that has token weights are compared (--align characters carries them over)",
            selection,
            config.model,
        )
    then = prompts_then(record, selection or "", config.trust_remote_code) if config.align is not None else None
    imported = read_stage(samples) or {}
    identity = {
        "options": config.model_dump(mode="json", exclude=HOW | _unsaid(config)),
        "model": fingerprint(config.model),
        "template": template,
        "samples": {name: imported.get(name) for name in ("inputs", "name", "counts")} | chosen_rows(imported),
        "selection": {name: record.get(name) for name in ("identity", "selection")} if record else None,
    }
    directory = join(absolute(config.out), "training")
    batch_tokens = config.batch_tokens
    return Plan(config, prompts, samples, selection, record, identity, directory, parts, batch_tokens, then)


def _prompts_of(record: Mapping[str, Any], config: TrainConfig) -> Mapping[str, Any]:
    """What a selection was made with, where the model is to get the same; {} where it isn't.

    Raises StageError where captions would be trained with another prompt than the stage's, and nobody says so.
    """
    then: Mapping[str, Any] = record.get("prompts", {})
    template = then.get("template")
    if config.aligns and config.template is None and template not in (None, "plain"):
        raise StageError(
            f"--stage align: the selection was made with the template {template}, and captions are trained with "
            f"plain; give --template {template}, or score and select with --template plain"
        )
    other = config.align is not None or (config.template is not None and template not in (None, config.template))
    return {} if other else then


def _unsaid(config: TrainConfig) -> set[str]:
    """Options that runs of before hadn't got, where they are as those runs were."""
    same = {
        "train": config.train == TRAINED,
        "stage": config.stage == "tune",
        "align": config.align is None,
        "quantise": config.quantise is None,
        "optimizer": config.optimizer == "adamw",
        "export_at": not config.export_at,
    }
    vdep = {"objective", *VDEP_OPTIONS} if config.objective != "vdep" else set()
    return {name for name, is_same in same.items() if is_same} | vdep
