"""What models made of a task's questions, as arrays, and what the numbers computed of them are worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from vig_ray.errors import StageError
from vig_ray.evaluation.question import Columns
from vig_ray.evaluation.statistics import Estimate, Floats, Numbers, Statistic, estimate, generator_of, resampled
from vig_ray.evaluation.task import Metric, Task
from vig_ray.tables.directories import dataset

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Marked:
    """What one model made of a task's Q questions, in the order of their keys.

    `answered` bool [Q]: which have marks. `columns`: the marks, float64 [Q] each, NaN where there are none. `failures`:
    of the others, by the class of their error, with one of its messages. `cut`: how many answers were cut at the most
    new tokens.
    """

    keys: pa.Array
    units: pa.Array
    groups: pa.Array
    answered: Mask
    columns: Columns
    failures: Counter[str]
    examples: Mapping[str, str]
    cut: int = 0
    left_out: int = 0


def read_marked(directory: str, task: str) -> Marked:
    """The rows of one task in OUT/evaluation/MODEL."""
    columns = ["sample_key", "group", "unit", "marks", "error", "finished"]
    table = dataset(directory).to_table(columns=columns, filter=pads.field("task") == task)
    table = table.take(pc.sort_indices(table["sample_key"])).combine_chunks()
    keys = table["sample_key"].combine_chunks()
    errors = table["error"].drop_null().to_pylist()
    failures = Counter(error.partition(":")[0] for error in errors)
    return Marked(
        keys,
        pc.coalesce(table["unit"].combine_chunks(), keys),
        table["group"].combine_chunks(),
        table["error"].is_null().to_numpy(),
        _columns(table["marks"].combine_chunks()),
        failures,
        {error.partition(":")[0]: error for error in reversed(errors)},
        int(pc.sum(pc.invert(table["finished"])).as_py() or 0),
    )


def _columns(marks: pa.ListArray) -> dict[str, Floats]:
    """Lists of names and values as one array a name, NaN where a row has none."""
    lengths = pc.fill_null(pc.list_value_length(marks), 0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(marks)), lengths)
    pairs = marks.flatten()
    names, values = pairs.field("name").dictionary_encode(), pairs.field("value").to_numpy(zero_copy_only=False)
    codes = names.indices.to_numpy(zero_copy_only=False)
    found: dict[str, Floats] = {}
    for code, name in enumerate(names.dictionary.to_pylist()):
        found[name] = np.full(len(marks), np.nan)
        found[name][row[codes == code]] = values[codes == code]
    return found


@dataclass(frozen=True)
class OfModel:
    """A model's numbers on one task. `differences`: to the baseline, on the questions that both have marks of, `common`
    of them; empty for the baseline itself. `by_group`: of each group, how many questions have marks, and the numbers.

    `on_common`, `baseline_on_common`: values and draws of the numbers that the differences are of. `cut`: answers that
    were cut at the most new tokens. `left_out`: answers that don't count since another of their unit failed;
    `incomplete`: questions that the task leaves out for marks that are missing.
    """

    answered: int
    failures: Counter[str]
    examples: Mapping[str, str]
    numbers: Mapping[str, Estimate]
    by_group: Mapping[str, tuple[int, Numbers]]
    common: int
    differences: Mapping[str, Estimate]
    on_common: Drawn
    baseline_on_common: Drawn
    cut: int = 0
    left_out: int = 0
    incomplete: int = 0


@dataclass(frozen=True)
class Drawn:
    """Numbers by name: of the questions themselves, and in every draw of the bootstrap."""

    values: Numbers
    draws: Mapping[str, Floats]


@dataclass(frozen=True)
class OfTask:
    """The numbers of a task. `questions`, `units`: how many there are. `models`: in the order of the table.

    `part`: of another task, whose number relative performance takes instead.
    """

    name: str
    source: str
    metrics: tuple[Metric, ...]
    questions: int
    units: int
    models: Mapping[str, OfModel]
    part: bool = False

    @property
    def main(self) -> Metric | None:
        """What relative performance takes of it; None for an analysis, which it leaves out."""
        return next((metric for metric in self.metrics if metric.main), None)


def compared(task: Task, marked: Mapping[str, Marked], baseline: str, *, draws: int, seed: int) -> OfTask:
    """The numbers of each model on one task with their intervals, and their differences to the baseline.

    `marked`: by model. Raises StageError where they aren't of the same questions.
    """
    if getattr(task, "whole_units", False):
        marked = {name: _of_whole_units(one) for name, one in marked.items()}
    first = next(iter(marked.values()))
    for name, one in marked.items():
        if not one.keys.equals(first.keys):
            raise StageError(f"{name}: its answers of {task.name} are of other questions; --overwrite answers anew")
    unit_Q = first.units.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    units = int(unit_Q.max(initial=-1)) + 1
    # One statistic for a model on all that it answered, and two on what it and the baseline did, where that is less.
    wanted: dict[tuple[str, bytes], Mask] = {}
    for name, one in marked.items():
        common = one.answered & marked[baseline].answered
        for whose, mask in ((name, one.answered), (name, common), (baseline, common)):
            wanted[whose, mask.tobytes()] = mask
    statistics = [_statistic(task, marked[name].columns, unit_Q, mask) for (name, _), mask in wanted.items()]
    drawn = resampled(statistics, units, draws, generator_of(seed, task.name)) if draws else [{} for _ in statistics]
    whole = np.ones(units)
    found = {
        key: Drawn({name: float(value) for name, value in statistic(whole).items()}, of_draws)
        for key, statistic, of_draws in zip(wanted, statistics, drawn, strict=True)
    }
    models = {}
    for name, one in marked.items():
        common = one.answered & marked[baseline].answered
        theirs, ours = found[baseline, common.tobytes()], found[name, common.tobytes()]
        own = found[name, one.answered.tobytes()]
        models[name] = OfModel(
            answered=int(one.answered.sum()),
            failures=one.failures,
            examples=one.examples,
            numbers=_estimates(task.metrics_of, own),
            by_group=_by_group(task, one),
            common=int(common.sum()),
            differences={} if name == baseline else _differences(task.metrics_of, ours, theirs),
            on_common=ours,
            baseline_on_common=theirs,
            cut=one.cut,
            left_out=one.left_out,
            incomplete=_incomplete(task, one),
        )
    return OfTask(task.name, task.source, task.metrics_of, len(first.keys), units, models)


def _of_whole_units(one: Marked) -> Marked:
    """Without the answers of units of which another answer failed: what is right as a whole can't be told of a part."""
    unit_Q = one.units.dictionary_encode().indices.to_numpy(zero_copy_only=False)
    failed_U = np.bincount(unit_Q, ~one.answered) > 0
    whole = one.answered & ~failed_U[unit_Q]
    return replace(one, answered=whole, left_out=int(one.answered.sum() - whole.sum()))


