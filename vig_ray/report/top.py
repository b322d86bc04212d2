"""`vig top`: the samples with the lowest gain, likely mislabelled, or with the highest, as a table or as JSON lines.

A sample whose answer the model expects more without its image than with it (negative VIG) often has the wrong image,
the wrong answer, or a question that the image contradicts. Where the model doesn't see what is asked its gain tells
nothing; an answer that it finds unlikely altogether (a great loss) may still be wrong. `--by ranks` takes the mean of
both ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field
from rich.console import Console
from rich.table import Table

from vig_ray.audit.config import AuditConfig
from vig_ray.audit.job import run as audit
from vig_ray.dataset.schema import IMAGE_MARK, KEPT
from vig_ray.errors import StageError
from vig_ray.options import ScoredUnder
from vig_ray.stage import StageConfig, read_stage
from vig_ray.tables.directories import dataset, rows_of, samples_beside, scores_directory
from vig_ray.tables.kept import kept_text, kept_values
from vig_ray.tables.passes import View, references_of

_COLUMNS = ["sample_key", "id", "source", "num_answer_tokens", "clean_loss", "reference_loss", "vig"]
_BATCH = 1 << 17
RANKED_AMONG = 1_000_000
"""Samples that ranks are taken among, spread evenly over all where there are more."""
Rule = Literal["gain", "loss", "ranks"]
_RULES = {"gain": "gain", "loss": "loss with the image, greatest first", "ranks": "mean rank by gain and by loss"}


class TopConfig(StageConfig):
    """List the samples with the lowest gain (likely mislabelled) or the highest."""

    scores: str = Field(description="scores/ of a finished `vig score`, or the directory that holds it")
    reference: ScoredUnder = None
    by: Rule = Field(
        "gain",
        description="what lowest and highest mean: the gain; the loss with the image, the greatest loss being the "
        "lowest; or ranks, the mean of the ranks by both",
    )
    lowest: int | None = Field(None, ge=1, description="how many of the lowest; by default 50, without --highest")
    highest: int | None = Field(None, ge=1, description="how many of the highest")
    source: str | None = Field(None, description="only samples of this source")
    samples: str | None = Field(
        None, description="samples/ to show questions and answers from; by default beside the scores"
    )
    json_lines: bool = Field(False, description="print one JSON object a sample instead of a table")


@dataclass(frozen=True)
class Top:
    """The samples, lowest first, then those asked for by --highest. `negative` of `scored` have a gain below 0.

    `trust`: on which sources which rule is to be trusted, in words; empty where the scores can't tell.
    """

    rows: list[dict[str, Any]]
    scored: int
    negative: int
    json_lines: bool
    by: Rule = "gain"
    trust: tuple[str, ...] = ()

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
        told = (
            f"{captured.get()}\n{self.negative:,} of {self.scored:,} samples ({share:.1f} %) have a negative gain: "
            "their answers are likelier without the image. Look at one with vig inspect KEY"
        )
        by = [f"ordered by {_RULES[self.by]}"] if self.by != "gain" else []
        return "\n".join([told, *by, *self.trust])


def run(config: TopConfig) -> Top:
    """List them in one scan; memory grows only with how many are asked for. Raises StageError."""
    scores = scores_directory(config.scores)
    lowest = config.lowest or (None if config.highest else 50)
    ends: dict[str, list[dict[str, Any]]] = {"lowest": [], "highest": []}
    scored = negative = 0
    record = read_stage(scores) or {}
    view = View.of(record, scores, config.reference)
    columns = [*_COLUMNS, *([KEPT.name] if record.get("kept") else [])]
    rule = _rule(config, scores, view)
    for batch in _batches(config, scores, view, columns):
        values = rule(batch)
        scored += batch.num_rows
        negative += int((batch["vig"].to_numpy() < 0).sum())
        for name, count, sign in (("lowest", lowest, 1), ("highest", config.highest, -1)):
            if count:
                order = np.argsort(sign * values, kind="stable")[:count]
                found = batch.take(pa.array(order)).to_pylist()
                ends[name] += [row | {_VALUE: value} for row, value in zip(found, values[order].tolist(), strict=True)]
                ends[name].sort(key=lambda row: (sign * row[_VALUE], row["sample_key"]))
                del ends[name][count:]
    if not scored:
        of_source = f" of source {config.source!r}" if config.source is not None else ""
        raise StageError(f"{scores}: no sample{of_source} has a score")
    rows = ends["lowest"] + ends["highest"]
    for row in rows:
        value = row.pop(_VALUE)
        row |= {"rank": value} if config.by == "ranks" else {}
    samples = samples_beside(scores, config.samples, record)
    if samples is not None:
        texts = rows_of(samples, [row["sample_key"] for row in rows], ["conversation"])
        for row in rows:
            row |= _texts(texts[row["sample_key"]]["conversation"])
    trust = () if config.json_lines else _trust(scores, record, config.source)
    return Top(rows, scored, negative, config.json_lines, config.by, trust)


_VALUE = "value that rows are ordered by"
Floats = npt.NDArray[np.float64]


def _batches(config: TopConfig, scores: str, view: View, columns: list[str]) -> Iterator[pa.Table]:
    """The scored rows of the source that is asked for."""
    for stored in dataset(scores).to_batches(columns=view.stored(columns), batch_size=_BATCH):
        batch = view.table(stored, columns)
        keep = batch["vig"].is_valid().to_numpy(zero_copy_only=False)
        if config.source is not None:
            keep &= np.asarray([source == config.source for source in batch["source"].to_pylist()], dtype=bool)
        yield batch.filter(pa.array(keep)).combine_chunks()


def _rule(config: TopConfig, scores: str, view: View) -> Callable[[pa.Table], Floats]:
    """What a batch's rows are ordered by, float64 [rows]; for ranks after a scan of its own."""
    if config.by == "gain":
        return _gains
    if config.by == "loss":
        return _losses
    rows = dataset(scores).count_rows()
    every = max(1, -(-rows // RANKED_AMONG))
    parts = [(_gains(batch)[::every], _losses(batch)[::every])
             for batch in _batches(config, scores, view, ["vig", "clean_loss", "source"])]  # fmt: skip
    gains, losses = (np.sort(np.concatenate(each)) for each in zip((np.zeros(0), np.zeros(0)), *parts, strict=True))

    def ranks(batch: pa.Table) -> Floats:
        return (_rank(gains, _gains(batch)) + _rank(losses, _losses(batch))) / 2

    return ranks


def _gains(batch: pa.Table) -> Floats:
    return np.asarray(batch["vig"].to_numpy(), np.float64)


def _losses(batch: pa.Table) -> Floats:
    """The greatest loss first."""
    return -np.asarray(batch["clean_loss"].to_numpy(), np.float64)


def _rank(ascending: Floats, values: Floats) -> Floats:
    """The mean rank of values among all, from 0 to 1; ties share theirs."""
    sides = (np.searchsorted(ascending, values, side=side) for side in ("left", "right"))
    return np.asarray(sum(sides) / 2 / max(len(ascending), 1), np.float64)


def _trust(scores: str, record: dict[str, Any], source: str | None) -> tuple[str, ...]:
    """On which sources the gain is to be trusted, where the scores hold what an audit compares with."""
    if not {"marginal", "swap"} & {*references_of(record)}:
        return ()
    try:
        groups = audit(AuditConfig(scores=scores)).groups
    except StageError as error:
        return (f"which sources the model sees isn't known: {error}",)
    named = {name: each for name, each in groups.items() if source in (None, name)}
    seen = [name for name, each in named.items() if each.seen]
    others = [name for name in named if name not in seen]
    lines = []
    if seen:
        lines.append(f"the model sees what is asked of {', '.join(seen)}: there a low gain and a great loss both tell")
    if others:
        lines.append(
            f"there is no sign that it sees what is asked of {', '.join(others)}: a low gain tells nothing there; a "
            "great loss tells of answers that are unusual, right or wrong (--by loss)"
        )
    return tuple(lines)


def _texts(conversation: list[dict[str, str]]) -> dict[str, str]:
    """The first question and the first answer, on one line each."""
    texts = {}
    for role, name in (("user", "question"), ("assistant", "answer")):
        first = next((turn["text"] for turn in conversation if turn["role"] == role), "")
        texts[name] = " ".join(first.replace(IMAGE_MARK, " ").split())
    return texts
