"""`vig audit`: one scan of the scores, and what it tells of each source or cluster of questions.

`run(config)` is what the command and Python call.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from vig_ray.audit.advice import advice
from vig_ray.audit.config import AuditConfig
from vig_ray.audit.signal import Beaten, Signal, signal_of
from vig_ray.cluster import scans_on_ray
from vig_ray.dataset.schema import IMAGE_MARK
from vig_ray.errors import StageError
from vig_ray.options import OtherImagesName
from vig_ray.selection.calibrate import Floats
from vig_ray.selection.clusters import cluster_samples, first_question
from vig_ray.selection.rank import Groups
from vig_ray.stage import parquet_files, read_stage
from vig_ray.storage import filesystem
from vig_ray.tables.directories import rows_of, samples_beside, scores_directory
from vig_ray.tables.passes import CLEAN, has_gains, loss_column, references_of
from vig_ray.tables.scan import Files

_LOSSES = {"marginal": "marginal_losses", "swap": loss_column("swap")}
_NO_SOURCE = "(none)"


@dataclass(frozen=True)
class Audited:
    """What was found, of each group by its name, the most samples first, and of all together.

    `images`: K. `questions`: one of each cluster. `left_out`: samples with an image that lack one of the passes.
    """

    groups: Mapping[str, Signal]
    all: Signal
    reference: str
    images: int
    by: Literal["source", "cluster"]
    left_out: int
    questions: Mapping[str, str]
    json_lines: bool = False

    def text(self) -> str:
        """A table and what it says in words, or one JSON object a group."""
        if self.json_lines:
            return "\n".join(json.dumps(self.row(name, each)) for name, each in self.groups.items())
        return "\n".join([*self._table(), "", *self.words()])

    def row(self, name: str, signal: Signal) -> dict[str, Any]:
        """What was found of a group, as JSON."""
        numbers = {key: None if isinstance(value, float) and math.isnan(value) else value
                   for key, value in signal._asdict().items()}  # fmt: skip
        question = {"question": self.questions[name]} if name in self.questions else {}
        return {self.by: name, **question, **numbers, "seen": signal.seen}

    def _table(self) -> list[str]:
        table = Table(box=None, pad_edge=False)
        table.add_column(self.by, no_wrap=True, max_width=28)
        beats = "beats another" if self.images == 1 else f"beats all {self.images}"
        for heading in ("samples", "AUROC %", "95 % interval", f"{beats} %", "signal %"):
            table.add_column(heading, justify="right", no_wrap=True)
        if self.questions:
            table.add_column("such as", no_wrap=True, ratio=1)
        for name, each in [*self.groups.items(), ("all", self.all)]:
            told = [f"{each.samples:,}", _percent(each.auroc), f"[{_percent(each.low)}, {_percent(each.high)}]"]
            told += [_percent(each.above), _percent(each.signal)]
            table.add_row(name, *told, *([self.questions.get(name, "")] if self.questions else []))
        console = Console(width=max(100, Console().width), no_color=True)
        with console.capture() as captured:
            console.print(table)
        return [line.rstrip() for line in captured.get().splitlines()]

    def words(self) -> list[str]:
        """What it means, in sentences."""
        few = [name for name, each in self.groups.items() if math.isnan(each.low)]
        blind = [name for name, each in self.groups.items() if not each.seen and name not in few]
        lines = [
            f"AUROC: how often a sample's answer is likelier with its own image than with another of the dataset; "
            f"50 % where the image tells nothing ({100 / (self.images + 1):.0f} % would beat "
            f"{'another' if self.images == 1 else f'all {self.images}'} by chance)"
        ]
        if blind:
            what = {"source": "sources", "cluster": "clusters of questions"}[self.by]
            lines.append(
                f"On {len(blind)} of {len(self.groups)} {what} there is no sign that this model sees what is asked, as "
                f"far as these samples and {self.images} other images tell; gains there may be noise: "
                f"{', '.join(blind)}"
            )
        elif not few:
            lines.append("On all of them the model sees what is asked")
        if few:
            lines.append(f"Too few samples to tell: {', '.join(few)}")
        if self.left_out:
            lines.append(f"{self.left_out:,} samples with an image lack a pass and were left out")
        return [*lines, *advice(self.groups, self.by)]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def run(config: AuditConfig) -> Audited:
    """Audit a run's scores. Raises StageError where they hold no other images, or there is nothing to tell apart."""
    scores = scores_directory(config.scores)
    record = read_stage(scores) or {}
    if not record.get("complete"):
        raise StageError(f"{scores}: not finished; run the same `vig score` command again, it goes on where it was")
    reference = _reference(config, scores, record)
    questions = None
    groups = None
    if config.by == "cluster":
        questions = samples_beside(scores, config.samples, record)
        if questions is None:
            raise StageError(f"{scores}: no samples/ beside them; --by cluster needs --samples")
        keys, of_key = cluster_samples(questions, config.embedding_model, clusters=config.clusters, seed=config.seed)
        groups = Groups((), config.clusters, keys, of_key)
    fs, _ = filesystem(scores)
    paths = parquet_files(scores)
    columns = ["sample_key", "source", loss_column(CLEAN), _LOSSES[reference], "error"]
    missing = sorted({*columns} - {*pq.read_schema(paths[0], filesystem=fs).names})
    if missing:
        raise StageError(f"{paths[0]}: has no column {missing[0]!r}; score again")
    found: dict[str, Beaten] = {}
    examples: dict[str, str] = {}
    left_out = 0
    with scans_on_ray(config.address) as on_ray:
        files = dataclasses.replace(Files(paths, fs), on_ray=on_ray)
        for part, keys_of, lacking in files.scan(columns, _Counted(_LOSSES[reference], groups, config.seed)):
            left_out += lacking
            for name, beaten in part.items():
                if name in found:
                    found[name] += beaten
                else:
                    found[name] = beaten
                examples[name] = min(keys_of[name], examples.get(name, keys_of[name]))
    if not found:
        raise StageError(f"{scores}: no sample has its own pass and those of {reference}")
    images = {len(each.of_images) for each in found.values()}
    (k,) = images
    everything = Beaten(np.zeros(k))
    for each in found.values():
        everything += each
    ordered = sorted(found, key=lambda name: (-found[name].samples, name))
    return Audited(
        {name: signal_of(found[name]) for name in ordered},
        signal_of(everything),
        reference,
        k,
        config.by,
        left_out,
        _questions(questions, examples) if questions else {},
        config.json_lines,
    )


