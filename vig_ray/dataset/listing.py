"""Which files a value of `--data` means: a file, a folder, files by a pattern, or splits of a repository."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from vig_ray import hub
from vig_ray.dataset import repository, saved
from vig_ray.dataset.chosen import Chosen
from vig_ray.dataset.folder import list_folder
from vig_ray.dataset.inputs import DataFile
from vig_ray.dataset.kinds import Format, data_and_archives, kind_of, stem, suffix, suffixes
from vig_ray.dataset.patterns import (
    expand,
    fixed_folder,
    has_braces,
    has_wildcards,
    matches,
    uri_below,
    without_signs,
)
from vig_ray.dataset.spec import DataSpec
from vig_ray.dataset.unpacking import is_unpacked
from vig_ray.errors import StageError
from vig_ray.storage import filesystem, one_line, scheme_of

_HEADS_AT_ONCE = 8


@dataclass(frozen=True)
class Listing:
    """What a value of `--data` means.

    `root`: the folder that the files' names in keys are relative to. `archives`: paths or URIs of zips, and of tars
    beside tables, which hold images and no rows; None where only files with rows were asked for. `left_out`: what else
    is there and isn't read, in words.
    """

    name: str
    root: str
    files: list[DataFile]
    archives: list[str] | None = None
    left_out: list[str] = field(default_factory=list)


def find(spec: DataSpec, kind: Format, *, name: str | None = None, dataset: int = 0) -> Listing:
    """The files that a value of `--data` means; `dataset`: which value it is, from 0.

    `name`: the dataset's, by default that of its file, folder or repository. Raises StageError where something is
    missing, nothing of a known format is there, or formats are mixed.
    """
    location = spec.location
    if spec.repository is not None:
        commit = hub.commit_of(spec.repository, spec.revision)
        location = f"hf://datasets/{spec.repository}@{commit}/{spec.location}".rstrip("/")
    name = name or _name_of(spec)
    there = _info(location)
    if there.type == pafs.FileType.File:
        uri = _full(location)
        file = DataFile(uri, kind_of(uri, kind), there.size, there.mtime_ns, name, dataset)
        return Listing(name, uri.rpartition("/")[0], [file])
    if there.type == pafs.FileType.Directory:
        listing = _of_folder(spec, location, kind, name, dataset)
    elif has_braces(location) or _has_wildcards(location):
        listing = _of_pattern(location, kind, name, dataset)
    else:
        raise StageError(f"{location}: no such file")
    kinds = Counter(file.kind for file in listing.files)
    if len(kinds) > 1:
        listed = ", ".join(f"{count} {each}" for each, count in sorted(kinds.items()))
        raise StageError(f"{spec.text}: files of several kinds ({listed}); choose one with --format")
    check_keys(listing.files)
    return listing


def check_keys(files: Sequence[DataFile]) -> None:
    """Raise StageError where rows of two files would have the same keys."""
    keys = Counter(file.key for file in files)
    twice = next((key for key, count in keys.items() if count > 1), None)
    if twice is not None:
        one, other = [file.uri for file in files if file.key == twice][:2]
        both = f"{one} is named twice" if one == other else f"{one} and {other}; import them separately"
        called = twice.partition("/")[2] or twice
        raise StageError(f"two files are called {called}, so their rows would share keys: {both}")


def dataset_name(data: str) -> str:
    """The name of a file or folder without its suffix; for a pattern, its name without the pattern's signs."""
    for part in reversed(filesystem(data)[1].split("/")):
        signs = has_braces(part) or has_wildcards(part)
        if name := without_signs(stem(part)) if signs else stem(part):
            return name
    return "data"


def _name_of(spec: DataSpec) -> str:
    if spec.repository is None:
        return dataset_name(spec.location)
    named = spec.repository.partition("/")[2]
    return dataset_name(f"/{named}/{spec.location}") if spec.location else named


