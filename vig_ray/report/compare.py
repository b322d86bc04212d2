"""`vig compare A B`: do two runs (two models, two references, two dtypes) find the same samples worth training on?

It answers whether a cheaper model or reference selects the same data, from the two runs' sample gains alone. `vig
compare A --column NAME` holds one run against a column kept from the dataset instead (`compare_column.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from rich.table import Table

from vig_ray.errors import StageError
from vig_ray.options import CommaSeparated, Percentages
from vig_ray.report.agreement import (
    Agreement,
    Floats,
    agreement,
    agreement_table,
    correlation,
    number_text,
    printed,
    ranks,
)
from vig_ray.report.compare_column import ColumnComparison, compare_column
from vig_ray.stage import StageConfig, read_stage
from vig_ray.tables.directories import dataset, scores_directory
from vig_ray.tables.order import Hashes, hashes
from vig_ray.tables.passes import View, references_of

_BATCH = 1 << 17
_SEED = 0  # of the hashes that keys are matched by


class CompareConfig(StageConfig):
    """Compare the sample gains of two runs over the same samples, or of one run with a column of the dataset."""

    a: str = Field(
        description="scores/ of one run, or the directory that holds it", json_schema_extra={"positional": True}
    )
    b: str | None = Field(
        None,
        description="scores/ of the other run; without it two references of the first are compared",
        json_schema_extra={"positional": True},
    )
    column: str | None = Field(
        None,
        description="a column kept from the dataset (vig import --keep) that the one run's gains are compared with",
        json_schema_extra={"metavar": "NAME"},
    )
    reference: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (),
        description="reference whose gains are compared, or one of each, as blur,blind; by default each run's first",
        json_schema_extra={"metavar": "NAME[,NAME]"},
    )
    p: Percentages = Field(
        (10.0, 30.0, 50.0, 70.0),
        description="percentages, as vig select --p takes them, at which the selected sets are compared",
    )
    differing: int = Field(10, ge=0, description="how many of the samples that differ most are listed")
    as_json: bool = Field(False, description="print one JSON object instead of tables")


@dataclass(frozen=True)
class Differing:
    """A sample, its gains in nats and its ranks: the percentage of samples with a lower gain, ties in the middle."""

    sample_key: str
    source: str | None
    vig_a: float
    vig_b: float
    rank_a: float
    rank_b: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of two runs over the `common` samples that both scored.

    `differ`: the facts in which the runs differ, with both values. `means`: of sample gain, in nats. `same_sign`: the
    share of samples whose gain is positive in both runs or in neither.
    """

    a: str
    b: str
    differ: dict[str, tuple[Any, Any]]
    common: int
    only_a: int
    only_b: int
    spearman: float | None
    pearson: float | None
    means: tuple[float, float]
    same_sign: float
    agreements: list[Agreement]
    most_differing: list[Differing]
    as_json: bool = False

    def text(self) -> str:
        """For a person, or for a program."""
        if self.as_json:
            return json.dumps({name: value for name, value in asdict(self).items() if name != "as_json"}, indent=2)
        lines = [f"A  {self.a}", f"B  {self.b}"]
        lines += [f"   {name}: {_short(in_a)} | {_short(in_b)}" for name, (in_a, in_b) in self.differ.items()]
        lines.append(f"scored by both {self.common:,}, by A only {self.only_a:,}, by B only {self.only_b:,}")
        lines.append(
            f"sample VIG: rank correlation (Spearman) {number_text(self.spearman)}, linear (Pearson) "
            f"{number_text(self.pearson)}; means {self.means[0]:+.3f} and {self.means[1]:+.3f} nats; "
            f"same sign {100 * self.same_sign:.1f} %"
        )
        return "\n".join([*lines, "", agreement_table(self.agreements, self.common, "A", "B"), *self._samples()])

    def _samples(self) -> list[str]:
        if not self.most_differing:
            return []
        table = Table(box=None, pad_edge=False)
        for name in ("rank A", "rank B", "VIG A", "VIG B"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column(
            "sample", no_wrap=True, min_width=max(len(sample.sample_key) for sample in self.most_differing)
        )
        table.add_column("source", no_wrap=True)
        for sample in self.most_differing:
            table.add_row(
                f"{sample.rank_a:.1f} %",
                f"{sample.rank_b:.1f} %",
                f"{sample.vig_a:+.3f}",
                f"{sample.vig_b:+.3f}",
                sample.sample_key,
                sample.source or "",
            )
        return ["the samples that differ most (rank: the share of samples with a lower gain)", printed(table)]


def run(config: CompareConfig) -> Comparison | ColumnComparison:
    """Compare two runs, in about 60 bytes of memory a sample. Raises StageError where they share no scored sample."""
    if config.column is not None:
        return _with_column(config, config.column)
    a, b = scores_directory(config.a), scores_directory(config.a if config.b is None else config.b)
    view_a, view_b = _views(config, a, b)
    (keys_a, vig_a), (keys_b, vig_b) = _gains(a, view_a), _gains(b, view_b)
    keys, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    if not len(keys):
        raise StageError(f"{a} and {b}: no sample has a score in both; are they of the same dataset?")
    only = len(keys_a) - len(keys), len(keys_b) - len(keys)
    vig_a, vig_b = vig_a[at_a], vig_b[at_b]
    rank_a, rank_b = ranks(vig_a), ranks(vig_b)
    distance = np.abs(rank_a - rank_b)
    worst = np.argsort(-distance, kind="stable")[: config.differing]
    names = _named(a, keys[worst])
    return Comparison(
        a=a,
        b=b,
        differ=_differ(view_a, view_b),
        common=len(keys),
        only_a=only[0],
        only_b=only[1],
        spearman=correlation(rank_a, rank_b),
        pearson=correlation(vig_a, vig_b),
        means=(float(vig_a.mean()), float(vig_b.mean())),
        same_sign=float(((vig_a > 0) == (vig_b > 0)).mean()),
        agreements=[agreement(p, vig_a, vig_b) for p in config.p],
        most_differing=[
            Differing(
                *names[int(keys[i])], float(vig_a[i]), float(vig_b[i]), 100 * float(rank_a[i]), 100 * float(rank_b[i])
            )
            for i in worst
        ],
        as_json=config.as_json,
    )


def _with_column(config: CompareConfig, column: str) -> ColumnComparison:
    """Compare the one run with a kept column. Raises StageError for a second run, and for two references."""
    if config.b is not None:
        raise StageError("--column compares one run with a column of its own; leave out the other run")
    if len(config.reference) > 1:
        raise StageError("--reference takes one name with --column")
    scores = scores_directory(config.a)
    view = View.of(read_stage(scores) or {}, scores, *config.reference)
    return compare_column(scores, view, column, config.p, as_json=config.as_json)


def _views(config: CompareConfig, a: str, b: str) -> tuple[View, View]:
    """How the two are read. Raises StageError for too many names or too few, and for one that isn't there."""
    of_a, of_b = (read_stage(scores) or {} for scores in (a, b))
    if config.b is None and len(config.reference) != 2:
        has = ", ".join(references_of(of_a))
        raise StageError(f"--reference takes two names for one run, as blur,blind; {a} hold {has}")
    if len(config.reference) > 2:
        raise StageError("--reference takes one name, or one for each run, as blur,blind")
    names = config.reference or (None,)
    return View.of(of_a, a, names[0]), View.of(of_b, b, names[-1])


def _gains(scores: str, view: View) -> tuple[Hashes, Floats]:
    """The hash of every scored sample's key, and its gain."""
    keys, gains = [], []
    columns = ["sample_key", "vig"]
    for stored in dataset(scores).to_batches(columns=view.stored(columns), batch_size=_BATCH):
        batch = view.table(stored, columns)
        batch = batch.filter(batch["vig"].is_valid())
        keys.append(hashes(batch["sample_key"], _SEED))
        gains.append(batch["vig"].to_numpy(zero_copy_only=False).astype(np.float64))
    if not sum(map(len, keys)):
        raise StageError(f"{scores}: no sample has a score")
    return np.concatenate(keys), np.concatenate(gains)


def _named(scores: str, wanted: Hashes) -> dict[int, tuple[str, str | None]]:
    """Key and source of the samples with these hashes."""
    names: dict[int, tuple[str, str | None]] = {}
    for batch in dataset(scores).to_batches(columns=["sample_key", "source"], batch_size=_BATCH):
        if len(names) == len(wanted):
            break
        key_hashes = hashes(batch["sample_key"], _SEED)
        for row in np.flatnonzero(np.isin(key_hashes, wanted)).tolist():
            names[int(key_hashes[row])] = batch["sample_key"][row].as_py(), batch["source"][row].as_py()
    return names


def _differ(a: View, b: View) -> dict[str, tuple[Any, Any]]:
    of_a, of_b = (view.scored["identity"] or {} for view in (a, b))
    of_an_earlier_version = any(isinstance(identity.get("reference"), str) for identity in (of_a, of_b))
    if a.reference != b.reference or of_an_earlier_version:  # by name: parameters tell apart what has the same one
        of_a, of_b = of_a | {"reference": a.reference}, of_b | {"reference": b.reference}
    return {name: (of_a.get(name), of_b.get(name)) for name in [*of_a, *of_b] if of_a.get(name) != of_b.get(name)}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 50 else f"{text[:47]}..."
