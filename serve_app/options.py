"""What an operator decides: options of `vig serve`, arguments of `serve run`, `args` of serve.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.options import (
    BlurName,
    CommaSeparated,
    Device,
    EndOfTurn,
    EngineName,
    EngineOptions,
    OtherImagesName,
    Precision,
    ReferenceName,
    Template,
    TrustRemoteCode,
    WorkerRange,
)
from vig_ray.stage import StageConfig


def _host_names(value: tuple[str, ...]) -> tuple[str, ...]:
    for name in value:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{name!r}: takes names, as in vig.example, without https:// and port")
    return value


def _of_the_model(value: Any) -> Any:
    if value == "text":
        raise ValueError("is the loss of a second model, and a server holds one; `vig score` has it")
    if value in get_args(OtherImagesName):
        raise ValueError("is of a dataset's other images, and a server sees a sample alone; `vig score` has it")
    return value


class AppConfig(StageConfig):
    """Score new samples over HTTP with the batch job's scorer."""

    model: str = Field(description="vision-language model: a checkpoint's folder or a hub id")
    tau: float | None = Field(
        None, description="threshold of gain, nats: answers say which tokens reach it and whether the sample does"
    )
    reference: Annotated[ReferenceName, BeforeValidator(_of_the_model)] = Field(
        "blur", description="what stands for 'no image', as for vig score, but text"
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
    prepare_workers: WorkerRange = Field(
        "1",
        description="processes that check, decode and tokenise, a number or a range that follows the load",
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
    image_hosts: Annotated[tuple[str, ...], CommaSeparated] = Field(
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


class ServeConfig(AppConfig):
    """Score new samples over HTTP with the batch job's scorer, on this machine."""

    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    host: str = Field(
        "127.0.0.1", description="address to listen on; 0.0.0.0 for every one, which needs --keys or --open"
    )
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port of /metrics for Prometheus, on every address of this machine"
    )
