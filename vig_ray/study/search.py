"""`vig study --search p=20..100`: which values of an option are worth a run at full length and with all seeds.

Successive halving as Ray Tune has it (ASHA; Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys
2020): every value of an arm trains a quarter of its steps and is asked the study's questions; of those of the arm that
have come so far the better half trains half of its steps, from the start, since a schedule has its length in it; and
the better half of those all of them. What comes to the end is run with all seeds.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from vig_ray.cluster import alone
from vig_ray.errors import StageError
from vig_ray.study import record as records
from vig_ray.study.carry_out import by_jobs, carry_out
from vig_ray.study.curves import SHORT_TUNING, TRAININGS
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import MODEL_NAME, Cell, Graph, Node, spell_out
from vig_ray.study.record import folder_of
from vig_ray.study.results import RUNGS, Tried
from vig_ray.study.stages import KINDS, loaded

log = logging.getLogger(__name__)

_VALUES = 5
_RANGE = re.compile(r"(-?[\d.]+)\.\.(-?[\d.]+)(?::(\d+))?")


class Searched(NamedTuple):
    """An option and its values. `name`: as `vary` has it."""

    name: str
    values: tuple[Any, ...]


def parse(text: str, study: StudyFile) -> Searched:
    """Of "p=20..100", "select.p=20..100:9" or "train.lr=1e-4,3e-4". Raises StageError."""
    name, equals, given = text.partition("=")
    if not equals or not given:
        raise StageError(f"--search {text}: takes NAME=LOW..HIGH[:HOW-MANY] or NAME=VALUE,VALUE,...")
    found = _RANGE.fullmatch(given)
    if found:
        values = _between(text, found[1], found[2], int(found[3] or _VALUES))
    else:
        values = [_number(each.strip()) for each in given.split(",")]
    if len(values) < 2:
        raise StageError(f"--search {text}: one value is no search; give several")
    full = _full_name(name.strip(), study, text)
    if full in study.vary:
        raise StageError(f"--search {text}: {full} is varied by the study; take it out of vary, or search another")
    return Searched(full, tuple(dict.fromkeys(values)))


def _between(text: str, low: str, high: str, count: int) -> list[Any]:
    """Evenly spaced from low to high; whole numbers where both are."""
    try:
        first, last = float(low), float(high)
    except ValueError as error:
        raise StageError(f"--search {text}: {error}") from error
    if not (first < last and count > 1):
        raise StageError(f"--search {text}: takes a lower value, a higher one, and at least two in all")
    values = [first + (last - first) * place / (count - 1) for place in range(count)]
    return [round(value) for value in values] if first.is_integer() and last.is_integer() else values


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text.lower() else value


def _full_name(name: str, study: StudyFile, text: str) -> str:
    """A value of the study, STAGE.OPTION, or an option that only one of its stages has."""
    stage, dot, _ = name.partition(".")
    if name in study.values or (dot and stage in study.stages):
        return name
    verbs = {stage: str(options.get("run", stage)) for stage, options in study.stages.items()}
    having = [stage for stage, verb in verbs.items() if verb in KINDS and name in loaded(verb)[0].model_fields]
    if len(having) == 1:
        return f"{having[0]}.{name}"
    which = f"an option of {' and '.join(having)}: say whose, STAGE.{name}" if having else "no stage has such an option"
    raise StageError(f"--search {text}: {name}: {which}")


@dataclass(frozen=True)
class Trial:
    """A cell of one value, and the nodes that each length of its training takes, the shortest first."""

    cell: Cell
    rungs: tuple[tuple[Node, ...], ...]


def training_of(cell: Cell, nodes: Mapping[str, Node]) -> Node:
    """The last training of a cell, not counting a short tuning. Raises StageError where it has none, or where it can't
    be run in one process."""
    trainings = [name for name in cell.nodes if nodes[name].verb in TRAININGS and nodes[name].stage != SHORT_TUNING]
    if not trainings:
        raise StageError(
            f"--search: {cell.label} trains nothing, so there is nothing to shorten; leave it out by --arms"
        )
    for name in _behind(cell, nodes, trainings[-1]):
        if by_jobs(nodes[name]):
            raise StageError(f"--search: {nodes[name].stage} of {cell.label} starts workers of its own, which a search "
                             "has no room for; search with one worker and the torch engine")  # fmt: skip
    return nodes[trainings[-1]]


def _behind(cell: Cell, nodes: Mapping[str, Node], first: str) -> list[str]:
    """The nodes of a cell that need `first`, itself among them."""
    found = [first]
    for name in cell.nodes:
        if any(each in found for each in nodes[name].inputs):
            found.append(name)
    return found


def before_training(cells: Sequence[Cell], graph: Graph) -> list[Node]:
    """The nodes of these cells that don't need the training, each after its inputs."""
    names: dict[str, None] = {}
    for cell in cells:
        behind = _behind(cell, graph.nodes, training_of(cell, graph.nodes).name)
        names |= dict.fromkeys(name for name in cell.nodes if name not in behind)
    return [graph.nodes[name] for name in names]


