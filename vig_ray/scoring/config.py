"""The options of `vig score`."""

from __future__ import annotations

import re
import shlex
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.model.load import Template
from vig_ray.scoring.engines.load import AskedEngine
from vig_ray.stage import StageConfig


def _workers(value: str) -> str:
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", value)
    if not match or int(match[1]) < 1 or (match[2] and int(match[2]) < int(match[1])):
        raise ValueError("takes a number such as 4, or a range such as 1..8")
    return value


_RANGE: dict[str, JsonValue] = {"metavar": "N|MIN..MAX"}
WorkerRange = Annotated[
    str, BeforeValidator(lambda value: str(value) if type(value) is int else value), AfterValidator(_workers)
]


def _options(value: Any) -> Any:
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


_PAIRS: dict[str, JsonValue] = {"metavar": "NAME=VALUE", "repeated": True}
EngineOptions = Annotated[dict[str, JsonValue], BeforeValidator(_options)]


class ScoreConfig(StageConfig):
    """Score every answer token of a dataset with and without its image."""

    data: str = Field(
        description="dataset: LLaVA or messages file (.json, .jsonl, .parquet), WebDataset shards, or samples/"
    )
    model: str = Field(description="vision-language model: a checkpoint's folder or a hub id")
    out: str = Field(description="directory that gets scores/ (and samples/, where the data is imported here)")
    images: str | None = Field(
        None, description="folder that relative image paths start from; by default the data file's folder"
    )
    reference: Literal["blur", "blind"] = Field(
        "blur", description="what stands for 'no image': blur (VIG) or blind, the image's positions masked (VisNec)"
    )
    engine: AskedEngine = Field(
        "auto",
        description="what computes the log-probs: auto takes vllm where it is installed and there is a GPU, else "
        "torch; MODULE:NAME is one of your own",
    )
    vllm: EngineOptions = Field(
        default_factory=dict,
        description="options of vLLM's engine, as vllm serve names them: tensor_parallel_size=2 quantization=fp8 ...",
        json_schema_extra=_PAIRS,
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="precision of the model; by default float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the model runs; auto takes GPUs if Ray has any when the job starts"
    )
    template: Template = Field(
        "auto", description="prompt: llava_v1 (LLaVA-1.5 to the letter), chat (the checkpoint's chat template) or auto"
    )
    max_length: int | None = Field(
        None,
        ge=1,
        description="longest prompt, tokens with images; by default 2048 for LLaVA-1.5, else the model's own",
    )
    too_long: Literal["error", "truncate"] = Field(
        "error", description="a longer prompt: a row with error set, or cut at the limit and told, as LLaVA trains"
    )
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image, pixels; a larger one is an error")
    workers: WorkerRange | None = Field(
        None,
        description="engines at a time, a number or a range such as 1..8; by default up to one a GPU, or a CPU core",
        json_schema_extra=_RANGE,
    )
    prepare_workers: WorkerRange | None = Field(
        None,
        description="CPU processes that decode and tokenise, a number or a range; by default up to one a core",
        json_schema_extra=_RANGE,
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens a batch: padded ones of torch, by default 16384 on a GPU, 1024 on a CPU; vLLM's "
        "max_num_batched_tokens, by default its own",
    )
    window: int = Field(256, ge=1, description="rows that an engine sorts and batches together")
    rows_per_file: int = Field(
        2048, ge=1, description="rows a block: what a killed run has to do again, and the most rows of a scores file"
    )
    format: Literal["auto", "json", "jsonl", "parquet", "webdataset"] = Field(
        "auto", description="what --data is, if it isn't plain"
    )
    name: str | None = Field(None, description="dataset name in the sample keys; by default the data file's name")
    address: str | None = Field(
        None,
        description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own on this machine",
    )
    overwrite: bool = Field(False, description="replace what an earlier run with other options left in --out")
    strict: bool = Field(False, description="exit with status 1 if any row could not be scored")
