"""The import stage: a dataset in any known format becomes `samples/`, one row a sample, bad rows included.

vig import --data llava_v1_5_mix665k.json --images /data/llava --out runs/llava
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import Field

from vig_ray.dataset.first_rows import check_kept, read_first
from vig_ray.dataset.image_order import Gather, Spread
from vig_ray.dataset.import_report import Counts, ImportReport
from vig_ray.dataset.import_rows import RowImport
from vig_ray.dataset.inputs import Slice, slices
from vig_ray.dataset.keep import Keep
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.plan import Plan, layout_of, make_plan, with_shares
from vig_ray.dataset.sharing import count_sharing, order_to_write
from vig_ray.dataset.unpacking import UNPACKED_FOLDER
from vig_ray.errors import StageError
from vig_ray.processes import cores, processes
from vig_ray.progress import RowProgress
from vig_ray.stage import Claim, claim, parquet_files, read_stage
from vig_ray.storage import absolute, filesystem, join

log = logging.getLogger(__name__)

T = TypeVar("T")
STAGE = "import"
SAMPLES_FOLDER = "samples"
_BYTES_A_GROUP = 256 << 20  # of files: what one machine or process imports, or cuts by image, at a time
_LEAST_A_GROUP = 16 << 20
_SMALL_BYTES = 512 << 20  # of files: less isn't worth the start of processes
_GROUPS_A_WORKER = 4
_GROUPS_OF_A_CLUSTER = 64
_CHOOSING = ("taken", "keys_from", "keys", "files_of_each", "columns", "keep", "archives", "fetch")
"""What of the identity, beside the files, decides which rows samples/ hold."""
_ALWAYS_COUNTED = ("read", "imported", "failed", "text_only", "with_images", "failures")
_BYTES_AT_ONCE = 24 << 20  # of rows, that are held in memory while they are ordered


class ImportConfig(DataOptions):
    """Import any vision-language dataset: one row a sample, with a stable key, bad rows included."""

    out: str = Field(description="directory, a path or URI, in which samples/ is written")
    rows_per_file: int = Field(10_000, ge=1, description="most samples in one Parquet file, in rows")
    max_bytes_per_file: int = Field(
        128 << 20, ge=1, description="size at which a Parquet file is closed, in bytes of text and images"
    )
    workers: int | None = Field(
        None, ge=1, description="processes that import side by side; by default 1 for small data, else one a core"
    )
    overwrite: bool = Field(
        False, description="replace what an earlier import of other data or with other options left in --out"
    )
    strict: bool = Field(False, description="exit with status 1 if any row could not be imported")


def validate(config: ImportConfig) -> None:
    """Raise StageError for what shows without reading the data: missing files, unknown formats, a taken `out`."""
    plan = _plan(config)
    _claim(plan, config)
    check_kept(plan, Keep(config.keep))


def run(
    config: ImportConfig, progress: Callable[[int], None] | None = None, spread: Spread | None = None
) -> ImportReport:
    """Import a dataset; `progress` is called with the number of rows read so far, about every 1000 rows.

    With `spread`, no row comes through this process: groups of files are imported where it calls them, and `progress`
    is called after each; so it is by the processes of `workers`.
    An import that is already complete, of the same files with the same options, is not done again. Raises
    StageError where the data can't be read on; the parts written so far stay until the next run, which begins anew.
    """
    plan = _plan(config)
    output = _claim(plan, config)
    if output.complete:
        found = {"directory": plan.directory, "kept": output.record.get("kept", {})}
        return ImportReport(**output.record["counts"] | found)
    for what in plan.left_out:
        log.info("left out: %s", what)
    check_kept(plan, Keep(config.keep))
    read_first(plan, layout_of(config), Keep(config.keep))
    output.begin(config, **output.identity)
    with _workers(plan, config, spread) as (workers, call):
        plan, mixture = with_shares(plan, call)
        report, order = _import(plan, output, config, progress, call, workers)
    counts = {
        name: value
        for name, value in asdict(report).items()
        if name not in ("directory", "kept") and (value or name in _ALWAYS_COUNTED)
    }
    facts = {"mixture": mixture, "left_out": plan.left_out, "kept": report.kept if config.keep else None}
    made = {"order": "image"} if order["written"] == "image" else {}
    output.commit(
        config,
        counts=counts,
        order=order,
        identity=output.identity | made,
        **{name: fact for name, fact in facts.items() if fact},
    )
    return report


@contextmanager
def _workers(plan: Plan, config: ImportConfig, spread: Spread | None) -> Iterator[tuple[int | None, Spread | None]]:
    """How many processes work, None on a cluster; and what calls them, None where this one does all."""
    sizes = [file.size or 0 for file in plan.files]
    workers = config.workers or (cores() if sum(sizes) >= _SMALL_BYTES else 1)
    if spread is not None:
        yield None, spread
    elif workers == 1 or config.limit is not None:  # the first rows are read one after the other
        yield 1, None
    else:
        with processes(workers, "--workers") as call:
            yield workers, call


def run_with_progress(config: ImportConfig) -> ImportReport:
    """As `run`, with a progress bar on standard error: what `vig import` does."""
    with RowProgress("import", None) as bar:
        return run(config, progress=bar.update)


def samples_directory(uri: str) -> str | None:
    """The samples directory at `uri` or in it, if a finished import wrote one."""
    for directory in (join(uri, SAMPLES_FOLDER), uri):
        try:
            record = read_stage(directory)
        except StageError:  # not a record of vig-ray's
            continue
        # Records of earlier versions, which were written at an import's end, say nothing of being complete.
        if record is not None and record["stage"] == STAGE and record.get("complete", True):
            return directory
    return None


def already_imported(data: Sequence[str]) -> str | None:
    """The samples directory that `data` names, if it is a finished import's.

    Raises StageError where it is one of several.
    """
    for location in data:
        directory = None if location.startswith("hf://") else samples_directory(location)
        if directory is not None and len(data) > 1:
            raise StageError(
                f"--data {location}: samples of a finished import are scored by themselves, not with others"
            )
        if directory is not None:
            return directory
    return None


def identity_of(imported: Mapping[str, Any]) -> dict[str, Any]:
    """Of the record of an import, what must be equal for its samples to be the same."""
    return {key: imported.get(key) for key in ("inputs", "format", "images", "name", "counts")} | chosen_rows(imported)


def chosen_rows(imported: Mapping[str, Any]) -> dict[str, Any]:
    """Of the record of an import, what else than the files decides which rows it holds; {} where it holds all."""
    return {name: imported[name] for name in _CHOOSING if name in imported}


def _plan(config: ImportConfig) -> Plan:
    return make_plan(config, join(config.out, SAMPLES_FOLDER))


def _identity(plan: Plan, config: ImportConfig) -> dict[str, Any]:
    """What decides the samples: another identity means other samples.

    `order` is in it where samples are ordered, and `taken` where not all rows are, so that the records of versions that
    knew neither say as-is and all.
    """
    taken = {"limit": config.limit, "sample": config.sample, "weights": list(plan.weights) or None}
    taken = {name: value for name, value in taken.items() if value is not None}
    if config.sample is not None or plan.weights:
        taken["seed"] = config.seed
    return {
        **plan.identity(),
        "rows_per_file": config.rows_per_file,
        "max_bytes_per_file": config.max_bytes_per_file,
        **({"order": "image"} if config.order == "image" else {}),
        **({"fetch": config.fetch} if config.fetch != "auto" else {}),
        **({"fetch_cache": plan.fetching.cache} if config.fetch_cache else {}),
        **({"fetch_private": sorted(config.fetch_private)} if config.fetch_private else {}),
        **({"taken": taken} if taken else {}),
        **({"columns": config.columns} if config.columns is not None else {}),
        **({"keep": list(config.keep)} if config.keep else {}),
    }


def _claim(plan: Plan, config: ImportConfig) -> Claim:
    identity = _identity(plan, config)
    left_open = ("order",) if config.order == "auto" else ()
    return claim(
        plan.directory,
        STAGE,
        identity,
        overwrite=config.overwrite,
        folders=(SAMPLES_FOLDER, UNPACKED_FOLDER),
        resumes=False,
        left_open=left_open,
    )


def _import(
    plan: Plan,
    output: Claim,
    config: ImportConfig,
    progress: Callable[[int], None] | None,
    spread: Spread | None,
    workers: int | None,
) -> tuple[ImportReport, dict[str, Any]]:
    """Import the files, and order what came of them; the counts, and for the record what was done about the order."""
    total = Counts()
    directory = plan.directory  # as the user wrote it
    plan, output = _anywhere(plan, output)
    plan = replace(plan, images=plan.images.scanned(output, spread))
    rows = RowImport(plan, output, config, config.rows_per_file, config.max_bytes_per_file)
    if spread is None:
        parts: Iterable[Counts] = [rows([Slice(file) for file in plan.files], progress=progress)]
    else:
        rows = replace(rows, plan=replace(plan, files=[], listings=[]))
        parts = spread([partial(rows, group, number) for number, group in enumerate(_work(plan, config, workers))])
    for part in parts:
        total.add(part)
        if progress is not None:
            progress(total.read)
    if spread is not None:
        _check_seen(plan.directory, total.parts)
    if total.read == 0 and total.left_out:
        raise StageError(f"none of {total.left_out.total():,} rows is taken; take a larger --sample")
    if total.read == 0:
        raise StageError(f"{', '.join(file.uri for file in plan.files[:3])}: no rows")
    total.kept.check(Keep(config.keep), total.read)
    order = _order(rows, output, config, total, spread)
    return total.report(directory), order


def _work(plan: Plan, config: ImportConfig, workers: int | None) -> list[list[Slice]]:
    """What is imported by one call each; `workers`: how many do it side by side, None where that isn't known."""
    if config.limit is not None:  # the first rows are read one after the other
        return [[Slice(file) for file in plan.files]]
    known = sum(file.size or 0 for file in plan.files)
    size, least = _BYTES_A_GROUP, _GROUPS_OF_A_CLUSTER
    if workers is not None:
        least = workers * _GROUPS_A_WORKER
        size = min(size, max(known // least, _LEAST_A_GROUP))
    pieces = slices(plan.files, size, least)
    return _groups(pieces, [piece.size for piece in pieces], size)


def _anywhere(plan: Plan, output: Claim) -> tuple[Plan, Claim]:
    """Both with paths in full, for machines that have another working directory."""
    there = absolute(plan.directory)
    return replace(plan, directory=there), replace(output, directory=there)


def _check_seen(directory: str, parts: int) -> None:
    """Raise StageError where so many files were written and others are seen."""
    seen = len(parquet_files(directory))
    if seen != parts:
        raise StageError(
            f"{directory}: {parts:,} files were written by the cluster's machines, and this one sees {seen:,}; "
            "every path must be on storage that all of them share"
        )


def _order(
    rows: RowImport, output: Claim, config: ImportConfig, total: Counts, spread: Spread | None
) -> dict[str, Any]:
    """Order the samples by image where `config` asks for it; for the record, what was asked and done, and why."""
    if config.order == "as-is":
        return {"asked": config.order, "written": "as-is", "sharing": None}
    sharing = count_sharing(rows.hashes_folder, total.with_images)
    by_image, why = order_to_write(config.order, sharing=sharing, imported=total.imported, embedded=total.embedded)
    written = "image" if by_image else "as-is"
    if sharing:
        log.info("order of samples/: %s (%s)", written, why)
    if by_image:
        gather = Gather(
            directory=output.directory,
            work=output.work,
            run=output.run,
            roots=rows.plan.roots,
            rows_per_file=config.rows_per_file,
            max_bytes_per_file=config.max_bytes_per_file,
            bytes_at_once=_BYTES_AT_ONCE,
        )
        files = parquet_files(output.directory)
        sizes = [info.size for info in filesystem(output.directory)[0].get_file_info(files)]
        gathered, parts = gather(_groups(files, sizes, _BYTES_A_GROUP) if spread else [files], spread)
        _check_seen(output.directory, parts)
        if gathered != total.read:
            raise StageError(f"{output.directory}: {gathered:,} rows after ordering {total.read:,}; please report it")
    return {"asked": config.order, "written": written, "sharing": sharing, "why": why}


def _groups(files: Sequence[T], sizes: Sequence[int | None], most: int) -> list[list[T]]:
    """The files in order, as many together as are `most` bytes; `sizes`: in bytes, where they are known."""
    groups: list[list[T]] = [[]]
    together = 0
    for file, size in zip(files, sizes, strict=True):
        if groups[-1] and together + (size or 0) > most:
            groups.append([])
            together = 0
        groups[-1].append(file)
        together += size or 0
    return groups
