"""`vig compare A B`: do two runs (two models, two references, two dtypes) find the same samples worth training on?

It answers whether a cheaper model or reference selects the same data, from the two runs' sample gains alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field
from rich.console import Console
from rich.table import Table

from vig_ray.errors import StageError
from vig_ray.options import CommaSeparated, Percentages
from vig_ray.stage import StageConfig, read_stage
from vig_ray.tables.directories import dataset, scores_directory
from vig_ray.tables.order import Hashes, hashes
from vig_ray.tables.passes import View, references_of
from vig_ray.tables.threshold import quota_of

_BATCH = 1 << 17
_SEED = 0  # of the hashes that keys are matched by
Floats = npt.NDArray[np.float64]


class CompareConfig(StageConfig):
    """Compare the sample gains of two runs over the same samples."""

    a: str = Field(
        description="scores/ of one run, or the directory that holds it", json_schema_extra={"positional": True}
    )
    b: str | None = Field(
        None,
        description="scores/ of the other run; without it two references of the first are compared",
        json_schema_extra={"positional": True},
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
class Agreement:
    """The samples that A and B keep at p %: how many each, and how many `both`. `kappa`: Cohen's, 0 for chance."""

    p: float
    a: int
    b: int
    both: int
    kappa: float


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
            f"sample VIG: rank correlation (Spearman) {_number(self.spearman)}, linear (Pearson) "
            f"{_number(self.pearson)}; means {self.means[0]:+.3f} and {self.means[1]:+.3f} nats; "
            f"same sign {100 * self.same_sign:.1f} %"
        )
        return "\n".join([*lines, "", self._sets(), *self._samples()])

    def _sets(self) -> str:
        table = Table(box=None, pad_edge=False)
        for name in ("top p %", "A keeps", "B keeps", "both", "of A's also B's", "by chance", "kappa"):
            table.add_column(name, justify="right", no_wrap=True)
        for sets in self.agreements:
            table.add_row(
                f"{sets.p:g} %",
                f"{sets.a:,}",
                f"{sets.b:,}",
                f"{sets.both:,}",
                f"{100 * sets.both / sets.a:.1f} %",
                f"{100 * sets.b / self.common:.1f} %",
                f"{sets.kappa:.3f}",
            )
        return _printed(table)

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
        return ["the samples that differ most (rank: the share of samples with a lower gain)", _printed(table)]


def run(config: CompareConfig) -> Comparison:
    """Compare two runs, in about 60 bytes of memory a sample. Raises StageError where they share no scored sample."""
    a, b = scores_directory(config.a), scores_directory(config.a if config.b is None else config.b)
    view_a, view_b = _views(config, a, b)
    (keys_a, vig_a), (keys_b, vig_b) = _gains(a, view_a), _gains(b, view_b)
    keys, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    if not len(keys):
        raise StageError(f"{a} and {b}: no sample has a score in both; are they of the same dataset?")
    only = len(keys_a) - len(keys), len(keys_b) - len(keys)
    vig_a, vig_b = vig_a[at_a], vig_b[at_b]
    rank_a, rank_b = _ranks(vig_a), _ranks(vig_b)
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
        spearman=_correlation(rank_a, rank_b),
        pearson=_correlation(vig_a, vig_b),
        means=(float(vig_a.mean()), float(vig_b.mean())),
        same_sign=float(((vig_a > 0) == (vig_b > 0)).mean()),
        agreements=[_agreement(p, vig_a, vig_b) for p in config.p],
        most_differing=[
            Differing(
                *names[int(keys[i])], float(vig_a[i]), float(vig_b[i]), 100 * float(rank_a[i]), 100 * float(rank_b[i])
            )
            for i in worst
        ],
        as_json=config.as_json,
    )


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


def _ranks(values: Floats) -> Floats:
    """The share of lower values, ties in the middle: above 0 and below 1."""
    ranks: Floats = pd.Series(values).rank().to_numpy()
    return (ranks - 0.5) / len(values)


def _correlation(one: Floats, other: Floats) -> float | None:
    """Pearson's correlation; None where one of the two doesn't vary."""
    if not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def _agreement(p: float, a: Floats, b: Floats) -> Agreement:
    """How far the top p % of both agree, as `vig select` keeps them: with every tie of the last one."""
    count = quota_of(len(a), p)
    kept_a, kept_b = (values >= np.partition(values, -count)[-count] for values in (a, b))
    observed = float((kept_a == kept_b).mean())
    expected = float(kept_a.mean() * kept_b.mean() + (1 - kept_a.mean()) * (1 - kept_b.mean()))
    kappa = (observed - expected) / (1 - expected) if expected < 1 else 1.0
    return Agreement(p, int(kept_a.sum()), int(kept_b.sum()), int((kept_a & kept_b).sum()), kappa)


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


def _number(value: float | None) -> str:
    return "not defined (one doesn't vary)" if value is None else f"{value:.4f}"


def _printed(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
