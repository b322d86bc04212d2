"""The engine stage: pairs of prompts to the rows of `scores/`."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from vig_ray.errors import StageError
from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines import Engine, EngineDiedError, LogProbs
from vig_ray.scoring.engines.load import load_engine
from vig_ray.scoring.gain import loss
from vig_ray.scoring.schema import SCORES


def score_pairs(
    engine: Engine, pairs: Sequence[tuple[Prompt, Prompt]]
) -> list[tuple[LogProbs, LogProbs] | PromptError]:
    """Clean and reference log-probs of each pair, both float32 [T], the two passes in flight together."""
    logprobs = engine.logprobs([prompt for pair in pairs for prompt in pair])
    results: list[tuple[LogProbs, LogProbs] | PromptError] = []
    for clean, reference in zip(logprobs[::2], logprobs[1::2], strict=True):
        if isinstance(clean, PromptError) or isinstance(reference, PromptError):
            results.append(clean if isinstance(clean, PromptError) else reference)  # type: ignore[arg-type]
        elif not (np.isfinite(clean).all() and np.isfinite(reference).all()):
            results.append(PromptError("NotFinite", "log-probs overflow; --dtype bfloat16 or float32 has the range"))
        else:
            results.append((clean, reference))
    return results


def score_rows(engine: Engine, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `PREPARED` to rows of `SCORES`, in order."""
    pairs = [pickle.loads(row["prompts"]) for row in rows if row["prompts"] is not None]
    scores = iter(score_pairs(engine, pairs))
    out = []
    for row in rows:
        scored = {name: row[name] for name in SCORES.names if name in row}
        if row["error"] is None:
            scored["num_answer_tokens"] = len(row["token_ids"])
        if row["prompts"] is not None:
            result = next(scores)
            if isinstance(result, PromptError):
                scored |= {"error": str(result)}
            else:
                clean, reference = result
                clean_loss, reference_loss = loss(clean), loss(reference)
                scored |= {
                    "clean_loss": clean_loss,
                    "reference_loss": reference_loss,
                    "vig": reference_loss - clean_loss,
                    "clean_logprobs": clean,
                    "reference_logprobs": reference,
                }
        out.append(scored)
    return out


MOST_DEATHS = 5
"""Engines that may die over whole blocks, one after the other with no row scored between, before the job gives up."""
MOST_FATAL_ROWS = 8
"""Rows in succession that may each kill an engine by themselves, with no row scored between, before it gives up."""
SINGLY_AFTER = 2
"""Engines that may die over a block before its rows are run one by one, to find the one that kills them."""


class Scorer:
    """A Ray Data callable that holds an engine: a block of `PREPARED` to a block of `SCORES`, row for row.

    `engine`: the arguments of `load_engine`. `progress`: a `RowCounter`, or None. Where the engine dies, so does this
    process: Ray starts another and gives it the block again. A row that kills an engine by itself becomes an error.
    """

    def __init__(self, *, engine: Mapping[str, Any], progress: Any = None) -> None:
        self._engine = load_engine(**engine)
        self._progress = progress
        if progress is not None:
            progress.ready.remote(self._engine.description)

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """Score a block."""
        rows = prepared.to_pylist()
        if self._progress is None or not rows:
            return pa.Table.from_pylist(score_rows(self._engine, rows), schema=SCORES)
        import ray

        block = rows[0]["sample_key"]
        deaths, fatal = ray.get(self._progress.history.remote(block))
        scored = self._run(rows, block, None) if deaths < SINGLY_AFTER else self._run_singly(rows, block, fatal)
        return pa.Table.from_pylist(scored, schema=SCORES)

    def _run_singly(self, rows: list[dict[str, Any]], block: str, fatal: Mapping[str, str]) -> list[dict[str, Any]]:
        """Score rows one by one, those in `fatal` (key to cause) not at all; the scores are in the order of the rows.

        The rows are taken in shuffled order. Rows that kill an engine often lie together, and in the order of the
        table they would look like an engine that does nothing but die.
        """
        scored: list[dict[str, Any]] = [{}] * len(rows)
        for number in random.Random(0).sample(range(len(rows)), len(rows)):
            row = rows[number]
            key = row["sample_key"]
            if key not in fatal:
                (scored[number],) = self._run([row], block, key)
                continue
            failed = row | {"prompts": None, "error": f"EngineDied: {fatal[key]}"[:500]}
            (scored[number],) = score_rows(self._engine, [failed])
            self._progress.add.remote(1, tokens=0, failed=1, by_engine=False)
        return scored

    def _run(self, rows: list[dict[str, Any]], block: str, row: str | None) -> list[dict[str, Any]]:
        try:
            scored = score_rows(self._engine, rows)
        except EngineDiedError as error:
            self._leave(error, block, row)
        self._progress.add.remote(
            len(rows),
            tokens=sum(row["num_answer_tokens"] for row in scored if row.get("vig") is not None),
            failed=sum(row["error"] is not None for row in scored),
            by_engine=any(row["prompts"] is not None for row in rows),
        )
        return scored

    def _leave(self, error: EngineDiedError, block: str, row: str | None) -> NoReturn:
        """End this process, or raise StageError where engines do nothing but die."""
        import ray

        over_blocks, over_rows = ray.get(self._progress.died.remote(str(error), block, row))
        if over_blocks >= MOST_DEATHS:
            raise StageError(f"the engine died {over_blocks} times in a row; the last time: {error}") from error
        if over_rows >= MOST_FATAL_ROWS:
            raise StageError(
                f"the engine died over {over_rows} rows in a row, each run by itself; the last time: {error}"
            ) from error
        os._exit(1)  # not an exception: Ray Data retries what a lost process was doing, and ends at what one raises
