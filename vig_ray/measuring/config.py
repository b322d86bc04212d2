"""The options of `vig measure`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vig_ray.dataset.images import MAX_PIXELS
from vig_ray.options import CommaSeparated, Device, NotEmpty, Precision, TrustRemoteCode, WorkerRange
from vig_ray.stage import StageConfig

MeasureName = Literal["attention", "el2n", "clip", "clip-score"]
OF_MODEL: tuple[MeasureName, ...] = ("attention", "el2n")
"""Those that the aligned model makes; the others are a CLIP's."""


def _in_order(names: tuple[MeasureName, ...]) -> tuple[MeasureName, ...]:
    every: tuple[MeasureName, ...] = (*OF_MODEL, "clip", "clip-score")
    return tuple(name for name in every if name in names)


class MeasureConfig(StageConfig):
    """Measure the samples that were scored, for strategies of `vig select` that need more than their scores."""

    scores: str = Field(description="scores/ of a finished `vig score`, or the directory that holds it")
    out: str = Field(description="directory that gets measures/")
    measures: Annotated[tuple[MeasureName, ...], CommaSeparated, NotEmpty, AfterValidator(_in_order)] = Field(
        ("attention", "el2n", "clip", "clip-score"),
        description="what to measure; docs/selecting.md says what each is",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
    model: str | None = Field(
        None, description="the aligned model, whose prompts must be those of the scores; by default the scores' own"
    )
    clip_model: str = Field(
        "openai/clip-vit-base-patch32", description="CLIP for clip and clip-score: a checkpoint's folder or a hub id"
    )
    samples: str | None = Field(None, description="samples/ that the scores are of; by default beside the scores")
    dtype: Precision | None = Field(
        None, description="precision of the model; by default float32 on a CPU, the checkpoint's own on a GPU"
    )
    device: Device = Field("auto", description="auto takes GPUs if Ray has any when the job starts")
    trust_remote_code: TrustRemoteCode = False
    max_image_pixels: int = Field(MAX_PIXELS, ge=1, description="largest image, pixels; a larger one is an error")
    workers: WorkerRange | None = Field(
        None, description="processes that measure, a number or a range; by default up to one a GPU, or a CPU core"
    )
    rows_per_file: int = Field(
        2048, ge=1, description="rows a block: what a killed run has to do again, and the most rows of a file"
    )
    address: str | None = Field(
        None, description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own"
    )
    overwrite: bool = Field(False, description="replace what an earlier run with other options left in --out")
