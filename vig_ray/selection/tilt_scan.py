"""The scan that tells how the selections of a plan tilt, and what it tells in words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import local_folder
from vig_ray.selection.clusters import first_question
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.plan import Plan
from vig_ray.selection.rank import Groups, columns, ranks
from vig_ray.selection.strategy import Strategy
from vig_ray.selection.tilt import COLUMNS, LOOKED_AT, Look, Tilt, joined, looked_at, tilt_of
from vig_ray.selection.tilt_words import examples, in_words
from vig_ray.selection.within import Keyed, WithinName, keyed_by
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.directories import rows_of, samples_beside
from vig_ray.tables.scan import Files

log = logging.getLogger(__name__)

SAMPLES = 5_000_000
"""The most samples whose kinds of questions are read only to tell the tilt by them."""


class Told(NamedTuple):
    """A selection's tilt, and what a person should know of it."""

    tilt: Tilt
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Kept:
    """Which rows of a block are scored, and which of them each share keeps: [rows], [rows, shares]."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig
    thresholds: Sequence[np.ndarray[Any, Any]]

    def __call__(self, table: pa.Table) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        return ranked.scored, np.stack([ranked.kept(bits) for bits in self.thresholds], axis=1)


def tilts_of(plan: Plan, files: Files, groups: Groups, thresholds: Sequence[np.ndarray[Any, Any]]) -> list[Told | None]:
    """Of each share; None for a selection that keeps all samples or draws them by chance, which can't tilt.

    Raises StageError where one tilts more than --strict-balance allows.
    """
    config, strategy = plan.config, plan.strategy
    if strategy.ranking in (None, "chance") or not plan.has_answers:
        return [None] * len(thresholds)
    samples, question = _questions(plan, groups)
    some, limit = looked_at(files)
    look = Look(_Kept(strategy, groups, config, thresholds), question, config.seed, limit)
    rows = joined(some.scan(sorted({*columns(strategy, groups), *COLUMNS}), look))
    check_told(config, [bool(rows.kept[:, share].any()) for share in range(len(thresholds))])
    tilts = [tilt_of(rows, share, known=question is not None, seed=config.seed) for share in range(len(thresholds))]
    spell = _speller(plan) if any(shift.token is not None for tilt in tilts if tilt for shift in tilt.shifts) else str
    of = _of_examples(samples, examples(tilts)) if samples else {}
    told = [Told(tilt, tuple(in_words(tilt, of, spell))) if tilt else None for tilt in tilts]
    check_balance(config, [each for each in told if each])
    return told


def check_told(config: SelectConfig, told: Sequence[bool]) -> None:
    """Raise StageError where --strict-balance asks for a tilt that isn't known."""
    if config.strict_balance is not None and not all(told):
        raise StageError(
            f"--strict-balance {config.strict_balance:g}: of {LOOKED_AT:,} samples that are looked at none is kept, "
            "or the selection was made without it; take a larger --p, or select anew with --overwrite"
        )


def check_balance(config: SelectConfig, tilts: Sequence[tuple[Tilt, Sequence[str]]]) -> None:
    """Raise StageError where one tilts more than --strict-balance allows."""
    if config.strict_balance is None:
        return
    for tilt, lines in tilts:
        if tilt.answers > config.strict_balance / 100:
            why = "; ".join(line.strip() for line in lines[:4])
            raise StageError(f"--strict-balance {config.strict_balance:g}: {why}; nothing is written")


def _questions(plan: Plan, groups: Groups) -> tuple[str | None, Keyed | None]:
    """samples/ where it is known, and the kinds of its questions: those that the groups have anyway, or read for that
    alone. Neither where they are too many to be read for that, nor where those beside the scores aren't theirs."""
    try:
        samples = plan.samples or samples_beside(plan.scores, plan.config.samples, plan.record)
    except StageError as error:
        if plan.config.samples is not None:
            raise
        log.info("the tilt is told by source alone: %s", error)
        return None, None
    for within in (groups.within, groups.nulls and groups.nulls.within):
        if within and "question" in within.keyed:
            return samples, within.keyed["question"]
    if samples is None:
        return None, None
    fs, _ = filesystem(samples)
    rows = 0
    for path in parquet_files(samples):
        rows += pq.read_metadata(path, filesystem=fs).num_rows
        if rows > SAMPLES:
            return None, None
    by: tuple[WithinName, ...] = ("question",)
    return samples, keyed_by(by, samples, embedding_model="", clusters=1, seed=plan.config.seed)["question"]


def _of_examples(samples: str, keys: list[str]) -> Mapping[str, tuple[str, str]]:
    """Question and first answer of samples, cut short, by their keys."""
    found = {}
    for key, row in rows_of(samples, keys, ["conversation"]).items():
        answers = [turn["text"] for turn in row["conversation"] if turn["role"] == "assistant"]
        found[key] = (_short(first_question(row["conversation"], IMAGE_MARK)), _short(answers[0] if answers else ""))
    return found


def _speller(plan: Plan) -> Callable[[int], str]:
    """The text of a token, by the tokenizer that the scores were made with; its number where that can't be loaded."""
    try:
        model = local_folder(str(plan.record["config"]["model"]), weights=False)
        file = Path(model) / "tokenizer.json"
        if file.is_file():  # a second less than by transformers, whose import alone takes longer than a small selection
            tokenizer: Any = Tokenizer.from_file(str(file))
            piece = tokenizer.id_to_token
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            piece = tokenizer.convert_ids_to_tokens
    except Exception as error:  # tokenizers raises no narrower one
        log.info("tokens are told by their numbers: %s", error)
        return lambda token: f"token {token}"
    return lambda token: str(tokenizer.decode([token])).strip() or str(piece(token))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
