"""The selection job: scores in, `selection/` out, in a few scans of the files, none of which holds the dataset.

    survey       how many rows of which kind and source, and the first digit of every threshold
    thresholds   three more digits, a scan each of the one column that samples are ranked by
    tilt         does it change what is answered (tilt.py); --strict-balance refuses before anything is written
    order        the hashes of the kept keys, 8 bytes a sample, sorted: the only thing that grows here
    write        kept rows with their position and weights (or, for several p, only their counts)

`run(config)` is what `vig select`, `jobs/select.py` and Python call.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.cluster import scans_on_ray
from vig_ray.dataset.schema import KEPT
from vig_ray.errors import StageError
from vig_ray.selection.calibrate import Nulls, Summed, null_columns, nulls_of
from vig_ray.selection.config import SelectConfig
from vig_ray.selection.counts import Counted, Selection, count_rows, merge
from vig_ray.selection.frequency import count_ids, own_counts
from vig_ray.selection.overlap import overlap
from vig_ray.selection.plan import Plan, check
from vig_ray.selection.rank import Groups, columns, ranks
from vig_ray.selection.schema import SELECTION
from vig_ray.selection.strategy import Settings, Strategy, Tokens
from vig_ray.selection.thresholds import Sizes, thresholds_of
from vig_ray.selection.tilt_scan import Told, check_balance, check_told, tilts_of
from vig_ray.selection.within import Within, keyed_by, sizes_of
from vig_ray.stage import Claim, claim
from vig_ray.tables.order import Hashes, Positions, among, hashes, positions
from vig_ray.tables.passes import TEXT, references_of
from vig_ray.tables.scan import Files
from vig_ray.tables.threshold import value_of
from vig_ray.whole_files import whole_files

log = logging.getLogger(__name__)


def run(config: SelectConfig) -> Selection:
    """Select; returns the counts and thresholds, which the record holds too.

    Raises StageError, before any scan, where the config, the scores or what is in `OUT` is wrong, and after the
    survey where nothing would be left.
    """
    plan = check(config)
    output = claim(plan.out, "select", plan.identity(), overwrite=config.overwrite, resumes=False)
    if output.complete:
        log.info("%s: already complete, nothing to select", plan.out)
        selection = Selection.from_json(output.record["selection"], plan.out)
        scored = selection.read.total("scored")
        told = [kept.tilt is not None or kept.counted.total("scored") == scored for kept in selection.kept]
        check_told(config, told)
        check_balance(config, [(kept.tilt, kept.told) for kept in selection.kept if kept.tilt])
        return selection
    with scans_on_ray(config.address) as on_ray:
        files = dataclasses.replace(plan.files, on_ray=on_ray)
        if plan.measures is not None:
            files = dataclasses.replace(files, beside=plan.measures.beside(on_ray=on_ray))
        beside_text = TEXT in references_of(plan.record) and plan.view.reference != TEXT
        of_text = plan.strategy.name == "prior" and not beside_text
        known = overlap(plan.scores, plan.record) if of_text else None
        groups, sizes = _groups(plan, files)
        surveyed, thresholds = thresholds_of(plan, files, groups, sizes)
        tilts = tilts_of(plan, files, groups, thresholds)
        output.begin(config)
        selection = _select(plan, output, files, groups, sizes, surveyed, thresholds, tilts)
    output.commit(
        config,
        selection=selection.to_json(),
        reference=plan.view.reference,
        **({"reference_model": known} if known else {}),
        model=plan.record.get("identity", {}).get("model"),
        template=plan.record.get("identity", {}).get("template"),
        prompts={
            name: plan.record["config"].get(name)
            for name in ("model", "template", "max_length", "end_of_turn", "trust_remote_code")
        },
    )
    return selection


def _groups(plan: Plan, files: Files) -> tuple[Groups, Sizes | None]:
    """What is ranked together, and what is subtracted; of --within, after a scan, how many samples each group has."""
    config, sources = plan.config, tuple(sorted(plan.config.quota))
    keyed = keyed_by(
        {*config.within, *config.calibrate}, plan.samples, embedding_model=config.embedding_model,
        clusters=config.clusters, seed=config.seed,
    )  # fmt: skip
    nulls = _nulls(plan, files, Within.of_names(config.calibrate, keyed)) if config.calibrate else None
    if config.within:
        groups = Groups(within=Within.of_names(config.within, keyed), nulls=nulls)
        codes = files.scan(columns(plan.strategy, groups), _Codes(plan.strategy, groups, config))
        assert groups.within is not None
        by, sizes = groups.within.ranking(sizes_of(codes), config.within_least)
        return dataclasses.replace(groups, within=by), sizes
    if plan.samples is None or not plan.strategy.clustered or config.clusters == 1:
        return Groups(sources, nulls=nulls), None
    from vig_ray.selection.clusters import cluster_samples

    keys, of_key = cluster_samples(
        plan.samples, plan.config.embedding_model, clusters=plan.config.clusters, seed=plan.config.seed
    )
    return Groups(sources, plan.config.clusters, keys, of_key, nulls=nulls), None


def _nulls(plan: Plan, files: Files, within: Within) -> Nulls:
    """The null gains, after a scan."""
    assert plan.null is not None
    tokens = "reference_logprobs" in plan.strategy.reads
    summed = Summed(within, plan.view.reference, plan.null, tokens, plan.config.seed)
    needed = within.columns() | null_columns(plan.view.reference, plan.null, tokens=tokens)
    return nulls_of(files.scan(sorted(needed), summed), within, plan.null, plan.config.within_least)


@dataclass(frozen=True)
class _Codes:
    """What the samples of a block that may be kept agree in."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig

    def __call__(self, table: pa.Table) -> Any:
        ranked = ranks(table, self.strategy, dataclasses.replace(self.groups, within=None), self.config)
        assert self.groups.within is not None
        return self.groups.within.codes_of(table, self.config.seed)[ranked.eligible]


