"""The engine stage: pairs of prompts to the rows of `scores/`."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vig_ray.model.prompt import Prompt, PromptError
from vig_ray.scoring.engines import Engine, LogProbs
from vig_ray.scoring.gain import loss
from vig_ray.scoring.schema import SCORES


def score_pairs(
    engine: Engine, pairs: Sequence[tuple[Prompt, Prompt]]
) -> list[tuple[LogProbs, LogProbs] | PromptError]:
    """Clean and reference log-probs of each pair, both float32 [T], the two passes in flight together."""
    found = engine.logprobs([prompt for pair in pairs for prompt in pair])
    results: list[tuple[LogProbs, LogProbs] | PromptError] = []
    for clean, reference in zip(found[::2], found[1::2], strict=True):
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


class Scorer:
    """A Ray Data callable that holds an engine: a block of `PREPARED` to a block of `SCORES`, row for row."""

    def __init__(
        self,
        *,
        model: str,
        template: Any,
        max_length: int | None,
        dtype: str,
        device: str,
        batch_tokens: int | None,
        threads: int | None,
        progress: Any = None,
    ) -> None:
        import torch

        from vig_ray.model.load import load_formatter, load_model
        from vig_ray.scoring.engines.torch import TorchEngine

        if threads:
            torch.set_num_threads(threads)
        formatter = load_formatter(model, template, max_length)
        self._engine: Engine = TorchEngine(
            load_model(model, dtype=dtype, device=device), formatter.collate, max_batch_tokens=batch_tokens
        )
        self._progress = progress
        if progress is not None:
            progress.ready.remote()

    def __call__(self, prepared: pa.Table) -> pa.Table:
        """Score a block."""
        rows = score_rows(self._engine, prepared.to_pylist())
        if self._progress is not None:
            self._progress.add.remote(len(rows))
        return pa.Table.from_pylist(rows, schema=SCORES)
