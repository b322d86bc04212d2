"""`vig eval`: what models answer to the questions of tasks, and a table of what that is worth.

    a task's files  ->  questions/TASK  ->  prepare  ->  answer  ->  mark  ->  OUT/evaluation/MODEL
                                            (CPUs)      (engines)   (CPUs)

lmms-eval's tasks (`lmms:...`) come after them, in processes of their own: see `vig_ray.evaluation.lmms`.

One run of Ray Data a model, over the questions of all tasks, one model after the other. A run that was killed goes on
where it was; a model that is finished isn't asked again, and gets the answers of tasks that it lacks.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vig_ray.cluster import Machines, joins, machines, parse_range, warn_of_few_cpus
from vig_ray.errors import StageError
from vig_ray.evaluation.answer import Answerer
from vig_ray.evaluation.asked import Asked, Model, asked_for, models_of
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.decoding import Decoding
from vig_ray.evaluation.generation import Sampling
from vig_ray.evaluation.lmms.asked import of_lmms
from vig_ray.evaluation.lmms.asked import planned as lmms_planned
from vig_ray.evaluation.lmms.run import LmmsOptions, run_lmms
from vig_ray.evaluation.lmms.table import InTable, in_table
from vig_ray.evaluation.load import check_generator
from vig_ray.evaluation.mark import Marker
from vig_ray.evaluation.outcomes import compared, read_marked
from vig_ray.evaluation.prepare import QuestionPreparer
from vig_ray.evaluation.questions import STAGE, Read, survey, write
from vig_ray.evaluation.schema import ANSWERS
from vig_ray.evaluation.summary import EvalSummary
from vig_ray.model.checkpoint import fingerprint
from vig_ray.model.load import Prompts, default_dtype, load_formatter, prompts_of, stop_ids, tell, template_fingerprint
from vig_ray.pipeline import Step, commit_block, run_steps
from vig_ray.scoring.engines.load import check_engine, deciding, engine_for
from vig_ray.scoring.in_process import run_steps_here
from vig_ray.scoring.placement import ONE_OF_EACH, Pools, engine_there, pools_for
from vig_ray.stage import Claim, claim, parquet_files, read_stage
from vig_ray.storage import check_writable, filesystem, join, write_bytes
from vig_ray.this_process import this_process
from vig_ray.whole_files import whole_files

log = logging.getLogger(__name__)

_ROWS_PREPARED_AT_ONCE = 64
_CPUS_OF_RAY_DATA = 4  # to read, to cut into blocks, to filter the rows done before and to write, all at once
SUMMARY = "summary.json"
"""The table as JSON, in OUT/evaluation."""
ATTENTION = "attention.parquet"
"""Curves over layers, beside it."""


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


def run(config: EvalConfig, *, in_process: bool = False) -> EvalSummary:
    """Ask, mark and compare; returns the table, which OUT/evaluation/summary.json holds, too.

    `in_process`: without a Ray, by one engine in this process: for a few questions, as a notebook has them.

    Raises StageError, before any model is loaded, where the config, the tasks' data, a model or what is in `OUT` is
    wrong, and where none of a model's questions could be answered.
    """
    plan = check(config)
    if in_process and (config.address or config.engine == "vllm"):
        raise StageError("in_process: neither with --address nor with --engine vllm, which run elsewhere")
    outputs = [_claim(plan, model) for model in plan.models]
    waiting = [(model, output) for model, output in zip(plan.models, outputs, strict=True) if not output.complete]
    for model, output in zip(plan.models, outputs, strict=True):
        if output.complete:
            log.info("%s: has answered already, nothing to ask", model.model.name)
    for asked in plan.tasks if waiting else ():
        asked.check()
    for asked, read in zip(plan.tasks, plan.questions, strict=True):
        write(read, asked, config, overwrite=config.overwrite)
    if waiting:
        with this_process() if in_process else _machines(config) as ray_has:
            if ray_has.cores is None:
                warn_of_few_cpus(3 + _CPUS_OF_RAY_DATA)  # an actor of each pool
            for model, output in waiting:
                _answer(plan, model, output, ray_has, here=in_process)
    return _summarised(plan, _of_lmms(plan))


def _of_lmms(plan: Plan) -> InTable:
    """What lmms-eval finds. Raises StageError where it is all that was asked, and it found nothing."""
    if plan.lmms is None:
        return InTable((), (), 0)
    config, tasks = plan.config, of_lmms(plan.config.tasks)
    found = {
        model.name: run_lmms(
            model.name, model.checkpoint, tasks, plan.directory, plan.lmms, config, overwrite=config.overwrite
        )
        for model in plan.named
    }
    shown = in_table(found, plan.baseline, draws=config.draws, seed=config.seed)
    if not (shown.tasks or plan.tasks):
        raise StageError("; ".join(shown.told))
    return shown


def _claim(plan: Plan, model: ModelPlan) -> Claim:
    """What happens with a model's answers. Raises StageError where others are there."""
    directory = join(plan.directory, model.model.name)
    tasks = [read.identity for read in plan.questions]
    there = {task["name"]: task for task in ((read_stage(directory) or {}).get("identity", {}).get("tasks", ()))}
    for task in tasks:
        if not plan.config.overwrite and there.get(task["name"], task) != task:
            raise StageError(
                f"{directory}: its answers of {task['name']} are to other questions, or were asked with other options; "
                "choose another --out, or --overwrite to ask again"
            )
    output = claim(
        directory,
        STAGE,
        model.identity | {"tasks": tasks},
        overwrite=plan.config.overwrite,
        left_open=("engine", "dtype"),
        grows="tasks",
    )
    begun = output.record.get("extending") if output.state == "extend" else None
    if begun and begun["run"] != output.run and not plan.config.overwrite:
        names = [task["name"] for task in begun["identity"]["tasks"] if task["name"] not in there]
        raise StageError(
            f"{directory}: adding {','.join(names)} was begun and isn't finished; finish it with --tasks "
            f"{','.join(names)}, or drop what was answered with --overwrite"
        )
    return output


