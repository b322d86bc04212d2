"""The nodes of a study's graph as tasks on Ray: each as soon as its inputs are there, those of the first cells
first."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import ray

import vig_ray
from vig_ray.cluster import Machines
from vig_ray.errors import StageError
from vig_ray.storage import one_line
from vig_ray.study import record as records
from vig_ray.study import spent
from vig_ray.study.carry_out import by_jobs, task_of
from vig_ray.study.file import Budget
from vig_ray.study.graph import Cell, Node
from vig_ray.study.record import Record, command_of
from vig_ray.study.spent import Spent

_RETRIES = 3
_LOOK_S = 1.0


@dataclass
class Progress:
    """How far a study is. `records`: of the nodes that have ended; `taken`: those of them that were there before;
    `earlier`: what the others took in tries that were killed or failed; `handed`: those that Ray has been handed, and
    the name of the try; `running`: when those of them that have begun did so, by a clock that only goes forward;
    `without`: nodes that can't run, with the failed one that is the reason; `over`: why the rest isn't begun, where a
    budget is spent."""

    records: dict[str, Record] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    earlier: dict[str, Spent] = field(default_factory=dict)
    handed: dict[str, str] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)
    over: str = ""

    def done(self, name: str) -> bool:
        """Whether a node's output is there."""
        return name in self.records and self.records[name].done

    def forget(self, name: str) -> None:
        """Take a node for one that has never run."""
        self.records.pop(name, None)
        self.earlier.pop(name, None)
        self.taken.discard(name)

    def hours(self) -> tuple[float, float]:
        """Of all stages that ended, and those of GPUs: also of earlier runs of the same study, whatever became of the
        tries."""
        unfinished = [each for name, each in self.earlier.items() if name not in self.records]
        seconds = sum(each.seconds for each in self.records.values()) + sum(each.seconds for each in unfinished)
        on_gpus = sum(each.on_gpus for each in self.records.values()) + sum(each.gpu_seconds for each in unfinished)
        return seconds / 3600, on_gpus / 3600


def in_order(cells: Sequence[Cell], nodes: Mapping[str, Node]) -> list[Node]:
    """The nodes of cells, each once and after its inputs, those of the first cells first."""
    names = dict.fromkeys(name for cell in cells for name in cell.nodes)
    return [nodes[name] for name in names]


def take_what_is_there(progress: Progress, nodes: Sequence[Node], out: str) -> None:
    """Note the nodes whose outputs an earlier run has left whole, and what the others have taken so far."""
    for node in nodes:
        if node.name in progress.records:
            continue
        found = records.read(out, node.name)
        if found is not None and found.done:
            progress.records[node.name] = found
            progress.taken.add(node.name)
        else:
            progress.earlier[node.name] = spent.read(out, node.name)


def run(
    progress: Progress,
    nodes: Sequence[Node],
    out: str,
    ray_has: Machines,
    *,
    at_once: int | None,
    budget: Budget,
    told: Callable[[Record], None],
    look: Callable[[], None],
) -> None:
    """Run all nodes that haven't ended. A failed one costs those that need it, and no other.

    `at_once`: the most tasks at a time, None where Ray's resources alone decide. `told`: called with each record as it
    comes; `look`: called every second.
    """
    waiting = [node for node in nodes if node.name not in progress.records and node.name not in progress.without]
    under_way: dict[ray.ObjectRef, tuple[Node, int]] = {}
    try:
        while waiting or under_way:
            waiting = _settle(progress, waiting)
            progress.over = progress.over or _spent(progress, budget)
            if progress.over:
                waiting = []
            for node in _ready(progress, waiting):
                if at_once is not None and len(under_way) >= at_once:
                    break
                # Those that start workers of their own, one at a time: each might hold what the other waits for.
                if by_jobs(node) and any(by_jobs(other) for other, _ in under_way.values()):
                    continue
                task, gpus = task_of(node, gpus=bool(ray_has.gpus), retries=_RETRIES)
                attempt = progress.handed[node.name] = secrets.token_hex(4)
                under_way[task.remote(node, out, gpus, attempt)] = node, gpus
                waiting.remove(node)
            _see_what_has_begun(progress, out)
            look()
            if under_way:
                ended, _ = ray.wait(list(under_way), num_returns=1, timeout=_LOOK_S)
                for each in ended:
                    node, gpus = under_way.pop(each)
                    progress.records[node.name] = found = _outcome(each, node, out, gpus, progress)
                    told(found)
    finally:
        for each in under_way:
            ray.cancel(each, force=True)


def _see_what_has_begun(progress: Progress, out: str) -> None:
    """Note which of the stages that Ray has been handed have begun: on a cluster most wait for a place."""
    for name, attempt in progress.handed.items():
        if name not in progress.running:
            with contextlib.suppress(OSError, StageError):  # is being written; looked at again
                if spent.read(out, name).attempt == attempt:
                    progress.running[name] = time.monotonic()


def _ready(progress: Progress, waiting: Sequence[Node]) -> list[Node]:
    return [node for node in waiting if all(progress.done(name) for name in node.inputs)]


def _settle(progress: Progress, waiting: Sequence[Node]) -> list[Node]:
    """The nodes that may still run: without those that need what has failed, which are noted."""
    left = []
    for node in waiting:
        failed = [name for name in node.inputs if name in progress.records and not progress.records[name].done]
        missing = [progress.without[name] for name in node.inputs if name in progress.without]
        if failed or missing:
            progress.without[node.name] = (failed or missing)[0]
        else:
            left.append(node)
    return left


def _spent(progress: Progress, budget: Budget) -> str:
    hours, on_gpus = progress.hours()
    for name, so_far, most in (("hours", hours, budget.hours), ("gpu_hours", on_gpus, budget.gpu_hours)):
        if most is not None and so_far >= most:
            return f"budget.{name}: {so_far:.2f} of {most:g} are spent"
    return ""


def _outcome(reference: ray.ObjectRef, node: Node, out: str, gpus: int, progress: Progress) -> Record:
    """What a task came to."""
    progress.handed.pop(node.name)
    progress.running.pop(node.name, None)
    try:
        found: Record = ray.get(reference)
        return found
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        told = f"{type(cause).__name__}: {one_line(cause)}"[:500]
    except ray.exceptions.RayError as error:
        told = f"lost {_RETRIES + 1} times: {one_line(error)}"[:500]
    took = progress.earlier.get(node.name, Spent())
    with contextlib.suppress(OSError, StageError):
        took = spent.read(out, node.name)
    failed = Record(
        name=node.name, stage=node.stage, verb=node.verb, command=command_of(node, out), state="failed", told=told,
        seconds=took.seconds, gpus=gpus, gpu_seconds=took.gpu_seconds, version=vig_ray.__version__,
    )  # fmt: skip
    with contextlib.suppress(OSError, StageError):  # it is told on the terminal all the same
        records.write(out, failed)
        spent.forget(out, node.name)
    return failed
