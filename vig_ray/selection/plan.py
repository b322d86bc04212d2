"""A selection's config held against the scores, and against what else its strategy needs, before any scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from vig_ray.dataset.schema import KEPT
from vig_ray.errors import StageError
from vig_ray.options import OtherImagesName
from vig_ray.selection.calibrate import null_columns
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.frequency import TokenCounts, read_counts
from vig_ray.selection.measures import Measures, measures_for
from vig_ray.selection.rank import Groups, columns
from vig_ray.selection.strategies import strategies
from vig_ray.selection.strategy import Strategy
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import check_writable, filesystem, join
from vig_ray.tables.directories import samples_beside, scores_directory
from vig_ray.tables.passes import TEXT, View, references_of
from vig_ray.tables.scan import Files


@dataclass(frozen=True)
class Plan:
    """A config that has been checked against what is really there."""

    config: SelectConfig
    strategy: Strategy
    scores: str
    record: dict[str, Any]
    view: View
    files: Files
    has_tokens: bool
    has_kept: bool
    samples: str | None
    out: str
    measures: Measures | None
    counts: TokenCounts | None
    null: OtherImagesName | None = None
    has_answers: bool = True

    def identity(self) -> dict[str, Any]:
        """What must be equal for two selections to be the same; JSON values."""
        elsewhere = {"scores", "reference", "out", "samples", "measures", "counts", "address", "overwrite"}
        elsewhere |= {"strict_balance", "null"}  # null: the one that is taken is below
        # Selections of before had no such options.
        elsewhere |= {option for option, has_use in _ONLY_FOR.items() if not has_use(self.strategy)}
        elsewhere |= set() if self.config.within else {"within"}
        elsewhere |= set() if self.config.calibrate else {"calibrate"}
        elsewhere |= set() if self.config.within or self.config.calibrate else {"within_least"}
        elsewhere |= set() if self.config.across_models else {"across_models"}
        elsewhere |= {"weights_sum"} if self.config.weights_sum == "tokens" else set()
        identity: dict[str, Any] = {
            "scores": self.view.scored,
            "options": self.config.model_dump(mode="json", exclude=elsewhere),
        }
        identity |= {"null": self.null} if self.null else {}
        identity |= {"measures": self.measures.identity} if self.measures else {}
        return identity | ({"counts": self.counts.fingerprint()} if self.counts else {})


_ONLY_FOR: dict[str, Callable[[Strategy], bool]] = {
    "weights_sum": lambda strategy: strategy.shares,
    "counts": lambda strategy: strategy.counts,
    "measures": lambda strategy: strategy.measure is not None,
    "ifd_of": lambda strategy: strategy.ranking == "ifd",
}
"""Options that not every strategy has a use for."""


def check(config: SelectConfig) -> Plan:
    """Everything that can be wrong with a config and takes only seconds to see; raises StageError."""
    scores = scores_directory(config.scores)
    record = read_stage(scores) or {}
    if not record.get("complete"):
        raise StageError(f"{scores}: not finished; run the same `vig score` command again, it goes on where it was")
    strategy = strategies()[config.strategy]
    fs, _ = filesystem(scores)
    paths = parquet_files(scores)
    if not paths:
        raise StageError(f"{scores}: no Parquet files")
    schema = pq.read_schema(paths[0], filesystem=fs)
    needed = {"sample_key", "source", "num_answer_tokens", "error", *columns(strategy, Groups())}
    needed |= {"token_ids", *strategy.reads} if strategy.weigh else set()
    by = {*config.within, *config.calibrate}
    needed |= {"token_ids", "turn"} if "answer" in by else set()
    needed -= {*strategy.measure_columns}
    view = View.of(record, scores, config.reference, gains=strategy.scored != "reference_loss")
    _check_text_pass(config, strategy, view, record, scores)
    _check_balance(config, strategy, schema.names)
    null = _null(config, strategy, view, record, scores)
    needed |= null_columns(view.reference, null, tokens=bool(strategy.weigh)) if null else set()
    missing = sorted({*view.stored(needed)} - set(schema.names))
    if missing:
        raise StageError(f"{paths[0]}: has no column {missing[0]!r}, which --strategy {config.strategy} needs")
    if len(config.p) > 1 and strategy.share != "p":
        raise StageError(f"--p: --strategy {config.strategy} takes none, so several can't be compared")
    if config.quota and strategy.share is None:
        raise StageError(f"--quota: has no effect with --strategy {config.strategy}, which keeps every sample")
    for option, has_use in _ONLY_FOR.items():
        if not has_use(strategy) and getattr(config, option) != SelectConfig.model_fields[option].default:
            raise StageError(f"--{option.replace('_', '-')}: has no effect with --strategy {config.strategy}")
    counts = read_counts(config.counts) if config.counts is not None else None
    measures = measures_for(strategy, config.measures, scores, record) if strategy.measure else None
    samples = None
    _check_within(config, strategy)
    if {"question", "cluster"} & by:
        samples = samples_beside(scores, config.samples, record)
        if samples is None:
            option = "within" if {"question", "cluster"} & {*config.within} else "calibrate"
            raise StageError(
                f"{scores}: no samples/ beside them; --{option} {','.join(getattr(config, option))} takes questions "
                "from there, so name them with --samples"
            )
    elif strategy.clustered and config.clusters > 1:
        samples = samples_beside(scores, config.samples, record)
        if samples is None:
            raise StageError(
                f"{scores}: no samples/ beside them; --strategy {config.strategy} groups samples by their questions "
                "and needs --samples, or --clusters 1"
            )
    elif config.samples is not None:  # the tilt is told by its questions
        samples_beside(scores, config.samples, record)
    check_writable(config.out)
    has_tokens = "token_ids" in schema.names
    files = Files(paths, fs, view=view)
    has_kept = KEPT.name in schema.names or bool(record.get("kept"))  # a run may have begun with a version without
    out = join(config.out, "selection")
    return Plan(
        config, strategy, scores, record, view, files, has_tokens, has_kept, samples, out, measures, counts, null,
        {"token_ids", "turn"} <= {*schema.names},
    )  # fmt: skip


def _check_balance(config: SelectConfig, strategy: Strategy, names: Sequence[str]) -> None:
    """Raise StageError where --strict-balance has no effect, or can't be told."""
    if config.strict_balance is None:
        return
    if strategy.ranking in (None, "chance"):
        raise StageError(f"--strict-balance: has no effect with --strategy {config.strategy}, which can't tilt")
    if not {"token_ids", "turn"} <= {*names}:
        raise StageError("--strict-balance: these scores don't hold their answers' tokens; score again")


