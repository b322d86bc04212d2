"""The options that say what a dataset is and how it is read: of `vig import`, and of `vig score` where it imports."""

from __future__ import annotations

from pydantic import Field, field_validator

from vig_ray.dataset.inputs import Format
from vig_ray.dataset.layouts.columns import parse_columns
from vig_ray.options import SampleOrder
from vig_ray.stage import StageConfig


class DataOptions(StageConfig):
    """What is read, and how its rows become samples."""

    data: str = Field(
        description="the dataset: a file (JSON array, JSON Lines, Parquet or WebDataset tar), a folder of such files, "
        "or a brace pattern like shard-{000000..000012}.tar; a path or URI; vig score takes samples/, too"
    )
    images: str | None = Field(
        None, description="folder that relative image paths start from, a path or URI; default: the data file's folder"
    )
    name: str | None = Field(
        None,
        pattern=r"^[^/\s]+$",
        description="the dataset's name, with which sample keys begin; default: the data file's name, without suffix",
    )
    format: Format = Field("auto", description="format of the data; auto: by the files' names and first bytes")
    columns: str | None = Field(
        None,
        description="the data's own names for question, answer, image (or conversations, messages, texts), id, source, "
        "system, as question=prompt,answer=reply.text,image=picture; default: a known layout, told by the columns",
    )
    order: SampleOrder = "auto"

    @field_validator("columns")
    @classmethod
    def _told(cls, value: str | None) -> str | None:
        if value is not None:
            parse_columns(value)
        return value
