"""What lmms-eval wrote about a task, read back: its numbers, and where they are means, what each answer is worth."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.errors import StageError
from vig_ray.storage import exists, join, read_bytes

Json = dict[str, Any]
RESULTS, SAMPLES, LOG = "results.json", "samples", "log.txt"
_SAME = 1e-6  # relative: a mean that lmms-eval computed, and ours


class Number(NamedTuple):
    """A metric as lmms-eval reports it. `stderr`: None where it gives none."""

    name: str
    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass(frozen=True)
class LmmsResult:
    """What one of lmms-eval's tasks gave for one model.

    `name`: the task's, or that of a group with a number of its own. `questions`: how many it asked.
    `keys`: of its questions. `scores`: by metric, what each answer is worth, float64 [Q]; only of metrics that are the
    mean of these. `not_answered`: questions that the model failed at, which lmms-eval counts as wrong; `why`: one's
    cause.
    """

    name: str
    numbers: tuple[Number, ...]
    questions: int
    keys: tuple[str, ...]
    scores: Mapping[str, npt.NDArray[np.float64]]
    not_answered: int = 0
    why: str | None = None


def collect(written: str, to: str) -> None:
    """Move what lmms-eval wrote below the folder `written` to the folder `to`, by names without dates.

    Raises StageError where its results aren't there.
    """
    results = glob.glob(os.path.join(glob.escape(written), "**", "*_results.json"), recursive=True)
    if len(results) != 1:
        raise StageError("lmms-eval ended without results")
    os.makedirs(os.path.join(to, SAMPLES), exist_ok=True)
    date = os.path.basename(results[0]).removesuffix("_results.json")
    for path in glob.glob(os.path.join(glob.escape(os.path.dirname(results[0])), f"{date}_samples_*.jsonl")):
        name = os.path.basename(path).removeprefix(f"{date}_samples_")
        os.replace(path, os.path.join(to, SAMPLES, name))
    os.replace(results[0], os.path.join(to, RESULTS))


def read(folder: str, task: str, *, not_answered: int = 0, why: str | None = None) -> list[LmmsResult]:
    """The results of a task, of a group and its tasks, from the files that `collect` left.

    Raises StageError where there is no number among them.
    """
    said = json.loads(read_bytes(join(folder, RESULTS)))
    found = [_result(folder, said, name, values) for name, values in said["results"].items()]
    found = [result for result in found if result.numbers]
    if not found:
        raise StageError(
            f"lmms-eval computes no number of it here, but leaves its answers for a server: {join(folder, SAMPLES)}"
        )
    found.sort(key=lambda result: result.name != task)  # the one that was asked for first
    first = found[0]
    found[0] = LmmsResult(first.name, first.numbers, first.questions, first.keys, first.scores, not_answered, why)
    return found


def _result(folder: str, said: Json, name: str, values: Json) -> LmmsResult:
    better = said.get("higher_is_better", {}).get(name) or {}
    several = len({key.partition(",")[2] for key in values if "," in key}) > 1
    numbers, scores = [], {}
    samples = list(_samples(folder, name))
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or "_stderr" in metric or not _is_number(value):
            continue
        shown = f"{metric},{filtered}" if several else metric
        stderr = next(
            (
                float(values[each])
                for each in (f"{metric}_stderr,{filtered}", f"{metric}_stderr_clt,{filtered}")
                if _is_number(values.get(each))
            ),
            None,
        )
        numbers.append(Number(shown, float(value), stderr, better.get(metric) is not False))
        column = _column(samples, metric)
        if not several and column is not None and _close(float(np.mean(column)), float(value)):
            scores[shown] = column
    keys = tuple(f"{name}/{sample['doc_id']}" for sample in samples)
    return LmmsResult(name, tuple(numbers), _asked(said, name), keys if scores else (), scores)


def _asked(said: Json, name: str) -> int:
    """How many questions a task, or the tasks of a group, asked."""
    if name in said["n-samples"]:
        return int(said["n-samples"][name]["effective"])
    return sum(_asked(said, part) for part in said["group_subtasks"].get(name, ()))


def _samples(folder: str, name: str) -> Iterator[Json]:
    """The logged answers of a task, in the order of its questions."""
    uri = join(folder, SAMPLES, f"{name}.jsonl")
    if exists(uri).name == "File":
        lines = read_bytes(uri).splitlines()
        yield from sorted((json.loads(line) for line in lines if line), key=lambda sample: sample["doc_id"])


def _column(samples: Sequence[Json], metric: str) -> npt.NDArray[np.float64] | None:
    """What each answer is worth by a metric; None where that isn't a number, or not every answer has one."""
    values = [sample.get(metric) for sample in samples]
    if not values or not all(_is_number(value) for value in values):
        return None
    return np.asarray(values, dtype=np.float64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _close(ours: float, theirs: float) -> bool:
    return math.isclose(ours, theirs, rel_tol=_SAME, abs_tol=_SAME)
