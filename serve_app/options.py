"""What an operator decides: options of `vig serve`, arguments of `serve run`, `args` of serve.yaml."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from serve_app.logs import LogFormat
from serve_app.traces import collector_url
from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.options import (
    BlurName,
    CommaSeparated,
    Device,
    EndOfTurn,
    EngineName,
    EngineOptions,
    NotEmpty,
    OtherImagesName,
    Precision,
    ReferenceName,
    Template,
    TrustRemoteCode,
    WorkerRange,
    different,
)
from vig_ray.stage import StageConfig

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


def _host_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{name!r}: takes names, as in vig.example, without https:// and port")
    return value


def _collector(value: str | None) -> str | None:
    return None if value is None else collector_url(value)


def _of_the_model(values: Any) -> Any:
    for value in values if isinstance(values, (list, tuple)) else ():
        if value == "text":
            raise ValueError("text is the loss of a second model, and a server holds one; `vig score` has it")
        if value in get_args(OtherImagesName):
            raise ValueError(f"{value} is of a dataset's other images, and a server sees one sample; use `vig score`")
    return values


def _as_list(value: Any) -> Any:
    """DIR, [NAME=DIR, ...] or {NAME: DIR} as a list."""
    if isinstance(value, Mapping):
        return [f"{name}={folder}" for name, folder in value.items()]
    return [value] if isinstance(value, str) else value


def _named(spelled: str) -> tuple[str, str]:
    """A model's name and its folder or hub id; without a name that of the folder, or the id."""
    name, equals, folder = spelled.partition("=")
    if equals and re.fullmatch(_NAME, name):
        return name, folder
    return os.path.basename(spelled.rstrip("/")) if os.path.isdir(spelled) else spelled, spelled


def _models(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("takes a checkpoint's folder or a hub id")
    names = [_named(value)[0] for value in values]
    for value, name in zip(values, names, strict=True):
        if not _named(value)[1]:
            raise ValueError(f"{value}: names no folder behind the =")
        if names.count(name) > 1:
            raise ValueError(f"two models have the name {name}; name them, as in first=DIR second=DIR")
    return values


def _lowered(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


class AppConfig(StageConfig):
    """Score new samples over HTTP with the batch job's scorer."""

    @property
    def models(self) -> dict[str, str]:
        """Folders or hub ids by name, in the order given."""
        return dict(map(_named, self.model))

    model: Annotated[tuple[str, ...], BeforeValidator(_as_list), AfterValidator(_models)] = Field(
        description="vision-language model: a checkpoint's folder or a hub id; several as NAME=DIR, of which a request "
        "names one, by default the first",
        json_schema_extra={"metavar": "[NAME=]DIR", "repeated": True},
    )
    tau: float | None = Field(
        None, description="threshold of gain, nats: answers say which tokens reach it and whether the sample does"
    )
    reference: Annotated[
        tuple[ReferenceName, ...], BeforeValidator(_of_the_model), CommaSeparated, NotEmpty, AfterValidator(different)
    ] = Field(
        ("blur",),
        description="what stands for 'no image', as for vig score, but text; several as blur,blind, of which a request "
        "names one, by default the first",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
    blur: BlurName = Field("fast", description="how images are blurred, as for vig score")
    engine: EngineName = Field("auto", description="what computes the log-probs")
    vllm: EngineOptions = Field(
        default_factory=dict,
        description="options of vLLM's engine, as vllm serve names them",
    )
    dtype: Precision | None = Field(
        None, description="precision of the model; by default float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: Device = Field("auto", description="where the model runs")
    template: Template = Field("auto", description="prompt: llava_v1, chat or auto, as for vig score")
    max_length: int | None = Field(None, ge=1, description="longest prompt, tokens with images")
    end_of_turn: EndOfTurn = None
    trust_remote_code: TrustRemoteCode = False
    batch_tokens: int | None = Field(None, ge=1, description="tokens a step of the engine, as for vig score")
    workers: WorkerRange = Field("1", description="engines, a number or a range that follows the load")
    models_a_worker: int | None = Field(
        None,
        ge=1,
        description="with several models: all have the same --workers, which hold so many models each at a time and "
        "load another when one is asked for; by default each model has --workers engines of its own",
    )
    prepare_workers: WorkerRange = Field(
        "1",
        description="processes that check, decode and tokenise, a number or a range that follows the load",
    )
    shrink_after: float = Field(
        300, ge=1, description="seconds of less load after which workers of a range are given back, one by one or more"
    )
    keys: str | None = Field(
        None,
        description="file of bearer keys, one a line, or YAML of their hashes, names and limits; a request must bring "
        "one of them. It is read anew when it changes. Without it only this machine "
        "is answered, and nothing that a proxy passed on (with Forwarded, X-Forwarded-For or Via). A proxy on this "
        "machine that adds no such header makes every client look like this machine: give keys behind a proxy",
    )
    policies: str | None = Field(
        None,
        description="YAML file of gates by name: what a sample must reach to be kept; a request or its key names one",
    )
    open: bool = Field(False, description="answer every machine without a key")
    hosts: Annotated[tuple[str, ...], CommaSeparated, AfterValidator(_host_names)] = Field(
        (),
        description="names under which this server may be asked, besides localhost and addresses; another one is "
        "answered 421. By default this machine's names, or with keys any",
        json_schema_extra={"metavar": "HOST,..."},
    )
    image_hosts: Annotated[tuple[str, ...], CommaSeparated, AfterValidator(_lowered)] = Field(
        (),
        description="hosts whose images may be named by URL; by default none",
        json_schema_extra={"metavar": "HOST,..."},
    )
    max_body_mb: float = Field(32, gt=0, description="largest request body, MiB")
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image, pixels")
    max_images: int = Field(256, ge=1, description="most images of a request, a batch's items together")
    max_request_pixels: int = Field(
        1_000_000_000,
        ge=1,
        description="most pixels of a request's images together, each counted as the square it may be padded to",
    )
    max_decoded_pixels: int = Field(
        100_000_000,
        ge=1,
        description="most pixels decoded at a time in one prepare worker, whatever the number of requests, so also the "
        "most of one sample; counted as squares; a pixel takes about 13 bytes",
    )
    max_answer_tokens: int = Field(2048, ge=1, description="longest answer, tokens")
    max_items: int = Field(64, ge=1, description="most samples of a batch request")
    queue: int = Field(64, ge=1, description="samples under way in one prepare worker; beyond them 503")
    timeout: float = Field(
        60, gt=0, description="seconds for a request: 408 where its body is not there by then, else 504"
    )
    log_format: LogFormat = Field(
        "text",
        description="how this server's log is written: text has warnings and errors for a person, json an object a "
        "line with a line for every request, too",
    )
    traces: Annotated[str | None, AfterValidator(_collector)] = Field(
        None,
        description="OTLP/HTTP collector to which OpenTelemetry traces are sent, as in http://localhost:4318; needs "
        "pip install 'vig-ray[traces]'. By default none",
        json_schema_extra={"metavar": "URL"},
    )


class ServeConfig(AppConfig):
    """Score new samples over HTTP with the batch job's scorer, on this machine."""

    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    host: str = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for every one, which needs --keys or --open"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port of /metrics for Prometheus, on every address of this machine"
    )
