"""The import stage: a dataset in any known format becomes `samples/`, one row a sample, bad rows included.

vig import --data llava_v1_5_mix665k.json --images /data/llava --out runs/llava
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import pyarrow.fs as pafs
from pydantic import Field

from vig_ray.dataset.fields import identifier
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.image_order import Gather, Spread
from vig_ray.dataset.inputs import DataFile, columns_of, dataset_name, find_files, read_rows
from vig_ray.dataset.keep import Keep, KeptCounts, not_there
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import RowError
from vig_ray.dataset.sharing import HashFile, common_folder, count_sharing, order_to_write
from vig_ray.dataset.writer import Parts, SampleWriter
from vig_ray.errors import StageError
from vig_ray.progress import RowProgress
from vig_ray.stage import Claim, claim, parquet_files, read_stage
from vig_ray.storage import exists, filesystem, join, scheme_of

log = logging.getLogger(__name__)

T = TypeVar("T")
STAGE = "import"
SAMPLES_FOLDER = "samples"
_PROGRESS_ROWS = 1000
_BYTES_A_GROUP = 256 << 20  # of files: what one machine imports, or cuts by image, at a time
_BYTES_AT_ONCE = 24 << 20  # of rows, that are held in memory while they are ordered
_FILES_LOOKED_AT = 50  # for kept columns, before anything is read
_ROWS_LOOKED_AT = 100


class ImportConfig(DataOptions):
    """Import any vision-language dataset: one row a sample, with a stable key, bad rows included."""

    out: str = Field(description="directory, a path or URI, in which samples/ is written")
    rows_per_file: int = Field(10_000, ge=1, description="most samples in one Parquet file, in rows")
    max_bytes_per_file: int = Field(
        128 << 20, ge=1, description="size at which a Parquet file is closed, in bytes of text and images"
    )
    overwrite: bool = Field(
        False, description="replace what an earlier import of other data or with other options left in --out"
    )
    strict: bool = Field(False, description="exit with status 1 if any row could not be imported")


@dataclass(frozen=True)
class ImportReport:
    """What an import did: read = imported + failed, and imported = text_only + with_images.

    `kept`: in how many rows each kept column has a value.
    """

    directory: str
    read: int
    imported: int
    failed: int
    text_only: int
    with_images: int
    failures: dict[str, int]  # failed rows by the kind of their error
    kept: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The counts, which add up, and where the samples lie, for a person."""
        lines = [
            f"read {self.read:,} = with images {self.with_images:,} + text-only {self.text_only:,} "
            f"+ failed {self.failed:,}"
        ]
        lines += [f"  failed {count:,}: {kind}" for kind, count in sorted(self.failures.items(), key=lambda f: -f[1])]
        lines += [f"  kept {name}: in {rows:,} of {self.read:,} rows" for name, rows in self.kept.items()]
        return "\n".join([*lines, f"samples: {self.directory}"])


@dataclass
class Counts:
    """What became of some of an import's rows; `embedded`: samples with images in the data itself."""

    read: int
    text_only: int
    with_images: int
    failures: Counter[str]
    parts: int = 0
    embedded: int = 0
    kept: KeptCounts = field(default_factory=KeptCounts)


@dataclass(frozen=True)
class _Plan:
    """An import, resolved: what is read and where it goes."""

    files: list[DataFile]
    images: ImageFolder | None  # None: each file's own folder
    name: str
    directory: str
    one_file: bool  # `data` names one file, so that its rows need no file name in their keys
    root: str  # the folder that all images' relative paths start from, or that holds the folders that they start from

    def key(self, file: DataFile, row: int) -> str:
        """The sample key of a row."""
        return f"{self.name}/{row:010d}" if self.one_file else f"{self.name}/{file.stem}/{row:010d}"

    def folder(self, file: DataFile) -> ImageFolder:
        """The folder that relative image paths in `file` start from."""
        return self.images or _folder_of(file)


def validate(config: ImportConfig) -> None:
    """Raise StageError for what shows without reading the data: missing files, unknown formats, a taken `out`."""
    plan = _plan(config)
    _claim(plan, config)
    _check_kept(plan, Keep(config.keep))


