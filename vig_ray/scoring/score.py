"""The engine stage: prompts, one a pass, to the rows of `scores/`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines import Engine, LogProbs
from vig_ray.scoring.engines.load import load_engine
from vig_ray.scoring.engines.prefixes import PrefixUse
from vig_ray.scoring.gain import loss, marginal_error, marginal_logprobs, marginal_loss, null_gains
from vig_ray.scoring.mortal import Blocks, Rows
from vig_ray.scoring.prepared import unpack
from vig_ray.scoring.schema import TEXT_EXACT, scores_schema
from vig_ray.scoring.text_pass import carried
from vig_ray.tables.passes import CLEAN, MARGINAL, TEXT, error_kind, logprobs_column, loss_column

Outcome = LogProbs | PromptError
"""What a pass gives of one sample: log-probs, float32 [T], or why there are none."""


def run_passes(engine: Engine, samples: Sequence[Sequence[Prompt | PromptError]]) -> list[list[Outcome]]:
    """The outcome of every pass of each sample, all passes in flight together.

    `samples`: one prompt a pass, or why it has none.
    """
    logprobs = iter(engine.logprobs([one for passes in samples for one in passes if not isinstance(one, PromptError)]))
    return [[one if isinstance(one, PromptError) else _finite(next(logprobs)) for one in passes] for passes in samples]


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, PromptError) or np.isfinite(outcome).all():
        return outcome
    return PromptError("NotFinite", "log-probs overflow; --dtype bfloat16 or float32 has the range")


def score_rows(
    engine: Engine, rows: Sequence[Mapping[str, Any]], passes: Sequence[str], first: str | None = None
) -> list[dict[str, Any]]:
    """Samples as `unpack` gives them to rows of `scores_schema`, in order.

    `passes`: a name for each of a row's prompts; all of one name are one reference's. `first`: the reference that `vig`
    is of, by default the one after the clean pass; where it isn't among the passes, rows hold their `vig` already.
    """
    if first is None and CLEAN in passes:
        first = next((name for name in passes if name != CLEAN), None)
    outcomes = iter(run_passes(engine, [row["prompts"] for row in rows if row["prompts"] is not None]))
    out = []
    for row in rows:
        scored = {name: value for name, value in row.items() if name not in ("prompts", "onto_chars")}
        if row["token_ids"] is not None:
            scored["num_answer_tokens"] = len(row["token_ids"])
        if row["prompts"] is not None:
            scored |= _columns(_by_name(passes, next(outcomes)), row, first)
        out.append(scored)
    return out


def _by_name(passes: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The outcomes of a sample's passes by their names, in order."""
    found: dict[str, list[Outcome]] = {}
    for name, outcome in zip(passes, outcomes, strict=True):
        found.setdefault(name, []).append(outcome)
    return found


def _of_images(name: str, outcomes: Sequence[Outcome]) -> tuple[Outcome, dict[str, Any]]:
    """One outcome of a reference that has several, and its further columns but for its loss and log-probs."""
    if name != MARGINAL:
        (outcome,) = outcomes
        return outcome, {}
    logp = [outcome for outcome in outcomes if not isinstance(outcome, PromptError)]
    if len(logp) < len(outcomes):  # the mean over fewer images would be another reference's
        return next(outcome for outcome in outcomes if isinstance(outcome, PromptError)), {}
    logp_KT = np.stack(logp)
    return marginal_logprobs(logp_KT).astype(np.float32), {
        loss_column(name): marginal_loss(logp_KT),
        "marginal_losses": [loss(logp_T) for logp_T in logp_KT],
        "marginal_means": np.asarray(logp_KT, np.float64).mean(0),
        "marginal_null": null_gains(logp_KT).mean(0),
        "marginal_error": marginal_error(logp_KT),
    }


def _columns(all_outcomes: Mapping[str, list[Outcome]], row: Mapping[str, Any], first: str | None) -> dict[str, Any]:
    """What a row gets of its passes. `row`: as it was prepared, with what passes before these gave it."""
    columns: dict[str, Any] = {}
    outcomes = {name: _of_images(name, each) for name, each in all_outcomes.items()}
    error = row["error"]
    errors = [error] if error else []
    clean, _ = outcomes.get(CLEAN, (None, {}))
    told = str(clean) if isinstance(clean, PromptError) else error or ""
    for place, (name, (outcome, further)) in enumerate(outcomes.items()):
        if not isinstance(outcome, PromptError):
            if name == TEXT:
                outcome, columns[TEXT_EXACT.name] = carried(outcome, row["prompts"][place], row)
            columns |= {logprobs_column(name): outcome, loss_column(name): loss(outcome)} | further
        elif name == CLEAN or not told.startswith(str(outcome)):  # what keeps all passes from running is told once
            errors.append(_told(name, outcome))
    if first is not None and first in outcomes:
        there = columns if CLEAN in outcomes else row
        of_first, of_clean = columns.get(loss_column(first)), there.get(loss_column(CLEAN))
        columns["vig"] = None if of_first is None or of_clean is None else of_first - of_clean
    return columns | {"error": "; ".join(errors) or None}


def _told(name: str, error: PromptError) -> str:
    """A failed pass in the words of its row's `error`: the clean pass's own, a reference's with its name."""
    told = str(error)
    return told if name == CLEAN or error.kind == error_kind(name) else f"{error_kind(name)}: {told}"


class Scorer:
    """A Ray Data callable that holds an engine: rows of `groups_schema` to one of `scores_schema` for each of their
    samples.

    `engine`: the arguments of `load_engine`. `passes`: those to run. `references`: those that the scores will have.
    `progress`: a `RowCounter`, or None. Where the engine dies, so does this process: Ray starts another and gives it
    the block again. A row that kills an engine by itself becomes an error.
    """

    def __init__(
        self, *, engine: Mapping[str, Any], passes: Sequence[str], references: Sequence[str], progress: Any = None
    ) -> None:
        self._engine = load_engine(**engine)
        self._passes, self._schema = tuple(passes), scores_schema(references)
        self._first = references[0] if references else None
        prefix_use: PrefixUse | None = getattr(self._engine, "prefix_use", None)  # of engines that have a cache
        counted = "vig" if len(self._passes) > 1 else loss_column(self._passes[0])
        self._blocks = Blocks(
            self._rows,
            progress=progress,
            tokens=lambda scored: sum(row["num_answer_tokens"] for row in scored if row.get(counted) is not None),
            prefixes=prefix_use.take if prefix_use else None,
        )
        if progress is not None:
            progress.ready.remote(self._engine.description)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """Score a block."""
        return pa.Table.from_pylist(self._blocks(unpack(prepared)), schema=self._schema)

    def _rows(self, rows: Rows) -> list[dict[str, Any]]:
        return score_rows(self._engine, rows, self._passes, self._first)
