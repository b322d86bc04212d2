"""A study's results as a page reads them: study.json, checked, and what follows from it without a new statistic."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vig_ray.errors import StageError
from vig_ray.storage import absolute, exists, join, one_line, read_bytes, scheme_of

Json = dict[str, Any]
RESULTS = "study.json"


class _Part(BaseModel):
    """Base of the parts of study.json: what a page doesn't show may be there besides."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Mean(_Part):
    """A mean over `seeds` seeds and its 95 % interval; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    seeds: int


class Difference(_Part):
    """A difference in pairs of one seed. `seeds_needed`: in all, for it to be found with a probability of 80 %."""

    mean: Mean
    p: float | None
    settled: bool
    seeds_needed: int | None

    @property
    def more_seeds(self) -> int | None:
        """How many more seeds that takes; None where it is settled or there is no telling."""
        if self.settled or self.seeds_needed is None:
            return None
        return max(1, self.seeds_needed - self.mean.seeds)


class Metric(_Part):
    """A number of a task, TASK.METRIC."""

    name: str
    percent: bool
    higher_is_better: bool | None
    """None where it is neither."""

    @property
    def scale(self) -> int:
        """What its values are shown times."""
        return 100 if self.percent else 1

    @property
    def head(self) -> str:
        """As heads of tables have it: with the unit of shares, and an arrow to where it is better."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        return f"{self.name}{' %' if self.percent else ''}{arrow}"

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """A value for people: shares times 100."""
        if value is None:
            return "–"
        return f"{self.scale * value:{'+' if sign else ''}.{1 if self.percent else 3}f}"

    def interval(self, mean: Mean, *, sign: bool = False) -> str:
        """A mean's interval; "" where there is none."""
        if mean.low is None or mean.high is None:
            return ""
        return f"[{self.text(mean.low, sign=sign)}, {self.text(mean.high, sign=sign)}]"

    def told(self, mean: Mean, *, sign: bool = False) -> str:
        """A mean with its interval."""
        return f"{self.text(mean.value, sign=sign)} {self.interval(mean, sign=sign)}".strip()

    def is_better(self, difference: float) -> bool:
        """Whether a difference is one for the better."""
        return (difference > 0) == self.higher_is_better


class Number(_Part):
    """A metric of a row. `difference`: from the baseline, None for the baseline itself."""

    by_seed: dict[int, float | None]
    mean: Mean
    difference: Difference | None


class Row(_Part):
    """An arm, with one value of each of what is varied of it. `tokens` trained on, `seconds` of training: by seed."""

    label: str
    arm: str
    axes: dict[str, Any]
    tokens: dict[int, float]
    seconds: dict[int, float]
    numbers: dict[str, Number]
    compared_with: str = ""

    @property
    def seeds(self) -> int:
        """The most seeds that one of its numbers is of."""
        return max((number.mean.seeds for number in self.numbers.values()), default=0)

    def without(self, axis: str) -> str:
        """Its label without one of what is varied."""
        rest = (f"{name.rpartition('.')[2]}={value}" for name, value in self.axes.items() if name != axis)
        return " ".join((self.arm, *rest))


class Step(_Part):
    """One step of an order: `high` is said to have more than `low`."""

    low: str
    high: str
    said: Literal["yes", "no", "open"]
    difference: Difference


class Claim(_Part):
    """An order, as the study's file has it, and its steps: those of one value where its arms are varied."""

    text: str
    metric: str
    said: Literal["yes", "no", "open"]
    steps: tuple[Step, ...]


class Scaled(_Part):
    """L(D) = (D / `scale`) ^ `exponent`, fitted to `sizes`; what it predicts for the `largest`, and what came out."""

    arm: str
    scale: float
    exponent: float
    sizes: tuple[float, ...]
    largest: float
    predicted: float
    found: float
    error: float


class Failed(_Part):
    """A stage that failed: what it said, and the command that does the same."""

    name: str
    told: str
    command: str


class OfStage(_Part):
    """The runs of one stage, and the seconds that they took together."""

    runs: int
    seconds: float


class Cost(_Part):
    """What a study took. `hours`: those of stages side by side added up; `ran`: the last time it was called."""

    hours: float
    gpu_hours: float
    stages: int
    ran: int
    by_stage: dict[str, OfStage]


class Paper(_Part):
    """What a paper reports: rows by arm, a number or text for each column."""

    source: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | str | None, ...]]
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Paper:
        if any(len(row) != len(self.columns) for row in self.rows.values()):
            raise ValueError(f"{self.source} has rows of another length than its columns")
        return self


class Scaling(_Part):
    """Over which size the law is, and of which loss."""

    over: str
    of: str


class Checkpoints(_Part):
    """The training that the value `at` is shares of the steps of."""

    of: str


class Asked(_Part):
    """Of the study's file what a page shows."""

    seeds: tuple[int, ...]
    checkpoints: Checkpoints | None = None
    short_tuning: Json | None = None
    paper: tuple[Paper, ...] = ()
    scaling: Scaling | None = None


