"""What of a study's file is run, by the command's options, and whether the numbers that it names are there."""

from __future__ import annotations

from typing import Any

from vig_ray.errors import StageError
from vig_ray.evaluation.tasks import task
from vig_ray.study import file as files
from vig_ray.study.config import StudyConfig
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import Graph
from vig_ray.study.results import asked_for


def check_names(study: StudyFile, path: str, graph: Graph) -> None:
    """Raise StageError for a row of an order that there isn't, a size that is none, or a number that no task has. Parts
    of a task, and what lmms-eval has, are known afterwards."""
    labels = {cell.label for cell in graph.cells}
    for text in study.orders:
        for arm in files.Order.parse(text).arms:
            if arm not in study.arms and arm not in labels:
                near = ", ".join(sorted(label for label in labels if label.partition(" ")[0] == arm.partition(" ")[0]))
                raise StageError(f"{path}: orders: {arm}: no such row; there are {near}")
    if study.scaling is not None:
        for value in study.vary[study.scaling.over]:
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise StageError(f"{path}: scaling.over: {study.scaling.over}: {value}: takes sizes above 0")
    names = dict.fromkeys(
        name for node in graph.nodes.values() if node.verb == "eval" for name in _tasks(node.options["tasks"])
    )
    known = {name: [metric.name for metric in task(name).metrics_of] for name in names if not name.startswith("lmms:")}
    for asked in asked_for(study):
        name, dot, metric = asked.rpartition(".")
        if not dot or (name in known and metric not in known[name]):
            there = known.get(name) or [f"{each}.{one}" for each, metrics in known.items() for one in metrics]
            raise StageError(f"{path}: {asked}: no such number; there are {', '.join(there)}")
        if not any(name == each or name.startswith(each.partition(":")[0]) for each in names):
            raise StageError(f"{path}: {asked}: stages.eval.tasks has no {name}; there are {', '.join(names)}")


def headline(study: StudyFile, graph: Graph, path: str) -> tuple[str, bool]:
    """The number that a search goes by, the first that the study names or the first task's main one, and whether higher
    is better. Raises StageError where there is none that says which is better."""
    named = asked_for(study)
    names = _tasks(next(node for node in graph.nodes.values() if node.verb == "eval").options["tasks"])
    for name in names:
        for metric in () if name.startswith("lmms:") else task(name).metrics_of:
            full = f"{name}.{metric.name}"
            if (full == named[0] if named else metric.main) and metric.higher_is_better is not None:
                return full, metric.higher_is_better
    raise StageError(f"{path}: --search: name what it goes by, as measured: [TASK.METRIC], a number of which more or "
                     "less is better")  # fmt: skip


def _tasks(given: Any) -> list[str]:
    return [each.strip() for each in given.split(",")] if isinstance(given, str) else list(given)


def chosen(study: StudyFile, config: StudyConfig) -> StudyFile:
    """The study with what the command line leaves of it. Raises StageError."""
    changed: dict[str, Any] = {}
    if config.seeds is not None:
        if config.seeds > len(study.all_seeds):
            raise StageError(f"--seeds {config.seeds}: {config.study} has {len(study.all_seeds)}")
        changed |= {"seeds": study.all_seeds[: config.seeds], "more_seeds": None}
    if config.arms is not None:
        names = [name.strip() for name in config.arms.split(",")]
        for name in names:
            if name not in study.arms:
                raise StageError(f"--arms {name}: no such arm; {config.study} has {', '.join(study.arms)}")
        kept = {name: changes for name, changes in study.arms.items() if name in names}
        orders = [text for text in study.orders
                  if all(arm.partition(" ")[0] in kept for arm in files.Order.parse(text).arms)]  # fmt: skip
        changed |= {"arms": kept, "orders": tuple(orders)}
        if study.baseline not in kept:
            changed["baseline"] = None
    return study.model_copy(update=changed)