def _reference(config: AuditConfig, scores: str, record: dict[str, Any]) -> OtherImagesName:
    """Whose passes are compared with. Raises StageError."""
    there = references_of(record) if has_gains(record) else ()
    wanted: tuple[OtherImagesName, ...] = (config.reference,) if config.reference else ("marginal", "swap")
    for name in wanted:
        if name in there:
            return name
    have = f"hold {', '.join(there)}" if there else "hold no reference"
    raise StageError(
        f"{scores}: {have}; an audit compares a sample's image with others of the dataset: the same `vig score` "
        f"with --reference {','.join([*there, wanted[0]])} adds them"
    )


def _questions(samples: str, examples: Mapping[str, str]) -> dict[str, str]:
    rows = rows_of(samples, list(examples.values()), ["conversation"])
    return {name: first_question(rows[key]["conversation"], IMAGE_MARK) for name, key in examples.items()}


@dataclass(frozen=True)
class _Counted:
    """A block of scores to its groups' sums, a sample key of each, and how many samples lack a pass."""

    losses: str
    groups: Groups | None
    seed: int

    def __call__(self, table: pa.Table) -> tuple[dict[str, Beaten], dict[str, str], int]:
        has_clean = table[loss_column(CLEAN)].is_valid()
        whole = pc.and_(has_clean, table[self.losses].is_valid())
        # Text-only samples have neither a loss nor an error.
        with_image = pc.or_(has_clean, table["error"].is_valid())
        lacking = int(pc.sum(pc.and_(with_image, pc.invert(whole))).as_py() or 0)
        table = table.filter(whole).combine_chunks()
        if not table.num_rows:
            return {}, {}, lacking
        clean_N = table[loss_column(CLEAN)].to_numpy().astype(np.float64)
        swapped_NK = _rectangle(table[self.losses], len(clean_N))
        names = self._names(table)
        parts, keys = {}, {}
        for name in np.unique(names):
            of_name = names == name
            parts[str(name)] = Beaten.of(clean_N[of_name], swapped_NK[of_name])
            keys[str(name)] = str(pc.min(table["sample_key"].filter(pa.array(of_name))).as_py())
        return parts, keys, lacking

    def _names(self, table: pa.Table) -> np.ndarray[Any, Any]:
        if self.groups is None:
            return np.asarray(pc.fill_null(table["source"], _NO_SOURCE).to_pylist(), dtype=object).astype(str)
        return np.asarray([f"{cluster}" for cluster in self.groups.of(table, self.seed)])


def _rectangle(losses: pa.ChunkedArray, rows: int) -> Floats:
    """Lists of K losses a row, or one loss a row, as float64 [N, K]."""
    flat = pc.list_flatten(losses) if pa.types.is_list(losses.type) else losses
    found: Floats = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, -1)
    return found