def _machines(config: EvalConfig) -> Any:
    """A Ray with room for all actors, or the cluster that is named."""
    cores = os.cpu_count() or 1
    spelled = (config.workers, config.prepare_workers)
    actors = sum(parse_range(each)[1] if each else cores for each in spelled) + 1
    at_once = sum(parse_range(each)[1] if each else 1 for each in spelled) + 1
    return machines(config.address, actors=actors, least_cpus=at_once + _CPUS_OF_RAY_DATA)


def _answer(plan: Plan, model: ModelPlan, output: Claim, ray_has: Machines, *, here: bool) -> None:
    """Ask one model all questions that it hasn't answered. Raises StageError."""
    config = plan.config
    earlier = output.record["identity"] if output.state in ("go on", "extend") else {}
    device = ray_has.device(config.device, "answering")
    asked = model.engine if model.engine != "auto" else earlier.get("engine")
    if asked in (None, "auto") and (here or Decoding.of(config.decoding).name != Decoding.name):
        engine, why = "torch", "in this process" if here else "auto: vLLM has no decoding methods"
    elif asked in (None, "auto") and any(read.attends for read in plan.questions):
        engine, why = "torch", "auto: attention is told by torch alone"
    else:
        engine, why = engine_there(asked or "auto", plan.passes, ray_has, device)
    if here and engine == "vllm":
        raise StageError(f"{output.directory}: an earlier run took vllm, which runs by Ray; leave in_process out")
    if any(read.attends for read in plan.questions) and engine == "vllm":  # an earlier run's
        raise StageError(f"{output.directory}: answered by vllm, and attention needs torch; choose another --out")
    dtype = config.dtype or earlier.get("dtype") or default_dtype(model.model.checkpoint, device)
    pools = ONE_OF_EACH if here else pools_for(config, ray_has, device, engine)
    held = {task["name"] for task in output.record["identity"]["tasks"]} if output.state == "extend" else set()
    new = [read for asked, read in zip(plan.tasks, plan.questions, strict=True) if asked.name not in held]
    output.begin(config, identity=output.identity | {"engine": engine, "dtype": dtype})
    log.info("%s: %s engine (%s) on %s in %s, %s at a time", model.model.name, engine, why, device, dtype, pools.text())
    load = {
        "name": engine,
        "prompts": model.prompts,
        "writes": any(read.writes for read in new),
        "scores": any(read.scores for read in new),
        "attends": any(read.attends for read in new),
        "dtype": dtype,
        "device": device,
        "batch_tokens": config.batch_tokens,
        "threads": pools.threads,
        "vllm": config.vllm,
        "max_new_tokens": max(_longest(plan).values()),
        "decoding": config.decoding,
    }
    directories, rows = [read.directory for read in new], config.rows_per_file
    if here:
        run_steps_here(directories, output, ANSWERS, _steps(plan, model.prompts, load, pools, None), rows_per_file=rows)
    else:
        run_steps(
            directories,
            output,
            ANSWERS,
            lambda counter: _steps(plan, model.prompts, load, pools, counter),
            rows_per_block=rows,
        )
    expected = sum(read.number for read in new) + _carry_over(output)
    _check_rows(output, expected)
    output.commit(config, counts={"read": expected})


