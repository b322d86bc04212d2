"""One stage of a study, in a worker of Ray: by itself in this process where that does it, else by jobs of its own on
the same Ray."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any, TextIO

import ray

import vig_ray
from vig_ray.cluster import alone, parse_range
from vig_ray.errors import StageError
from vig_ray.storage import join, one_line, read_bytes
from vig_ray.study import record as records
from vig_ray.study import spent
from vig_ray.study.curves import TRAININGS, exported_by
from vig_ray.study.graph import Node
from vig_ray.study.record import LOG, NO_SIZE, Record, command_of, folder_of, out_of
from vig_ray.study.sizes import like, measured
from vig_ray.study.stages import KINDS, loaded
from vig_ray.training.shares import name_of, step_of


def by_jobs(node: Node) -> bool:
    """Whether a node starts workers of its own instead of running in one process: where it is told how many, or needs
    an engine that has processes of its own, or its verb knows no other way."""
    kind, options = KINDS[node.verb], node.options
    if kind.alone:
        return False
    workers = str(options.get("workers", "1"))
    return not kind.here or parse_range(workers)[1] > 1 or options.get("engine", "torch") not in ("torch", "auto")


def carry_out(node: Node, out: str, gpus: int, attempt: str = "") -> Record:
    """Run a stage and keep its record. What the stage itself finds wrong is a record that says so; anything else is
    raised. `attempt`: a name for this try."""
    config_class, run = loaded(node.verb)
    folder, command = folder_of(out, node.name), command_of(node, out)
    kind = KINDS[node.verb]
    state, told, table = "done", "", None
    with spent.counted(out, node.name, gpus, attempt) as so_far, _log_of(folder) as log:
        try:
            config = config_class.model_validate({**node.options, "out": out_of(out, node)})
            if by_jobs(node):
                outcome = run(config)
            else:
                with alone():
                    outcome = run(config, in_process=True) if kind.here else run(config)
            told = outcome.text()
            table = outcome.json() if node.verb == "eval" else None
        except StageError as error:
            state, told = "failed", str(error)
        except OSError as error:
            state, told = "failed", one_line(error) or type(error).__name__
        log.write(told + "\n")
    took = so_far()
    record = Record(
        name=node.name, stage=node.stage, verb=node.verb, command=command, state=state, told=told,  # type: ignore[arg-type]
        seconds=took.seconds, gpus=gpus, gpu_seconds=took.gpu_seconds,
        table=table, **(_trained(node, folder, took.seconds) if state == "done" else {}), version=vig_ray.__version__,
        like=like(node), size=measured(node, out) if state == "done" else NO_SIZE,
        machine=f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:12]}",
    )  # fmt: skip
    records.write(out, record)
    spent.forget(out, node.name)
    return record


@contextlib.contextmanager
def _log_of(folder: str) -> Iterator[TextIO]:
    """What vig_ray logs meanwhile, and prints on standard error, goes to log.txt of a stage, behind what is there."""
    logger = logging.getLogger("vig_ray")
    level = logger.level
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, LOG), "a", buffering=1, encoding="utf-8") as log:  # a killed one leaves what it said
        handler = logging.StreamHandler(log)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stderr(log):
                yield log
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _trained(node: Node, folder: str, seconds: float) -> dict[str, Any]:
    """Of a training that took so long the tokens that its loss was of, all epochs, and both up to each share of its
    steps that it wrote: the time by that of the steps, with their part of what else there was."""
    if node.verb not in TRAININGS:
        return {}
    text = read_bytes(join(folder, "training", "log.jsonl")).decode()
    lines = [json.loads(line) for line in text.splitlines()]
    tokens, times = ([line[name] for line in lines] for name in ("active_tokens", "seconds"))
    at = {}
    for share in exported_by(node.options):
        steps = step_of(share, len(lines))
        at[name_of(share)] = {
            "tokens": sum(tokens[:steps]), "seconds": seconds * sum(times[:steps]) / (sum(times) or 1.0),
        }  # fmt: skip
    return {"tokens": sum(tokens), "at": at}


def _in_a_worker(node: Node, out: str, gpus: int, attempt: str) -> Record:
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return carry_out(node, out, gpus, attempt)


def task_of(node: Node, *, gpus: bool, retries: int) -> tuple[Any, int]:
    """The Ray task that runs a node, and the GPUs that it or its workers hold.

    What a lost machine was doing is done again by another, which goes on from what the stage had kept.
    """
    jobs, device = by_jobs(node), node.options.get("device", "auto")
    on_gpus = KINDS[node.verb].computes and (device == "cuda" or (device == "auto" and gpus))
    held = parse_range(str(node.options.get("workers") or "1"))[1] if on_gpus else 0
    task = ray.remote(
        num_cpus=0 if jobs else 1, num_gpus=int(on_gpus and not jobs), max_retries=retries, retry_exceptions=False
    )
    return task(_in_a_worker).options(name=node.name), held