def trial_of(
    cell: Cell, study: StudyFile, path: str, graph: Graph, out: str, pilot: float | None, folder: str | None
) -> Trial:
    """A cell's trial; `folder`: where relative paths of the file at `path` start from. What doesn't need
    the training must be there, since it decides how many steps there are."""
    training = training_of(cell, graph.nodes)
    whole, rungs = _steps(training, out), []
    for share in RUNGS[:-1]:
        changes = {name: dict(given) if isinstance(given, dict) else given
                   for name, given in study.arms[cell.arm].items()}  # fmt: skip
        steps = {"max_steps": max(1, round(share * whole)), "epochs": None}
        changes[training.stage] = {**changes.get(training.stage, {}), **steps}
        one = study.model_copy(
            update={
                "arms": {cell.arm: changes},
                "vary": {name: (value,) for name, value in cell.axes.items()},
                "seeds": (cell.seed,),
                "more_seeds": None,
            }
        )
        short = spell_out(one, path, out, pilot=pilot, whole=training.stage, folder=folder)
        rungs.append(tuple(short.nodes[name] for name in short.cells[0].nodes))
    return Trial(cell, (*rungs, tuple(graph.nodes[name] for name in cell.nodes)))


def _steps(training: Node, out: str) -> int:
    """The steps of a whole training."""
    config_class, run = loaded(training.verb)
    given = {**training.options, "out": folder_of(out, training.name), "dry_run": True}
    with alone():
        return int(run(config_class.model_validate(given)).steps)


def search(
    trials: Sequence[Trial], out: str, metric: str, *, higher_is_better: bool, gpus: bool, at_once: int | None
) -> list[Tried]:
    """Run trials that are compared with each other; best first. Those that end in the same node are one.

    Raises StageError where none gave a number.
    """
    by_end: dict[str, list[Trial]] = {}
    for each in trials:
        by_end.setdefault(each.cell.last, []).append(each)

    def run(config: Mapping[str, Any]) -> None:
        for nodes in by_end[config["end"]][0].rungs:
            tune.report({"score": _number_after(nodes, out, metric, int(gpus))})

    kept = tempfile.mkdtemp(prefix="vig-search-")
    scheduler = ASHAScheduler(time_attr="training_iteration", max_t=len(RUNGS), grace_period=1, reduction_factor=2)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends the study, not a part of it
    try:
        done = tune.Tuner(
            tune.with_resources(run, {"cpu": 1, "gpu": int(gpus)}),
            param_space={"end": tune.grid_search(list(by_end))},
            tune_config=tune.TuneConfig(
                metric="score", mode="max" if higher_is_better else "min", scheduler=scheduler,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(storage_path=kept, verbose=0),
        ).fit()  # fmt: skip
        tried = [
            Tried(each.cell.label, scores)
            for result in done
            if (scores := _scores(result))
            for each in by_end[str((result.config or {}).get("end"))]
        ]
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    for result in done:
        if result.error is not None:
            end = str((result.config or {}).get("end"))
            log.warning("%s: %s", by_end[end][0].cell.label, str(result.error).strip().splitlines()[-1])
    if not tried:
        raise StageError(f"--search: no trial of {trials[0].cell.arm} gave a number; OUT/runs/*/log.txt say why")
    sign = 1 if higher_is_better else -1
    return sorted(tried, key=lambda each: (len(each.rungs), sign * each.rungs[-1]), reverse=True)


def _scores(result: Any) -> tuple[float, ...]:
    frame = result.metrics_dataframe
    return () if frame is None or "score" not in frame else tuple(float(value) for value in frame["score"])


def _number_after(nodes: Sequence[Node], out: str, metric: str, gpus: int) -> float:
    """The number that the last of these nodes comes to; those that are done aren't run again. Raises StageError."""
    table: Mapping[str, Any] | None = None
    for node in nodes:
        found = records.read(out, node.name)
        if found is None or not found.done:
            found = carry_out(node, out, gpus)
        if not found.done:
            raise StageError(f"{found.name}: {found.told}")
        table = found.table
    task, _, name = metric.rpartition(".")
    for each in (table or {}).get("tasks", ()):
        if each["name"] == task:
            value = each["models"][MODEL_NAME]["numbers"].get(name, {}).get("value")
            if value is not None:
                return float(value)
    raise StageError(f"{nodes[-1].name}: has no number {metric}")
