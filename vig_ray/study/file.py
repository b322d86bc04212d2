"""study.yaml: what is compared, by which stages, and what is to be told of it.

    values      names for what stages share: data, model, or any other, written $NAME where it is used
    stages      options of each stage, as its verb has them; another stage's output is written $STAGE
    arms        what is compared: by name, what an arm changes of values and stages
    vary        values or options, STAGE.OPTION, that every arm takes several of; an arm that names one keeps its own
    seeds       a number, or the seeds themselves: $seed
    checkpoints, short_tuning   a curve over a training's checkpoints, and what is tuned before it is asked (curves.py)
    ...

A stage named after a verb (score, select, train, eval, ...) is that verb; `run: VERB` makes any other name one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from vig_ray.errors import StageError
from vig_ray.storage import one_line
from vig_ray.study import curves
from vig_ray.study.curves import Checkpoints
from vig_ray.unique_keys import UniqueKeyLoader

Options = dict[str, Any]

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_ARM = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LEAST = 2


def _seeds(value: Any) -> Any:
    """3 as (0, 1, 2)."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("at least 1")
        return tuple(range(value))
    return tuple(value) if isinstance(value, list) else value


def _none_as_empty(value: Any) -> Any:
    """`train:` with nothing behind it is a stage with no option."""
    if isinstance(value, dict):
        return {name: {} if each is None else each for name, each in value.items()}
    return value


_Sections = Annotated[dict[str, Options], BeforeValidator(_none_as_empty)]


class Model(BaseModel):
    """Base of a study's parts: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(Model):
    """What a paper reports of the same comparison: rows by arm, a number or text for each column."""

    source: str = Field(description="paper and table")
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | str | None, ...]]
    note: str = ""

    @field_validator("rows")
    @classmethod
    def _whole(cls, rows: dict[str, Any], info: Any) -> dict[str, Any]:
        columns = info.data.get("columns", ())
        for name, row in rows.items():
            if len(row) != len(columns):
                raise ValueError(f"{name} has {len(row)} numbers for {len(columns)} columns")
        return rows


class Scaling(Model):
    """PRIOR, section 4: a law of the loss over a size, fitted to the smaller runs, that predicts the largest."""

    over: str = Field(description="the size, one of `vary`")
    of: str = Field(description="the loss, TASK.METRIC")


class Budget(Model):
    """What a study may take. Stages that a budget has no room for aren't begun, and are told."""

    hours: float | None = Field(None, gt=0, description="of stages' time, those side by side added up")
    gpu_hours: float | None = Field(None, gt=0)


