"""What a finished `scores/` holds, in counts and means, read in streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from vig_ray.scoring.schema import TEXT_EXACT, scores_schema
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.passes import CLEAN, TEXT, View, loss_column


@dataclass
class Mean:
    """Samples that have a score, and the sum of their gains (nats)."""

    samples: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean sample gain, nats."""
        return self.total / self.samples


@dataclass
class TextPass:
    """What the text pass gave: samples that have it, the sum of their losses (nats), and their answer tokens, of which
    `exact` have a log-prob that no other token shares."""

    samples: int = 0
    total: float = 0.0
    tokens: int = 0
    exact: int = 0

    def text(self) -> str:
        """For a person."""
        line = f"text pass: mean loss {self.total / self.samples:.3f} nats, {self.samples:,} samples"
        if self.exact == self.tokens:
            return line
        return f"{line}; {100 * self.exact / self.tokens:.2f} % of {self.tokens:,} log-probs carried over exactly"


@dataclass
class ScoreSummary:
    """Counts of a scores directory: read = scored + text_only + failed, all of its first reference.

    `references`: the gain under each. `incomplete`: scored samples that lack another reference, by its error.
    `text_pass`: where there is one.
    """

    directory: str
    read: int = 0
    scored: int = 0
    text_only: int = 0
    failed: int = 0
    truncated: int = 0
    answer_tokens: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)
    references: dict[str, Mean] = field(default_factory=dict)
    sources: dict[str, Mean] = field(default_factory=dict)
    text_pass: TextPass | None = None

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
        lines += [f"  scored without a reference {count:,}: {kind}" for kind, count in self.incomplete.most_common()]
        gains = {name: mean for name, mean in self.references.items() if mean.samples and name != TEXT}
        means = [f"{mean.mean:+.3f} ({name})" for name, mean in gains.items()]
        if means:
            lines.append(f"mean VIG {', '.join(means).replace(' (', ' nats (', 1)}")
        if self.text_pass and self.text_pass.samples:
            lines.append(self.text_pass.text())
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

    def gains(self) -> dict[str, Any]:
        """What the references gave, as JSON values, for the record: it may get more of them later."""
        return {
            "references": {
                name: {"samples": mean.samples, "mean_gain": mean.mean if mean.samples else None}
                for name, mean in self.references.items()
            },
            "incomplete": dict(self.incomplete.most_common()),
        } | ({} if self.text_pass is None else {"text_pass": dict(vars(self.text_pass))})


def summarise(
    directory: str, references: Sequence[str], paths: Sequence[str] | None = None, *, gains: bool = True
) -> ScoreSummary:
    """Read a scores directory's sample columns once, batch by batch.

    `references`: the names of those it has. `paths`: its files, by default those of its record. `gains`: False where
    the text pass alone was made: a sample with that is scored then.
    """
    summary = ScoreSummary(directory, references={name: Mean() for name in references})
    summary.text_pass = TextPass() if TEXT in references else None
    losses = [loss_column(name) for name in (CLEAN, *references)]
    counted = "vig" if gains and references else loss_column(*references[:1] or (CLEAN,))
    columns = ["source", "vig", "error", "num_answer_tokens", "num_truncated_tokens", "note", *losses]
    columns += [TEXT_EXACT.name] if summary.text_pass else []
    fs, _ = filesystem(directory)
    files = parquet_files(directory) if paths is None else list(paths)
    parquet = pads.dataset(files, schema=scores_schema(references), filesystem=fs, format="parquet")
    for batch in parquet.to_batches(columns=columns):
        summary.read += batch.num_rows
        vig = batch["vig"].to_numpy(zero_copy_only=False)
        scored = batch[counted].is_valid().to_numpy(zero_copy_only=False)
        kinds = np.array([error and error.split(":", 1)[0] for error in batch["error"].to_pylist()], dtype=object)
        failed = (kinds != None) & ~scored  # noqa: E711 - elementwise
        summary.failed += int(failed.sum())
        summary.failures.update(kinds[failed].tolist())
        summary.incomplete.update(kind for kind in kinds[scored] if kind is not None)
        summary.notes.update(batch["note"].drop_null().to_pylist())
        summary.scored += int(scored.sum())
        summary.text_only += int((~scored & ~failed).sum())
        summary.truncated += int((batch["num_truncated_tokens"].fill_null(0).to_numpy(zero_copy_only=False) > 0).sum())
        tokens = batch["num_answer_tokens"].fill_null(0).to_numpy(zero_copy_only=False)
        summary.answer_tokens += int(tokens[scored].sum())
        clean = batch[loss_column(CLEAN)].to_numpy(zero_copy_only=False)
        for name, mean in summary.references.items():
            gain = batch[loss_column(name)].to_numpy(zero_copy_only=False) - clean
            mean.samples += int((~np.isnan(gain)).sum())
            mean.total += float(np.nansum(gain))
        _add_text_pass(summary, batch, tokens)
        if counted != "vig":
            continue
        sources = batch["source"].dictionary_encode()
        names = sources.dictionary.to_pylist()
        codes = sources.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        for code in np.unique(codes[scored]):
            name = names[code] if code < len(names) else "(none)"
            of_source = summary.sources.setdefault(name, Mean())
            of_source.samples += int((scored & (codes == code)).sum())
            of_source.total += float(vig[scored & (codes == code)].sum())
    return summary


def _add_text_pass(summary: ScoreSummary, batch: pa.RecordBatch, tokens: npt.NDArray[Any]) -> None:
    """Add what the text pass gave the rows of a batch. `tokens`: the answer tokens of each."""
    if summary.text_pass is None:
        return
    losses = batch[loss_column(TEXT)].to_numpy(zero_copy_only=False)
    has = ~np.isnan(losses)
    summary.text_pass.samples += int(has.sum())
    summary.text_pass.total += float(losses[has].sum())
    summary.text_pass.tokens += int(tokens[has].sum())
    summary.text_pass.exact += int(pc.sum(batch[TEXT_EXACT.name]).as_py() or 0)


@dataclass(frozen=True)
class TokenMean:
    """One token of the vocabulary over all answers: how often, and its mean gain (nats)."""

    token_id: int
    count: int
    mean_gain: float


def token_means(directory: str, view: View, *, least: int = 1) -> list[TokenMean]:
    """Mean token gain of every answer token that occurs `least` times, highest first (the paper's Table 2)."""
    counts, totals = np.zeros(0, dtype=np.int64), np.zeros(0)
    columns = ["token_ids", "clean_logprobs", "reference_logprobs", "vig"]
    fs, _ = filesystem(directory)
    parquet = pads.dataset(parquet_files(directory), filesystem=fs, format="parquet")
    for batch in parquet.to_batches(columns=view.stored(columns)):
        table = view.table(batch, columns)
        table = table.filter(table["vig"].is_valid()).combine_chunks()
        if table.num_rows == 0:
            continue
        ids, clean, reference = (pc.list_flatten(table[name]).to_numpy() for name in columns[:3])
        gain = clean.astype(np.float64) - reference
        size = max(len(counts), int(ids.max()) + 1)
        counts = np.pad(counts, (0, size - len(counts))) + np.bincount(ids, minlength=size)
        totals = np.pad(totals, (0, size - len(totals))) + np.bincount(ids, weights=gain, minlength=size)
    frequent = np.flatnonzero(counts >= max(1, least))
    means = totals[frequent] / counts[frequent]
    order = np.argsort(-means, kind="stable")
    return [TokenMean(int(frequent[i]), int(counts[frequent[i]]), float(means[i])) for i in order]
