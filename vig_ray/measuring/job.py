"""The measuring job on Ray Data: `samples/` in, `measures/` out, one pool of actors that hold the models.

`run(config)` is what `vig measure` and Python call. A run that was killed goes on where it was when the same command is
given again.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc

from vig_ray.cluster import Machines, machines, parse_range
from vig_ray.errors import StageError
from vig_ray.measuring.config import OF_MODEL, MeasureConfig
from vig_ray.measuring.measure import Measurer
from vig_ray.measuring.schema import measures_schema
from vig_ray.model.checkpoint import fingerprint, is_local, local_folder
from vig_ray.model.load import Prompts, default_dtype, load_formatter, template_fingerprint
from vig_ray.pipeline import Step, count_samples, run_steps
from vig_ray.stage import claim, read_stage
from vig_ray.storage import absolute, check_writable, join
from vig_ray.tables.directories import dataset, samples_beside, scores_directory

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 64  # whose images are in memory
_CPUS_OF_RAY_DATA = 4  # to read, to cut into blocks, to filter the rows done before and to write, all at once


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there."""

    config: MeasureConfig
    prompts: Prompts
    samples: str
    identity: dict[str, Any]
    out: str


@dataclass
class MeasureSummary:
    """Counts of a measures directory: read = measured + text_only + failed. `cut`: answers that CLIP's limit cut."""

    directory: str
    read: int = 0
    measured: int = 0
    text_only: int = 0
    failed: int = 0
    cut: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """As the record holds them."""
        names = ("read", "measured", "text_only", "failed", "cut")
        return {name: getattr(self, name) for name in names} | {"failures": dict(self.failures)}

    def text(self) -> str:
        """For a person."""
        lines = [
            f"read {self.read:,} = measured {self.measured:,} + text-only {self.text_only:,} + failed {self.failed:,}",
            *(f"  {count:,} {kind}" for kind, count in self.failures.most_common(10)),
        ]
        if self.cut:
            lines.append(f"{self.cut:,} answers have more tokens than CLIP takes; clip-score is of their beginnings")
        return "\n".join([*lines, f"measures: {self.directory}"])


def check(config: MeasureConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    scores = scores_directory(config.scores)
    record = read_stage(scores) or {}
    if not record.get("complete"):
        raise StageError(f"{scores}: not finished; run the same `vig score` command again, it goes on where it was")
    samples = samples_beside(scores, config.samples, record)
    if samples is None:
        raise StageError(f"{scores}: no samples/ beside them; --samples says where they are")
    scored = record["config"]
    model = config.model or scored["model"]
    prompts = Prompts(
        absolute(model) if is_local(model) else model,  # workers may have another working directory
        scored["template"],
        scored["max_length"],
        scored.get("end_of_turn"),
        config.trust_remote_code,
    )
    check_writable(config.out)
    template = template_fingerprint(load_formatter(*prompts))
    if template != record["identity"]["template"]:
        raise StageError(f"--model {model}: its prompts or its tokenizer aren't those that {scores} were made with")
    of_clip = set(config.measures) - set(OF_MODEL)
    identity = {
        "samples": record["identity"]["samples"],
        "measures": list(config.measures),
        "model": fingerprint(prompts.model) if set(config.measures) & set(OF_MODEL) else None,
        "template": template,
        "clip": _clip(config.clip_model) if of_clip else None,
        "dtype": config.dtype,
        "max_length": prompts.max_length,
        "max_image_pixels": config.max_image_pixels,
    }
    return Plan(config, prompts, absolute(samples), identity, join(config.out, "measures"))


def _clip(name: str) -> str:
    """The fingerprint of a CLIP. Raises StageError naming its option."""
    local_folder(name, weights=False, option="--clip-model")
    return fingerprint(name)


def run(config: MeasureConfig) -> MeasureSummary:
    """Measure; returns the counts, which the record holds too.

    Raises StageError, before any model is loaded, where the config, the scores or what is in `OUT` is wrong, and where
    no sample can be measured.
    """
    plan = check(config)
    output = claim(plan.out, "measure", plan.identity, overwrite=config.overwrite, left_open=("dtype",))
    if output.complete:
        log.info("%s: already complete, nothing to measure", plan.out)
        counts = dict(output.record["counts"])
        return MeasureSummary(plan.out, **counts | {"failures": Counter(counts["failures"])})
    earlier = output.record["identity"]["dtype"] if output.state == "go on" else None
    least, most = parse_range(config.workers) if config.workers else (1, os.cpu_count() or 1)
    with machines(config.address, actors=most, least_cpus=least + _CPUS_OF_RAY_DATA) as ray_has:
        device = ray_has.device(config.device, "measuring")
        dtype = config.dtype or earlier or default_dtype(plan.prompts.model, device)
        output.begin(config, identity=output.identity | {"dtype": dtype})
        run_steps(
            plan.samples,
            output,
            measures_schema(config.measures),
            lambda counter: [_step(plan, ray_has, device, dtype, counter)],
            rows_per_block=config.rows_per_file,
        )
    summary = summarise(plan.out, config)
    if summary.read != count_samples(plan.samples):
        raise StageError(
            f"{plan.out}: {summary.read:,} rows written for {count_samples(plan.samples):,} samples; on several "
            "machines every path must be on storage that all of them share"
        )
    if summary.failed and not summary.measured:
        raise StageError(f"{plan.out}: no sample could be measured, {summary.failures.most_common(1)[0][0]}")
    output.commit(config, counts=summary.counts())
    return summary


def _step(plan: Plan, ray_has: Machines, device: str, dtype: str, counter: Any) -> Step:
    config, on_gpu = plan.config, device == "cuda"
    by_default = (None if ray_has.cores is None else ray_has.gpus) if on_gpu else ray_has.cores
    actors = ray_has.actors(config.workers, by_default)
    measure = {
        "prompts": plan.prompts,
        "clip_model": absolute(config.clip_model) if is_local(config.clip_model) else config.clip_model,
        "measures": config.measures,
        "device": device,
        "dtype": dtype,
        "threads": None if on_gpu or ray_has.cores is None else max(1, ray_has.cores // (actors[1] or 1)),
        "max_image_pixels": config.max_image_pixels,
        "progress": counter,
    }
    rows = min(_ROWS_AT_ONCE, config.rows_per_file)
    return Step(Measurer, measure, batch_rows=rows, actors=actors, gpus=int(on_gpu))


def summarise(directory: str, config: MeasureConfig) -> MeasureSummary:
    """The counts of what was written."""
    summary = MeasureSummary(directory)
    columns = ["measured_tokens", "error", *(["clip_cut"] if "clip-score" in config.measures else [])]
    for batch in dataset(directory).to_batches(columns=columns):
        failed, measured = batch["error"].is_valid(), batch["measured_tokens"].is_valid()
        summary.read += batch.num_rows
        summary.failed += pc.sum(failed).as_py() or 0
        summary.measured += pc.sum(measured).as_py() or 0
        for error in batch["error"].filter(failed).to_pylist():
            summary.failures[error.partition(":")[0]] += 1
        if "clip_cut" in columns:
            summary.cut += pc.sum(pc.greater(batch["clip_cut"], 0)).as_py() or 0
    summary.text_only = summary.read - summary.measured - summary.failed
    return summary
