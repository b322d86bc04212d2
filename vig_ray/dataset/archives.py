"""The archives of an import, scanned once, for what it takes to look images up in them."""

from __future__ import annotations

import json
import logging
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from vig_ray.dataset.archive_files import ArchiveFile
from vig_ray.dataset.archived import DamagedArchiveError
from vig_ray.dataset.member_index import write_index, write_scan
from vig_ray.dataset.member_lookup import ALL, ImageArchives
from vig_ray.dataset.members import Member, is_named_like_an_image, members
from vig_ray.dataset.unpacking import UnpackedTars, unpack
from vig_ray.errors import StageError
from vig_ray.storage import join, one_line, write_bytes

log = logging.getLogger(__name__)

_NAMES = 256  # that are kept of all members, to be told where a row's is missing


@dataclass(frozen=True)
class _Scan:
    """What the scan of one archive found, and in which file its records are."""

    records: str
    members: int
    files: list[str]  # that members lie in: the archive, or what it was unpacked to
    top: str  # the folder that all images lie in, "" where there is none
    names: list[str]


@dataclass
class _Seen:
    """What is to be known of all of an archive's members."""

    top: str | None = None
    names: list[str] = field(default_factory=list)
    _count: int = 0
    _every: int = 1

    def add(self, member: Member) -> None:
        if is_named_like_an_image(member.name):
            folder, slash, _ = member.name.partition("/")
            folder = folder if slash else ""
            self.top = folder if self.top in (None, folder) else ""
        if self._count % self._every == 0:
            self.names.append(member.name)
            if len(self.names) == 2 * _NAMES:
                del self.names[1::2]
                self._every *= 2
        self._count += 1


def index_archives(
    archives: Sequence[ArchiveFile],
    folder: str,
    unpacked: str,
    run: str,
    call: Callable[[Sequence[Callable[[], _Scan]]], Iterable[_Scan]],
) -> ImageArchives:
    """Scan archives, and write to `folder` what it takes to look their members up.

    `unpacked`: the folder for images out of compressed tars, in files whose names begin with `run`. `call`: calls each,
    on machines of a cluster or one after the other. Raises StageError where an archive is damaged.
    """
    work = [partial(_scanned, number, each, folder, unpacked, run) for number, each in enumerate(archives)]
    scans = sorted(call(work), key=lambda scan: scan.records)
    added: list[tuple[str, int, int]] = []
    files: list[str] = []
    for scan in scans:
        added.append((scan.records, scan.members, len(files)))
        files += scan.files
    write_index(folder, added)
    log.info("images: %s members in %s archives", f"{sum(scan.members for scan in scans):,}", f"{len(scans):,}")
    about = {
        "archives": [
            {
                "uri": each.uri,
                "folder": each.folder,
                "datasets": each.datasets,
                "top": scan.top,
                "files": scan.files,
            }
            for each, scan in zip(archives, scans, strict=True)
        ],
        "names": {
            dataset: _evenly(
                [
                    name
                    for each, scan in zip(archives, scans, strict=True)
                    if dataset in (each.datasets or (ALL,))
                    for name in scan.names
                ]
            )
            for dataset in {number: None for each in archives for number in each.datasets or (ALL,)}
        },
    }
    write_bytes(join(folder, "archives.json"), json.dumps(about).encode("ascii"))
    return ImageArchives(folder)


def _evenly(names: Sequence[str]) -> list[str]:
    return list(names[:: -(-len(names) // _NAMES) or 1])


def _scanned(number: int, archive: ArchiveFile, folder: str, unpacked: str, run: str) -> _Scan:
    """Scan one archive; done again, it writes the same."""
    log.info("images: reading %s", archive.uri)
    seen = _Seen()
    records = join(folder, f"scan-{number:06d}")
    try:
        if archive.kind in ("zip", "tar"):
            found = ((0, member) for member in members(archive.uri, archive.kind, archive.size))
            return _Scan(records, write_scan(records, _each(found, seen)), [archive.uri], seen.top or "", seen.names)
        with UnpackedTars(unpacked, prefix=f"{run}-{number:06d}-", unfinished=folder) as into:
            count = write_scan(records, _each(unpack(archive.uri, archive.kind, into), seen))
        return _Scan(records, count, into.uris or [archive.uri], seen.top or "", seen.names)
    except FileNotFoundError as error:
        raise StageError(
            f"{archive.uri}: not on the machine that reads it; on a cluster every path must be on storage that all of "
            "its machines share"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError, DamagedArchiveError) as error:
        raise StageError(
            f"{archive.uri}: can't be read ({type(error).__name__}: {one_line(error)}); the archive is damaged or cut "
            "off: fetch it again"
        ) from error


def _each(found: Iterable[tuple[int, Member]], seen: _Seen) -> Iterator[tuple[int, Member]]:
    for number, member in found:
        seen.add(member)
        yield number, member