def _null(
    config: SelectConfig, strategy: Strategy, view: View, record: dict[str, Any], scores: str
) -> OtherImagesName | None:
    """Whose other images nulls come from. Raises StageError where there are none, or the option has no effect."""
    if not config.calibrate:
        if config.null is not None:
            raise StageError("--null: has no effect without --calibrate")
        return None
    if strategy.ranking != "vig":
        raise StageError(f"--calibrate: has no effect with --strategy {config.strategy}, which doesn't rank by gain")
    there = references_of(record)
    # Against one other image of the same source, that image itself gains nothing.
    known: list[OtherImagesName] = [name for name in ("swap", "marginal") if name in there]
    usable = [name for name in known if (view.reference, name) != ("swap", "swap")]
    if config.null is not None and config.null not in usable:
        why = "under --reference swap it gains nothing" if config.null in known else f"{scores} hold {', '.join(there)}"
        raise StageError(f"--null {config.null}: {why}")
    if not usable:
        add = "marginal" if known else "swap"
        raise StageError(
            f"--calibrate: {scores} hold {', '.join(there)}, and nothing of other images; the same `vig score` with "
            f"--reference {','.join([*there, add])} adds them"
        )
    return config.null or usable[0]


def _check_within(config: SelectConfig, strategy: Strategy) -> None:
    """Raise StageError where --within has no effect, or another option says what is ranked together."""
    if not config.within:
        if not config.calibrate and config.within_least != SelectConfig.model_fields["within_least"].default:
            raise StageError("--within-least: has no effect without --within or --calibrate")
        return
    if strategy.ranking is None:
        raise StageError(f"--within: has no effect with --strategy {config.strategy}, which keeps every sample")
    if config.quota:
        raise StageError("--within and --quota both say what is ranked together; give one")
    if strategy.clustered and config.clusters > 1 and "cluster" not in config.within:
        raise StageError(
            f"--within: --strategy {config.strategy} ranks within clusters; give --clusters 1, or --within "
            f"{','.join(config.within)},cluster"
        )


def _check_text_pass(config: SelectConfig, strategy: Strategy, view: View, record: dict[str, Any], scores: str) -> None:
    """Raise StageError where the strategy needs the losses of answers alone and the scores haven't got them, or gains
    that the text pass doesn't give."""
    across = view.reference == TEXT and strategy.ranking == "vig"
    if across and not config.across_models:
        raise StageError(
            f"--strategy {config.strategy}: under the reference text a gain would be one model's loss less another's; "
            "name another --reference, take --strategy prior, or rank by it all the same with --across-models"
        )
    if config.across_models and not across:
        raise StageError(
            f"--across-models: has no effect with --strategy {config.strategy} under {view.reference}; it is for gains "
            "under --reference text"
        )
    if config.strategy != "ifd":
        return
    named = {reference["name"]: reference for reference in record.get("identity", {}).get("references", [])}
    context = named.get(TEXT, {}).get("parameters", {}).get("context")
    if TEXT not in named or context not in (None, "answer"):
        raise StageError(
            f"{scores}: hold no losses of the answers alone, which --strategy ifd needs; the same `vig score` with "
            f"--reference {','.join([*(name for name in named if name != TEXT), TEXT])} --reference-model LM "
            "--reference-context answer adds them"
        )
