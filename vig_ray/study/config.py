"""The options of `vig study`."""

from __future__ import annotations

from pydantic import Field

from vig_ray.dataset.options import Share
from vig_ray.stage import StageConfig


class StudyConfig(StageConfig):
    """Run the grid of a study, and tell which of its arms is better, and how sure that is."""

    study: str = Field(
        description="study.yaml, which says what is compared; docs/study.md", json_schema_extra={"positional": True}
    )
    out: str = Field(
        description="directory that gets runs/, one folder a stage, and study.json, the results; those of a pilot "
        "in pilot-2-percent/"
    )
    paths_from: str | None = Field(
        None,
        description="folder that relative paths in the file start from; by default its own",
        json_schema_extra={"metavar": "DIR"},
    )
    dry_run: bool = Field(False, description="only print what would be run, what is shared, and what it will cost")
    rates: str | None = Field(
        None,
        description="another study's --out, whose stages' times the estimates take, too",
        json_schema_extra={"metavar": "DIR"},
    )
    seeds: int | None = Field(None, ge=1, description="the first N seeds only, and no more where an order is open")
    arms: str | None = Field(
        None,
        description="run only these arms; results of others that are there are kept",
        json_schema_extra={"metavar": "NAME[,...]"},
    )
    pilot: Share = Field(
        None,
        description="take this share of the data that is imported, and of a training's --max-steps: a first look",
        json_schema_extra={"metavar": "PERCENT%"},
    )
    search: str | None = Field(
        None,
        description="first try values of an option in short runs, as p=20..100, and go on with the better ones alone "
        "(docs/study.md)",
        json_schema_extra={"metavar": "NAME=LOW..HIGH[:N]"},
    )
    again: str | None = Field(
        None,
        description="run again what another version of vig-ray wrote of these stages, or of all, and what was made "
        "from it; the earlier outputs are moved aside",
        json_schema_extra={"metavar": "STAGE[,...]|all"},
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="most stages at a time; by default one a core on this machine, and as many as a cluster has room "
        "for",
    )
    address: str | None = Field(
        None, description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or a Ray of its own here"
    )
    strict: bool = Field(False, description="exit with status 1 if any stage failed")