def run(
    config: ImportConfig, progress: Callable[[int], None] | None = None, spread: Spread | None = None
) -> ImportReport:
    """Import a dataset; `progress` is called with the number of rows read so far, about every 1000 rows.

    With `spread`, no row comes through this process: groups of files are imported where it calls them, and `progress`
    is called after each.
    An import that is already complete, of the same files with the same options, is not done again. Raises
    StageError where the data can't be read on; the parts written so far stay until the next run, which begins anew.
    """
    plan = _plan(config)
    output = _claim(plan, config)
    if output.complete:
        found = {"directory": plan.directory, "kept": output.record.get("kept", {})}
        return ImportReport(**output.record["counts"] | found)
    _check_kept(plan, Keep(config.keep))
    _read_first(plan, Keep(config.keep))  # before anything is written
    output.begin(config, **output.identity)
    report, order = _import(plan, output, config, progress, spread)
    counts = {name: value for name, value in asdict(report).items() if name not in ("directory", "kept")}
    kept = {"kept": report.kept} if config.keep else {}
    made = {"order": "image"} if order["written"] == "image" else {}
    output.commit(config, counts=counts, order=order, **kept, identity=output.identity | made)
    return report


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


def _plan(config: ImportConfig) -> _Plan:
    files = find_files(config.data, config.format)
    if config.images is not None:
        _check_folder(config.images)
    images = None if config.images is None else ImageFolder.at(config.images)
    return _Plan(
        files=files,
        images=images,
        name=config.name or dataset_name(config.data),
        directory=join(config.out, SAMPLES_FOLDER),
        one_file=filesystem(files[0].uri)[1] == filesystem(config.data)[1],
        root=common_folder([images.root] if images else [_folder_of(file).root for file in files]),
    )


def _folder_of(file: DataFile) -> ImageFolder:
    return ImageFolder.at(file.uri.rpartition("/")[0] or "/")


def _check_folder(folder: str) -> None:
    if scheme_of(folder) in ("http", "https"):  # a web server needn't answer for a folder
        return
    if exists(folder) != pafs.FileType.Directory:
        raise StageError(f"{folder}: no such folder; --images is the folder that relative image paths start from")


def _check_kept(plan: _Plan, keep: Keep) -> None:
    """Raise StageError where what is to be kept is in none of the Parquet files, which say so without being read."""
    there: dict[str, Any] = {}
    files = plan.files[:_FILES_LOOKED_AT]
    if plan.files[0].kind != "parquet" or not keep.patterns:
        return
    for file in files:
        there |= columns_of(file)
        if not keep.missing(there):
            return
    if len(files) == len(plan.files):
        raise not_there(keep.missing(there)[0], f"no such column in {files[0].uri}", there)


def _read_first(plan: _Plan, keep: Keep) -> None:
    """Read the first row, which raises StageError where the file fits no format; of what is kept, a few more.

    Rows of JSON need not all have the same keys: what none of the first ones has is told, and looked for in all.
    """
    there: dict[str, Any] = {}
    looks = bool(keep.patterns) and plan.files[0].kind != "parquet"
    for row in islice(read_rows(plan.files[0], keep), _ROWS_LOOKED_AT if looks else 1):
        there |= _fields(row)
    for pattern in keep.missing(there) if looks else ():
        log.warning("%s", not_there(pattern, f"not in the first {_ROWS_LOOKED_AT} rows, looked for in all", there))


def _identity(plan: _Plan, config: ImportConfig) -> dict[str, Any]:
    """What decides the samples: another identity means other samples.

    `order` is in it where samples are ordered, so that the records of versions that knew no order say as-is; `keep`
    where something is kept.
    """
    return {
        "inputs": [{"path": file.uri, "size": file.size, "mtime_ns": file.mtime_ns} for file in plan.files],
        "format": plan.files[0].kind,
        "images": plan.images and plan.images.root,
        "name": plan.name,
        "rows_per_file": config.rows_per_file,
        "max_bytes_per_file": config.max_bytes_per_file,
        **({"order": "image"} if config.order == "image" else {}),
        **({"keep": list(config.keep)} if config.keep else {}),
    }


def _claim(plan: _Plan, config: ImportConfig) -> Claim:
    identity = _identity(plan, config)
    left_open = ("order",) if config.order == "auto" else ()
    return claim(plan.directory, STAGE, identity, overwrite=config.overwrite, resumes=False, left_open=left_open)


