"""The scoring job on Ray Data: read samples, prepare them on CPUs, score them on engines, write `scores/`.

`run(config)` is what `vig score`, `jobs/score.py` and Python call. A run that was killed goes on where it was when the
same command is given again: Ray Data's checkpointing records which keys each written block held, and skips them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from vig_ray.cluster import Machines, joins, machines, on_machines, parse_range, warn_of_few_cpus
from vig_ray.dataset import importing
from vig_ray.dataset.options import DataOptions
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import fingerprint, is_local
from vig_ray.model.load import default_dtype, load_formatter, prompts_of, tell, template_fingerprint
from vig_ray.options import ReferenceName
from vig_ray.pipeline import count_samples, run_steps
from vig_ray.progress import RowProgress
from vig_ray.scoring import by_server
from vig_ray.scoring.config import ScoreConfig
from vig_ray.scoring.engines.load import check_engine, deciding, engine_for
from vig_ray.scoring.engines.prefixes import told
from vig_ray.scoring.in_process import FEW, run_steps_here
from vig_ray.scoring.passes import Passes, rows_here, stored_rows
from vig_ray.scoring.placement import ONE_OF_EACH, Placement, engine_there, pools_for
from vig_ray.scoring.reference import make_reference
from vig_ray.scoring.references.of_data import OF_DATA, OfData, of_data
from vig_ray.scoring.schema import scores_schema
from vig_ray.scoring.steps import steps_of
from vig_ray.scoring.summary import ScoreSummary, summarise
from vig_ray.scoring.text_pass import TEXT_OPTIONS, check_text_pass, phases
from vig_ray.stage import Claim, claim, read_stage, record_file
from vig_ray.storage import check_writable, exists, join
from vig_ray.tables.passes import CLEAN, TEXT, has_gains, of_one_reference, references_of
from vig_ray.this_process import this_process

log = logging.getLogger(__name__)

_CPUS_OF_RAY_DATA = 4  # to read, to cut into blocks, to filter the rows done before and to write, all at once


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there.

    `model`, `template`: fingerprints. `samples`: the samples directory, None where the data is still to be imported.
    `engine`: the one that is asked for, "auto" where both can take the model's prompts. `parameters`: each reference's
    by its name, but for those that are of the data. `overwrite`: of the run, whose first phase alone may replace what
    is there.
    """

    config: ScoreConfig
    model: str
    template: str
    samples: str | None
    scores: str
    engine: str
    parameters: dict[str, dict[str, Any]]
    overwrite: bool


