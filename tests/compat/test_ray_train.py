"""Ray Train with vig_ray/compat/ray_train.py: workers that are lost while their group begins."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from vig_ray.compat.ray_train import Trainer

WORKERS = 2


def end_once(mark: Path) -> None:
    """Kill the process that is the first to come here."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class WhenRead:
    """Something that a training function holds: whoever is first to read that from its pickle ends."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return _read, (self._mark,)


def _read(mark: Path) -> WhenRead:
    end_once(mark)
    return WhenRead(mark)


class WhenSetUp(TorchConfig):
    """A worker ends while the process group is set up."""

    mark: Path | None = None

    @property
    def backend_cls(self) -> Any:
        inherited, mark = super().backend_cls, self.mark

        class Backend(inherited):  # type: ignore[misc, valid-type]
            def on_start(self, worker_group: Any, backend_config: Any) -> None:
                if mark is not None:
                    worker_group.execute(end_once, mark)
                super().on_start(worker_group, backend_config)

        return Backend


@pytest.fixture
def freed(local_ray: None) -> Iterator[None]:
    """After a run no group of its workers holds CPUs any more."""
    before = ray.util.placement_group_table()
    yield
    groups = ray.util.placement_group_table()
    states = [groups[group]["state"] for group in groups.keys() - before.keys()]
    assert states
    assert set(states) == {"REMOVED"}


def trainer(folder: Path, function: Any, torch_config: TorchConfig | None = None, *, max_failures: int) -> Trainer:
    return Trainer(
        function,
        torch_config=torch_config or TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=WORKERS),
        run_config=RunConfig(
            name="run", storage_path=str(folder), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )


def leave_a_mark(folder: Path) -> None:
    context = ray.train.get_context()
    assert context.get_world_size() == WORKERS
    (folder / f"rank-{context.get_world_rank()}").touch()


def as_sent(folder: Path, held: Any = None) -> Any:
    """A training function with what it holds."""

    def function(_: Any) -> None:
        assert held is None or isinstance(held, WhenRead)
        leave_a_mark(folder)

    return function


def ranks(folder: Path) -> int:
    return len(list(folder.glob("rank-*")))


@pytest.mark.long
@pytest.mark.usefixtures("freed")
def test_a_worker_lost_while_the_training_function_is_sent(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    trainer(tmp_path, as_sent(tmp_path, WhenRead(mark)), max_failures=1).fit()
    assert mark.exists()
    assert ranks(tmp_path) == WORKERS


@pytest.mark.long
@pytest.mark.usefixtures("freed")
def test_it_counts_as_one_that_is_lost_later(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match="died"):
        trainer(tmp_path, as_sent(tmp_path, WhenRead(tmp_path / "mark")), max_failures=0).fit()


@pytest.mark.long
@pytest.mark.usefixtures("freed")
def test_a_worker_lost_while_the_process_group_is_set_up(tmp_path: Path) -> None:
    config = WhenSetUp(backend="gloo")
    config.mark = tmp_path / "mark"
    trainer(tmp_path, as_sent(tmp_path), config, max_failures=0).fit()
    assert config.mark.exists()
    assert ranks(tmp_path) == WORKERS


def test_ray_train_has_a_cleaner_and_ours_has_none(tmp_path: Path) -> None:
    ours = trainer(tmp_path, as_sent(tmp_path), max_failures=0)
    theirs = {type(each).__name__ for each in super(Trainer, ours)._create_default_callbacks()}
    assert "PlacementGroupCleanerCallback" in theirs, "leave it in: see compat.ray_train.Trainer"
    assert "PlacementGroupCleanerCallback" not in {type(each).__name__ for each in ours._create_default_callbacks()}