def _import(
    plan: _Plan, output: Claim, config: ImportConfig, progress: Callable[[int], None] | None, spread: Spread | None
) -> tuple[ImportReport, dict[str, Any]]:
    """Import the files, and order what came of them; the counts, and for the record what was done about the order."""
    total = Counts(0, 0, 0, Counter())
    if spread is None:
        parts: Iterable[Counts] = [import_files(plan, output, plan.files, None, config, progress)]
    else:
        # A machine that does it may have another working directory.
        there = plan.directory if scheme_of(plan.directory) else filesystem(plan.directory)[1]
        output, plan_there = replace(output, directory=there), replace(plan, directory=there)
        sizes = [file.size for file in plan.files]
        work = [partial(import_files, plan_there, output, files) for files in _groups(plan.files, sizes)]
        parts = spread([partial(each, number, config, None) for number, each in enumerate(work)])
    for part in parts:
        total.read += part.read
        total.text_only += part.text_only
        total.with_images += part.with_images
        total.failures += part.failures
        total.parts += part.parts
        total.embedded += part.embedded
        total.kept.merge(part.kept)
        if progress is not None:
            progress(total.read)
    if spread is not None:
        _check_seen(plan.directory, total.parts)
    if total.read == 0:
        raise StageError(f"{', '.join(file.uri for file in plan.files[:3])}: no rows")
    total.kept.check(Keep(config.keep), total.read)
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
        dict(sorted(total.kept.rows.items())),
    )
    return report, order


def _check_seen(directory: str, parts: int) -> None:
    """Raise StageError where so many files were written and others are seen."""
    seen = len(parquet_files(directory))
    if seen != parts:
        raise StageError(
            f"{directory}: {parts:,} files were written by the cluster's machines, and this one sees {seen:,}; "
            "every path must be on storage that all of them share"
        )


def _order(plan: _Plan, output: Claim, config: ImportConfig, total: Counts, spread: Spread | None) -> dict[str, Any]:
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
        rows, parts = gather(_groups(files, sizes) if spread else [files], spread)
        _check_seen(output.directory, parts)
        if rows != total.read:
            raise StageError(f"{plan.directory}: {rows:,} rows after ordering {total.read:,}; please report it")
    return {"asked": config.order, "written": written, "sharing": sharing, "why": why}


def _hashes_folder(output: Claim) -> str:
    """Where each group of files leaves the hashes of its images."""
    return join(output.work, "hashes")


def _groups(files: Sequence[T], sizes: Sequence[int | None]) -> list[list[T]]:
    """The files in order, so many together that a group is worth a task; `sizes`: in bytes, where they are known."""
    groups: list[list[T]] = [[]]
    together = 0
    for file, size in zip(files, sizes, strict=True):
        if groups[-1] and together + (size or 0) > _BYTES_A_GROUP:
            groups.append([])
            together = 0
        groups[-1].append(file)
        together += size or 0
    return groups


def import_files(
    plan: _Plan,
    output: Claim,
    files: Sequence[DataFile],
    group: int | None,
    config: ImportConfig,
    progress: Callable[[int], None] | None,
) -> Counts:
    """Import some of the files, one `group` of several or all (None); done again, it writes the same parts."""
    counts = Counts(0, 0, 0, Counter())
    keep = Keep(config.keep)
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
        for file in files:
            folder = plan.folder(file)
            for row in read_rows(file, keep):
                counts.read += 1
                key = plan.key(file, row.number)
                kept = {}
                if keep.patterns:
                    fields = _fields(row)
                    kept = keep.of(fields)
                    counts.kept.add(kept, fields)
                try:
                    sample = to_sample(row, folder)
                except RowError as error:
                    counts.failures[error.kind] += 1
                    writer.failure(key, _identifier(row), str(error), kept)
                else:
                    counts.text_only += not sample.images
                    counts.with_images += bool(sample.images)
                    counts.embedded += any(image.bytes is not None for image in sample.images)
                    writer.sample(key, sample, kept)
                if progress is not None and counts.read % _PROGRESS_ROWS == 0:
                    progress(counts.read)
    counts.parts = parts.begun
    return counts


def _fields(row: Row) -> dict[str, Any]:
    """The keys of a row and their values; none of a row that couldn't be read."""
    return {} if isinstance(row.content, RowError) else {**(row.beside or {}), **row.content}


def _identifier(row: Row) -> str | None:
    """The id of a row that failed, where it can be told and stored."""
    name = None if isinstance(row.content, RowError) else identifier(row.content)
    try:
        (name or "").encode()
    except UnicodeEncodeError:
        return None
    return name
