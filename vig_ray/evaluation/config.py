"""The options of `vig eval`."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.evaluation.generation import HOTTEST
from vig_ray.options import (
    CommaSeparated,
    Device,
    EndOfTurn,
    EngineName,
    EngineOptions,
    NotEmpty,
    Precision,
    Template,
    TrustRemoteCode,
    WorkerRange,
)
from vig_ray.stage import StageConfig

_NAMED = re.compile(r"[a-z0-9][\w.:-]*")


def _inner(task: str) -> str:
    """The task that another is around, as pope of swap:pope; itself where it is around none."""
    return task.partition(":")[2] or task


def _several(value: Any) -> Any:
    """One value or several; a string, from the environment say, is taken apart as a shell does."""
    if isinstance(value, str):
        return tuple(shlex.split(value))
    return tuple(value) if isinstance(value, list) else value


def by_name(value: Any) -> Any:
    """{"pope": "x"} from itself, from ["pope=x"] or from "pope=x"; a value without a name is under ""."""
    if isinstance(value, dict):
        return {str(name): str(each) for name, each in value.items()}
    found: dict[str, str] = {}
    for each in _several(value):
        name, equals, given = str(each).partition("=")
        if not equals or not _NAMED.fullmatch(name):
            name, given = "", str(each)
        if name in found:
            raise ValueError(f"names {name or 'no task'} twice" if name else "give each as TASK=...")
        found[name] = given
    return found


def repeated(metavar: str) -> dict[str, Any]:
    """What a field says of an option that takes several values."""
    return {"metavar": metavar, "repeated": True}


class EvalConfig(StageConfig):
    """Ask models the questions of benchmarks and of data of one's own, and compare what they answer."""

    model: Annotated[tuple[str, ...], BeforeValidator(_several), NotEmpty] = Field(
        description="models to ask, each a checkpoint's folder or a hub id; NAME=MODEL names its row of the table",
        json_schema_extra=repeated("MODEL"),
    )
    tasks: Annotated[tuple[str, ...], CommaSeparated, NotEmpty] = Field(
        description="what they are asked; docs/evaluating-tasks.md lists the tasks",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
    data: Annotated[dict[str, str], BeforeValidator(by_name)] = Field(
        default_factory=dict,
        description="each task's data, the files as its authors publish them: a path or URI; PATH alone for one task",
        json_schema_extra=repeated("TASK=PATH"),
    )
    images: Annotated[dict[str, str], BeforeValidator(by_name)] = Field(
        default_factory=dict,
        description="folder that a task's relative image paths start from; by default that of its data",
        json_schema_extra=repeated("TASK=FOLDER"),
    )
    task_options: Annotated[dict[str, str], BeforeValidator(by_name)] = Field(
        default_factory=dict,
        description="options of single tasks, which docs/evaluating-tasks.md lists",
        json_schema_extra=repeated("TASK.NAME=VALUE"),
    )
    synonyms: str | None = Field(
        None,
        description="chair: file of objects and their synonyms, as its authors have it",
        json_schema_extra={"metavar": "FILE"},
    )
    judge: str | None = Field(
        None,
        description="for tasks that are judged: address of an OpenAI-compatible API, such as http://HOST:8000/v1",
        json_schema_extra={"metavar": "URL"},
    )
    judge_model: str | None = Field(None, description="the judge's name there", json_schema_extra={"metavar": "NAME"})
    out: str = Field(description="directory that gets evaluation/")
    limit: int | None = Field(None, ge=1, description="ask the first N questions of each task, and no more")
    baseline: str | None = Field(
        None,
        description="the model that others are compared with, by its name in the table; by default the first",
        json_schema_extra={"metavar": "NAME"},
    )
    draws: int = Field(1000, ge=0, description="draws of the bootstrap; 0: no intervals")
    seed: int = Field(0, ge=0, lt=1 << 63, description="seed of the bootstrap and, with a temperature, of answers")
    max_new_tokens: int | None = Field(None, ge=1, description="most tokens of an answer; by default the task's own")
    temperature: float = Field(
        0.0, ge=0, le=HOTTEST, description="0: the likeliest token each time, else answers are drawn"
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="with a temperature, drawn among the likeliest tokens of this probability"
    )
    decoding: str | None = Field(
        None,
        description="another way to decode, such as vcd,alpha=1 (docs/evaluating.md)",
        json_schema_extra={"metavar": "NAME[,OPTION=VALUE...]"},
    )
    engine: EngineName = Field(
        "auto",
        description="what answers: auto takes vllm where it is installed and there is a GPU, else torch; MODULE:NAME "
        "is one of your own",
    )
    vllm: EngineOptions = Field(default_factory=dict, description="options of vLLM's engine, as vig score takes them")
    dtype: Precision | None = Field(
        None, description="precision of the models; by default float32 on a CPU, each checkpoint's own on a GPU"
    )
    device: Device = Field(
        "auto", description="where the models run; auto takes GPUs if Ray has any when the job starts"
    )
    template: Template = Field("auto", description="prompt, as vig score and vig train have it")
    max_length: int | None = Field(
        None, ge=1, description="longest prompt, tokens with images; a longer one is a row with error set"
    )
    end_of_turn: EndOfTurn = None
    trust_remote_code: TrustRemoteCode = False
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image, pixels; a larger one is an error")
    workers: WorkerRange | None = Field(
        None,
        description="engines at a time, a number or a range such as 1..8; by default up to one a GPU, or a CPU core",
    )
    prepare_workers: WorkerRange | None = Field(
        None,
        description="CPU processes that decode and tokenise, a number or a range; by default up to one a core",
    )
    batch_tokens: int | None = Field(None, ge=1, description="tokens of a forward, as vig score takes them")
    window: int = Field(128, ge=1, description="questions that an engine sorts and batches together")
    rows_per_file: int = Field(
        512, ge=1, description="questions a block: what a killed run has to do again, and the most rows of a file"
    )
    lmms_environment: str | None = Field(
        None,
        description="lmms:...: the environment of lmms-eval, which `vig eval --setup-lmms DIR` made; by default in the "
        "user's cache",
        json_schema_extra={"metavar": "DIR"},
    )
    lmms_include: str | None = Field(
        None,
        description="lmms:...: folder with tasks of your own in lmms-eval's YAML form",
        json_schema_extra={"metavar": "DIR"},
    )
    lmms_wrapper: str | None = Field(
        None,
        description="lmms:...: lmms-eval's own class to ask the models by, instead of the one for their kind or vLLM's "
        "server",
        json_schema_extra={"metavar": "NAME[,ARGUMENT=VALUE...]"},
    )
    lmms_timeout: int = Field(
        86_400, ge=1, description="lmms:...: most seconds that one of its tasks may take with one model"
    )
    address: str | None = Field(
        None,
        description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own on this machine",
    )
    overwrite: bool = Field(False, description="replace what an earlier run with other options left in --out")
    strict: bool = Field(False, description="exit with status 1 if any question could not be answered or marked")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("names a task twice")
        return names

    @model_validator(mode="after")
    def _of_these_tasks(self) -> EvalConfig:
        """What is said of a task is of one that is asked for."""
        for option in ("data", "images", "task_options"):
            for name in getattr(self, option):
                task = name.partition(".")[0] if option == "task_options" else name
                flag = f"--{option.replace('_', '-')}"
                if option == "task_options" and "." not in name:
                    raise ValueError(f"{flag} {name}: takes TASK.NAME=VALUE")
                if not name and len(self.tasks) > 1:
                    raise ValueError(f"{flag} {getattr(self, option)['']}: several tasks; say whose, TASK=PATH")
                if name and task not in {*self.tasks, *([] if option == "task_options" else map(_inner, self.tasks))}:
                    raise ValueError(f"{flag} {name}: not one of --tasks {','.join(self.tasks)}")
        if (self.judge is None) != (self.judge_model is None):
            raise ValueError("--judge and --judge-model go together")
        return self

    def of_task(self, option: str, task: str) -> str | None:
        """What `data` or `images` says of a task; of one around another also what is said of that."""
        values: dict[str, str] = getattr(self, option)
        return values.get(task, values.get(_inner(task), values.get("") if len(self.tasks) == 1 else None))
