"""The scans of scores/ that a report is made of, in bounded memory, on threads here or on Ray Data.

survey     rows by kind and source, failures by class, means, and the first digit of every quantile
digits     the other digits of the quantiles and thresholds, a scan of the sample gains for each
tally      everything that needs bins or thresholds, the tokens among it
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vig_ray.errors import StageError
from vig_ray.report.tally import COLUMNS, GROUPS, Floats, Ints, Moments, Plan, Tally, add_up, groups_of, tally
from vig_ray.tables import threshold
from vig_ray.tables.scan import Files
from vig_ray.tables.threshold import SCANS, Search, Sparse, quota_of, sortable, value_of

log = logging.getLogger(__name__)

QUARTILES = (0.25, 0.5, 0.75)
_TAILS = (0.005, 0.995)  # what lies beyond goes to the open bins at the ends of the histogram
_BINS = 60
_TOKENS_A_BATCH = 1 << 21
_MOST_ROWS = 1 << 14
_TAGGED_TOKENS = 2_000_000
_QUIET_SECONDS = 3
_SUMS = ("count", "total", "square")
_MEASURES = ("vig", "clean_loss", "reference_loss")
SURVEYED = ["source", *_MEASURES, "num_answer_tokens", "num_truncated_tokens", "error"]


@dataclass
class OfSource:
    """The rows of one source. `tokens`: answer tokens of the scored ones; `groups`: how many of those in each.

    `moments`: of sample gain, loss with the image, and without.
    """

    scored: int
    text_only: int
    failed: int
    truncated: int
    tokens: int
    groups: Ints
    moments: Moments


@dataclass
class Survey:
    """The first scan, of one block or of all.

    `sources`: their names. `counts` [S, 5 + groups]: rows, tokens and groups as in OfSource. `moments` [S x measures].
    `failures`: by class of error, how many and one of the messages.
    """

    sources: list[str | None]
    counts: Ints
    moments: Moments
    failures: dict[str, tuple[int, str]]
    _index: dict[str | None, int] = field(default_factory=dict)

    def add(self, other: Survey) -> None:
        """Add the survey of another block."""
        if not self._index:
            self._index = {name: index for index, name in enumerate(self.sources)}
        for name in other.sources:
            if name not in self._index:
                self._index[name] = len(self.sources)
                self.sources.append(name)
        new = len(self.sources) - len(self.counts)
        if new:
            self.counts = np.pad(self.counts, ((0, new), (0, 0)))
            for name in _SUMS:
                setattr(self.moments, name, np.pad(getattr(self.moments, name), (0, new * len(_MEASURES))))
        indices = np.array([self._index[name] for name in other.sources], dtype=np.int64)
        self.counts[indices] += other.counts
        categories = (indices[:, None] * len(_MEASURES) + np.arange(len(_MEASURES))).reshape(-1)
        for name in _SUMS:
            getattr(self.moments, name)[categories] += getattr(other.moments, name)
        for name, (count, example) in other.failures.items():
            count_here, example_here = self.failures.get(name, (0, example))
            self.failures[name] = count_here + count, min(example, example_here)

    def of(self, numbers: Sequence[int] | None = None) -> OfSource:
        """The rows of the sources with these numbers together; by default of all."""
        which = slice(None) if numbers is None else list(numbers)
        scored, text_only, failed, truncated, tokens, *groups = self.counts[which].sum(axis=0).tolist()
        parts = (getattr(self.moments, name).reshape(-1, len(_MEASURES)) for name in _SUMS)
        moments = Moments(*(part[which].sum(axis=0) for part in parts))
        return OfSource(scored, text_only, failed, truncated, tokens, np.array(groups), moments)

    def largest(self) -> list[int]:
        """The numbers of all sources, those with most scored samples first."""
        return sorted(
            range(len(self.sources)), key=lambda number: (-self.counts[number, 0], self.sources[number] or "")
        )


@dataclass(frozen=True)
class _SurveyBlock:
    near_zero: float

    def __call__(self, table: pa.Table) -> Survey:
        failures: dict[str, tuple[int, str]] = {}
        failed = table["error"].is_valid().to_numpy(zero_copy_only=False)
        for error in table["error"].filter(pa.array(failed)).to_pylist():
            name = error.split(":", 1)[0]
            count, example = failures.get(name, (0, error))
            failures[name] = count + 1, min(example, error)
        scored = table["vig"].is_valid().to_numpy(zero_copy_only=False)
        truncated = pc.fill_null(table["num_truncated_tokens"], 0).to_numpy(zero_copy_only=False) > 0
        tokens = pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False)
        encoded = pc.dictionary_encode(table["source"].cast(pa.string()).combine_chunks(), null_encoding="encode")
        sources = encoded.dictionary.to_pylist()
        source = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        measures = [table[name].to_numpy(zero_copy_only=False)[scored] for name in _MEASURES]
        of_scored = np.concatenate([source[scored] * len(_MEASURES) + number for number in range(len(_MEASURES))])
        group = groups_of(measures[0], self.near_zero)
        counts = [
            *(
                np.bincount(source[rows], minlength=len(sources))
                for rows in (scored, ~scored & ~failed, failed, truncated)
            ),
            np.bincount(source[scored], weights=tokens[scored], minlength=len(sources)).astype(np.int64),
            *(np.bincount(source[scored][group == number], minlength=len(sources)) for number in range(len(GROUPS))),
        ]
        moments = Moments.of(np.concatenate(measures), of_scored, len(sources) * len(_MEASURES))
        return Survey(sources, np.stack(counts, axis=1), moments, failures)


Searches = dict[tuple[bool, str | None, int], Search]
"""By whether only one source is searched, which one, and the rank from the top that is looked for."""


@dataclass(frozen=True)
class _Digits:
    searches: Searches

    def __call__(self, table: pa.Table) -> dict[Any, Sparse]:
        table = table.filter(table["vig"].is_valid())
        bits = sortable(table["vig"].to_numpy())
        rows: dict[Any, Any] = {(False, None): slice(None)}
        for source in {source for of_source, source, _ in self.searches if of_source}:
            in_source = (
                table["source"].is_null() if source is None else pc.equal(table["source"].cast(pa.string()), source)
            )
            rows[True, source] = pc.fill_null(in_source, False).to_numpy(zero_copy_only=False)
        # Most searches have the same leading digits, so they share a histogram.
        by_prefix: dict[Any, Sparse] = {}
        histograms: dict[Any, Sparse] = {}
        for (of_source, source, rank), search in self.searches.items():
            prefix = (of_source, source, search.prefix, search.depth)
            if prefix not in by_prefix:
                by_prefix[prefix] = np.unique(search.digits(bits[rows[of_source, source]]), return_counts=True)
            histograms[of_source, source, rank] = by_prefix[prefix]
        return histograms


@dataclass(frozen=True)
class _Tally:
    plan: Plan

    def __call__(self, table: pa.Table) -> Tally | None:
        """Counts a batch in parts of at most about so many tokens: answers may be far longer than the mean."""
        lengths = pc.fill_null(pc.list_value_length(table["clean_logprobs"]), 0).to_numpy(zero_copy_only=False)
        part_of_row = np.cumsum(lengths, dtype=np.int64) // _TOKENS_A_BATCH
        cuts = [0, *(np.flatnonzero(np.diff(part_of_row)) + 1).tolist(), table.num_rows]
        parts = (table.slice(first, end - first) for first, end in itertools.pairwise(cuts))
        return add_up((tally(part, self.plan) for part in parts), self.plan.gallery_size)

    def fold(self, one: Tally | None, other: Tally | None) -> Tally | None:
        """The tallies of two batches together."""
        return add_up((one, other), self.plan.gallery_size)


@dataclass(frozen=True)
class Scanned:
    """All that a report's numbers are made of.

    `quantiles`: by whether they are of one source, which one, and the share of samples at or below. `taus`: by p.
    """

    survey: Survey
    quantiles: dict[tuple[bool, str | None, float], float]
    taus: dict[float, float]
    plan: Plan
    tally: Tally


def scan_scores(
    files: Files,
    scores: str,
    *,
    shares: tuple[float, ...],
    near_zero: float,
    shown_sources: int,
    gallery_size: int,
    choose_tau: Callable[[dict[float, float]], float],
    seed: int,
    tagged: int,
) -> Scanned:
    """Scan the scores. `choose_tau`: from tau_p by p, the threshold whose nearest samples the gallery shows.

    `gallery_size`: samples a group of the gallery shows. `tagged`: about how many samples go to the tagger; fewer where
    they are very long. Raises StageError where no sample has a score.
    """
    began = time.monotonic()
    survey = _survey(files, scores, near_zero)
    total = survey.of()
    scored = total.scored
    largest = survey.largest()[:shown_sources]
    shown = {survey.sources[number]: int(survey.counts[number, 0]) for number in largest if survey.counts[number, 0]}
    searches, ranks = _searches(scored, shown, shares)
    for number in range(SCANS):
        _say(began, f"scan {number + 2} of {SCANS + 2}, thresholds of {scored:,} samples")
        histograms = threshold.add_up(files.scan(["source", "vig"], _Digits(searches)))
        searches = {name: search.narrowed(histograms[name]) for name, search in searches.items()}
    values = {name: value_of(search.bits) for name, search in searches.items()}
    taus = {share: values[False, None, ranks[share]] for share in shares}
    quantiles = {
        (of_source, source, q): values[of_source, source, _rank(q, shown[source] if of_source else scored)]
        for of_source, source, qs in [
            (False, None, (0.0, *QUARTILES, 1.0)),
            *((True, name, QUARTILES) for name in shown),
        ]
        for q in qs
    }
    low, high = (values[False, None, _rank(q, scored)] for q in _TAILS)
    plan = Plan(
        sources=tuple(shown),
        edges=nice_edges(low, high),
        near_zero=near_zero,
        thresholds=np.unique(np.array(list(taus.values()))),
        gallery_size=gallery_size,
        tau=choose_tau(taus),
        seed=seed,
        tagged=min((1 << 64) - 1, int(min(tagged / scored, _TAGGED_TOKENS / total.tokens) * 2**64)),
    )
    rows = int(np.clip(_TOKENS_A_BATCH * scored / max(1, total.tokens), 256, _MOST_ROWS))
    _say(began, f"scan {SCANS + 2} of {SCANS + 2}, {total.tokens:,} tokens")
    count = _Tally(plan)
    whole = add_up(files.scan(COLUMNS, count, batch_rows=rows, fold=count.fold), gallery_size)
    assert whole is not None  # the survey saw scored samples
    return Scanned(survey, quantiles, taus, plan, whole)


def _survey(files: Files, scores: str, near_zero: float) -> Survey:
    survey: Survey | None = None
    for block in files.scan(SURVEYED, _SurveyBlock(near_zero)):
        if survey is None:
            survey = block
        else:
            survey.add(block)
    if survey is None or not survey.counts[:, 0].any():
        raise StageError(f"{scores}: no sample has a score, so there is nothing to report")
    return survey


def _say(began: float, what: str) -> None:
    """Log how far a long report is."""
    if time.monotonic() - began > _QUIET_SECONDS:
        log.info("report: %s", what)


def _rank(q: float, count: int) -> int:
    """The rank, counted from 1 from the top, of the least value that a share q of all `count` values is at or below."""
    return count - max(1, math.ceil(q * count)) + 1


def _searches(
    scored: int, sources: Mapping[str | None, int], shares: tuple[float, ...]
) -> tuple[Searches, dict[float, int]]:
    """A search for each rank that is needed, of all samples and of these sources; and by p the rank of tau_p."""
    ranks = {share: quota_of(scored, share) for share in shares}
    of_all = {*ranks.values(), *(_rank(q, scored) for q in (0.0, *QUARTILES, 1.0, *_TAILS))}
    searches: Searches = {(False, None, rank): Search(rank) for rank in sorted(of_all)}
    for name, count in sources.items():
        searches |= {(True, name, rank): Search(rank) for rank in {_rank(q, count) for q in QUARTILES}}
    return searches, ranks


def nice_edges(low: float, high: float) -> Floats:
    """About 60 edges from `low` to `high` or slightly beyond, whole multiples of 1, 2 or 5 times a power of ten."""
    width = max((high - low) / _BINS, 1e-3 * max(1.0, abs(low), abs(high)))
    power = 10.0 ** math.floor(math.log10(width))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return np.array([round(number * step, 9) for number in range(first, max(last, first + 1) + 1)])
