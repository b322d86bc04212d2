"""A config checked against what is really there: which questions, which models, and what answers depend on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vig_ray.cluster import joins
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked, Model, asked_for, models_of
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.decoding import Decoding
from vig_ray.evaluation.lmms.asked import planned as lmms_planned
from vig_ray.evaluation.lmms.run import LmmsOptions
from vig_ray.evaluation.load import check_generator
from vig_ray.evaluation.questions import Read, survey
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import Prompts, load_formatter, prompts_of, stop_ids, tell, template_fingerprint
from vig_ray.scoring.engines.load import check_engine, deciding, engine_for
from vig_ray.storage import check_writable, join

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelPlan:
    """A model that has been checked. `identity`: what its answers depend on, but for the questions. `engine`: the one
    that is asked for, "auto" where both can take the model's prompts."""

    model: Model
    prompts: Prompts
    identity: dict[str, Any]
    engine: str


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there.

    `named`: all models. `tasks`, `models`: what we ask, and whom: the models again, or nobody where all tasks are
    lmms-eval's. `questions`: of each of the tasks, as they were read. `lmms`: how lmms-eval's tasks are asked.
    """

    config: EvalConfig
    directory: str
    named: tuple[Model, ...]
    tasks: tuple[Asked, ...]
    questions: tuple[Read, ...]
    models: tuple[ModelPlan, ...]
    lmms: LmmsOptions | None

    @property
    def passes(self) -> tuple[str, ...]:
        """All that any question asks for."""
        return tuple(sorted(frozenset[str]().union(*(read.passes for read in self.questions))))

    @property
    def baseline(self) -> str:
        """The model that others are compared with."""
        return self.config.baseline or self.named[0].name


def check(config: EvalConfig) -> Plan:
    """Everything that can be wrong with a config and is seen without a model's weights: questions are read, prompts are
    made. Raises StageError."""
    tasks, models = asked_for(config), models_of(config)
    check_writable(config.out)
    directory = join(config.out, "evaluation")
    questions = [survey(directory, asked) for asked in tasks]
    passes = sorted(frozenset[str]().union(*(read.passes for read in questions)))
    check_engine(config.engine, passes, config.vllm, joins_cluster=joins(config.address))
    for asked, read in zip(tasks, questions, strict=True):
        if read.attends and config.engine not in ("auto", "torch"):
            raise StageError(
                f"--engine {config.engine}: {asked.name} asks for shares of attention, which torch alone tells"
            )
    _check_decoding(config, tasks, questions)
    if any(read.writes for read in questions) and ":" not in config.engine:
        check_generator(config.engine, config.decoding, joins_cluster=joins(config.address))
    plans = [_model_plan(config, model) for model in models] if tasks else []
    lmms = lmms_planned(config, models)
    return Plan(config, directory, tuple(models), tuple(tasks), tuple(questions), tuple(plans), lmms)


def _check_decoding(config: EvalConfig, tasks: Sequence[Asked], questions: Sequence[Read]) -> None:
    """Raise StageError for a decoding method that has no effect, or not the one that numbers would be taken for."""
    method = Decoding.of(config.decoding)
    if method.name == Decoding.name or not tasks:
        return
    if ":" in config.engine:
        raise StageError(f"--decoding {method.name}: is for --engine torch; one of your own decodes as it does")
    if not any(read.writes for read in questions):
        raise StageError(f"--decoding {method.name}: no task of these lets a model write, so it has no effect")
    for asked, read in zip(tasks, questions, strict=True):
        if read.attends and method.acts:
            raise StageError(
                f"--decoding {method.name}: it changes attention, and {asked.name} tells the model's own; "
                "ask in two runs"
            )
        if not read.writes:
            log.warning("--decoding %s: %s lets no model write, and is as without", method.name, asked.name)


def _model_plan(config: EvalConfig, model: Model) -> ModelPlan:
    prompts = prompts_of(config.model_copy(update={"model": model.checkpoint}))
    formatter = load_formatter(*prompts)
    tell(model.checkpoint, formatter)
    method = Decoding.of(config.decoding)
    written: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "decoding": None if method.name == Decoding.name else method.spec,
        "vllm": deciding(config.vllm),
        "stops": sorted(stop_ids(model.checkpoint, formatter)),
    }
    if config.temperature:
        written |= {"temperature": config.temperature, "top_p": config.top_p, "seed": config.seed}
    identity = {
        "model": fingerprint(model.checkpoint),
        "template": template_fingerprint(formatter),
        "engine": None if config.engine == "auto" else config.engine,
        "dtype": config.dtype,
        "max_length": config.max_length,
        "max_image_pixels": config.max_image_pixels,
        **{name: value for name, value in written.items() if value is not None},
    }
    return ModelPlan(model, prompts, identity, engine_for(config.engine, formatter, model.checkpoint))