def check(config: ScoreConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    samples = _check_data(config)
    check_engine(config.engine, config.reference, config.vllm, joins_cluster=joins(config.address))
    formatter = load_formatter(*prompts_of(config))
    template = template_fingerprint(formatter)
    engine = engine_for(config.engine, formatter, config.model)
    made = [
        make_reference(cast(ReferenceName, name), formatter=formatter, blur=config.blur)
        for name in config.reference
        if name not in (TEXT, *OF_DATA)
    ]
    parameters = {reference.name: reference.parameters for reference in made}
    if TEXT in config.reference:
        parameters[TEXT] = check_text_pass(config, formatter)
    scores, model = join(config.out, "scores"), fingerprint(config.model)
    plan = Plan(config, model, template, samples, scores, engine, parameters, config.overwrite)
    tell(config.model, formatter)
    return plan


def _check_data(config: ScoreConfig) -> str | None:
    """The samples directory, None where the data is still to be imported. Raises StageError."""
    samples = importing.already_imported(config.data)
    if samples is None:
        importing.validate(import_config(config))
    for option, field in DataOptions.model_fields.items():
        if samples is not None and option != "data" and getattr(config, option) != field.default:
            flag = option.replace("_", "-")
            raise StageError(f"--{flag} has no effect on {samples}, which is imported already; leave it out")
    check_writable(config.out)
    if not config.overwrite:
        _check_version(join(config.out, "scores"))
    return samples


def import_config(config: ScoreConfig) -> importing.ImportConfig:
    """The import that `vig score --data FILE` does by itself."""
    read = {option: getattr(config, option) for option in DataOptions.model_fields}
    return importing.ImportConfig(**read, out=config.out, overwrite=config.overwrite)


def run(config: ScoreConfig, *, in_process: bool | None = False) -> ScoreSummary:
    """Score a dataset; returns the summary of what `OUT/scores/` holds.

    `in_process`: without a Ray, by the torch engine in this process; None: where the samples are few, no Ray is in use
    and vLLM isn't asked for. Raises StageError, before any engine starts, where the config, the data, the model or what
    is in `OUT` is wrong.
    """
    if config.server is not None:
        samples, model = _check_data(config), by_server.model_of(config)
        return by_server.run(config, samples or _imported(config, brief=in_process is not False), model)
    plan = check(config)
    # In full, for workers and for whoever reads the record in another working directory.
    models = {name: getattr(config, name) for name in ("model", "reference_model")}
    config = config.model_copy(update={name: model and _located(model) for name, model in models.items()})
    samples = plan.samples
    if samples is None:
        samples = _imported(config, brief=in_process is not False)
    summaries = [_run(replace(plan, config=phase), samples, in_process=in_process) for phase in phases(config)]
    return summaries[-1]


def _run(plan: Plan, samples: str, *, in_process: bool | None) -> ScoreSummary:
    """The passes of one model; returns the summary of all that `OUT/scores/` holds then."""
    config = plan.config
    decided = _of_data(config, samples)
    # An engine or a dtype that isn't named is the earlier run's: it may have begun on another kind of machine.
    output = claim(
        plan.scores,
        "score",
        _identity(plan, samples, decided),
        overwrite=config.overwrite,
        left_open=("engine", "dtype"),
        grows=None if _replaces_text(plan) else "references",
    )
    if output.complete:
        names = references_of(output.record)
        if has_gains(output.record) and names:
            log.info("%s: already complete, nothing to score; vig is that of %s", plan.scores, names[0])
        return summarise(plan.scores, names, gains=has_gains(output.record))
    todo = _to_do(plan, output)
    here = _here(in_process, todo.engine, config, samples)
    began = time.time()
    with this_process() if here else _machines(config) as ray_has:
        if ray_has.cores is None:
            warn_of_few_cpus(2 + _CPUS_OF_RAY_DATA)  # an actor of each pool
        placement = _placement(plan, todo, ray_has, here=here)
        output.begin(config, identity=output.identity | {"engine": placement.engine, "dtype": placement.dtype})
        log.info("%s", placement.text())
        timing = _score(plan, todo, placement, output, samples, decided, here=here)
    if timing.get("prompt_tokens"):
        log.info(told(timing["prompt_tokens"], timing["cached_prompt_tokens"]))
    summary = summarise(plan.scores, todo.references, output.paths, gains=config.passes == "all")
    if summary.read != count_samples(samples):
        raise StageError(
            f"{plan.scores}: {summary.read:,} rows written for {count_samples(samples):,} samples. On several machines "
            "every path must be on storage that all of them share; otherwise please report it, and run again with "
            "another --out"
        )
    output.commit(
        config.model_copy(update={"reference": todo.references} | _text_options(config, output)),
        counts=summary.counts(),
        gains=summary.gains(),
        kept=(read_stage(samples) or {}).get("kept", {}),
        timing={"total_s": time.time() - began, "began": began, **timing},
    )
    return summary


@dataclass(frozen=True)
class _ToDo:
    """`held`: passes whose scores are finished; `new`: those to be made. `engine`: the one that is asked for, or that
    an earlier run took. `dtype`: an earlier run's, None without one."""

    held: tuple[str, ...]
    new: tuple[str, ...]
    engine: str
    dtype: str | None

    @property
    def references(self) -> tuple[str, ...]:
        """All that the rows will have, in the order of the table."""
        return tuple(name for name in (*self.held, *self.new) if name != CLEAN)


def _to_do(plan: Plan, output: Claim) -> _ToDo:
    """What of an output is to be scored. Raises StageError where it can't be added to what is there."""
    names = tuple(reference["name"] for reference in output.identity["references"])
    # The language model's prompts come from parts, whatever the model's own do.
    asked = plan.config.engine if names == (TEXT,) else plan.engine
    extends = output.state == "extend"
    if extends and not plan.overwrite:
        _check_begun(output)
    went_on = extends or (output.state == "go on" and bool(output.paths))
    earlier = output.record["identity"] if went_on else {}
    engine = earlier["engine"] if earlier and asked == "auto" else asked
    if not extends:
        new = names if plan.config.passes == "text" else (CLEAN, *names)
        return _ToDo((), new, engine, earlier.get("dtype"))
    there = references_of(output.record)
    new = names[len(there) :]
    _check_addition(plan, earlier["engine"], there, new)
    return _ToDo((CLEAN, *there), new, engine, earlier.get("dtype"))


def _machines(config: ScoreConfig) -> AbstractContextManager[Machines]:
    """A Ray with room for all actors, or the cluster that is named."""
    cores = os.cpu_count() or 1
    spelled = (config.workers, config.prepare_workers)
    actors = sum(parse_range(each)[1] if each else cores for each in spelled)
    at_once = sum(parse_range(each)[1] if each else 1 for each in spelled)
    return machines(config.address, actors=actors, least_cpus=at_once + _CPUS_OF_RAY_DATA)


def _placement(plan: Plan, todo: _ToDo, ray_has: Machines, *, here: bool) -> Placement:
    config = plan.config
    device = ray_has.device(config.device, "scoring")
    engine, why = ("torch", "in this process") if here else engine_there(todo.engine, todo.new, ray_has, device)
    if config.engine != plan.engine and todo.new != (TEXT,):
        why = f"{config.engine}: the model's processor makes each sample as a whole"
    if config.vllm and engine != "vllm":
        log.warning("--vllm has no effect: the %s engine runs", engine)
    model = config.reference_model if todo.new == (TEXT,) and config.reference_model else config.model
    dtype = config.dtype or todo.dtype or default_dtype(model, device)
    pools = ONE_OF_EACH if here else pools_for(config, ray_has, device, engine)
    return Placement(device, engine, why, dtype, pools)


def _score(
    plan: Plan,
    todo: _ToDo,
    placement: Placement,
    output: Claim,
    samples: str,
    decided: OfData,
    *,
    here: bool,
) -> dict[str, Any]:
    """Run the steps; when what was done. Raises StageError."""
    earlier_rows = rows_here if here else stored_rows
    there = [name for name in todo.held if name != CLEAN]
    earlier = earlier_rows(plan.scores, there) if todo.held else None
    passes = Passes(todo.held, todo.new, decided.images, earlier)
    table, rows = scores_schema(todo.references), plan.config.rows_per_file
    if here:
        steps = steps_of(plan.config, passes, decided, placement, None)
        return run_steps_here(samples, output, table, steps, rows_per_file=rows)
    return run_steps(
        samples,
        output,
        table,
        lambda counter: steps_of(plan.config, passes, decided, placement, counter),
        rows_per_block=rows,
    )


def _here(in_process: bool | None, engine: str, config: ScoreConfig, samples: str) -> bool:
    """Whether to score in this process. `engine`: the one that is asked for. Raises StageError where it can't be."""
    possible = engine in ("auto", "torch")
    if in_process and not possible:
        raise StageError(f"--engine {engine}: runs in a process of its own, by Ray; leave in_process out")
    if in_process and config.address:
        raise StageError(f"--address {config.address}: scoring there is by Ray; leave in_process out")
    if in_process is None:
        return possible and not config.vllm and not joins(config.address) and count_samples(samples) < FEW
    return in_process


def _imported(config: ScoreConfig, *, brief: bool) -> str:
    """Import the data; on a cluster its machines do it, so that no row passes through the driver."""
    there = joins(config.address)
    here = nullcontext()
    with RowProgress("import", None, brief=brief) as bar, machines(config.address, actors=0) if there else here:
        report = importing.run(import_config(config), bar.update, on_machines if there else None)
    for note in report.notes():
        log.info("%s", note)
    return report.directory


def _located(model: str) -> str:
    """The folder of a checkpoint in full; a hub id as it is."""
    return os.path.abspath(os.path.expanduser(model)) if is_local(model) else model


def _of_data(config: ScoreConfig, samples: str) -> OfData:
    """What the samples decide of the references that are asked for."""
    return of_data(
        samples, config.reference, blur=config.blur, images=config.marginal_images, seed=config.reference_seed,
        max_pixels=config.max_image_pixels,
    )  # fmt: skip


def _references(plan: Plan, decided: OfData) -> list[dict[str, Any]]:
    """Of each reference its name and its parameters, as the record holds them."""
    known = plan.parameters | decided.parameters(plan.config.blur)
    return [{"name": name, "parameters": known[name]} for name in plan.config.reference]


def _identity(plan: Plan, samples: str, decided: OfData) -> dict[str, Any]:
    """What must be equal for scores to belong to the same run; JSON values."""
    imported = read_stage(samples) or {}
    config = plan.config
    return {
        "samples": importing.identity_of(imported),
        "model": plan.model,
        "template": plan.template,
        "engine": None if config.engine == "auto" else config.engine,
        "vllm": deciding(config.vllm),
        **({"passes": "text"} if config.passes == "text" else {}),
        "references": _references(plan, decided),
        "dtype": config.dtype,
        "max_length": config.max_length,
        "too_long": config.too_long,
        "max_image_pixels": config.max_image_pixels,
    }


def _replaces_text(plan: Plan) -> bool:
    """Whether the first phase of a run that may replace finds another text pass than the second one is to make."""
    if not plan.config.overwrite or TEXT not in plan.parameters or plan.config.passes == "text":
        return False
    record = read_stage(plan.scores) or {}
    theirs = record.get("identity", {}).get("references", ())
    return any(each["name"] == TEXT and each["parameters"] != plan.parameters[TEXT] for each in theirs)


def _text_options(config: ScoreConfig, output: Claim) -> dict[str, Any]:
    """The options of a text pass that is there and that this run leaves as it is: the record is to tell them."""
    if config.reference_model or output.state != "extend" or TEXT not in references_of(output.record):
        return {}
    return {name: output.record["config"][name] for name in TEXT_OPTIONS}


def _check_version(scores: str) -> None:
    """Raise StageError where an earlier version wrote these scores, which knew one reference a run."""
    record = read_stage(scores) if exists(record_file(scores)).name == "File" else None
    if record is not None and record["stage"] == "score" and of_one_reference(record):
        raise StageError(
            f"{scores}: written by an earlier version of vig-ray; it can be read, but not gone on with or added to: "
            "choose another --out, or --overwrite to score anew"
        )


def _check_begun(output: Claim) -> None:
    """Raise StageError where another addition was begun and not finished: this one would drop what it has scored."""
    begun = output.record.get("extending")
    if begun and begun["run"] != output.run:
        have = set(references_of(output.record))
        added = ",".join(each["name"] for each in begun["identity"]["references"] if each["name"] not in have)
        raise StageError(
            f"{output.directory}: adding {added} was begun and isn't finished; finish it with --reference {added}, or "
            "drop what it has scored with --overwrite"
        )


def _check_addition(plan: Plan, engine: str, there: Sequence[str], new: Sequence[str]) -> None:
    """Raise StageError where the engine that made the passes that are there can't make the new ones; else tell them."""
    try:
        check_engine(engine, new, {}, joins_cluster=joins(plan.config.address))
    except StageError as error:
        raise StageError(
            f"{plan.scores}: made by the {engine} engine, so {', '.join(new)} can't be added; choose another --out "
            f"({error})"
        ) from error
    if there:
        told = (plan.scores, ", ".join(there), ", ".join(new), there[0])
        log.info("%s: have %s, get %s; their vig stays that of %s", *told)
