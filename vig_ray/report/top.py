"""`vig top`: the samples with the lowest gain, likely mislabelled, or with the highest, as a table or as JSON lines.

A sample whose answer the model expects more without its image than with it (negative VIG) often has the wrong image,
the wrong answer, or a question that the image contradicts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field
from rich.console import Console
from rich.table import Table

from vig_ray.dataset.schema import IMAGE_MARK, KEPT
from vig_ray.errors import StageError
from vig_ray.options import ScoredUnder
from vig_ray.stage import StageConfig, read_stage
from vig_ray.tables.directories import dataset, rows_of, samples_beside, scores_directory
from vig_ray.tables.kept import kept_text, kept_values
from vig_ray.tables.passes import View

_COLUMNS = ["sample_key", "id", "source", "num_answer_tokens", "clean_loss", "reference_loss", "vig"]
_BATCH = 1 << 17


class TopConfig(StageConfig):
    """List the samples with the lowest gain (likely mislabelled) or the highest."""

    scores: str = Field(description="scores/ of a finished `vig score`, or the directory that holds it")
    reference: ScoredUnder = None
    lowest: int | None = Field(None, ge=1, description="how many of the lowest gain; by default 50, without --highest")
    highest: int | None = Field(None, ge=1, description="how many of the highest gain")
    source: str | None = Field(None, description="only samples of this source")
    samples: str | None = Field(
        None, description="samples/ to show questions and answers from; by default beside the scores"
    )
    json_lines: bool = Field(False, description="print one JSON object a sample instead of a table")


@dataclass(frozen=True)
class Top:
    """The samples, lowest gain first, then those asked for by --highest. `negative` of `scored` have a gain below 0."""

    rows: list[dict[str, Any]]
    scored: int
    negative: int
    json_lines: bool

    def text(self) -> str:
        """A table for people, or one JSON object a line for programs."""
        if self.json_lines:
            rows = (row | {"kept": kept_values(row["kept"])} if "kept" in row else row for row in self.rows)
            return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        table = Table(box=None, pad_edge=False, expand=True)
        for name in ("VIG", "loss", "without"):
            table.add_column(name, justify="right", no_wrap=True, min_width=7)
        longest = max((len(row["sample_key"]) for row in self.rows), default=0)
        table.add_column("sample", no_wrap=True, min_width=longest)
        table.add_column("source", no_wrap=True, max_width=16)
        kept = any(row.get("kept") for row in self.rows)
        if kept:
            table.add_column("kept", no_wrap=True, ratio=1)
        table.add_column("question", no_wrap=True, ratio=2)
        table.add_column("answer", no_wrap=True, ratio=3)
        for row in self.rows:
            table.add_row(
                f"{row['vig']:+.3f}",
                f"{row['clean_loss']:.3f}",
                f"{row['reference_loss']:.3f}",
                row["sample_key"],
                row["source"] or "",
                *([kept_text(row.get("kept"))] if kept else []),
                row.get("question", ""),
                row.get("answer", ""),
            )
        console = Console(width=max(120, Console().width))  # keys are there to be copied: never cut
        with console.capture() as captured:
            console.print(table, markup=False)
        share = 100 * self.negative / self.scored
        return (
            f"{captured.get()}\n{self.negative:,} of {self.scored:,} samples ({share:.1f} %) have a negative gain: "
            "their answers are likelier without the image. Look at one with vig inspect KEY"
        )


def run(config: TopConfig) -> Top:
    """List them in one scan; memory grows only with how many are asked for. Raises StageError."""
    scores = scores_directory(config.scores)
    lowest = config.lowest or (None if config.highest else 50)
    ends: dict[str, list[dict[str, Any]]] = {"lowest": [], "highest": []}
    scored = negative = 0
    record = read_stage(scores) or {}
    view = View.of(record, scores, config.reference)
    columns = [*_COLUMNS, *([KEPT.name] if record.get("kept") else [])]
    for stored in dataset(scores).to_batches(columns=view.stored(columns), batch_size=_BATCH):
        batch = view.table(stored, columns)
        keep = batch["vig"].is_valid().to_numpy(zero_copy_only=False)
        if config.source is not None:
            keep &= np.asarray([source == config.source for source in batch["source"].to_pylist()], dtype=bool)
        batch = batch.filter(pa.array(keep))
        vig = batch["vig"].to_numpy(zero_copy_only=False)
        scored += len(vig)
        negative += int((vig < 0).sum())
        for name, count, sign in (("lowest", lowest, 1), ("highest", config.highest, -1)):
            if count:
                order = np.argsort(sign * vig, kind="stable")[:count]
                ends[name] += batch.take(pa.array(order)).to_pylist()
                ends[name].sort(key=lambda row: (sign * row["vig"], row["sample_key"]))
                del ends[name][count:]
    if not scored:
        of_source = f" of source {config.source!r}" if config.source is not None else ""
        raise StageError(f"{scores}: no sample{of_source} has a score")
    rows = ends["lowest"] + ends["highest"]
    samples = samples_beside(scores, config.samples, record)
    if samples is not None:
        texts = rows_of(samples, [row["sample_key"] for row in rows], ["conversation"])
        for row in rows:
            row |= _texts(texts[row["sample_key"]]["conversation"])
    return Top(rows, scored, negative, config.json_lines)


def _texts(conversation: list[dict[str, str]]) -> dict[str, str]:
    """The first question and the first answer, on one line each."""
    texts = {}
    for role, name in (("user", "question"), ("assistant", "answer")):
        first = next((turn["text"] for turn in conversation if turn["role"] == role), "")
        texts[name] = " ".join(first.replace(IMAGE_MARK, " ").split())
    return texts
