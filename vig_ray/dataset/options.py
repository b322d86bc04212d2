"""The options that say what a dataset is and how it is read: of `vig import`, and of `vig score` where it imports."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vig_ray.dataset.fetched import Fetch
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
        None,
        description="folder that relative image paths start from, or an archive with the images (zip, tar, tar.gz, "
        "...), or a pattern of such (*_data/shard_*.tar); a path or URI; default: the data file's folder and the "
        "archives in it",
    )
    name: str | None = Field(
        None,
        pattern=r"^[^/\s]+$",
        description="the dataset's name, with which sample keys begin; default: the data file's name, without suffix",
    )
    format: Format = Field("auto", description="format of the data; auto: by the files' names and first bytes")
    order: SampleOrder = "auto"
    fetch: Fetch = Field(
        "auto",
        description="images by URL that are fetched when the data is imported: auto, those that have a checksum in the "
        "data; always; never: all are read from the web at each use",
    )
    fetch_cache: str | None = Field(
        None,
        description="folder, a path or URI, that fetched images are kept in; several runs may share one; default: "
        "OUT/fetched",
        json_schema_extra={"metavar": "FOLDER"},
    )
    fetch_connections: int = Field(8, ge=1, description="most images that are fetched from one host at a time")
    fetch_private: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="hosts of images that may have addresses inside a network; by default none: the data's URLs must "
        "not lead a job to the machines beside it",
        json_schema_extra={"metavar": "HOST[,...]"},
    )
