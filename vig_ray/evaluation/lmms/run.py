"""Tasks of lmms-eval for one model: each in a process of its own, brought back when it is finished.

    OUT/evaluation/lmms/MODEL/TASK/results.json    as lmms-eval wrote it
                                  /samples/*.jsonl one line a question: what was answered, what it is worth
                                  /log.txt         what lmms-eval said
    OUT/evaluation/lmms/MODEL/TASK.stage.json      the record: a task that has one isn't run again

A task that fails doesn't stop the others, and is tried again by the next run. One that was killed begins anew:
lmms-eval keeps nothing of a task's answers before it has all of them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.asked import LMMS
from vig_ray.evaluation.lmms import inside
from vig_ray.evaluation.lmms.child import last_words, running
from vig_ray.evaluation.lmms.environment import VERSION, python_of
from vig_ray.evaluation.lmms.model import Asked, Server, served, serving, wrapped
from vig_ray.evaluation.lmms.results import LOG, LmmsResult, collect, read
from vig_ray.model.checkpoint import fingerprint
from vig_ray.progress import duration
from vig_ray.scoring.engines.load import deciding
from vig_ray.stage import Claim, StageConfig, claim, read_stage
from vig_ray.storage import filesystem, join, scheme_of

log = logging.getLogger(__name__)

FOLDER = "lmms"
"""The folder in OUT/evaluation that holds lmms-eval's results."""
_STAGE = "eval"
_TO_LIST = 900  # seconds: much is read, from a disk that may be slow
_TO_SERVE = 1800  # seconds: large weights are read
_BETWEEN_LOOKS = 0.5  # seconds: whether the server is still there


@dataclass(frozen=True)
class LmmsOptions:
    """What a command says of lmms-eval's tasks.

    `environment`: its folder, by default in the user's cache. `include`: folder with tasks of the user's own, as YAML.
    `wrapper`: lmms-eval's class of the model, "NAME[,ARGUMENT=VALUE...]". `through`: "vllm", its server, or "torch",
    lmms-eval's wrapper. `timeout`: seconds for a task. `generation`: what replaces the tasks' own, lmms-eval's names.
    """

    through: str
    device: str
    environment: str | None = None
    include: str | None = None
    wrapper: str | None = None
    dtype: str | None = None
    vllm: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    limit: int | None = None
    seed: int = 0
    generation: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 86_400


@dataclass(frozen=True)
class Failed:
    """A task that gave no result; `why` in one line."""

    why: str


def check(tasks: Sequence[str], checkpoints: Sequence[str], options: LmmsOptions) -> None:
    """Whether lmms-eval is there, has the tasks, and can ask the models. `tasks`: without their prefix.

    Takes some ten seconds, in which lmms-eval reads all its tasks. Raises StageError.
    """
    python_of(options.environment)
    secret = re.search(r",\s*(\w*(?:key|token|secret|password)\w*)\s*=", options.wrapper or "", re.IGNORECASE)
    if secret:
        raise StageError(
            f"--lmms-wrapper: {secret[1]} would be recorded; lmms-eval's classes read their keys from the environment"
        )
    for checkpoint in checkpoints:
        if options.through == "torch":
            _asked(checkpoint, options)
    if options.include is not None and not os.path.isdir(options.include):
        raise StageError(f"--lmms-include {options.include}: no such folder")
    with _elsewhere() as folder:
        known = _inside(["tasks", *_included(options)], folder, options, _TO_LIST)["tasks"]
    for task in tasks:
        if task not in known:
            like = difflib.get_close_matches(task, known, n=3)
            hint = f"; it has {', '.join(like)}" if like else ""
            raise StageError(f"--tasks {LMMS}{task}: lmms-eval {VERSION} has no such task{hint}")


def run_lmms(
    model: str,
    checkpoint: str,
    tasks: Sequence[str],
    out: str,
    options: LmmsOptions,
    config: StageConfig,
    *,
    overwrite: bool = False,
) -> dict[str, list[LmmsResult] | Failed]:
    """Ask one model all tasks that it hasn't answered, and read the results of all; by task, in their order.

    `model`: its name in the table. `tasks`: without their prefix. `out`: OUT/evaluation. Of a task that is a group the
    first result is its own, where it has one. Raises StageError where what lies in `out` is of other options, and where
    the model can't be asked at all.
    """
    outputs = {task: _claim(model, checkpoint, task, out, options, overwrite) for task in tasks}
    waiting = [task for task, output in outputs.items() if not output.complete]
    failed: dict[str, Failed] = {}
    for task in tasks:
        if task not in waiting:
            log.info("%s: %s%s is there already", model, LMMS, task)
    if waiting:
        with ExitStack() as stack:
            asked = stack.enter_context(_asking(checkpoint, join(out, FOLDER, model), options))
            for task in waiting:
                try:
                    _run(model, task, asked, outputs[task], options, config)
                except StageError as error:
                    log.warning("%s: %s%s failed: %s", model, LMMS, task, error)
                    failed[task] = Failed(str(error))
    return {task: failed.get(task) or _read(outputs[task], task) for task in tasks}


