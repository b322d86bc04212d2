"""The state of a run between two steps: written by all workers at once, read by any number of them.

`torch.distributed.checkpoint` writes each worker's shards and cuts them anew when another number of workers reads
them. What is trained is in it, the optimizer's state, and the log up to that step; frozen weights are not.

    OUT/checkpoints/step-00000200-3f9a12bc-5f2a91/     the run's id, and one of the attempt's own: no two ever write the
                                                       same folder
        __0_0.distcp, ..., .metadata, progress.json
        commit.json                           comes last, when every worker's files are there; without it, it is none
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from vig_ray.errors import StageError
from vig_ray.storage import filesystem, join, one_line, read_bytes, write_bytes
from vig_ray.training.distributed import DistributedContext
from vig_ray.training.training_model import TrainingModel

_PROGRESS, _COMMIT = "progress.json", "commit.json"
_EARLIER_COMMIT = "whole.json"  # its name in checkpoints of earlier versions
_UPLOAD_TRIES = 3


@dataclass(frozen=True)
class Checkpoint:
    """A committed one. `score`: its own held-out loss, None where that wasn't measured."""

    name: str
    step: int
    score: float | None


def committed_checkpoints(directory: str) -> list[Checkpoint]:
    """The checkpoints under `directory` that are complete, oldest first."""
    fs, path = filesystem(directory)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
    checkpoints = []
    for name in sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory):
        for marker in (_COMMIT, _EARLIER_COMMIT):
            if fs.get_file_info(f"{path}/{name}/{marker}").type == pafs.FileType.File:
                record = json.loads(read_bytes(join(directory, name, marker)))
                checkpoints.append(Checkpoint(name, record["step"], record["score"]))
                break
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def to_keep(checkpoints: list[Checkpoint], last: int) -> set[str]:
    """The names of the `last` ones, and of the one with the least score."""
    kept = {each.name for each in checkpoints[-last:]}
    scored = [(each.score, each.name) for each in checkpoints if each.score is not None]
    return kept | ({min(scored)[1]} if scored else set())


@contextmanager
def alone_on_purpose() -> Iterator[None]:
    """Without torch's warning that there is no process group: one process needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


@contextmanager
def on_this_machine(directory: str, name: str) -> Iterator[str]:
    """A local folder with the files of one checkpoint."""
    fs, path = filesystem(join(directory, name))
    if isinstance(fs, pafs.LocalFileSystem):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vig-checkpoint-") as folder:
        pafs.copy_files(path, folder, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        yield folder


def _as_written(optimizer: torch.optim.Optimizer, moments: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as plain tensors: moments in 8 bits are none."""
    in_parts = getattr(optimizer, "in_parts", None)
    written: dict[str, Any] = moments if in_parts is None else in_parts(moments)
    return written


