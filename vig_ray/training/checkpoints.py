"""The state of a run between two steps: written by all workers at once, read by any number of them.

`torch.distributed.checkpoint` writes each worker's shards and cuts them anew when another number of workers reads
them. What is trained is in it, the optimizer's state, and the log up to that step; frozen weights are not.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from vig_ray.training.team import Team
from vig_ray.training.trainee import Trainee

PROGRESS = "progress.json"
_TRAINED_ONLY = StateDictOptions(ignore_frozen_params=True)


class Keeper(Protocol):
    """Where checkpoints go and come from."""

    def latest(self) -> Any:
        """A context with the folder of the newest whole checkpoint, or with None."""

    def save(self, step: int, write: Callable[[str], None], score: float | None) -> None:
        """Keep what `write(folder)` writes, as the state after `step` steps; every worker calls it. `score`: the
        held-out loss then, smaller is better."""


def write(
    folder: str, trainee: Trainee, optimizer: torch.optim.Optimizer, progress: dict[str, Any], team: Team
) -> None:
    """Write this worker's part of the state; every worker calls it, with a folder of its own or a shared one."""
    model, moments = get_state_dict(trainee.model, optimizer, options=_TRAINED_ONLY)
    save_state({"model": model, "optimizer": moments}, checkpoint_id=folder)
    if team.rank == 0:
        with open(os.path.join(folder, PROGRESS), "w", encoding="utf-8") as file:
            json.dump(progress, file)


def read(folder: str, trainee: Trainee, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a state, in place; returns its progress."""
    model, moments = get_state_dict(trainee.model, optimizer, options=_TRAINED_ONLY)
    state: dict[str, Any] = {"model": model, "optimizer": moments}
    load_state(state, checkpoint_id=folder)
    set_state_dict(
        trainee.model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )
    with open(os.path.join(folder, PROGRESS), encoding="utf-8") as file:
        progress: dict[str, Any] = json.load(file)
    return progress


class LocalKeeper:
    """Checkpoints in a folder that all workers see, `step-00000100` and so on: for a run without Ray.

    A checkpoint appears under its name only when it is whole. The last `keep` stay, and the one of the best score.
    """

    def __init__(self, folder: str, *, keep: int, team: Team) -> None:
        self._folder, self._keep, self._team = folder, keep, team
        os.makedirs(folder, exist_ok=True)

    def _whole(self) -> list[str]:
        return sorted(name for name in os.listdir(self._folder) if name.startswith("step-") and "." not in name)

    @contextmanager
    def latest(self) -> Iterator[str | None]:
        """See `Keeper`."""
        whole = self._whole()
        yield os.path.join(self._folder, whole[-1]) if whole else None

    def save(self, step: int, write: Callable[[str], None], score: float | None) -> None:
        """See `Keeper`."""
        final = os.path.join(self._folder, f"step-{step:08d}")
        partial = f"{final}.partial"
        write(partial)
        self._team.gather_objects(None)  # all have written
        if self._team.rank == 0:
            if score is not None:
                with open(os.path.join(partial, "score.json"), "w") as file:
                    json.dump(score, file)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            kept = keep_names({name: self._score(name) for name in self._whole()}, self._keep)
            for name in set(self._whole()) - kept:
                shutil.rmtree(os.path.join(self._folder, name))

    def _score(self, name: str) -> float | None:
        try:
            with open(os.path.join(self._folder, name, "score.json")) as file:
                return float(json.load(file))
        except FileNotFoundError:
            return None


def keep_names(scores: dict[str, float | None], keep: int) -> set[str]:
    """Of checkpoints, oldest first, with their scores: the last `keep`, and the best."""
    names = list(scores)
    kept = set(names[-keep:])
    scored = [(score, name) for name, score in scores.items() if score is not None]
    return kept | ({min(scored)[1]} if scored else set())
