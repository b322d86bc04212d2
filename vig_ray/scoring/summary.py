"""What a finished `scores/` holds, in counts and means, read in streams."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.dataset as pads

from vig_ray.scoring.schema import SCORES
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem


@dataclass
class SourceMean:
    """Samples of one source that have a score, and the sum of their gains (nats)."""

    samples: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean sample gain, nats."""
        return self.total / self.samples


@dataclass
class ScoreSummary:
    """Counts of a scores directory: read = scored + text_only + failed."""

    directory: str
    read: int = 0
    scored: int = 0
    text_only: int = 0
    failed: int = 0
    truncated: int = 0
    answer_tokens: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    sources: dict[str, SourceMean] = field(default_factory=dict)

    def text(self) -> str:
        """The counts, which add up, and where the scores lie, for a person."""
        lines = [
            f"read {self.read:,} = scored {self.scored:,} + text-only {self.text_only:,} + failed {self.failed:,}"
            f"   ({self.answer_tokens:,} answer tokens scored)"
        ]
        if self.truncated:
            lines.append(f"truncated {self.truncated:,} of them at the length limit (--max-length)")
        lines += [f"  of them {count:,}: {note}" for note, count in self.notes.most_common()]
        lines += [f"  failed {count:,}: {kind}" for kind, count in self.failures.most_common()]
        if self.scored:
            mean = sum(source.total for source in self.sources.values()) / self.scored
            lines.append(f"mean VIG {mean:+.3f} nats")
        return "\n".join([*lines, f"scores: {self.directory}"])

    def counts(self) -> dict[str, Any]:
        """The counts as JSON values, for the record."""
        return {
            "read": self.read,
            "scored": self.scored,
            "text_only": self.text_only,
            "failed": self.failed,
            "truncated": self.truncated,
            "answer_tokens": self.answer_tokens,
            "notes": dict(self.notes.most_common()),
            "failures": dict(self.failures.most_common()),
        }


def _parquet(directory: str) -> Any:
    fs, _ = filesystem(directory)
    return pads.dataset(parquet_files(directory), schema=SCORES, filesystem=fs, format="parquet")


def summarise(directory: str) -> ScoreSummary:
    """Read a scores directory's sample columns once, batch by batch."""
    summary = ScoreSummary(directory)
    columns = ["source", "vig", "error", "num_answer_tokens", "num_truncated_tokens", "note"]
    for batch in _parquet(directory).to_batches(columns=columns):
        summary.read += batch.num_rows
        errors = [error for error in batch["error"].to_pylist() if error is not None]
        summary.failed += len(errors)
        summary.failures.update(error.split(":", 1)[0] for error in errors)
        summary.notes.update(batch["note"].drop_null().to_pylist())
        vig = batch["vig"].to_numpy(zero_copy_only=False)
        scored = ~np.isnan(vig)
        summary.scored += int(scored.sum())
        summary.text_only += batch.num_rows - len(errors) - int(scored.sum())
        summary.truncated += int((batch["num_truncated_tokens"].fill_null(0).to_numpy(zero_copy_only=False) > 0).sum())
        tokens = batch["num_answer_tokens"].fill_null(0).to_numpy(zero_copy_only=False)
        summary.answer_tokens += int(tokens[scored].sum())
        sources = batch["source"].dictionary_encode()
        names = sources.dictionary.to_pylist()
        codes = sources.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        for code in np.unique(codes[scored]):
            name = names[code] if code < len(names) else "(none)"
            mean = summary.sources.setdefault(name, SourceMean())
            mean.samples += int((scored & (codes == code)).sum())
            mean.total += float(vig[scored & (codes == code)].sum())
    return summary


@dataclass(frozen=True)
class TokenMean:
    """One token of the vocabulary over all answers: how often, and its mean gain (nats)."""

    token_id: int
    count: int
    mean_gain: float


def token_means(directory: str, *, least: int = 1) -> list[TokenMean]:
    """Mean token gain of every answer token that occurs `least` times, highest first (the paper's Table 2)."""
    counts, totals = np.zeros(0, dtype=np.int64), np.zeros(0)
    columns = ["token_ids", "clean_logprobs", "reference_logprobs"]
    for batch in _parquet(directory).to_batches(columns=columns, filter=pads.field("vig").is_valid()):
        if batch.num_rows == 0:
            continue
        ids = batch["token_ids"].flatten().to_numpy()
        clean = batch["clean_logprobs"].flatten().to_numpy().astype(np.float64)
        gain = clean - batch["reference_logprobs"].flatten().to_numpy()
        size = max(len(counts), int(ids.max()) + 1)
        counts = np.pad(counts, (0, size - len(counts))) + np.bincount(ids, minlength=size)
        totals = np.pad(totals, (0, size - len(totals))) + np.bincount(ids, weights=gain, minlength=size)
    frequent = np.flatnonzero(counts >= max(1, least))
    means = totals[frequent] / counts[frequent]
    order = np.argsort(-means, kind="stable")
    return [TokenMean(int(frequent[i]), int(counts[frequent[i]]), float(means[i])) for i in order]
