"""Types of options that several stages have, each with its check and its spelling on the command line."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "bfloat16", "float16"]
ReferenceName = Literal["blur", "blind", "mean", "blur-mean", "no-image", "noise", "vcd"]
"""What stands for "no image" in the model's own passes: see `vig_ray.scoring.reference`."""
OtherImagesName = Literal["marginal", "swap"]
"""References that are other images of the dataset: see `vig_ray.scoring.references.other_images`."""
BlurName = Literal["fast", "opencv"]
"""How the image is blurred: by a box and a reduced rest, or by OpenCV's convolution."""
Template = Literal["auto", "llava_v1", "chat", "plain"]
"""How a conversation becomes a prompt: LLaVA-1.5's template, the checkpoint's own, or whichever fits the checkpoint; or
plain, LLaVA's prompt of an image and its caption (`vig_ray.model.plain`)."""

EndOfTurn = Annotated[
    str | None,
    Field(
        description="text of the chat template that is scored and trained after each answer; '' for none; by default "
        "as a selection was made, or what the template puts there, up to the token at which the model stops"
    ),
]
TrustRemoteCode = Annotated[
    bool,
    Field(
        description="run the code that comes with the model: it can do on this machine, or on all of a cluster, "
        "whatever you can; needed by models that transformers doesn't have"
    ),
]


SampleOrder = Annotated[
    Literal["auto", "image", "as-is"],
    Field(
        description="order of samples/: by image, so that scoring computes a shared image once, or as-is, the data's "
        "own; auto: by image where 5 % of the samples or more share theirs and the data doesn't hold the images itself"
    ),
]


def _range(value: Any) -> str:
    spelled = str(value) if type(value) is int else value
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", spelled) if isinstance(spelled, str) else None
    if not match or int(match[1]) < 1 or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError("takes a number such as 4, or a range such as 1..8")
    return match[0]


WorkerRange = Annotated[str, BeforeValidator(_range), Field(json_schema_extra={"metavar": "N|MIN..MAX"})]
"""A number of workers or a range of it, as "4" or "1..8"; a YAML file may give an integer."""


def _engine(value: str) -> str:
    if value not in ("auto", "torch", "vllm") and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError("takes auto, torch, vllm, or an engine of your own as MODULE:NAME")
    return value


EngineName = Annotated[
    str, AfterValidator(_engine), Field(json_schema_extra={"metavar": "auto|torch|vllm|MODULE:NAME"})
]
"""torch, vllm, auto for the better of them, or MODULE:NAME for an engine of the user's own."""


def _engine_options(value: Any) -> Any:
    """{"a": 1} from itself, from "a=1 b=x" or ["a=1", "b=x"], whose values are YAML, or from JSON."""
    if isinstance(value, str):
        value = yaml.safe_load(value) if value.lstrip().startswith("{") else shlex.split(value)
    if not isinstance(value, list):
        return value
    options = {}
    for pair in value:
        name, equals, text = str(pair).partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} isn't NAME=VALUE, such as gpu_memory_utilization=0.8")
        options[name.strip().lstrip("-").replace("-", "_")] = yaml.safe_load(text)
    return options


EngineOptions = Annotated[
    dict[str, JsonValue],
    BeforeValidator(_engine_options),
    Field(json_schema_extra={"metavar": "NAME=VALUE", "repeated": True}),
]
"""Options of vLLM's engine by their names."""


def _percentage(value: float) -> float:
    if not 0 < value <= 100:
        raise ValueError("takes a percentage above 0 and up to 100")
    return value


def _comma_separated(value: Any) -> Any:
    """The string "a,b" as ("a", "b"), and any other single value as a tuple of one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _not_empty(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("takes one value, or several with commas between them")
    return values


CommaSeparated = BeforeValidator(_comma_separated)
"""For options that are tuples: several values are separated by commas."""
NotEmpty = AfterValidator(_not_empty)
"""For options that are tuples: there must be one value at least."""


def _some(percentages: tuple[float, ...]) -> tuple[float, ...]:
    if not percentages:
        raise ValueError("takes a percentage, or several as 30,50,70")
    return percentages


Percentage = Annotated[float, AfterValidator(_percentage)]
Percentages = Annotated[
    tuple[Percentage, ...],
    CommaSeparated,
    AfterValidator(_some),
    Field(json_schema_extra={"metavar": "PERCENT[,...]"}),
]
"""Percentages of samples to keep: 70, "70" or "30,50,70"."""


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of an option. Raises ValueError for one that is there twice."""
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"names {value} twice")
    return values


References = Annotated[
    tuple[Literal[ReferenceName, OtherImagesName, "text"], ...],
    CommaSeparated,
    NotEmpty,
    AfterValidator(different),
    Field(json_schema_extra={"metavar": "NAME[,...]"}),
]
"""References, each once: "blur" or "blur,blind"."""

ScoredUnder = Annotated[
    str | None,
    Field(
        description="reference whose gains are read, as blur; by default the scores' first",
        json_schema_extra={"metavar": "NAME"},
    ),
]
"""One of the references that scores/ hold."""
