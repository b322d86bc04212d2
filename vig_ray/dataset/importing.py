"""The import stage: a dataset in any known format becomes `samples/`, one row a sample, bad rows included.

vig import --data llava_v1_5_mix665k.json --images /data/llava --out runs/llava
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from pydantic import Field

from vig_ray.dataset.fields import identifier
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.image_order import Gather, Spread
from vig_ray.dataset.inputs import Slice, read_rows, slices
from vig_ray.dataset.layouts.columns import named_layout
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.plan import Plan, make_plan, with_shares
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import RowError
from vig_ray.dataset.sharing import HashFile, count_sharing, order_to_write
from vig_ray.dataset.taking import Taker
from vig_ray.dataset.writer import Parts, SampleWriter
from vig_ray.errors import StageError
from vig_ray.processes import cores, processes
from vig_ray.progress import RowProgress
from vig_ray.stage import Claim, claim, parquet_files, read_stage
from vig_ray.storage import filesystem, join, scheme_of

log = logging.getLogger(__name__)

T = TypeVar("T")
STAGE = "import"
SAMPLES_FOLDER = "samples"
_PROGRESS_ROWS = 1000
_BYTES_A_GROUP = 256 << 20  # of files: what one machine or process imports, or cuts by image, at a time
_LEAST_A_GROUP = 16 << 20
_SMALL_BYTES = 512 << 20  # of files: less isn't worth the start of processes
_GROUPS_A_WORKER = 4
_GROUPS_OF_A_CLUSTER = 64
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


@dataclass(frozen=True)
class ImportReport:
    """What an import did: read = imported + failed, and imported = text_only + with_images.

    `read`: rows that became samples or failed. `left_out`: other rows that were read, by the option that left them
    out. `not_read`: what --limit left unread, in words.
    """

    directory: str
    read: int
    imported: int
    failed: int
    text_only: int
    with_images: int
    failures: dict[str, int]  # failed rows by the kind of their error
    left_out: dict[str, int] = field(default_factory=dict)
    not_read: str | None = None
    marked: int = 0  # samples whose images had no <image> mark, so that they were put first

    def text(self) -> str:
        """The counts, which add up, and where the samples lie, for a person."""
        others = "".join(f" + left out by {option} {count:,}" for option, count in sorted(self.left_out.items()))
        lines = [
            f"read {self.read + sum(self.left_out.values()):,} = with images {self.with_images:,} "
            f"+ text-only {self.text_only:,} + failed {self.failed:,}{others}"
        ]
        lines += [] if self.not_read is None else [f"  not read: {self.not_read}"]
        lines += [f"  failed {count:,}: {kind}" for kind, count in sorted(self.failures.items(), key=lambda f: -f[1])]
        return "\n".join([*lines, *self.notes(), f"samples: {self.directory}"])

    def notes(self) -> list[str]:
        """What was done to samples that a person should know of."""
        if not self.marked:
            return []
        return [f"images without <image> in the text, put first in the first user turn: {self.marked:,} samples"]


@dataclass
class Counts:
    """What became of some of an import's rows.

    `embedded`: samples with images in the data itself; `marked`: with images that were given their marks.
    """

    read: int
    text_only: int
    with_images: int
    failures: Counter[str]
    parts: int = 0
    embedded: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    not_read: str | None = None
    marked: int = 0


def validate(config: ImportConfig) -> None:
    """Raise StageError for what shows without reading the data: missing files, unknown formats, a taken `out`."""
    _claim(_plan(config), config)


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
        return ImportReport(**{**output.record["counts"], "directory": plan.directory})
    layout = None if config.columns is None else named_layout(config.columns)
    for listing in plan.listings:
        for what in listing.left_out:
            log.info("%s: left out: %s", listing.root, what)
        for _ in read_rows(listing.files[0], layout):  # raises where it fits no layout, before anything is written
            break
    output.begin(config, **output.identity)
    with _workers(plan, config, spread) as (workers, call):
        plan, mixture = with_shares(plan, call)
        report, order = _import(plan, output, config, progress, call, workers)
    counts = {name: value for name, value in asdict(report).items() if name != "directory" and value not in ({}, None)}
    counts["failures"] = report.failures
    facts = {"mixture": mixture, "left_out": plan.left_out}
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


def chosen_rows(imported: Mapping[str, Any]) -> dict[str, Any]:
    """Of the record of an import, what else than the files decides which rows it holds; {} where it holds all."""
    return {name: imported[name] for name in ("taken", "keys_from", "files_of_each") if name in imported}


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
        **({"taken": taken} if taken else {}),
        **({"columns": config.columns} if config.columns is not None else {}),
    }


def _claim(plan: Plan, config: ImportConfig) -> Claim:
    identity = _identity(plan, config)
    left_open = ("order",) if config.order == "auto" else ()
    return claim(plan.directory, STAGE, identity, overwrite=config.overwrite, resumes=False, left_open=left_open)


def _import(
    plan: Plan,
    output: Claim,
    config: ImportConfig,
    progress: Callable[[int], None] | None,
    spread: Spread | None,
    workers: int | None,
) -> tuple[ImportReport, dict[str, Any]]:
    """Import the files, and order what came of them; the counts, and for the record what was done about the order."""
    total = Counts(0, 0, 0, Counter())
    if spread is None:
        everything = [Slice(file) for file in plan.files]
        parts: Iterable[Counts] = [import_files(plan, output, everything, None, config, progress)]
    else:
        # A machine that does it may have another working directory.
        there = plan.directory if scheme_of(plan.directory) else filesystem(plan.directory)[1]
        output, plan_there = replace(output, directory=there), replace(plan, directory=there, files=[], listings=[])
        work = [partial(import_files, plan_there, output, group) for group in _work(plan, config, workers)]
        parts = spread([partial(each, number, config, None) for number, each in enumerate(work)])
    for part in parts:
        total.read += part.read
        total.text_only += part.text_only
        total.with_images += part.with_images
        total.failures += part.failures
        total.parts += part.parts
        total.embedded += part.embedded
        total.left_out += part.left_out
        total.not_read = part.not_read or total.not_read
        total.marked += part.marked
        if progress is not None:
            progress(total.read)
    if spread is not None:
        _check_seen(plan.directory, total.parts)
    if total.read == 0 and total.left_out:
        raise StageError(f"none of {total.left_out.total():,} rows is taken; take a larger --sample")
    if total.read == 0:
        raise StageError(f"{', '.join(file.uri for file in plan.files[:3])}: no rows")
    imported = total.text_only + total.with_images
    order = _order(plan, output, config, total, spread)
    report = ImportReport(
        plan.directory,
        total.read,
        imported,
        total.read - imported,
        total.text_only,
        total.with_images,
        dict(total.failures),
        dict(total.left_out),
        total.not_read,
        total.marked,
    )
    return report, order


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


def _check_seen(directory: str, parts: int) -> None:
    """Raise StageError where so many files were written and others are seen."""
    seen = len(parquet_files(directory))
    if seen != parts:
        raise StageError(
            f"{directory}: {parts:,} files were written by the cluster's machines, and this one sees {seen:,}; "
            "every path must be on storage that all of them share"
        )


def _order(plan: Plan, output: Claim, config: ImportConfig, total: Counts, spread: Spread | None) -> dict[str, Any]:
    """Order the samples by image where `config` asks for it; for the record, what was asked and done, and why."""
    if config.order == "as-is":
        return {"asked": config.order, "written": "as-is", "sharing": None}
    imported = total.text_only + total.with_images
    sharing = count_sharing(_hashes_folder(output), total.with_images)
    by_image, why = order_to_write(config.order, sharing=sharing, imported=imported, embedded=total.embedded)
    written = "image" if by_image else "as-is"
    if sharing:
        log.info("order of samples/: %s (%s)", written, why)
    if by_image:
        gather = Gather(
            directory=output.directory,
            work=output.work,
            run=output.run,
            root=plan.root,
            rows_per_file=config.rows_per_file,
            max_bytes_per_file=config.max_bytes_per_file,
            bytes_at_once=_BYTES_AT_ONCE,
        )
        files = parquet_files(output.directory)
        sizes = [info.size for info in filesystem(output.directory)[0].get_file_info(files)]
        rows, parts = gather(_groups(files, sizes, _BYTES_A_GROUP) if spread else [files], spread)
        _check_seen(output.directory, parts)
        if rows != total.read:
            raise StageError(f"{plan.directory}: {rows:,} rows after ordering {total.read:,}; please report it")
    return {"asked": config.order, "written": written, "sharing": sharing, "why": why}


def _hashes_folder(output: Claim) -> str:
    """Where each group of files leaves the hashes of its images."""
    return join(output.work, "hashes")


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


def import_files(
    plan: Plan,
    output: Claim,
    pieces: Sequence[Slice],
    group: int | None,
    config: ImportConfig,
    progress: Callable[[int], None] | None,
) -> Counts:
    """Import some of the files, one `group` of several or all (None); done again, it writes the same parts."""
    counts = Counts(0, 0, 0, Counter())
    layout = None if config.columns is None else named_layout(config.columns)
    hashes = HashFile(join(_hashes_folder(output), f"{group or 0:05d}"), output.work, plan.root)
    with (
        Parts(
            plan.directory,
            prefix=f"{output.run}-" if group is None else f"{output.run}-{group:05d}-",
            unfinished=output.work,
            rows_per_file=config.rows_per_file,
            max_bytes_per_file=config.max_bytes_per_file,
        ) as parts,
        nullcontext() if config.order == "as-is" else hashes,
        SampleWriter(parts, None if config.order == "as-is" else hashes.add) as writer,
    ):
        for place, piece in enumerate(pieces):
            most = None if config.limit is None else config.limit - counts.read
            taker = None if plan.taking.all and most is None else Taker(plan.taking, piece.file, most)
            folder = plan.folder(piece.file)
            for row in read_rows(piece, layout, taker):
                _import_row(row, piece.file.sample_key(row.number), folder, writer, counts)
                if progress is not None and counts.read % _PROGRESS_ROWS == 0:
                    progress(counts.read)
                if counts.read == config.limit:
                    counts.not_read = (
                        f"{piece.file.uri} after row {row.number:,}, {len(pieces) - place - 1:,} more files"
                    )
                    break
            counts.left_out += taker.left_out if taker is not None else Counter()
            if counts.not_read is not None:
                break
    counts.parts = parts.begun
    return counts


def _import_row(row: Row, key: str, folder: ImageFolder, writer: SampleWriter, counts: Counts) -> None:
    counts.read += 1
    try:
        sample, marked = to_sample(row, folder)
    except RowError as error:
        counts.failures[error.kind] += 1
        writer.failure(key, _identifier(row), str(error))
        return
    counts.text_only += not sample.images
    counts.with_images += bool(sample.images)
    counts.embedded += any(image.bytes is not None for image in sample.images)
    counts.marked += marked
    writer.sample(key, sample)


def _identifier(row: Row) -> str | None:
    """The id of a row that failed, where it can be told and stored."""
    name = None if isinstance(row.content, RowError) else identifier(row.content)
    try:
        (name or "").encode()
    except UnicodeEncodeError:
        return None
    return name
