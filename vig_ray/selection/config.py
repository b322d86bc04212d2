"""The options of `vig select`."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from vig_ray.options import CommaSeparated, OtherImagesName, Percentage, Percentages, ScoredUnder, different
from vig_ray.selection.within import WithinName
from vig_ray.stage import StageConfig

StrategyName = Literal[
    "vig", "vig-samples", "full", "random", "visnec", "top", "reference-loss", "clean-loss", "clip-score", "ifd",
    "el2n", "prior", "rare", "clip", "attention",
]  # fmt: skip


def _quotas(value: Any) -> Any:
    """{"coco": 50} from itself, from "coco=50 vg=30", or from a list of such pairs."""
    if isinstance(value, str):
        value = shlex.split(value)
    if not isinstance(value, list):
        return value
    quotas = {}
    for pair in value:
        source, equals, share = str(pair).rpartition("=")
        if not equals or not source:
            raise ValueError(f"{pair!r} isn't SOURCE=PERCENT, such as coco=50")
        quotas[source] = share
    return quotas


class SelectConfig(StageConfig):
    """Choose samples and tokens to train on from their scores."""

    scores: str = Field(description="scores/ of a finished `vig score`, or the directory that holds it")
    out: str = Field(description="directory that gets selection/")
    reference: ScoredUnder = None
    strategy: StrategyName = Field("vig", description="how to choose; docs/selecting.md says what each does")
    p: Percentages = Field(
        (70.0,),
        description="per cent of the samples with an image that vig, vig-samples and random keep; several, as "
        "30,50,70, are compared and nothing is selected",
    )
    r: Percentage = Field(
        15.0,
        description="per cent of each cluster that visnec, reference-loss and clean-loss keep, and of all that top, "
        "clip-score, ifd and el2n keep",
    )
    alpha: float = Field(
        1.0, ge=0, description="exponent of the weights of prior, rare, clip and attention: 0 weighs all tokens alike"
    )
    weights_sum: Literal["tokens", "one"] = Field(
        "tokens",
        description="what the weights of prior, rare, clip and attention sum to in a sample: its tokens (PRIOR's "
        "equation 4 with its factor k), or one (without it)",
    )
    counts: str | None = Field(
        None,
        description="for rare: a text file with a token's id and its count in a corpus on each line; by default the "
        "counts are those of the answers that were scored",
    )
    measures: str | None = Field(
        None,
        description="measures/, as `vig measure` wrote it, for attention, clip, clip-score and el2n; by default "
        "beside the scores",
    )
    ifd_of: Literal["losses", "perplexities"] = Field(
        "losses", description="what ifd is the ratio of: losses, or perplexities (their difference decides)"
    )
    clusters: int = Field(20, ge=1, description="clusters of questions; 1 ranks all together")
    keep_negative: bool = Field(
        False,
        description="visnec and top: also rank samples whose score is 0 or less, as VisNec's published script does; "
        "ifd: also those above 1",
    )
    samples: str | None = Field(
        None, description="samples/ that the scores are of, for the questions of clusters; by default beside the scores"
    )
    embedding_model: str = Field(
        "sentence-transformers/all-MiniLM-L6-v2",
        description="what embeds questions: a sentence-transformers model (hub id or folder), or words, which counts "
        "hashed words and needs no model",
    )
    quota: Annotated[dict[str, Percentage], BeforeValidator(_quotas)] = Field(
        default_factory=dict,
        description="another percentage for a source, which is then ranked by itself and has its own threshold",
        json_schema_extra={"metavar": "SOURCE=PERCENT", "repeated": True},
    )
    within: Annotated[tuple[WithinName, ...], CommaSeparated, AfterValidator(different)] = Field(
        (),
        description="rank samples within groups that agree in their source, their answer (a long one's first token), "
        "the kind of their question (its first two words) or their cluster of questions, or in several of these",
        json_schema_extra={"metavar": "source|answer|question|cluster[,...]"},
    )
    within_least: int = Field(
        10,
        ge=1,
        description="samples of a group that is ranked by itself, or has a null of its own; smaller ones are taken "
        "together",
    )
    calibrate: Annotated[tuple[WithinName, ...], CommaSeparated, AfterValidator(different)] = Field(
        (),
        description="subtract from each gain what other images of the dataset gain in groups that agree in these, so "
        "that tau means the same in all of them; needs scores with --reference swap or marginal",
        json_schema_extra={"metavar": "source|answer|question|cluster[,...]"},
    )
    across_models: bool = Field(
        False,
        description="with --reference text, whose losses are a language model's: rank by them less the clean ones all "
        "the same, which isn't VIG",
    )
    null: OtherImagesName | None = Field(
        None, description="with --calibrate: whose other images; by default swap, where the scores hold it"
    )
    strict_balance: Percentage | None = Field(
        None,
        description="refuse to select where more of the kept samples than this, per cent, would need another answer "
        "for the answers to each kind of question to be as often there as before",
    )
    seed: int = Field(42, description="seed of the training order, of random and of the clusters")
    rows_per_file: int = Field(100_000, ge=1, description="the most rows of a file of selection/")
    address: str | None = Field(
        None, description="Ray cluster to use, such as auto; by default RAY_ADDRESS, or this machine"
    )
    overwrite: bool = Field(False, description="replace an earlier selection with other options in --out")