class StudyNumbers(_Part):
    """study.json."""

    title: str
    about: str
    study: Asked
    baseline: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    orders: tuple[Claim, ...]
    scaling: tuple[Scaled, ...]
    failed: tuple[Failed, ...]
    missing: dict[str, str]
    cost: Cost
    pilot: float | None = None
    """The per cent of the data that it is of, None where it is of all."""

    @model_validator(mode="after")
    def _whole(self) -> StudyNumbers:
        names = {metric.name for metric in self.metrics}
        if self.baseline not in {row.label for row in self.rows}:
            raise ValueError(f"baseline {self.baseline} is none of the rows")
        for row in self.rows:
            if names - row.numbers.keys():
                raise ValueError(f"{row.label} has no {min(names - row.numbers.keys())}")
        for claim in self.orders:
            if claim.metric not in names or not claim.steps:
                raise ValueError(f"the order {claim.text} has no {'step' if claim.metric in names else claim.metric}")
        return self

    @property
    def others(self) -> list[Row]:
        """The rows that are compared with the baseline."""
        return [row for row in self.rows if row.label != self.base_of(row)]

    def base_of(self, row: Row) -> str:
        """The row that a row is compared with: of a varied baseline the one of the same values."""
        return row.compared_with or self.baseline

    @property
    def compared_with(self) -> str:
        """What differences are from, in words."""
        bases = {self.base_of(row) for row in self.rows}
        if len(bases) == 1:
            return self.baseline
        return f"{next(row.arm for row in self.rows if row.label == self.baseline)} of the same values"

    @property
    def ranked(self) -> list[Metric]:
        """The metrics that say which row is better."""
        return [metric for metric in self.metrics if metric.higher_is_better is not None]

    @property
    def arms(self) -> list[str]:
        """The arms: the baseline's first, then those that are varied most, which are to be told apart best."""
        first = next(row.arm for row in self.rows if row.label == self.baseline)
        counts = Counter(row.arm for row in self.rows)
        return sorted(counts, key=lambda arm: (arm != first, -counts[arm]))

    def metric(self, name: str) -> Metric:
        """A metric by its name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def rows_of(self, name: str) -> list[Row]:
        """The row with this label, or else all of an arm."""
        return [row for row in self.rows if row.label == name] or [row for row in self.rows if row.arm == name]

    def is_share(self, axis: str) -> bool:
        """Whether an axis is the shares of a training's steps, the checkpoints of a curve."""
        return axis == "at" and self.study.checkpoints is not None

    def in_words(self, axis: str) -> str:
        """What is varied, for people."""
        of = self.study.checkpoints
        return axis if of is None or not self.is_share(axis) else f"{axis}: share of the steps of {of.of}"

    def numeric_axes(self) -> list[str]:
        """What is varied over numbers, of at least one arm over two of them."""
        found = []
        for name in dict.fromkeys(name for row in self.rows for name in row.axes):
            values = {number_of(row.axes[name]) for row in self.rows if name in row.axes}
            if None not in values and len(values) > 1:
                found.append(name)
        return found


def number_of(value: Any) -> float | None:
    """A value of what is varied as a number, None where it is none. 1e-4 is text to YAML."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def read_study(folder: str) -> tuple[Json, StudyNumbers]:
    """study.json in the folder that `vig study --out` wrote, as it is and checked. Raises StageError, in one line that
    names the file, where there is none, or it isn't one."""
    path = join(folder, RESULTS)
    if exists(path).name != "File":
        pilots = pilots_in(folder)
        instead = f"; there is a pilot: --study {' or '.join(pilots)}" if pilots else ""
        raise StageError(f"{path}: not there; --study takes what `vig study --out` wrote{instead}")
    try:
        raw = json.loads(read_bytes(path), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: can't be read ({one_line(error)}); run the same `vig study` again") from error
    try:
        return raw, StudyNumbers.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        said = one_line(ValueError(f"{where}: {message}" if where else message))
        raise StageError(f"{path}: not the results of a study ({said}); run the same `vig study` again") from error


def pilots_in(folder: str) -> list[str]:
    """The folders in that of a study that hold the results of pilots."""
    where = absolute(folder)
    if scheme_of(where) or not os.path.isdir(where):  # a study's folder is none of a bucket
        return []
    names = sorted(name for name in os.listdir(where) if name.startswith("pilot-"))
    return [join(folder, name) for name in names if os.path.isfile(os.path.join(where, name, RESULTS))]


def bounds(values: Iterable[float], intervals: Iterable[Mean], scale: float) -> tuple[float, float]:
    """The ends of a scale with room for all values, and for all intervals but those that are far longer than most."""
    shown = list(values)
    both = [(one.value, one.low, one.high) for one in intervals]
    ends = [
        (value * scale, low * scale, high * scale)
        for value, low, high in both
        if value is not None and low is not None and high is not None
    ]
    halves = sorted((high - low) / 2 for _, low, high in ends)
    most = 3 * halves[(len(halves) - 1) // 2] if halves else 0.0
    least_room = max(most, max(shown) - min(shown))
    low = min([*shown, *(max(low, value - least_room) for value, low, _ in ends)])
    high = max([*shown, *(min(high, value + least_room) for value, _, high in ends)])
    pad = 0.06 * (high - low) or 0.02 * abs(high) or 0.5
    return low - pad, high + pad


def by_arm(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    """Rows by arm, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.arm, []).append(row)
    return found
