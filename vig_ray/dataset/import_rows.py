"""Rows of files to files of samples/: what one process, or each machine of a cluster, does of an import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from vig_ray.dataset.fetched import Fetching, Outcome
from vig_ray.dataset.fields import identifier
from vig_ray.dataset.first_rows import fields_of
from vig_ray.dataset.image_folder import ImageFolder
from vig_ray.dataset.import_report import Counts
from vig_ray.dataset.inputs import Slice, read_rows
from vig_ray.dataset.keep import Keep
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.plan import Plan, layout_of
from vig_ray.dataset.rows import Row, to_sample
from vig_ray.dataset.schema import RowError
from vig_ray.dataset.sharing import HashFile
from vig_ray.dataset.taking import Taker
from vig_ray.dataset.writer import Parts, SampleWriter
from vig_ray.errors import StageError
from vig_ray.stage import Claim
from vig_ray.storage import join

_PROGRESS_ROWS = 1000


@dataclass(frozen=True)
class RowImport:
    """An import of rows; workers get it pickled. `rows_per_file`, `max_bytes_per_file`: of a file of samples/."""

    plan: Plan
    output: Claim
    options: DataOptions
    rows_per_file: int
    max_bytes_per_file: int

    @property
    def hashes_folder(self) -> str:
        """Where each group of files leaves the hashes of its images."""
        return join(self.output.work, "hashes")

    def __call__(
        self, pieces: Sequence[Slice], group: int | None = None, progress: Callable[[int], None] | None = None
    ) -> Counts:
        """Import some of the files, one `group` of several or all (None); done again, it writes the same parts.

        `progress` is called with the number of rows read so far, about every 1000 rows.
        """
        options, output = self.options, self.output
        counts = Counts()
        layout = layout_of(options)
        keep = Keep(options.keep)
        hashes = HashFile(join(self.hashes_folder, f"{group or 0:05d}"), output.work, self.plan.roots)
        with (
            Parts(
                self.plan.directory,
                prefix=f"{output.run}-" if group is None else f"{output.run}-{group:05d}-",
                unfinished=output.work,
                rows_per_file=self.rows_per_file,
                max_bytes_per_file=self.max_bytes_per_file,
            ) as parts,
            nullcontext() if options.order == "as-is" else hashes,
            SampleWriter(parts, None if options.order == "as-is" else hashes.add) as writer,
            Fetching(options.fetch, self.plan.fetching, partial(_write, writer, counts)) as rows,
        ):
            for place, piece in enumerate(pieces):
                taker = self._taker(piece, counts)
                folder = self.plan.images.of(piece.file)
                read = read_rows(piece, layout, keep, taker)
                for row in read:
                    counts.read += 1
                    kept = _kept(row, keep, counts)
                    rows.add(_outcome(row, piece.file.sample_key(row.number), folder, kept))
                    if progress is not None and counts.read % _PROGRESS_ROWS == 0:
                        progress(counts.read)
                    if counts.read == options.limit:
                        more = len(pieces) - place - 1
                        if more or _goes_on(read):
                            counts.not_read = f"{piece.file.uri} after row {row.number:,}, {more:,} more files"
                        break
                if taker is not None:
                    counts.left_out += taker.left_out
                if counts.read == options.limit:
                    break
        counts.parts = parts.begun
        return counts

    def _taker(self, piece: Slice, counts: Counts) -> Taker | None:
        """What says which rows are taken, None where all are."""
        limit = self.options.limit
        if self.plan.taking.all and limit is None:
            return None
        return Taker(self.plan.taking, piece.file, None if limit is None else limit - counts.read)


def _goes_on(rows: Iterator[Row]) -> bool:
    """Whether a file goes on, be it with something that can't be read."""
    try:
        return next(rows, None) is not None
    except StageError:
        return True


def _kept(row: Row, keep: Keep, counts: Counts) -> dict[str, str]:
    """What is kept of a row, counted."""
    if not keep.patterns:
        return {}
    fields = fields_of(row)
    kept = keep.of(fields)
    counts.kept.add(kept, fields)
    return kept


def _outcome(row: Row, key: str, folder: ImageFolder, kept: dict[str, str]) -> Outcome:
    try:
        sample, marked = to_sample(row, folder)
    except RowError as error:
        return Outcome(key, _identifier(row), error, kept)
    return Outcome(key, sample.id, sample, kept, marked)


def _write(writer: SampleWriter, counts: Counts, row: Outcome) -> None:
    """Write and count what became of a row."""
    if isinstance(row.sample, RowError):
        counts.failures[row.sample.kind] += 1
        writer.failure(row.key, row.id, str(row.sample), row.kept)
        return
    counts.text_only += not row.sample.images
    counts.with_images += bool(row.sample.images)
    counts.embedded += any(image.bytes is not None for image in row.sample.images)
    counts.marked += row.marked
    writer.sample(row.key, row.sample, row.kept)


def _identifier(row: Row) -> str | None:
    """The id of a row that failed, where it can be told and stored."""
    name = None if isinstance(row.content, RowError) else identifier(row.content)
    try:
        (name or "").encode()
    except UnicodeEncodeError:
        return None
    return name
