"""The options that say what a dataset is and how it is read: of `vig import`, and of `vig score` where it imports."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_serializer, field_validator

from vig_ray.dataset.fetched import Fetch
from vig_ray.dataset.kinds import Format
from vig_ray.dataset.layouts.columns import parse_columns
from vig_ray.options import CommaSeparated, SampleOrder
from vig_ray.stage import StageConfig


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _share(value: Any) -> Any:
    """ "1%" or 0.01 as 0.01; a bare 1 could mean 1 %, but the number 1.0 is what "100%" became before."""
    if value is None or (isinstance(value, float) and value == 1):
        return value
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*", str(value))
    try:
        share = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    except ValueError:
        share = 0.0
    if match is None or not (0 < share < 1 or (share == 1 and match[2])):
        raise ValueError("takes a percentage such as 1%, or a share such as 0.01")
    return share


Share = Annotated[float | None, BeforeValidator(_share)]
"""A share of rows, 0 to 1, given as "1%" or 0.01."""


class DataOptions(StageConfig):
    """What is read, and how its rows become samples."""

    data: Annotated[tuple[str, ...], BeforeValidator(_one_or_several)] = Field(
        min_length=1,
        description="the dataset: a file (JSON array, JSON Lines, Parquet, Arrow or WebDataset tar), a folder of such "
        "files, a pattern like shard-{000..012}.tar or data/**/train-*.parquet, "
        "hf://datasets/ORG/NAME[@REVISION][:CONFIG[:SPLIT]], or a folder of `datasets`; a path or URI; several are "
        "mixed by their weights; vig score takes samples/, too",
        json_schema_extra={"metavar": "SPEC[=WEIGHT]", "repeated": True},
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
        description="the dataset's name, with which sample keys begin, for one --data; default: the name of its file, "
        "without suffix, folder or repository",
    )
    format: Format = Field("auto", description="format of the data; auto: by the files' names and first bytes")
    columns: str | None = Field(
        None,
        description="the data's own names for question, answer, image (or conversations, messages, texts), id, source, "
        "system, as question=prompt,answer=reply.text,image=picture; default: a known layout, told by the columns",
    )
    limit: int | None = Field(None, ge=1, description="take the first N rows, in the order of the files, and no more")
    sample: Share = Field(
        None,
        description="take this share of the rows, by a hash of their keys: the same ones wherever it is done",
        json_schema_extra={"metavar": "PERCENT%"},
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="another seed takes other rows by --sample and by weights")
    order: SampleOrder = "auto"
    keep: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="columns of the data that go along to scores, selections, reports and exports: names, paths such "
        "as meta.score, and patterns such as *_min",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
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

    @field_serializer("data")
    def _as_it_was_given(self, data: tuple[str, ...]) -> str | list[str]:
        return data[0] if len(data) == 1 else list(data)

    @field_validator("columns")
    @classmethod
    def _told(cls, value: str | None) -> str | None:
        if value is not None:
            parse_columns(value)
        return value