def read(folder: str, training_model: TrainingModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a state, in place; returns its progress."""
    options = StateDictOptions(ignore_frozen_params=True)
    model, moments = get_state_dict(training_model.model, optimizer, options=options)
    state: dict[str, Any] = {"model": model, "optimizer": _as_written(optimizer, moments)}
    with alone_on_purpose():
        load_state(state, checkpoint_id=folder)
    set_state_dict(
        training_model.model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict={**state["optimizer"], "state": moments["state"]},  # whose tensors were filled in place
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
    with open(os.path.join(folder, _PROGRESS), encoding="utf-8") as file:
        progress: dict[str, Any] = json.load(file)
    return progress


def _is_of_a_lost_worker(error: BaseException) -> bool:
    """Whether an error comes from the network between workers, not from the storage: gloo's has no class of its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "DistBackendError" in str(error)


class CheckpointManager:
    """Writes a run's checkpoints under a directory or URI, uploads them while training goes on, and keeps the last
    `keep` and the best.

    `save` and `finalize` are called by every worker alike; a folder on this machine is written in place, a remote one
    is written to a temporary folder and copied by a thread.
    """

    def __init__(self, directory: str, *, keep: int, distributed: DistributedContext, run: str = "") -> None:
        """`run`: the run id that the names of its checkpoints hold."""
        self._directory, self._keep, self._distributed = directory, keep, distributed
        self._run = run
        attempt: str = distributed.gather_objects(secrets.token_hex(3))[0]
        self._attempt = f"{run}-{attempt}" if run else attempt
        self._pool = ThreadPoolExecutor(1)
        self._pending: tuple[Checkpoint, Future[None]] | None = None
        fs, self._path = filesystem(directory)
        self._local = isinstance(fs, pafs.LocalFileSystem)

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        """A local folder with the newest committed checkpoint, or None; what an earlier attempt left goes."""
        # One looks for all: a store may not show everyone the same at the same moment.
        is_first = self._distributed.rank == 0
        listed = committed_checkpoints(self._directory) if is_first else None
        committed = self._distributed.gather_objects(listed)[0]
        if is_first:
            self._delete_all_but({checkpoint.name for checkpoint in committed})
        if not committed:
            yield None
            return
        with on_this_machine(self._directory, committed[-1].name) as folder:
            yield folder
            self._distributed.gather_objects(None)  # nobody goes on, and deletes, while another reads

    def save(
        self,
        step: int,
        training_model: TrainingModel,
        optimizer: torch.optim.Optimizer,
        progress: dict[str, Any],
        score: float | None,
    ) -> None:
        """Begin to keep the state after `step` steps. Raises StageError where the one before can't be kept."""
        self.finalize(wait=True)
        checkpoint = Checkpoint(f"step-{step:08d}-{self._attempt}", step, score)
        model, moments = get_state_dict(
            training_model.model, optimizer, options=StateDictOptions(ignore_frozen_params=True)
        )
        folder = (
            os.path.join(self._path, checkpoint.name) if self._local else tempfile.mkdtemp(prefix="vig-checkpoint-")
        )
        try:
            os.makedirs(folder, exist_ok=True)
            with alone_on_purpose():
                save_state({"model": model, "optimizer": _as_written(optimizer, moments)}, checkpoint_id=folder)
            if self._distributed.rank == 0:
                with open(os.path.join(folder, _PROGRESS), "w", encoding="utf-8") as file:
                    json.dump(progress, file)
        except (Exception, CheckpointException) as error:  # the latter, which wraps what workers raise, is none
            if _is_of_a_lost_worker(error):  # Ray Train begins again without it
                raise RuntimeError(one_line(error)[-300:]) from error
            raise StageError(f"{folder}: a checkpoint can't be written: {one_line(error)[-300:]}") from error
        self._pending = checkpoint, self._pool.submit(self._upload, folder, checkpoint.name)
        if self._local:
            self.finalize(wait=True)

    def _upload(self, folder: str, name: str) -> None:
        if self._local:
            return
        target = join(self._directory, name)
        try:
            for attempt in range(_UPLOAD_TRIES):
                try:
                    fs, path = filesystem(target)
                    fs.create_dir(path, recursive=True)
                    pafs.copy_files(folder, path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
                    return
                except OSError as error:
                    if attempt == _UPLOAD_TRIES - 1:
                        raise StageError(
                            f"{target}: a checkpoint can't be uploaded: {one_line(error)[:300]}"
                        ) from error
                    time.sleep(2.0**attempt)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finalize(self, *, wait: bool = False) -> None:
        """Commit the checkpoint on its way, if every worker's files are there; `wait` until they are.

        Raises StageError, on every worker, where they can't be.
        """
        if self._pending is None:
            return
        checkpoint, upload = self._pending
        if not wait and not all(self._distributed.gather_objects(upload.done())):
            return
        cause = upload.exception()
        causes = [each for each in self._distributed.gather_objects(str(cause) if cause else None) if each]
        self._pending = None
        if causes:
            raise StageError(causes[0])
        if self._distributed.rank == 0:
            workers = self._distributed.workers
            record = json.dumps({"step": checkpoint.step, "score": checkpoint.score, "workers": workers})
            write_bytes(join(self._directory, checkpoint.name, _COMMIT), record.encode())
            self._delete_all_but(to_keep(committed_checkpoints(self._directory), self._keep))

    def _delete_all_but(self, names: set[str]) -> None:
        fs, path = filesystem(self._directory)
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=False, allow_not_found=True))
        for info in infos:
            ours = info.base_name.startswith("step-") and self._run in info.base_name
            if info.type == pafs.FileType.Directory and ours and info.base_name not in names:
                fs.delete_dir(info.path)