class StudyFile(Model):
    """A study as its file says it."""

    title: str = ""
    about: str = ""
    prepare: str = Field("", description="the command that makes the files it begins with, told where one isn't there")
    values: Options = Field(default_factory=dict)
    stages: _Sections
    arms: _Sections = Field(min_length=1)
    vary: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    checkpoints: Checkpoints | None = Field(None, description="a curve over checkpoints of a training")
    short_tuning: Options | None = Field(None, description="options of a tuning of what is evaluated, 20 steps")
    seeds: Annotated[tuple[int, ...], BeforeValidator(_seeds), Field(min_length=1)] = (0, 1, 2)
    more_seeds: int | None = Field(None, description="so many in all for the arms of an order that isn't settled")
    baseline: str | None = None
    measured: tuple[str, ...] = Field((), description="TASK.METRIC; by default each task's main one")
    orders: tuple[str, ...] = Field((), description="what is claimed, as 'random < full < vig on choices.accuracy'")
    paper: tuple[Paper, ...] = ()
    scaling: Scaling | None = None
    budget: Budget = Budget()

    @field_validator("arms")
    @classmethod
    def _arms_named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _ARM.fullmatch(name):
                raise ValueError(f"{name}: an arm's name is of small letters, digits, ., - and _")
        return value

    @field_validator("stages", "values")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name}: a name is of small letters, digits, - and _")
            if name == "seed":
                raise ValueError("seed is what $seed stands for; choose another name")
        return value

    @field_validator("vary")
    @classmethod
    def _several(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if not given:
                raise ValueError(f"{name}: give the values it takes")
            if len({repr(each) for each in given}) < len(given):
                raise ValueError(f"{name}: has a value twice")
        return value

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("has a seed twice")
        return value

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """With those that unsettled orders may take."""
        more = max(0, (self.more_seeds or 0) - len(self.seeds))
        return (*self.seeds, *range(max(self.seeds) + 1, max(self.seeds) + 1 + more))


def _spelled(options: Any) -> Any:
    """Options with `_` in their names, as the configs have them."""
    return (
        {str(name).replace("-", "_"): value for name, value in options.items()}
        if isinstance(options, dict)
        else options
    )


def read(path: str) -> StudyFile:
    """The study in a file. Raises StageError, in one line, where it is none."""
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, UniqueKeyLoader)
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StageError(f"{path}: not text in UTF-8") from error
    except yaml.YAMLError as error:
        raise StageError(f"{path}: not YAML: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise StageError(f"{path}: a study has stages and arms; docs/study.md shows one")
    try:
        study = StudyFile(**{str(name): each for name, each in values.items()})
    except ValidationError as error:
        raise StageError(f"{path}: {'; '.join(_told(error))}") from error
    study = study.model_copy(
        update={
            "stages": {stage: _spelled(options) for stage, options in study.stages.items()},
            "arms": {
                arm: {
                    name: _spelled(given) if name in (*study.stages, curves.SHORT_TUNING) else given
                    for name, given in changes.items()
                }
                for arm, changes in study.arms.items()
            },
            "vary": {_axis(name): values for name, values in study.vary.items()},
            "short_tuning": _spelled(study.short_tuning),
        }
    )
    keys = study.checkpoints, study.short_tuning
    wrong = next(curves.wrong(*keys, study.stages, study.arms, (*study.values, *study.vary)), None)
    if wrong is None:
        study = study.model_copy(update=curves.spelled_out(*keys, study.stages, study.values, study.vary))
        wrong = next(_wrong(study), None)
    if wrong is not None:
        raise StageError(f"{path}: {wrong}")
    return study


def _axis(name: str) -> str:
    """STAGE.OPTION with `_` in the option; a value's name as it is, which has no dot."""
    stage, dot, option = name.partition(".")
    return f"{stage}{dot}{option.replace('-', '_')}"


def _told(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        where = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            inner: dict[str, type[BaseModel]] = {
                "checkpoints": Checkpoints,
                "paper": Paper,
                "scaling": Scaling,
                "budget": Budget,
            }
            of = inner.get(str(problem["loc"][0]), StudyFile)
            yield f"{where}: no such key; there are {', '.join(of.model_fields)}"
        elif problem["type"] == "missing":
            yield f"{where}: missing"
        else:
            yield f"{where}: {message[:1].lower()}{message[1:]}"


def _wrong(study: StudyFile) -> Iterator[str]:
    """What is wrong between the parts of a study."""
    if study.baseline is not None and study.baseline not in study.arms:
        yield f"baseline: {study.baseline}: no such arm; there are {', '.join(study.arms)}"
    both = study.stages.keys() & study.values.keys()
    if both:
        yield f"values.{min(both)}: also the name of a stage; give one of them another name"
    for arm, changes in study.arms.items():
        for name, given in changes.items():
            if name not in study.stages and name not in study.values:
                yield f"arms.{arm}.{name}: neither a stage nor a value; there are {_listed(study)}"
            elif name in study.stages and not isinstance(given, Mapping):
                yield f"arms.{arm}.{name}: takes options of the stage, as {name}: {{OPTION: VALUE}}"
    for name in study.vary:
        stage, _, option = name.partition(".")
        if not (name in study.values or (stage in study.stages and option)):
            yield f"vary.{name}: neither a value nor an option of a stage, STAGE.OPTION; there are {_listed(study)}"
    for number, text in enumerate(study.orders):
        try:
            order = Order.parse(text)
        except ValueError as error:
            yield f"orders.{number}: {error}"
            continue
        for arm in order.arms:
            if arm.partition(" ")[0] not in study.arms:
                yield f"orders.{number}: {arm}: no such arm; there are {', '.join(study.arms)}"
    if study.scaling is not None and study.scaling.over not in study.vary:
        yield f"scaling.over: {study.scaling.over}: not one of vary"


def _listed(study: StudyFile) -> str:
    return ", ".join((*study.stages, *study.values))


class Order(BaseModel):
    """A claim that arms come in an order, from the least to the greatest number of a metric."""

    model_config = ConfigDict(frozen=True)
    text: str
    arms: tuple[str, ...]
    metric: str

    @classmethod
    def parse(cls, text: str) -> Order:
        """Of 'random < full < vig on choices.accuracy'; 'vig p=30' is one cell of a varied arm. Raises ValueError."""
        listed, on, metric = text.rpartition(" on ")
        arms = tuple(part.strip() for part in re.split("<|>", listed))
        whole = on and len(arms) >= _LEAST and all(arms) and metric.strip() and not ("<" in listed and ">" in listed)
        if not whole or len(set(arms)) < len(arms):
            raise ValueError(f"{text!r}: takes ARM < ARM [< ARM ...] on TASK.METRIC")
        return cls(text=text, arms=arms[::-1] if ">" in listed else arms, metric=metric.strip())


def folder_of(path: str) -> str:
    """Where relative paths in a study's file start from: the folder that it lies in."""
    return os.path.dirname(os.path.abspath(path))