def _steps(plan: Plan, prompts: Prompts, load: dict[str, Any], pools: Pools, counter: Any) -> list[Step]:
    config = plan.config
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    # Questions are prepared in groups that stay together, so that many groups of one size are a window.
    window = min(config.window, config.rows_per_file)
    groups = math.ceil(window / _ROWS_PREPARED_AT_ONCE)
    prepare = {"prompts": prompts, "passes": plan.passes, "max_image_pixels": config.max_image_pixels}
    answer = {"load": load, "sampling": sampling, "max_new_tokens": _longest(plan), "progress": counter}
    return [
        Step(QuestionPreparer, prepare, batch_rows=math.ceil(window / groups), actors=pools.preparers),
        Step(
            Answerer,
            answer,
            batch_rows=groups,
            actors=pools.engines,
            cpus=0.5 if pools.gpus_each else 1,
            gpus=pools.gpus_each,
            calls_ahead=4,
        ),
        Step(Marker, {"tasks": plan.tasks}, batch_rows=window, actors=(1, pools.preparers[1])),
    ]


def _longest(plan: Plan) -> dict[str, int]:
    """The most tokens of an answer, by task."""
    return {asked.name: plan.config.max_new_tokens or asked.begun().max_new_tokens for asked in plan.tasks}


def _carry_over(output: Claim) -> int:
    """Copy what the finished run has answered to files of the run that extends it; how many rows that are."""
    if output.state != "extend":
        return 0
    fs, _ = filesystem(output.directory)
    to_fs, to_path = whole_files(output.directory, join(output.work, "unfinished"))
    rows = 0
    for number, path in enumerate(parquet_files(output.directory)):  # of the finished run, until this one is committed
        table = pq.read_table(path, filesystem=fs)
        copy = f"{to_path}/{output.run}-earlier{number:06d}-0.parquet"
        pq.write_table(table, copy, filesystem=to_fs, compression="zstd")
        commit_block(output, copy, table["sample_key"])  # a run that is killed now goes on with it
        rows += table.num_rows
    return rows


def _check_rows(output: Claim, expected: int) -> None:
    """Raise StageError where rows are missing, or all have failed."""
    fs, _ = filesystem(output.directory)
    rows, failed, example = 0, 0, ""
    for path in output.paths:
        errors = pq.read_table(path, filesystem=fs, columns=["error"])["error"]
        rows += len(errors)
        failed += len(errors) - errors.null_count
        example = example or next((error for error in errors.drop_null().to_pylist()), "")
    if rows != expected:
        raise StageError(
            f"{output.directory}: {rows:,} rows written for {expected:,} questions; on several machines every path "
            "must be on storage that all of them share"
        )
    if rows == failed:
        raise StageError(f"{output.directory}: no question could be answered, such as: {example}")


def _summarised(plan: Plan, lmms: InTable) -> EvalSummary:
    """Compute the numbers, and write them to summary.json."""
    config, names = plan.config, [model.name for model in plan.named]
    tasks, curves, told = [], [], list[str]()
    for asked in plan.tasks:
        marked, task = {name: read_marked(join(plan.directory, name), asked.name) for name in names}, asked.begun()
        tasks.append(compared(task, marked, plan.baseline, draws=config.draws, seed=config.seed))
        if hasattr(task, "told"):
            told += task.told(marked, plan.baseline)
        if hasattr(task, "curves"):
            curves.append(task.curves(marked, plan.baseline, draws=config.draws, seed=config.seed))
    summary = EvalSummary(
        plan.directory,
        {model.name: model.checkpoint for model in plan.named},
        plan.baseline,
        (*tasks, *lmms.tasks),
        config.draws,
        config.seed,
        (*told, *lmms.told),
        lmms.failed,
    )
    output = claim(
        join(plan.directory, "summary"),
        STAGE,
        {},
        overwrite=True,
        folders=(),
        files=[SUMMARY, ATTENTION],
        resumes=False,
        again=True,
    )
    output.begin(config)
    text = json.dumps(summary.json(), indent=1, ensure_ascii=False)
    write_bytes(join(plan.directory, SUMMARY), f"{text}\n".encode())
    if curves:
        fs, path = filesystem(join(plan.directory, ATTENTION))
        pq.write_table(pa.concat_tables(curves), path, filesystem=fs)
    output.commit(config)
    return summary