def _of_folder(spec: DataSpec, location: str, kind: Format, name: str, dataset: int) -> Listing:
    folder = list_folder(location)
    asked = spec.config is not None or spec.split is not None
    whole = spec.repository is not None and not spec.location
    if saved.is_saved(folder):
        chosen = saved.files_of(folder, spec.config, spec.split)
    elif asked or whole or (not scheme_of(location) and repository.is_repository(folder)):
        chosen = repository.files_of(folder, spec.config, spec.split, kind)
    else:
        chosen = Chosen(*data_and_archives(folder.visible, kind))
        if not chosen.files:
            ends = ", ".join(suffixes(kind))
            raise StageError(f"{location}: none of its {len(folder.infos):,} files ends in {ends}")
    found = [(each, folder.uri(each), folder.infos[each]) for each in chosen.files]
    files = _data_files(found, kind, name, dataset)
    return Listing(name, folder.root, files, [folder.uri(each) for each in chosen.archives], chosen.left_out)


def _of_pattern(location: str, kind: Format, name: str, dataset: int) -> Listing:
    """The files of a pattern, those of each choice of its braces in their order; with wildcards, sorted by path."""
    root = _full(fixed_folder(location) or ".")
    found: dict[str, Any] = {}
    for each in expand(location):
        if not _has_wildcards(each):
            info = _info(each)
            if info.type != pafs.FileType.File:
                missing = "no such file" if info.type == pafs.FileType.NotFound else "not a file; a pattern names files"
                raise StageError(f"{each}: {missing}")
            found.setdefault(_full(each), info)
            continue
        fs, path = filesystem(each)
        try:
            with hub.explained_if_of_hub(each):
                infos = matches(fs, path)
        except (OSError, ValueError) as error:
            raise StageError(f"{each}: can't be listed: {one_line(error)}") from error
        folder = fixed_folder(each)
        start = filesystem(folder)[1]
        for info in infos:
            if not is_unpacked(info.path):
                found.setdefault(uri_below(folder, start, info.path), info)
    if not found:
        raise StageError(f"{location}: no file matches")
    if not _has_wildcards(location):
        names = {uri: stem(uri) for uri in found}
        if len(set(names.values())) < len(names):
            names = {uri: uri.removeprefix(f"{root}/") for uri in found}
        rows, archives, left_out = list(found), list[str](), list[str]()
    else:
        names = {uri: uri.removeprefix(f"{root}/") for uri in found}
        rows, archives, left_out = data_and_archives(list(found), kind)
        rows = rows or (list(found) if kind != "auto" else [])
        if not rows:
            ends = ", ".join(suffixes(kind))
            raise StageError(f"{location}: none of the {len(found):,} files that match ends in {ends}")
    files = _data_files([(names[uri], uri, found[uri]) for uri in rows], kind, name, dataset)
    return Listing(name, root, files, archives or None, [what.replace(f"{root}/", "") for what in left_out])


def _data_files(found: Iterable[tuple[str, str, Any]], kind: Format, name: str, dataset: int) -> list[DataFile]:
    """`found`: of each file its name in the dataset, its path or URI, and its info."""

    def made(each: tuple[str, str, Any]) -> DataFile:
        file, uri, info = each
        key = f"{name}/{file[: len(file) - len(suffix(file))]}"
        return DataFile(uri, kind_of(uri, kind), info.size, info.mtime_ns, key, dataset)

    with ThreadPoolExecutor(_HEADS_AT_ONCE) as pool:  # those called .json are opened
        return list(pool.map(made, found))


def _has_wildcards(location: str) -> bool:
    # In the address of a web page "?" begins its parameters.
    return has_wildcards(location) and scheme_of(location) not in ("http", "https")


def _full(location: str) -> str:
    """A local path in full, a URI without its last slash."""
    return filesystem(location)[1] if scheme_of(location) in ("", "file") else location.rstrip("/")


def _info(uri: str) -> Any:
    fs, path = filesystem(uri)
    try:
        with hub.explained_if_of_hub(uri):
            return fs.get_file_info(path)
    except OSError as error:
        raise StageError(f"{uri}: can't be reached: {one_line(error)}") from error
