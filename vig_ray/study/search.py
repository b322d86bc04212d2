"""`vig study --search p=20..100`: which values of an option are worth a run at full length and with all seeds.

Successive halving as Ray Tune has it (ASHA; Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys
2020): every value of every arm trains a quarter of its steps and is asked the study's questions; of those that have
come so far the better half trains half of its steps, from the start, since a schedule has its length in it; and the
better half of those all of them. What comes to the end is run with all seeds.
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

from vig_ray.cluster import Machines, alone
from vig_ray.errors import StageError
from vig_ray.study import record as records
from vig_ray.study.carry_out import carry_out
from vig_ray.study.file import StudyFile
from vig_ray.study.graph import MODEL_NAME, Cell, Graph, Node, spell_out
from vig_ray.study.record import folder_of
from vig_ray.study.results import RUNGS, Trial
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
class Short:
    """One cell of a search, and how its runs of any length are spelled out."""

    study: StudyFile
    path: str
    out: str
    cell: Cell

    def of_steps(self, steps: int | None, stage: str) -> list[Node]:
        """The nodes of this cell where its stage `stage` makes so many steps; None: all of them."""
        changes = {name: dict(given) if isinstance(given, dict) else given
                   for name, given in self.study.arms[self.cell.arm].items()}  # fmt: skip
        if steps is not None:
            changes[stage] = {**changes.get(stage, {}), "max_steps": steps, "epochs": None}
        vary = {name: (value,) for name, value in self.cell.axes.items()}
        one = self.study.model_copy(
            update={"arms": {self.cell.arm: changes}, "vary": vary, "seeds": (self.cell.seed,), "more_seeds": None}
        )
        graph = spell_out(one, self.path, self.out)
        return [graph.nodes[name] for name in graph.cells[0].nodes]


def training_of(cell: Cell, nodes: Mapping[str, Node]) -> Node:
    """The last training of a cell. Raises StageError where it has none."""
    for name in reversed(cell.nodes):
        if nodes[name].verb in ("train", "train-text"):
            return nodes[name]
    raise StageError(f"--search: {cell.label} trains nothing, so there is nothing to shorten; leave it out by --arms")


def before_training(cells: Sequence[Cell], graph: Graph) -> list[Node]:
    """The nodes that all lengths of these cells share, each after its inputs."""
    names: dict[str, None] = {}
    for cell in cells:
        training = training_of(cell, graph.nodes).name
        for name in cell.nodes[: cell.nodes.index(training)]:
            names[name] = None
    return [graph.nodes[name] for name in names]


def search(
    shorts: Sequence[Short],
    graph: Graph,
    metric: str,
    *,
    higher_is_better: bool,
    ray_has: Machines,
    at_once: int | None,
) -> list[Trial]:
    """Run the trials; best first. What they have in common must be there.

    Raises StageError where none gave a number.
    """
    by_label = {short.cell.label: short for short in shorts}
    gpus = int(bool(ray_has.gpus))
    stages = {short.cell.label: training_of(short.cell, graph.nodes) for short in shorts}

    def trial(config: Mapping[str, Any]) -> None:
        short = by_label[config["label"]]
        for share in RUNGS:
            tune.report({"score": rung(short, stages[config["label"]], share, metric, gpus)})

    kept = tempfile.mkdtemp(prefix="vig-search-")
    scheduler = ASHAScheduler(time_attr="training_iteration", max_t=len(RUNGS), grace_period=1, reduction_factor=2)
    try:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        done = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1, "gpu": gpus}),
            param_space={"label": tune.grid_search(list(by_label))},
            tune_config=tune.TuneConfig(
                metric="score", mode="max" if higher_is_better else "min", scheduler=scheduler,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(storage_path=kept, verbose=0),
        ).fit()  # fmt: skip
        trials = [_trial_of(result) for result in done]
    finally:
        shutil.rmtree(kept, ignore_errors=True)
    for result in done:
        if result.error is not None:
            log.warning("%s: %s", (result.config or {}).get("label"), str(result.error).strip().splitlines()[-1])
    trials = [each for each in trials if each.rungs]
    if not trials:
        raise StageError("--search: no trial gave a number; the log of each stage says why, OUT/runs/*/log.txt")
    sign = 1 if higher_is_better else -1
    return sorted(trials, key=lambda each: (len(each.rungs), sign * each.rungs[-1]), reverse=True)


def _trial_of(result: Any) -> Trial:
    frame = result.metrics_dataframe
    scores = () if frame is None or "score" not in frame else tuple(float(value) for value in frame["score"])
    return Trial(str((result.config or {}).get("label")), scores)


def rung(short: Short, training: Node, share: float, metric: str, gpus: int) -> float:
    """A cell's number after this share of its training's steps. Raises StageError where a stage fails."""
    steps = None if share == 1 else max(1, round(share * _steps(training, short.out)))
    nodes = short.of_steps(steps, training.stage)
    table: Mapping[str, Any] | None = None
    for node in nodes:
        found = records.read(short.out, node.name)
        if found is None or not found.done:
            found = carry_out(node, short.out, gpus)
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


def _steps(training: Node, out: str) -> int:
    """The steps of a whole training."""
    config_class, run = loaded(training.verb)
    given = {**training.options, "out": folder_of(out, training.name), "dry_run": True}
    with alone():
        return int(run(config_class.model_validate(given)).steps)
