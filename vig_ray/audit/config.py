"""The options of `vig audit`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vig_ray.options import OtherImagesName
from vig_ray.stage import StageConfig


class AuditConfig(StageConfig):
    """Whether gains are a signal: does a sample's own image beat another one?"""

    scores: str = Field(
        description="scores/ of a finished `vig score --reference marginal` (or swap), or the directory that holds it"
    )
    reference: OtherImagesName | None = Field(
        None, description="whose other images are compared with; by default marginal, where the scores hold it"
    )
    by: Literal["source", "cluster"] = Field(
        "source", description="what is told apart: the dataset's sources, or clusters of questions"
    )
    clusters: int = Field(20, ge=1, description="with --by cluster: how many")
    samples: str | None = Field(
        None, description="with --by cluster: samples/ that the scores are of; by default beside the scores"
    )
    embedding_model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="with --by cluster: what embeds questions, as for vig select; words needs no model",
    )
    seed: int = Field(42, description="with --by cluster: their seed")
    json_lines: bool = Field(False, description="print one JSON object a group instead of a table")
    address: str | None = Field(
        None, description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or this machine"
    )

    @model_validator(mode="after")
    def _of_clusters(self) -> Self:
        for option in ("clusters", "samples", "embedding_model", "seed"):
            if self.by != "cluster" and getattr(self, option) != AuditConfig.model_fields[option].default:
                raise ValueError(f"--{option.replace('_', '-')} has no effect without --by cluster")
        return self
