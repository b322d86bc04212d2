"""The options that say what a dataset is and how it is read: of `vig import`, and of `vig score` where it imports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vig_ray.dataset.inputs import Format
from vig_ray.options import CommaSeparated, SampleOrder
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
    order: SampleOrder = "auto"
    keep: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="columns of the data that go along to scores, selections, reports and exports: names, paths such "
        "as meta.score, and patterns such as *_min",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
