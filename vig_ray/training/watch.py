"""What a person watches while a run trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from vig_ray.training.team import Team
    from vig_ray.training.trainee import Trainee
    from vig_ray.training.worker import Setup, Step


class Watch(Protocol):
    """Is told what happens; on every worker, of which the first speaks."""

    def start(self, setup: Setup, team: Team, trainee: Trainee, log: list[dict[str, Any]]) -> None:
        """Training begins, after the steps that `log` holds."""

    def checked(self, done: int, total: int) -> None:
        """So many samples of `total` have had their tokens compared."""

    def step(self, step: Step, steps: int) -> None:
        """One of `steps` steps is done."""

    def end(self) -> None:
        """All steps are done."""


class Silent:
    """A `Watch` that says nothing."""

    def start(self, setup: Setup, team: Team, trainee: Trainee, log: list[dict[str, Any]]) -> None:
        """See `Watch`."""

    def checked(self, done: int, total: int) -> None:
        """See `Watch`."""

    def step(self, step: Step, steps: int) -> None:
        """See `Watch`."""

    def end(self) -> None:
        """See `Watch`."""