@dataclass(frozen=True)
class _Keys:
    """The hashes of a block's kept keys; with `wanted`, of the keys that have one of these, and those keys."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig
    thresholds: Any
    wanted: Hashes | None = None

    def __call__(self, table: pa.Table) -> Any:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        kept = ranked.kept(self.thresholds) | text_only(table, ranked.scored)
        keys = table["sample_key"].filter(pa.array(kept))
        of_keys = hashes(keys, self.config.seed)
        if self.wanted is None:
            return of_keys
        rows = among(of_keys, self.wanted)
        return of_keys[rows], keys.take(pa.array(rows)).to_pylist()


def text_only(table: pa.Table, scored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rows without an image: neither scored nor failed. They are kept as they are."""
    found: np.ndarray[Any, Any] = table["error"].is_null().to_numpy(zero_copy_only=False) & ~scored
    return found


@dataclass(frozen=True)
class _Write:
    """Write a block's kept rows; with `order` None, only count them."""

    strategy: Strategy
    groups: Groups
    config: SelectConfig
    thresholds: Any
    has_tokens: bool
    order: Callable[[], Positions] | None
    settings: Settings
    filesystem: Any = None
    prefix: str = ""  # of the files' paths

    def __call__(self, table: pa.Table) -> Counted:
        ranked = ranks(table, self.strategy, self.groups, self.config)
        text = text_only(table, ranked.scored)
        kept = ranked.kept(self.thresholds) | text
        table = table.filter(pa.array(kept))
        scored, text, group = ranked.scored[kept], text[kept], ranked.group[kept]
        lengths = pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False).astype(np.int64)
        weights = self._weights(table, scored, lengths, self.thresholds[group])
        counted = count_rows(table, scored, lengths=lengths, weights=weights)
        if self.order is not None and table.num_rows:
            self._write(table, weights)
        return counted

    def _weights(
        self, table: pa.Table, scored: Any, lengths: Any, thresholds: Any
    ) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """One a token of all kept rows, text-only ones too, whose tokens are weighed alike; None where all weigh 1."""
        strategy = self.strategy
        if strategy.weigh is None:
            return None
        of_scored, scored_lengths = table.filter(pa.array(scored)), lengths[scored]
        read = {name: _flat(of_scored[name]) for name in strategy.reads}
        if any(len(column) != scored_lengths.sum() for column in read.values()):
            raise StageError("the tokens' columns and their num_answer_tokens don't agree; score or measure again")
        if self.groups.nulls is not None:  # a token's gain less its null, since gains are clean less reference
            read["reference_logprobs"] = read["reference_logprobs"] + self.groups.nulls.of_tokens(
                of_scored, self.config.seed
            )
        if strategy.measure is not None:
            theirs, ours = _flat(of_scored["answer_ids"]), _flat(of_scored["token_ids"])
            if not np.array_equal(theirs, ours):
                raise StageError("the tokens that were measured aren't those that were scored; measure again")
        tau = np.asarray([value_of(int(bits)) if bits else -np.inf for bits in thresholds[scored]])
        weights = np.ones(int(lengths.sum()), dtype=np.float32)
        tokens = Tokens(scored_lengths, read, tau)
        weights[np.repeat(scored, lengths)] = strategy.weigh(tokens, self.settings)
        if self.config.weights_sum == "one":
            weights /= np.repeat(np.maximum(lengths, 1), lengths).astype(np.float32)
        return weights

    def _write(self, table: pa.Table, weights: Any) -> None:
        key_hashes = hashes(table["sample_key"], self.config.seed)
        assert self.order is not None
        place = self.order().of(table["sample_key"], key_hashes)
        nothing = pa.nulls(table.num_rows, pa.list_(pa.float32()))
        ids = table["token_ids"] if self.has_tokens else pa.nulls(table.num_rows, pa.list_(pa.int32()))
        if weights is not None:
            lengths = pc.fill_null(table["num_answer_tokens"], 0).to_numpy(zero_copy_only=False)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            nothing = pa.ListArray.from_arrays(pa.array(offsets), pa.array(weights))
        kept = table[KEPT.name] if KEPT.name in table.column_names else pa.nulls(table.num_rows, KEPT.type)
        rows = pa.table([table["sample_key"], pa.array(place), ids, nothing, kept], schema=SELECTION)
        name = f"{self.prefix}{int(place.min()):016x}.parquet"
        pq.write_table(rows, name, filesystem=self.filesystem, compression="zstd")


