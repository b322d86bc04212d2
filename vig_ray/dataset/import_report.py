"""What an import did, in counts: of some of its rows while it runs, and of all for a person."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vig_ray.dataset.keep import KeptCounts


@dataclass(frozen=True)
class ImportReport:
    """What an import did: read = imported + failed, and imported = text_only + with_images.

    `read`: rows that became samples or failed. `failures`: failed rows by the kind of their error. `left_out`: other
    rows that were read, by the option that left them out. `not_read`: what --limit left unread, in words. `marked`:
    samples whose images had no `<image>` mark, so that they were put first. `kept`: in how many rows each kept column
    has a value.
    """

    directory: str
    read: int
    imported: int
    failed: int
    text_only: int
    with_images: int
    failures: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    not_read: str | None = None
    marked: int = 0
    kept: dict[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """The counts, which add up, and where the samples lie, for a person."""
        others = "".join(f" + left out by {option} {count:,}" for option, count in sorted(self.left_out.items()))
        lines = [
            f"read {self.read + sum(self.left_out.values()):,} = with images {self.with_images:,} "
            f"+ text-only {self.text_only:,} + failed {self.failed:,}{others}"
        ]
        lines += [] if self.not_read is None else [f"  not read: {self.not_read}"]
        lines += [f"  failed {count:,}: {kind}" for kind, count in sorted(self.failures.items(), key=lambda f: -f[1])]
        lines += [f"  kept {name}: in {rows:,} of {self.read:,} rows" for name, rows in self.kept.items()]
        return "\n".join([*lines, *self.notes(), f"samples: {self.directory}"])

    def notes(self) -> list[str]:
        """What was done to samples that a person should know of."""
        if not self.marked:
            return []
        return [f"images without <image> in the text, put first in the first user turn: {self.marked:,} samples"]


@dataclass
class Counts:
    """What became of some of an import's rows; `parts`: files that were written; `embedded`: samples with images in the
    data itself."""

    read: int = 0
    text_only: int = 0
    with_images: int = 0
    embedded: int = 0
    marked: int = 0
    parts: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    kept: KeptCounts = field(default_factory=KeptCounts)
    not_read: str | None = None

    @property
    def imported(self) -> int:
        """Rows that became samples."""
        return self.text_only + self.with_images

    def add(self, other: Counts) -> None:
        """Add those of other rows."""
        self.read += other.read
        self.text_only += other.text_only
        self.with_images += other.with_images
        self.embedded += other.embedded
        self.marked += other.marked
        self.parts += other.parts
        self.failures += other.failures
        self.left_out += other.left_out
        self.kept.merge(other.kept)
        self.not_read = other.not_read or self.not_read

    def report(self, directory: str) -> ImportReport:
        """For a person."""
        return ImportReport(
            directory=directory,
            read=self.read,
            imported=self.imported,
            failed=self.read - self.imported,
            text_only=self.text_only,
            with_images=self.with_images,
            failures=dict(self.failures),
            left_out=dict(self.left_out),
            not_read=self.not_read,
            marked=self.marked,
            kept=dict(sorted(self.kept.rows.items())),
        )