def _claim(model: str, checkpoint: str, task: str, out: str, options: LmmsOptions, overwrite: bool) -> Claim:
    identity = {
        "lmms-eval": VERSION,
        "task": task,
        "model": fingerprint(checkpoint),
        "through": options.wrapper or options.through,
        "dtype": options.dtype,
        "limit": options.limit,
        "seed": options.seed,
        "generation": dict(options.generation),
        "vllm": deciding(options.vllm) if options.through == "vllm" else None,
        "include": _digest(options.include),
    }
    return claim(join(out, FOLDER, model, task), _STAGE, identity, overwrite=overwrite, resumes=False)


def _digest(folder: str | None) -> str | None:
    """Of the YAML and Python files of tasks of the user's own."""
    if folder is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for path, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith((".yaml", ".yml", ".py")):
                with open(os.path.join(path, name), "rb") as file:
                    digest.update(f"{os.path.relpath(os.path.join(path, name), folder)}\0".encode() + file.read())
    return digest.hexdigest()


def _asked(checkpoint: str, options: LmmsOptions) -> Asked:
    return wrapped(
        checkpoint,
        options.wrapper,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )


@contextmanager
def _asking(checkpoint: str, folder: str, options: LmmsOptions) -> Iterator[Asked]:
    """How the model is asked, until the end of the block: its server runs as long."""
    if options.through == "torch":
        yield _asked(checkpoint, options)
        return
    with _near(folder) as place:
        server_log = os.path.join(place, "vllm-server.log")
        log.info("%s: vLLM's server starts", checkpoint)
        with serving(
            checkpoint,
            server_log,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            options=options.vllm,
            patience=_TO_SERVE,
        ) as server:
            yield served(server)


@contextmanager
def _near(folder: str) -> Iterator[str]:
    """A local folder to write to: that one where it is local, else another, which stays where the block fails."""
    if scheme_of(folder) in ("", "file"):
        path = filesystem(folder)[1]
        os.makedirs(path, exist_ok=True)
        yield path
    else:
        with _elsewhere() as path:
            yield path


@contextmanager
def _elsewhere() -> Iterator[str]:
    """A folder that goes at the end of the block, but stays where that fails, with what was said in it."""
    path = tempfile.mkdtemp(prefix="vig-lmms-")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _run(model: str, task: str, asked: Asked, output: Claim, options: LmmsOptions, config: StageConfig) -> None:
    """One task by lmms-eval. Raises StageError where it fails."""
    if asked.server is not None and (why := asked.server.ended) is not None:
        raise StageError(why)
    begun = time.monotonic()
    output.begin(config)
    log.info("%s: %s%s by lmms-eval, through %s", model, LMMS, task, asked.wrapper)
    with _near(output.work) as work:
        written = tempfile.mkdtemp(dir=work)
        command = ["run", *asked.words(), "--tasks", task, "--log_samples", "--output_path", written]
        command += ["--seed", str(options.seed), *_included(options)]
        if options.limit is not None:
            command += ["--limit", str(options.limit)]
        if options.generation:
            command += ["--gen_kwargs", ",".join(f"{name}={value}" for name, value in options.generation.items())]
        if options.trust_remote_code:
            command += ["--trust_remote_code"]
        outcome = _inside(command, work, options, options.timeout, asked.server)
        made = os.path.join(work, "made")
        collect(written, made)
        os.replace(os.path.join(work, LOG), os.path.join(made, LOG))
        facts = {"not_answered": outcome["not_answered"], "why": outcome["why"]}
        results = read(made, task, **facts)
        if outcome["not_answered"] and outcome["not_answered"] >= sum(result.questions for result in results):
            raise StageError(f"the model could answer none of its questions: {outcome['why']}")
        output.publish(made, os.path.basename(output.directory))
    output.commit(config, **facts)
    log.info("%s: %s%s took %s", model, LMMS, task, duration(time.monotonic() - begun))


def _included(options: LmmsOptions) -> list[str]:
    return [] if options.include is None else ["--include_path", os.path.abspath(options.include)]


def _inside(
    arguments: Sequence[str], folder: str, options: LmmsOptions, timeout: float, server: Server | None = None
) -> dict[str, Any]:
    """What `inside.py` reports of what it is told to do. Raises StageError where it fails or takes too long, and where
    the server that it asks ends: lmms-eval itself would try again and again."""
    report, said = os.path.join(folder, "report.json"), os.path.join(folder, LOG)
    if os.path.exists(report):
        os.remove(report)
    python = python_of(options.environment)
    with running([python, "-P", str(inside.__file__), report, *arguments], said, {"VERBOSITY": "INFO"}) as process:
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, _BETWEEN_LOOKS))
                break
            if server is not None and (why := server.ended) is not None:
                raise StageError(why)
        else:
            raise StageError(f"it took longer than {duration(timeout)}, --lmms-timeout (what it said: {said})")
    if not os.path.exists(report):
        status = f"status {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
        raise StageError(f"lmms-eval ended with {status}: {last_words(said)} (all of it: {said})")
    with open(report, encoding="utf-8") as file:
        outcome: dict[str, Any] = json.load(file)
    if outcome["error"] is not None:
        raise StageError(f"{' '.join(outcome['error'].split())[:300]} (what it said: {said})")
    return outcome


def _read(output: Claim, task: str) -> list[LmmsResult]:
    """The results of a finished task."""
    record = read_stage(output.directory) or {}
    return read(output.directory, task, not_answered=record.get("not_answered", 0), why=record.get("why"))
