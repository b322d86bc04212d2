"""`vig import`, and with `--task` the questions of a benchmark as samples with their right answers.

vig import --task pope --data coco_pope_random.json --images val2014 --out runs/pope

So `vig score` and `vig report` say how much a benchmark owes to its images (VIG, Figure 2). Without `--task` it is
`vig_ray.dataset.importing`.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vig_ray.dataset import importing
from vig_ray.dataset.import_report import ImportReport
from vig_ray.dataset.importing import SAMPLES_FOLDER, STAGE, ImportConfig
from vig_ray.dataset.schema import Turn
from vig_ray.dataset.writer import Parts, SampleWriter
from vig_ray.errors import StageError
from vig_ray.evaluation.asked import Asked, made_given
from vig_ray.evaluation.config import by_name, repeated
from vig_ray.evaluation.questions import questions_of, survey, to_sample
from vig_ray.evaluation.tasks import task
from vig_ray.stage import claim
from vig_ray.storage import check_writable, join

log = logging.getLogger(__name__)

_TAKEN = ("data", "images", "name", "limit")  # options of an import that a task's data knows
_KEPT = ("expected", "group", "unit")  # of a question


class ImportTaskConfig(ImportConfig):
    """Import any vision-language dataset: one row a sample, with a stable key, bad rows included."""

    task: str | None = Field(
        None,
        description="a benchmark of vig eval: its questions with the right answers; --data is its authors' files, and "
        "only --images, --name, --limit and --out apply besides",
        json_schema_extra={"metavar": "NAME"},
    )
    task_options: Annotated[dict[str, str], BeforeValidator(by_name)] = Field(
        default_factory=dict,
        description="options of --task, which docs/evaluating.md lists",
        json_schema_extra=repeated("NAME=VALUE"),
    )


def run_with_progress(config: ImportTaskConfig) -> ImportReport:
    """As `run`, with a progress bar on standard error: what `vig import` does."""
    if config.task is not None:
        return run_task(config)
    if config.task_options:
        raise StageError("--task-options: has no effect without --task; leave it out")
    return importing.run_with_progress(config)


def run_task(config: ImportTaskConfig) -> ImportReport:
    """The questions of a task as samples/, the answer that is right as the assistant's turn.

    A question that has none, for which the task has no one right answer, is a row with `error` set. Raises StageError.
    """
    asked = _asked(config)
    check_writable(config.out)
    directory = join(config.out, SAMPLES_FOLDER)
    read = survey(config.out, asked)
    identity = {
        "inputs": [{"path": asked.given.data, **read.identity}],
        "format": f"task:{asked.name}",
        "images": asked.given.images,
        "name": config.name or asked.name,
        "rows_per_file": config.rows_per_file,
        "max_bytes_per_file": config.max_bytes_per_file,
    }
    output = claim(directory, STAGE, identity, overwrite=config.overwrite, resumes=False)
    if output.complete:
        return ImportReport(directory, **output.record["counts"], kept=output.record.get("kept", {}))
    output.begin(config, **identity)
    counts, kept_in, failures = Counter[str](), Counter[str](), Counter[str]()
    parts = Parts(
        directory,
        prefix=f"{output.run}-",
        unfinished=output.work,
        rows_per_file=config.rows_per_file,
        max_bytes_per_file=config.max_bytes_per_file,
    )
    with parts, SampleWriter(parts) as writer:
        for number, question in enumerate(questions_of(asked)):
            key = f"{config.name or asked.name}/{number:010d}"
            sample, every = to_sample(question, asked.name)
            kept = {name: every[name] for name in _KEPT if name in every}
            counts["read"] += 1
            kept_in.update(kept.keys())
            if question.answer is None:
                failures["NoAnswer"] += 1
                writer.failure(key, question.id, "NoAnswer: the task knows no one right answer to it", kept)
                continue
            counts["with_images" if sample.images else "text_only"] += 1
            answered = (*sample.conversation, Turn("assistant", question.answer))
            writer.sample(key, sample._replace(conversation=answered, source=question.group or asked.name), kept)
    facts: dict[str, Any] = {
        "read": counts["read"],
        "imported": counts["read"] - failures.total(),
        "failed": failures.total(),
        "text_only": counts["text_only"],
        "with_images": counts["with_images"],
        "failures": dict(failures),
    }
    output.commit(config, counts=facts, kept=dict(kept_in))
    return ImportReport(directory, **facts, kept=dict(kept_in))


def _asked(config: ImportTaskConfig) -> Asked:
    assert config.task is not None
    for option, field in ImportConfig.model_fields.items():
        told = option in _TAKEN or option in ("out", "rows_per_file", "max_bytes_per_file", "overwrite", "strict")
        if not told and getattr(config, option) != field.get_default(call_default_factory=True):
            raise StageError(f"--{option.replace('_', '-')}: has no effect with --task {config.task}; leave it out")
    if len(config.data) > 1:
        raise StageError(f"--data: takes one file or folder with --task {config.task}")
    made = task(config.task)
    given = made_given(made, config.data[0], config.images, config.task_options, "--task-options", config.limit)
    return Asked(config.task, given)
