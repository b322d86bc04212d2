"""One model asked all questions of a plan, by a run of Ray Data or in this process: OUT/evaluation/MODEL."""

from __future__ import annotations

import logging
import math
import os
from contextlib import AbstractContextManager
from typing import Any

import pyarrow.parquet as pq

from vig_ray.cluster import Machines, machines, parse_range
from vig_ray.errors import StageError
from vig_ray.evaluation.answer import Answerer
from vig_ray.evaluation.config import EvalConfig
from vig_ray.evaluation.decoding import Decoding
from vig_ray.evaluation.generation import Sampling
from vig_ray.evaluation.mark import Marker
from vig_ray.evaluation.plan import ModelPlan, Plan
from vig_ray.evaluation.prepare import QuestionPreparer
from vig_ray.evaluation.questions import STAGE
from vig_ray.evaluation.schema import ANSWERS
from vig_ray.model.load import Prompts, default_dtype
from vig_ray.pipeline import Step, commit_block, run_steps
from vig_ray.scoring.in_process import run_steps_here
from vig_ray.scoring.placement import ONE_OF_EACH, Pools, engine_there, pools_for
from vig_ray.stage import Claim, claim, parquet_files, read_stage
from vig_ray.storage import filesystem, join
from vig_ray.whole_files import whole_files

log = logging.getLogger(__name__)

_ROWS_PREPARED_AT_ONCE = 64
CPUS_OF_RAY_DATA = 4
"""To read, to cut into blocks, to filter the rows done before and to write, all at once."""


def claim_answers(plan: Plan, model: ModelPlan) -> Claim:
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


def machines_for(config: EvalConfig) -> AbstractContextManager[Machines]:
    """A Ray with room for all actors, or the cluster that is named."""
    cores = os.cpu_count() or 1
    spelled = (config.workers, config.prepare_workers)
    actors = sum(parse_range(each)[1] if each else cores for each in spelled) + 1
    at_once = sum(parse_range(each)[1] if each else 1 for each in spelled) + 1
    return machines(config.address, actors=actors, least_cpus=at_once + CPUS_OF_RAY_DATA)


def answer(plan: Plan, model: ModelPlan, output: Claim, ray_has: Machines, *, here: bool) -> None:
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
