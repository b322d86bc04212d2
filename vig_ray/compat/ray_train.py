"""Ray Train's inside: what ends a run there that need not end. tests/compat/test_ray_train.py fails where a release
changes any of it. Checked against ray 2.60.0."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy


class Trainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that goes on after a worker was lost while its group began, and that no other Ray disturbs.

    A worker that is lost while the training function is sent to it, which takes as long as that function's imports,
    is no lost worker to Ray Train but an error of its own, and ends the run: see `_FailurePolicy` and `_HalfBegun`.

    Its placement group cleaner, an actor that takes the machines from a run whose controller is gone, is left out. It
    asks the dashboard of the Ray that it finds, which on a machine with several may be another's: that of the cluster
    that began last, and where a Ray has no dashboard, whichever listens on the usual port. There it hears that no such
    controller exists, and ends the workers. Without it Ray frees the machines as soon as the driver ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        # The first, so that it knows of a group before any other can fail.
        return [_HalfBegun(), *(each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback))]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        return super()._initialize_and_run_controller(
            **given | {"failure_policy": _FailurePolicy(self.run_config.failure_config)}
        )


class _FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
    """Counts a worker that was lost while its group began as one that was lost later, by `max_failures`."""

    def make_decision(self, training_failed_error: Exception) -> Any:
        """Whether to try again."""
        lost = getattr(training_failed_error, "controller_failure", None)
        if isinstance(training_failed_error, ControllerError) and isinstance(lost, RayActorError):
            training_failed_error = WorkerGroupError(str(lost), {0: lost})
        return super().make_decision(training_failed_error)


class _HalfBegun(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Frees what a group that failed as it began still holds: Ray Train forgets it, and waits for other machines."""

    def __init__(self) -> None:
        self._group: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Its actors are there."""
        self._group = worker_group

    def after_worker_group_training_start(self, _: Any) -> None:
        """It trains: from here on Ray Train ends it."""
        self._group = None

    def before_controller_execute_failure_decision(self, _: Any) -> None:
        """Something failed."""
        group, self._group = self._group, None
        if group is not None:
            group.shutdown()