def _flat(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """The entries of all rows' lists, end to end."""
    flat: np.ndarray[Any, Any] = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return flat


def _select(
    plan: Plan, output: Claim, files: Files, groups: Groups, sizes: Sizes | None, surveyed: Counted,
    thresholds: list[np.ndarray[Any, Any]], tilts: Sequence[Told | None],
) -> Selection:  # fmt: skip
    """The last scans: the order and the rows, or for several p their counts only."""
    config, strategy = plan.config, plan.strategy
    needed = {*columns(strategy, groups), "sample_key", "source", "num_answer_tokens", "error"}
    if strategy.weigh:
        needed |= {"token_ids"} if groups.nulls is not None else set()
        needed |= {*strategy.reads, *strategy.measure_columns, *(("token_ids",) if strategy.measure else ())}
    settings, notes = _settings(plan, files), list(plan.measures.notes(strategy) if plan.measures else ())
    if config.across_models:
        notes.append(f"gains are losses of {plan.view.reference}, another model's, less the clean ones: not VIG")
    notes += [*_notes_within(config, groups, sizes), *_notes_calibrated(config, groups)]
    if settings.counts is not None:
        notes.append(settings.counts.text())
    shares = config.p if strategy.share == "p" else (config.r,) if strategy.share else (100.0,)
    kept = []
    for bits in thresholds:
        order = None
        if len(thresholds) == 1:
            order = _order(plan, files, groups, bits)
            needed |= {"token_ids"} if plan.has_tokens else set()
            needed |= {KEPT.name} if plan.has_kept else set()
        out_fs, out_path = whole_files(plan.out, output.work)
        if order is not None:
            out_fs.create_dir(out_path, recursive=True)
        prefix = f"{out_path}/{output.run}-"
        write = _Write(strategy, groups, config, bits, plan.has_tokens, order, settings, out_fs, prefix)
        kept.append(merge(files.scan(sorted(needed), write, batch_rows=config.rows_per_file)))
    directory = plan.out if len(kept) == 1 else None
    chance = strategy.ranking == "chance"
    return Selection.of(
        strategy.name, surveyed, shares, groups, thresholds, kept, directory, chance=chance, notes=notes, tilts=tilts
    )


def _notes_within(config: SelectConfig, groups: Groups, sizes: Sizes | None) -> list[str]:
    """How many groups of --within there are."""
    if sizes is None:
        return []
    told = f"ranked within {', '.join(config.within)}: {len(groups) - 1:,} groups of {config.within_least:,} or more"
    return [f"{told}, and {int(sizes[0]):,} samples of smaller ones together" if sizes[0] else told]


def _notes_calibrated(config: SelectConfig, groups: Groups) -> list[str]:
    """How far the nulls of --calibrate are apart."""
    nulls = groups.nulls
    if nulls is None:
        return []
    codes, values = nulls.groups
    told = f"calibrated by {nulls.of} within {', '.join(config.calibrate)}: {len(codes):,} groups"
    if not len(codes):
        return [f"{told} of {config.within_least:,} samples or more, so all have the null {nulls.all:+.4f}"]
    return [f"{told}, whose other images gain {values.min():+.4f} to {values.max():+.4f}, in all {nulls.all:+.4f}"]


def _settings(plan: Plan, files: Files) -> Settings:
    """What weights are made with; the scores' own token counts are counted where none are given."""
    if not plan.strategy.counts:
        return Settings(plan.config.alpha)
    own = plan.counts or own_counts(files.scan(["token_ids"], count_ids))
    return Settings(plan.config.alpha, own)


def _order(plan: Plan, files: Files, groups: Groups, bits: Any) -> Callable[[], Positions]:
    """The positions of all kept keys, for every task to look up its own."""
    columns_needed = sorted({*columns(plan.strategy, groups), "sample_key", "error"})
    kept = _Keys(plan.strategy, groups, plan.config, bits)
    parts = list(files.scan(columns_needed, kept))
    ascending = np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
    parts.clear()
    ascending.sort()
    order = positions(
        ascending, lambda wanted: files.scan(columns_needed, dataclasses.replace(kept, wanted=wanted)), plan.scores
    )
    if not files.on_ray:
        return _Held(order)
    import ray

    return _InStore(ray.put(order))


@dataclass(frozen=True)
class _Held:
    order: Positions

    def __call__(self) -> Positions:
        return self.order


@dataclass(frozen=True)
class _InStore:
    reference: Any

    def __call__(self) -> Positions:
        import ray

        order: Positions = ray.get(self.reference)  # its array lies in shared memory: no copy a task
        return order