def other_tokens(name: str, marked: Mapping[str, Marked], baseline: str, tokens: str) -> Iterator[str]:
    """A line for each model to which the same right answers are other tokens than to the baseline: what is counted by
    token can't be compared then. `tokens`: the mark that has their number."""
    theirs = marked[baseline]
    for model, one in marked.items():
        common = one.answered & theirs.answered
        if not common.any():
            continue
        ours, others = (each.columns[tokens][common] for each in (one, theirs))
        apart = int((~np.isnan(ours) & ~np.isnan(others) & (ours != others)).sum())
        if apart:
            yield (
                f"{name}: {apart:,} right answers are of other numbers of tokens for {model} than for {baseline}; "
                "losses and gains are by token, so that those of the two can't be compared"
            )


def _statistic(task: Task, columns: Columns, unit_Q: npt.NDArray[np.integer], mask: Mask) -> Statistic:
    """The task's numbers of the questions in `mask`, by the weights of units."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return lambda _: {metric.name: float("nan") for metric in task.metrics_of}
    chosen = {name: values[rows] for name, values in columns.items()}
    unit_N = unit_Q[rows]
    return lambda weights_U: task.metrics(chosen, weights_U[unit_N])


def _estimates(metrics: Sequence[Metric], drawn: Drawn) -> dict[str, Estimate]:
    return {metric.name: estimate(drawn.values[metric.name], drawn.draws.get(metric.name)) for metric in metrics}


def _differences(metrics: Sequence[Metric], ours: Drawn, theirs: Drawn) -> dict[str, Estimate]:
    found = {}
    for name in (metric.name for metric in metrics):
        draws = ours.draws[name] - theirs.draws[name] if name in ours.draws else None
        found[name] = estimate(ours.values[name] - theirs.values[name], draws)
    return found


def _incomplete(task: Task, one: Marked) -> int:
    count = getattr(task, "incomplete", None)
    return int(count({name: values[one.answered] for name, values in one.columns.items()})) if count else 0


def _by_group(task: Task, one: Marked) -> dict[str, tuple[int, Numbers]]:
    found = {}
    encoded = one.groups.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero((codes == code) & one.answered)
        if len(rows):
            columns = {mark: values[rows] for mark, values in one.columns.items()}
            numbers = task.metrics(columns, np.ones(len(rows)))
            found[name] = len(rows), {metric: float(value) for metric, value in numbers.items()}
    return dict(sorted(found.items()))
