"""Whose the files in and around an output are, which their names alone say, and the deletion of a stage's own.

A file is a run's where its name holds the run's id, or where it is on the record's list of files whose names come from
elsewhere (a checkpoint's config.json).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vig_ray.errors import StageError
from vig_ray.storage import absolute, delete_empty_folders, delete_tree, exists, filesystem, join, list_files, one_line


def check_owned(
    directory: str, stage: str, record: Mapping[str, Any], folders: Sequence[str], files: Sequence[str]
) -> list[str]:
    """The files that runs of the stage left in their places. Raises StageError, naming the first, where others lie."""
    parent = parent_of(directory)
    listed = {*record.get("files", ()), *record.get("stale_files", ())}
    holds_run = _pattern([*record.get("runs", ()), *runs_to_go(record, committed=False)])
    present = [f"{folder}/{name}".rstrip("/") for folder in folders for name in list_files(join(parent, folder))]
    present += [name for name in files if exists(join(parent, name)).name != "NotFound"]
    for name in sorted(present):
        if name not in listed and not holds_run.search(name):
            raise StageError(
                f"{directory}: {join(parent, name)} was not written by `vig {stage}`; move it away, or choose another "
                "--out"
            )
    return present


def runs_to_go(record: Mapping[str, Any], *, committed: bool) -> list[str]:
    """The runs whose files are to go: those replaced before, an extension that wasn't committed, and, with
    `committed`, the ones that make up the output."""
    runs = [*record.get("earlier", ()), *([record["extending"]["run"]] if "extending" in record else [])]
    return sorted({*runs, *(record.get("runs", ()) if committed else ())})


def delete_owned(parent: str, stage: str, folders: Iterable[str], runs: Sequence[str], files: Iterable[str]) -> None:
    """Delete what is called after `runs`, the listed files, and the folders that this leaves empty."""
    holds_run = _pattern(runs)
    gone = [f"{folder}/{name}" for folder in folders for name in list_files(join(parent, folder))]
    gone = [name for name in gone if holds_run.search(name)]
    fs, path = filesystem(parent)
    try:
        for name in (*gone, *files):
            if fs.get_file_info(f"{path}/{name}").is_file:
                fs.delete_file(f"{path}/{name}")
    except OSError as error:
        raise StageError(f"{parent}: can't be cleared: {one_line(error)}") from error
    delete_empty_folders(parent, (*gone, *files))
    for run in runs:
        delete_tree(join(parent, work_folder(stage, run)))


def _pattern(runs: Iterable[str]) -> re.Pattern[str]:
    """Matches names that hold one of these run ids, as a word of its own."""
    return re.compile(rf"(?<![0-9a-z])(?:{'|'.join(map(re.escape, runs)) or '(?!)'})(?![0-9a-z])")


def work_folder(stage: str, run: str) -> str:
    """The name of the folder for what a run needs while it works."""
    return f".{stage}-{run}"


def name_of(directory: str) -> str:
    """The name of an output in the folder that it lies in."""
    return filesystem(directory)[1].rstrip("/").rpartition("/")[2]


def parent_of(directory: str) -> str:
    """The folder that an output lies in."""
    return absolute(directory).rpartition("/")[0] or "/"
